"""Interventions on per-layer embeddings: switch them off, swap them or round them, and measure what changes."""

from functools import partial

import numpy as np

from ..files import progress
from ..interventions import chain, mean, patch, zero
from ..taps import Edit, Trace
from .measures import by_column, moments, over_texts, shared_variance, standardised
from .states import gather, state_names

BITS = (8, 4, 3, 2)


# ----------------------------------------------------------------------------------------------------- interventions
def quantise(lookup, bits, per):
    """Looked-up rows [T, L, P], rounded to 2**bits evenly spaced values between the smallest and the largest.

    per: "row" takes the smallest and largest of a token's whole row (L * P values), "slice" those of each layer's P.
    """
    axes = (1, 2) if per == "row" else 2
    low, high = lookup.min(axes, keepdims=True), lookup.max(axes, keepdims=True)  # [T, 1 or L, 1] each
    step = np.maximum(high - low, np.finfo(np.float32).tiny) / (2**bits - 1)
    return (np.round((lookup - low) / step) * step + low).astype(lookup.dtype)


def _at_layer(layer, change):
    """A tap that changes one layer's slice [T, 1, P] of the lookup."""

    def edit(lookup):
        changed = lookup.copy()
        changed[:, layer] = change(lookup[:, layer : layer + 1])[:, 0]
        return changed

    return Edit({"ple.token": edit})


def conditions(config):
    """The interventions on PLE -> [(kind, layer or bits or None, make)].

    make(donor, count) gives the tap for a text of `count` tokens; donor is another text's trace of ple and ple.token.
    """
    layers = range(config.num_hidden_layers)

    def fixed(tap):
        return lambda donor, count: tap

    def donated(pattern):  # <bos> keeps its own
        def make(donor, count):
            where = np.arange(1, count)
            return patch(pattern, donor, where, 1 + (where - 1) % (len(donor["ple"]) - 1))

        return make

    def rounded(bits, per):
        return Edit({"ple.token": lambda lookup: quantise(lookup, bits, per)})

    def off(first, last):
        return chain(*(zero(f"layers.{i}.ple_out") for i in range(first, last)))

    found = [
        ("off everywhere", None, fixed(zero("layers.*.ple_out"))),
        ("write set to its mean", None, fixed(mean("layers.*.ple_out"))),
        ("lookup only", None, fixed(zero("ple.context"))),
        ("context only", None, fixed(zero("ple.token"))),
        ("another token's lookup", None, donated("ple.token")),
        ("another token's lookup and context", None, donated("ple")),
    ]
    for per in ("row", "slice"):
        found += [(f"lookup quantised per {per}, bits:", bits, fixed(rounded(bits, per))) for bits in BITS]
    found += [("off in layer", i, fixed(off(i, i + 1))) for i in layers]
    found += [("off from layer", i, fixed(off(i, len(layers)))) for i in layers]
    found += [("lookup pruned in layer", i, fixed(_at_layer(i, np.zeros_like))) for i in layers]
    two = partial(quantise, bits=2, per="slice")
    return found + [("lookup in 2 bits in layer", i, fixed(_at_layer(i, two))) for i in layers]


def interventions(model, docs, positions):
    """Loss and identity under each of `conditions` -> [dict]; the first is the plain model.

    loss: in nats per token. change: the loss minus that of the plain model on the same texts. identity: the
    `shared_variance` of the token at each depth.
    """
    names = state_names(model.config, before_ple=False)
    texts = np.arange(len(docs))
    tried = conditions(model.config) if model.config.hidden_size_per_layer_input else []

    def row(kind, at, sample):
        tokens, where = sample.tokens[sample.drawn], sample.texts[sample.drawn]
        states = [sample.states[name][sample.drawn] for name in names]  # [n, D] each
        shares = [shared_variance(standardised(x, moments(x)), tokens, where) for x in states]
        return {
            "kind": kind,
            "at": at,
            "loss": over_texts(sample.losses, texts, sample.counts),
            "change": over_texts(sample.losses - plain.losses, texts, sample.counts),
            "identity": by_column(shares),
        }

    with progress(f"{model.directory.name}, interventions", (1 + len(tried)) * len(docs)) as advance:
        plain = gather(model, docs, names, positions, advance)
        rows = [row("plain", None, plain)]
        donors = [_lookups(model, doc) for doc in docs[1:] + docs[:1] if tried]
        for kind, at, make in tried:
            taps = [make(donor, len(doc.ids)) for donor, doc in zip(donors, docs, strict=True)]
            rows.append(row(kind, at, gather(model, docs, names, positions, advance, taps)))
    return rows


def _lookups(model, doc):
    """A document's per-layer embeddings, as a trace. They are made before the first layer."""
    trace = Trace(["ple", "ple.token"])
    model(doc.ids, tap=trace, logits=None)
    return trace
