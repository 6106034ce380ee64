"""Hidden states at some positions of some texts, and what each part of a layer adds to them."""

from dataclasses import dataclass

import numpy as np

from ..interventions import chain, token_losses
from ..ops import linear
from ..taps import Trace, fits, names_of

STATE_BYTES = 2**30  # at most this much memory for the hidden states of one sample


# ----------------------------------------------------------------------------------------------------- hidden states
@dataclass(eq=False)
class Sample:
    """Hidden states at n positions of some texts, and the labels of those positions."""

    states: dict  # tap name -> [n, D]
    tokens: np.ndarray  # [n] the token at the position
    previous: np.ndarray  # [n] the token before it
    following: np.ndarray  # [n] the token after it, which the model should predict
    texts: np.ndarray  # [n] index of the text
    drawn: np.ndarray  # [n] bool: True if drawn at random; the others only have a labelled sense
    words: np.ndarray  # [n] the labelled word; "" if there is none
    senses: np.ndarray  # [n] the sense of that word
    losses: np.ndarray  # [texts] mean loss of each text, in nats per token
    counts: np.ndarray  # [texts] number of predicted tokens
    writes: dict  # name -> [L, drawn positions], see `writes`


def state_names(config, before_ple=True):
    """The taps of the residual stream at each depth; then, for models with PLE, those just before each layer's PLE."""
    after = ["embed", *(f"layers.{i}.resid_post" for i in range(config.num_hidden_layers))]
    with_ple = config.hidden_size_per_layer_input and before_ple
    return after + [f"layers.{i}.resid_ffn" for i in range(config.num_hidden_layers) if with_ple]


def gather(model, docs, names, positions, advance, taps=None, with_writes=False):
    """Run every document and keep the taps `names` at about `positions` positions in total -> Sample.

    There are fewer positions if they would not fit in STATE_BYTES. The same documents always give the same positions.
    taps: one tap per document, for interventions. advance(1) is called after each document.
    """
    room = STATE_BYTES // (4 * model.config.hidden_size * len(names))
    each = max(1, min(positions, room) // len(docs))
    writing = [tap for tap in WRITES if fits(tap, names_of(model.config))] if with_writes else []
    states, labels, losses, written = {name: [] for name in names}, [], [], []
    for number, doc in enumerate(docs):
        trace = Trace([*names, *writing])
        logits, _ = model(doc.ids, tap=chain(taps[number], trace) if taps else trace)
        losses.append(token_losses(logits, doc.ids).mean())
        inner = np.arange(1, len(doc.ids) - 1)  # positions with a token before and after
        chosen = np.random.default_rng(number).permutation(inner)[:each]
        rows = np.union1d(chosen, [p for p in doc.senses if 0 < p < len(doc.ids) - 1]).astype(int)
        drawn, pairs = np.isin(rows, chosen), [doc.senses.get(p, ("", "")) for p in rows]
        labels.append({
            "tokens": doc.ids[rows],
            "previous": doc.ids[rows - 1],
            "following": doc.ids[rows + 1],
            "texts": np.full(len(rows), number),
            "drawn": drawn,
            "words": [word for word, _ in pairs],
            "senses": [sense for _, sense in pairs],
        })  # fmt: skip
        for name in names:
            states[name].append(trace[name][rows].astype(np.float32))
        if with_writes:
            written.append(writes(trace, model.weights, model.config, rows[drawn]))
        advance(1)
    return Sample(
        states={name: np.concatenate(states.pop(name)) for name in names},
        **{name: np.concatenate([columns[name] for columns in labels]) for name in labels[0]},
        losses=np.array(losses),
        counts=np.array([len(doc.ids) - 1 for doc in docs]),
        writes={name: np.concatenate([w[name] for w in written], axis=-1) for name in (written[0] if written else ())},
    )


# ------------------------------------------------------------------------------------------------------------ writes
WRITES = ["ple.token", *(f"layers.*.{part}" for part in (
    "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_ffn", "ple.gate", "ple.proj", "ple_out"))]  # fmt: skip


def writes(trace, weights, config, rows):
    """What each part adds to the residual stream at the positions `rows` of a trace -> {name: [L, rows]}.

    attention, mlp, ple: the norm of what is added, divided by the norm of what it is added to.
    gate open: the fraction of the P gate values above 0 (below 0, gelu returns nearly 0).
    gate size: the root mean square of the gate values.
    lookup: the fraction of PLE's output that comes from the lookup. PLE's input is (context + lookup) / sqrt(2). The
    gate, the projection and the factor of its norm are the same for both terms, so ple_out = lookup part + context
    part. The fraction is <lookup part, ple_out> / <ple_out, ple_out>; that of the context is 1 minus it. It is
    negative if the lookup part points against ple_out.
    """
    found = {}

    def put(name, values):
        found.setdefault(name, []).append(values)

    for i, w in enumerate(weights.layers):

        def at(name, i=i):
            return trace[f"layers.{i}.{name}"][rows].astype(np.float64)

        for name, added, to in (("attention", "attn_out", "resid_pre"), ("mlp", "mlp_out", "resid_mid")):
            put(name, np.linalg.norm(at(added), axis=-1) / np.linalg.norm(at(to), axis=-1))
        if config.hidden_size_per_layer_input:
            gate, out, proj = at("ple.gate"), at("ple_out"), at("ple.proj")
            put("ple", np.linalg.norm(out, axis=-1) / np.linalg.norm(at("resid_ffn"), axis=-1))
            put("gate open", (gate > 0).mean(-1))
            put("gate size", np.sqrt((gate**2).mean(-1)))
            lookup = (gate * trace["ple.token"][rows, i] * 2**-0.5).astype(np.float32)  # [rows, P]
            root = np.sqrt((proj**2).mean(-1, keepdims=True) + config.rms_norm_eps)  # [rows, 1]
            part = linear(lookup, w.per_layer_projection) / root * w.post_per_layer_input_norm  # [rows, D]
            put("lookup", np.vecdot(part, out) / np.maximum(np.vecdot(out, out), 1e-30))
    return {name: np.stack(values) for name, values in found.items()}
