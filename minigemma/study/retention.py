"""All measures at every depth of a model, and several models side by side."""

import json
import math
import sys
import time

import numpy as np

from ..errors import Error
from ..files import progress
from ..ops import linear, rms_norm, softcap
from ..taps import Trace
from ..tensors import checkpoint_tensors
from .handover import conditions as swap_conditions
from .handover import gather_swaps, read
from .measures import (
    RETRIEVAL,
    at_depth,
    by_column,
    chances,
    moments,
    nearest_tokens,
    over_texts,
    probe_types,
    retrieval_ranks,
    standardised,
    table_moments,
)
from .ple import conditions as interventions_on
from .ple import interventions
from .states import gather, state_names
from .texts import documents

SENTENCE = "Tom put the kite in the barn."


# ---------------------------------------------------------------------------------------------------------- together
def hidden_states(model, docs, positions, sentence, swapped):
    """Every measure at every depth of `model`, the hand-over, what the parts of its layers add, a sentence -> a dict.

    swapped: positions for the hand-over, 0 for none.
    """
    head, after = model.weights.embed_tokens, state_names(model.config, before_ple=False)
    names = state_names(model.config)
    with progress(f"{model.directory.name}, hidden states", len(docs)) as advance:
        sample = gather(model, docs, names, positions, advance, with_writes=True)
    drawn, scale = sample.drawn, table_moments(head)
    texts = sample.texts[drawn]
    types = probe_types(sample.tokens[drawn], texts)
    asked, limit = np.flatnonzero(drawn), max(1, RETRIEVAL // (head.shape[0] * head.shape[1]))
    asked = asked[:: -(-len(asked) // limit)]  # evenly from all texts
    found, probes, kept = {}, {}, {}
    with progress(f"{model.directory.name}, measures", len(names)) as advance:
        for name in names:
            states = sample.states.pop(name)
            kept[name] = moments(states[drawn])
            found[name], probes[name] = at_depth(states, sample, asked, types, head, scale)
            advance(1)
    handed = {}
    if swapped and len(types) > 2:  # two words and a third
        with progress(f"{model.directory.name}, hand-over", len(docs)) as advance:
            swaps = gather_swaps(model, docs, after, swapped, types, advance)
        handed = read(swaps, {name: probes[name] for name in after})
    chance = chances(types, head.shape[0])
    return {
        "loss": over_texts(sample.losses, np.arange(len(docs)), sample.counts),
        "texts": len(docs),
        "positions": int(drawn.sum()),
        "retrieval positions": len(asked),
        "sense labels": int((sample.words != "").sum()),
        "types": len(types),
        "ridges": {name: probe.ridges for name, probe in probes.items()},
        "measures": {
            name: {
                "chance": chance.get(name),
                "after": by_column([found[state][name] for state in after]),
                "before PLE": by_column([found[state][name] for state in names[len(after) :]]),
            }
            for name in found["embed"]
        },
        "handover": handed,
        "writes": {name: by_column([over_texts(row, texts) for row in rows]) for name, rows in sample.writes.items()},
        "sentence": lenses(model, sentence, kept, scale),
    }


def lenses(model, sentence, scales, table_scale):
    """One sentence at every depth: the rank of its own tokens, and what two lenses read from the states -> a dict.

    input lens: the row of the token table nearest to the state, standardised by `scales` (state name -> moments) and
    `table_scale` as in `retrieval_ranks`. logit lens: the token that the state would predict if this depth were the
    last (final norm, token table, softcap). Raises Error if the sentence has no token but <bos>.
    """
    config, weights, names = model.config, model.weights, state_names(model.config)
    ids, trace = np.array(model.tokenizer.encode(sentence)), Trace(names)
    if len(ids) < 2:
        raise Error("the sentence is empty; give at least one word (--sentence)")
    model(ids, tap=trace)
    result = {"tokens": [model.tokenizer.token(id) for id in ids[1:]], "rank": {}, "input lens": {}, "logit lens": {}}
    states = {name: trace[name][1:] for name in names}  # [T-1, D] each, without <bos>
    together = np.concatenate([standardised(states[name], scales[name]) for name in names])  # [depths*(T-1), D]
    own = np.tile(ids[1:], len(names))[:, None]  # [depths*(T-1), 1]
    ranks = retrieval_ranks(together, own, weights.embed_tokens, table_scale).reshape(len(names), -1)
    nearest = nearest_tokens(together, weights.embed_tokens, table_scale).reshape(len(names), -1)
    with progress(f"{model.directory.name}, one sentence", len(names)) as advance:
        for name, rank, near in zip(names, ranks, nearest, strict=True):
            normed = rms_norm(states[name], weights.norm, config.rms_norm_eps)
            logits = softcap(linear(normed, weights.embed_tokens), config.final_logit_softcapping)  # [T-1, V]
            result["rank"][name] = rank.tolist()
            result["input lens"][name] = [model.tokenizer.token(id) for id in near]
            result["logit lens"][name] = [model.tokenizer.token(id) for id in logits.argmax(-1)]
            advance(1)
    return result


def passes(model, docs, swapped, changed):
    """How many tokens are read in passes over whole texts, and how many passes over one token there are."""
    tried = len(interventions_on(model.config)) if changed else 0
    lengths = [len(doc.ids) for doc in docs]
    conditions = len(swap_conditions(model.config, (0, 0), ({}, {}), 0))
    return sum(lengths) * (2 if swapped else 1) + (1 + tried) * sum(lengths[:changed]), (2 + conditions) * swapped


def estimate(model, docs, swapped, changed):
    """About how many seconds the passes will take, from one text and one token. The probes come on top."""
    texts, singles = passes(model, docs, swapped, changed)
    start = time.monotonic()
    _, cache = model(docs[0].ids, logits="all")
    middle = time.monotonic()
    model([docs[0].ids[-1]], cache)
    return texts * (middle - start) / len(docs[0].ids) + singles * (time.monotonic() - middle)


def measure(paths, texts, load, *, count, length, positions, swaps, intervention_texts, sentence=SENTENCE):
    """Measure each checkpoint, one after the other -> a list of dicts for JSON.

    load: a function from a path to a Model. count: number of texts; length: tokens read of each; positions: hidden
    states of all texts together; swaps: positions for the hand-over, 0 for no hand-over; intervention_texts: texts for
    the interventions, 0 for no interventions. First stderr shows an estimate of the time, where it is over a minute.
    Raises Error, before it measures anything, if a path cannot be loaded or has no tokenizer.
    """
    models = [load(path) for path in paths]
    for model in models:
        if model.tokenizer is None:
            raise Error(f"{model.directory}: has no tokenizer.json to read texts with; download the whole repository")
    results = []
    for model in models:
        limit = min(length, model.config.max_position_embeddings)
        docs = documents(model.tokenizer, texts[:count], limit)
        few = documents(model.tokenizer, texts[:intervention_texts], limit) if intervention_texts else []
        minutes = estimate(model, docs, swaps, len(few)) / 60
        if minutes > 1:
            print(f"{model.directory.name}: the passes take about {minutes:.0f} minutes", file=sys.stderr)
        kept = hidden_states(model, docs, positions, sentence, swaps)
        sizes = {"texts": count, "length": length, "positions": positions, "swaps": swaps}
        results.append({
            "weights": str(model.directory),
            "layers": [layer.kind for layer in model.config.layers],
            "ple": bool(model.config.hidden_size_per_layer_input),
            "parameters": sum(math.prod(tensor.shape) for tensor in checkpoint_tensors(model.config)),
            "settings": sizes | {"intervention texts": intervention_texts},
            **kept,
            "interventions": interventions(model, few, positions) if few else [],
        })  # fmt: skip
    return json.loads(json.dumps(results), parse_float=lambda digits: float(f"{float(digits):.5g}"))  # rounded
