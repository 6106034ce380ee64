"""All measures at every depth of a model, and several models side by side."""

import os
import signal
from contextlib import contextmanager
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context

import numpy as np

from ..errors import Error
from ..files import progress
from ..ops import linear, rms_norm, softcap
from ..taps import Trace
from .measures import (
    RETRIEVAL,
    by_column,
    nearest_tokens,
    over_texts,
    probe,
    probe_classes,
    retrieval_ranks,
    sense_separation,
    shared_variance,
    table_mean,
)
from .ple import interventions
from .states import gather, state_names
from .texts import documents

SENTENCE = "Tom put the kite in the barn."
PARTS = ("interventions 0", "interventions 1", "hidden states")  # jobs of about the same length
SMALL = 2**26  # bytes of weights below which a model is measured in a process a core, one BLAS thread each


# ---------------------------------------------------------------------------------------------------------- together
def hidden_states(model, docs, positions, sentence):
    """Every measure of `model`'s hidden states at every depth, what its parts write, and one sentence in full.

    A state that has lost its token still knows its neighbours, and they tell much of it: for the token's probe, "from
    neighbours" is what the same probe reads from the embeddings of the token before and the one after.
    """
    config, head = model.config, model.weights.embed_tokens
    names = state_names(config)
    with progress(f"{model.directory.name}, hidden states", len(docs)) as advance:
        sample = gather(model, docs, names, positions, advance, with_writes=True)
    drawn = sample.drawn
    tokens, previous, following, texts = (
        array[drawn] for array in (sample.tokens, sample.previous, sample.following, sample.texts)
    )
    train, test = texts % 2 == 0, texts % 2 == 1
    labels = {"token": tokens, "previous": previous, "next": following}
    classes = {name: probe_classes(array, train, test) for name, array in labels.items()}
    asked, limit = np.flatnonzero(drawn), max(1, RETRIEVAL // (head.shape[0] * head.shape[1]))
    asked, middle = asked[:: -(-len(asked) // limit)], table_mean(head)  # evenly from all texts
    columns = np.stack([sample.tokens, sample.following], axis=-1)  # [n, 2]
    found = {}
    with progress(f"{model.directory.name}, measures", len(names)) as advance:
        for name in names:
            states = sample.states[name]  # [n, D]
            ranks = retrieval_ranks(states[asked], columns[asked], head, states[drawn].mean(0), middle)
            here = {
                "retrieval": over_texts(ranks[:, 0] == 1, sample.texts[asked]),
                "retrieval, log10 of rank": over_texts(np.log10(ranks[:, 0]), sample.texts[asked]),
                "retrieval, next token": over_texts(ranks[:, 1] == 1, sample.texts[asked]),
                "senses": sense_separation(states, sample.words, sample.senses, sample.texts),
            }
            for label, array in labels.items():
                here[f"variance, {label}"] = shared_variance(states[drawn], array, texts)
                for group, chosen in classes[label].items():
                    here[f"probe, {label}, {group}"] = probe(states[drawn], array, texts, train, test, chosen)
            for measure, value in here.items():
                found.setdefault(measure, {})[name] = value
            advance(1)
    layers = range(config.num_hidden_layers)
    after = state_names(config, before_ple=False)
    before = [f"layers.{i}.resid_ffn" for i in layers] if config.hidden_size_per_layer_input else []
    chances = {"retrieval": 1 / head.shape[0], "retrieval, next token": 1 / head.shape[0], "senses": 0.5}
    chances["retrieval, log10 of rank"] = float(np.log10(np.arange(1, head.shape[0] + 1)).mean())
    chances |= {f"variance, {label}": 0.0 for label in labels}
    for label, groups in classes.items():
        chances |= {f"probe, {label}, {group}": 1 / max(1, len(chosen)) for group, chosen in groups.items()}
    beside = np.concatenate([np.asarray(head[previous]), np.asarray(head[following])], axis=-1)  # [n, 2D]
    from_neighbours = {f"probe, token, {group}": probe(beside, tokens, texts, train, test, chosen)
                       for group, chosen in classes["token"].items()}  # fmt: skip
    means = {name: states[drawn].mean(0) for name, states in sample.states.items()}
    return {
        "loss": over_texts(sample.losses, np.arange(len(docs)), sample.counts),
        "texts": len(docs),
        "positions": int(drawn.sum()),
        "retrieval positions": len(asked),
        "sense labels": int((sample.words != "").sum()),
        "measures": {
            name: {
                "chance": chances[name],
                "from neighbours": from_neighbours.get(name),
                "after": by_column([by_state[state] for state in after]),
                "before PLE": by_column([by_state[state] for state in before]),
            }
            for name, by_state in found.items()
        },
        "writes": {name: by_column([over_texts(row, texts) for row in rows]) for name, rows in sample.writes.items()},
        "sentence": lenses(model, sentence, means, middle),
    }


def lenses(model, sentence, means, middle):
    """One sentence through every depth: the rank of its own token, and what two lenses read there -> a dict of lists.

    input lens: the row of the token table nearest to the state, centred as in `retrieval_ranks` by means (state name ->
    [D]) and middle [D]. logit lens: the token that the state would predict if this depth were the last: final norm,
    token table, softcap.
    """
    config, weights, names = model.config, model.weights, state_names(model.config)
    ids, trace = np.array(model.tokenizer.encode(sentence)), Trace(names)
    if len(ids) < 2:
        raise Error("the sentence is empty; give at least one word (--sentence)")
    model(ids, tap=trace)
    result = {"tokens": [model.tokenizer.token(id) for id in ids[1:]], "rank": {}, "input lens": {}, "logit lens": {}}
    states = {name: trace[name][1:] for name in names}  # [T-1, D] each, without <bos>
    together = np.concatenate(list(states.values()))  # [depths*(T-1), D], so that the table is read once for all
    centre = np.repeat([means[name] for name in names], len(ids) - 1, axis=0)  # [depths*(T-1), D]
    own = np.tile(ids[1:], len(names))[:, None]  # [depths*(T-1), 1]
    ranks = retrieval_ranks(together, own, weights.embed_tokens, centre, middle).reshape(len(names), -1)
    nearest = nearest_tokens(together, weights.embed_tokens, centre, middle).reshape(len(names), -1)
    with progress(f"{model.directory.name}, one sentence", len(names)) as advance:
        for name, rank, near in zip(names, ranks, nearest, strict=True):
            normed = rms_norm(states[name], weights.norm, config.rms_norm_eps)
            logits = softcap(linear(normed, weights.embed_tokens), config.final_logit_softcapping)  # [T-1, V]
            result["rank"][name] = rank.tolist()
            result["input lens"][name] = [model.tokenizer.token(id) for id in near]
            result["logit lens"][name] = [model.tokenizer.token(id) for id in logits.argmax(-1)]
            advance(1)
    return result


def measure(paths, texts, load, *, count, length, positions, tried, sentence=SENTENCE):
    """Everything about each checkpoint -> a list of dicts for JSON. Small ones run in several processes.

    load: a function from a path to a Model. count, length, positions: texts, tokens of each, positions of all.
    tried: texts for the interventions; 0 leaves them out.
    """
    part = partial(_part, texts, count, length, positions, tried, sentence)
    found = {}
    if all(_size(load(path)) < SMALL for path in paths):
        jobs = [(path, name) for path in paths for name in PARTS]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ignore = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}  # the parent ends them
        with _one_thread_each(), get_context("spawn").Pool(min(cores, len(jobs)), **ignore) as pool:
            found = dict(zip(jobs, pool.starmap(partial(_loaded, load, part), jobs, chunksize=1), strict=True))
    results = []
    for path in paths:
        model = load(path)
        first, second, states = (found[path, name] if found else part(model, name) for name in PARTS)
        results.append({
            "weights": str(model.directory),
            "layers": [layer.kind for layer in model.config.layers],
            "ple": bool(model.config.hidden_size_per_layer_input),
            "settings": {"texts": count, "length": length, "positions": positions, "intervention texts": tried},
            **states,
            "interventions": first[:1] + [row for pair in zip_longest(first[1:], second[1:]) for row in pair if row],
        })  # fmt: skip
    return results


@contextmanager
def _one_thread_each():
    """New processes find this variable and share out no work to threads of their own, unless the user has set it."""
    given = os.environ.get("OMP_NUM_THREADS")
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    try:
        yield
    finally:
        if given is None:
            del os.environ["OMP_NUM_THREADS"]


def _loaded(load, part, path, name):
    """One job of `measure` in a process of its own."""
    return part(load(path), name)


def _part(texts, count, length, positions, tried, sentence, model, name):
    """One of PARTS of `measure` for one model."""
    if model.tokenizer is None:
        raise Error(f"{model.directory}: has no tokenizer.json, so text cannot be read; download the whole repository")
    limit = min(length, model.config.max_position_embeddings)
    if name == "hidden states":
        return hidden_states(model, documents(model.tokenizer, texts[:count], limit), positions, sentence)
    if not tried:
        return []
    docs = documents(model.tokenizer, texts[:tried], limit)
    return interventions(model, docs, positions, slice(int(name[-1]), None, 2))


def _size(model):
    return sum(path.stat().st_size for path in model.directory.glob("*.safetensors"))
