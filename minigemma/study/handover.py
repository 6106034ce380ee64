"""The hand-over: one position gets the embedding of one word and the per-layer embeddings (PLE) of another.

A probe that was trained on undisturbed states then says, at every depth, which of the two words the state is. The past
stays as it is: a cache holds it, and only the one position is computed again. Two controls belong to it. The swap puts
another word there whole: a probe that names the new word reads the state and does not guess from the past. And a third
word, which is nowhere, is named as often as a probe errs.

The words are types that the probe knows. Half of the positions are drawn from frequent types, half from rare ones. The
other word is at half of the positions any type, at the others the one that the model expected most in this place.
"""

from dataclasses import dataclass

import numpy as np

from ..cache import EMPTY
from ..interventions import chain, log_softmax, patch, scale
from ..model import no_tap
from ..taps import Edit, Trace
from .measures import FREQUENT, by_column, over_texts
from .states import STATE_BYTES

DOSES = (0, 0.5, 2)  # factors of what PLE writes
MIXED = "embedding stays, PLE of another"
REVERSED = "embedding of another, PLE stays"


@dataclass(eq=False)
class Swaps:
    """What n positions became under every condition. `first` and `second` are the words that the probe may name."""

    texts: np.ndarray  # [n] index of the text
    words: dict  # condition -> (first [n], second [n])
    third: np.ndarray  # [n] a word that is nowhere
    groups: dict  # name -> [n] bool: some of the positions
    states: dict  # tap name -> condition -> [n, D]
    nearer: dict  # condition -> [n] bool: the next-token distribution is nearer to that of `second`


def conditions(config, ids, taps, seed):
    """What to run at a position -> {condition: (id, tap, word 1, word 2)}.

    ids: the word that stands there and another. taps: for each of the two a trace of its embedding's ple, ple.token and
    ple.context, None without PLE. seed: of the order in which one control shuffles the gate's values.
    """
    (own, other), pair = ids, tuple(ids)
    found = {"undisturbed": (own, no_tap, *pair), "another word": (other, no_tap, other, own)}
    if not config.hidden_size_per_layer_input:
        return found
    mine, theirs = taps
    order = np.random.default_rng(seed).permutation(config.hidden_size_per_layer_input)
    mixed = patch("ple", theirs)
    found[MIXED] = (own, mixed, *pair)
    found[REVERSED] = (other, patch("ple", mine), other, own)
    found["lookup of another"] = (own, patch("ple.token", theirs), *pair)
    found["projection of another"] = (own, patch("ple.context", theirs), *pair)
    for dose in DOSES:
        found[f"{MIXED}, written {dose:g} times"] = (own, chain(mixed, scale("layers.*.ple_out", dose)), *pair)
    shuffled = Edit({"layers.*.ple.gate": lambda gate: gate[:, order]})
    found[f"{MIXED}, gate shuffled"] = (own, chain(mixed, shuffled), *pair)
    return found


def gather_swaps(model, docs, names, positions, types, advance):
    """Run every condition at about `positions` positions -> Swaps. The same documents always give the same positions.

    There are fewer positions if their states would not fit in STATE_BYTES. names: the taps of the states to keep.
    types: the words, the most frequent first. advance(1) follows each document.
    """
    size = 4 * model.config.hidden_size * len(names) * len(conditions(model.config, (0, 0), ({}, {}), 0))  # bytes
    docs = docs[: max(1, STATE_BYTES // size // 2)]
    each = max(2, min(-(-positions // len(docs)), STATE_BYTES // size // len(docs)))
    places = [_draw(doc.ids, types, each, number) for number, doc in enumerate(docs)]
    columns = {"texts": [], "third": [], "expected": [], "rare": []}
    words, states, nearer = {}, {name: {} for name in names}, {}
    for number, doc in enumerate(docs):
        rng, cache, done = np.random.default_rng([1, number]), EMPTY, 0
        for place, at in enumerate(places[number]):
            logits, cache = model(doc.ids[done:at], cache, logits="last")  # [1, V]
            done, own = at, doc.ids[at]
            others = types[types != own]
            wanted = bool((number + place) % 2)
            other = others[logits[0, others].argmax()] if wanted else rng.choice(others)
            traces = []
            for id in (own, other):
                traces.append(Trace("ple*" if model.config.hidden_size_per_layer_input else "embed"))
                model([id], cache, tap=traces[-1], logits=None)
            columns["texts"].append(number)
            columns["expected"].append(wanted)
            columns["rare"].append(own not in types[:FREQUENT])
            columns["third"].append(rng.choice(others[others != other]))
            outcomes = {}
            for condition, (id, tap, *pair) in conditions(model.config, (own, other), traces, number).items():
                trace = Trace(names)
                outcomes[condition], _ = model([id], cache, tap=chain(tap, trace), logits="last")
                words.setdefault(condition, []).append(pair)
                for name in names:
                    states[name].setdefault(condition, []).append(trace[name][0].astype(np.float32))
            undisturbed, swapped = (log_softmax(outcomes[name])[0] for name in ("undisturbed", "another word"))
            for condition, outcome in outcomes.items():
                now = log_softmax(outcome)[0]
                away = {id: (np.exp(word) * (word - now)).sum() for id, word in ((own, undisturbed), (other, swapped))}
                first, second = words[condition][-1]
                nearer.setdefault(condition, []).append(away[second] < away[first])  # KL divergences
        advance(1)
    columns = {name: np.array(column) for name, column in columns.items()}
    return Swaps(
        texts=columns["texts"],
        third=columns["third"],
        groups={
            "a frequent word stands there": ~columns["rare"],
            "a rare word stands there": columns["rare"],
            "the other word is expected": columns["expected"],
            "the other word is any": ~columns["expected"],
        },
        words={condition: np.array(pairs).T for condition, pairs in words.items()},
        states={
            name: {condition: np.stack(rows) for condition, rows in found.items()} for name, found in states.items()
        },
        nearer={condition: np.array(rows) for condition, rows in nearer.items()},
    )


def _draw(ids, types, count, seed):
    """Positions of a text, half of them from rare types if it has so many, in order."""
    rng = np.random.default_rng([0, seed])
    frequent, rare = (
        rng.permutation(1 + np.flatnonzero(np.isin(ids[1:-1], kinds))) for kinds in (types[:FREQUENT], types[FREQUENT:])
    )
    rare = rare[: count // 2]
    return sorted([*rare, *frequent[: count - len(rare)]])


def read(swaps, probes):
    """What the probes say of every condition, by depth -> a dict for JSON. probes: tap name -> CrossProbe.

    first, second, third: how often the state is called that word. crossing: for each split of the texts, the depth
    from which `second` is named more often than `first`. obeys: how often the next-token distribution is nearer to
    that of `second`.
    """
    found = {}
    for condition, (first, second) in swaps.words.items():
        named = np.stack([probe(swaps.states[name][condition], swaps.texts) for name, probe in probes.items()])
        says = {
            "first": named == first,
            "second": named == second,
            "third": named == swaps.third,
        }  # [depths, R, n] each
        row = {word: _by_depth(right, swaps.texts, slice(None)) for word, right in says.items()}
        row["crossing"] = [_crossing(says["first"][:, r].mean(-1), says["second"][:, r].mean(-1))
                           for r in range(named.shape[1])]  # fmt: skip
        row["obeys"] = over_texts(swaps.nearer[condition], swaps.texts)
        row["groups"] = {
            group: {word: _by_depth(says[word], swaps.texts, rows) for word in ("first", "second")}
            for group, rows in swaps.groups.items()
            if rows.any()
        }
        found[condition] = row
    return {"positions": len(swaps.texts), "conditions": found}


def _by_depth(right, texts, rows):
    """[depths, R, n] -> mean over splits and positions, and its error over texts, by depth."""
    return by_column([over_texts(depth[:, rows].mean(0), texts[rows]) for depth in right])


def _crossing(first, second):
    """The depth, between two of them by linear interpolation, from which second exceeds first; None: nowhere."""
    lead = second - first  # [depths]
    after = next((depth for depth, value in enumerate(lead) if value > 0), None)
    return after and float(after - lead[after] / (lead[after] - lead[after - 1]))
