"""The exercises of notebook 07."""

import numpy as np

from minigemma import Trace
from minigemma.interventions import chain, patch
from minigemma.study import retention
from minigemma.study.measures import over_texts, shared_variance

from . import OPEN, Calls, Judged

RNG = np.random.default_rng(0)
LABELS = np.repeat(np.arange(5), (2, 3, 4, 5, 6))
STATES = RNG.normal(size=(5, 8))[LABELS] + RNG.normal(size=(20, 8))
STATES -= STATES.mean(0)
OWN_MEANS = np.array([STATES[label == LABELS].mean(0) for label in LABELS])
ROWS = RNG.normal(size=(6, 16))


def standard_error(values):
    return over_texts(values, np.arange(len(values)))[1]


def explained(x, own_mean, size):
    return shared_variance(STATES, LABELS, np.arange(len(LABELS)))[0]


def nearest(x, table):
    return np.array([max(range(len(table)), key=lambda n: row @ table[n] / np.linalg.norm(table[n])) for row in x])


def rounded(row, bits):
    values = np.linspace(row.min(), row.max(), 2**bits)
    return values[np.abs(row[..., None] - values).argmin(-1)]


def judge_mixed(model):
    """A function: a student's tap -> what is wrong with it."""
    sentence = np.array(model.tokenizer.encode(retention.SENTENCE))  # [T]
    kite, doll = (model.tokenizer.encode(word, bos=False)[0] for word in (" kite", " doll"))
    place = int(np.flatnonzero(sentence == kite)[0])
    theirs, expected = Trace("ple"), Trace("ple")
    model(np.where(np.arange(len(sentence)) == place, doll, sentence), tap=theirs, logits=None)
    model(sentence, tap=chain(patch("ple", theirs, place), expected), logits=None)

    def wrong(mine):
        if mine is ... or not callable(mine):
            return OPEN if mine is ... else "give a tap: a function of a name and an array"
        found = Trace("ple")
        model(sentence, tap=chain(mine, found), logits=None)
        rows = np.flatnonzero(np.abs(found["ple"] - expected["ple"]).max((1, 2)) > 1e-5)
        return f"ple is another at position {', '.join(map(str, rows[:4]))}" if len(rows) else None

    return wrong


TARGETS = {
    "07.1": lambda model: Calls(standard_error, {"": (ROWS[0],), "three values": (ROWS[1, :3],)}),
    "07.2": lambda model: Judged(judge_mixed(model)),
    "07.3": lambda model: Calls(nearest, {"": (ROWS, RNG.normal(size=(30, 16)))}),
    "07.4": lambda model: Calls(explained, {"": (STATES, OWN_MEANS, np.bincount(LABELS)[LABELS])}),
    "07.5": lambda model: Calls(rounded, {f"{bits} bits": (ROWS, bits) for bits in (2, 3)}),
}
