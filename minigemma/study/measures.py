"""How well a hidden state still shows its token, layer by layer, and how well it shows the tokens beside it.

Depth 0 is the scaled embedding; depth i + 1 is the output of layer i (`resid_post`). Where a model has PLE, the state
just before a layer's PLE (`resid_ffn`) is measured too. Each measure is a function of hidden states [n, D] and labels
[n]; `measures_of` lists them all. Letters: n positions, C classes, B blocks of texts; the others are those of model.py.

    python -m minigemma retention --weights weights/tiny weights/tiny-no-ple --plots figures
    python -m minigemma retention --weights DIR --texts FILE --count 60 --length 128 --positions 2000 --interventions 4

Both commands work on any checkpoint; the second takes a smaller sample, for a model of E2B's size. Everything runs in
one process. For small models on a busy machine set OPENBLAS_NUM_THREADS=1: with more threads, the BLAS splits products
that are too small, and its threads wait for each other.

Errors are standard errors over texts, because positions of one text are not independent. For a mean they come from
the linearised ratio (`over_texts`), for a fraction of variance from a jackknife over blocks of texts. They do not
include the difference between two training runs of the same model. <bos> (an attention sink) and the last token of each
text are left out.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np

RETRIEVAL = 2 * 10**11  # multiply-adds of one retrieval: the larger the token table, the fewer positions
BLOCK = 1024  # rows of the token table read at a time: 6 MB for E2B, still in the cache when they are multiplied
CLASSES = 50  # token types in a probe
RIDGE = 0.1  # added to the correlation matrix's diagonal of ones
BLOCKS = 20  # blocks of texts, for the jackknife


# ---------------------------------------------------------------------------------------------------------- measures
def over_texts(values, texts, weights=None):
    """The (weighted) mean of values [n] and its standard error over texts [n] -> (mean, error).

    The mean is a ratio of sums over texts, sum(a) / sum(b). Its error is linearised: it comes from a - mean * b, and is
    None for a single text.
    """
    weights = np.ones(len(values)) if weights is None else weights
    a, b = np.bincount(texts, weights * values), np.bincount(texts, weights)  # [texts] each
    a, b = a[b > 0], b[b > 0]
    average = a.sum() / b.sum()
    spread = ((a - average * b) ** 2).sum() * len(a) / max(1, len(a) - 1)
    return float(average), float(np.sqrt(spread) / b.sum()) if len(a) > 1 else None


def table_mean(token_table):
    """The mean row of the token table, [D]."""
    starts = range(0, token_table.shape[0], BLOCK)
    total = sum(np.asarray(token_table[start : start + BLOCK]).sum(0, dtype=np.float64) for start in starts)
    return (total / token_table.shape[0]).astype(np.float32)


def retrieval_ranks(states, labels, token_table, centre, middle):
    """Rank of the rows `labels` [n, m] among all rows of the token table by cosine with the state -> [n, m], from 1.

    Both are centred: states [n, D] by their mean `centre` ([D], or one mean per state, [n, D]), the table by its mean
    `middle` [D]. By chance every rank is equally probable.
    """
    states = _unit(states - centre)  # [n, D]
    rows = [_unit(np.asarray(token_table[column]) - middle) for column in labels.T]  # m of [n, D]
    own = np.stack([np.vecdot(states, row) for row in rows], axis=-1)  # [n, m]
    ranks = np.ones(labels.shape, int)  # [n, m]
    for _, cosines in _cosines(states, token_table, middle):
        for column in range(labels.shape[1]):
            ranks[:, column] += (cosines > own[:, column, None] + 1e-6).sum(-1)  # 1e-6: the own row, rounded otherwise
    return ranks


def nearest_tokens(states, token_table, centre, middle):
    """The input lens: the row of the token table nearest to each state by cosine, both centred as above -> [n]."""
    states = _unit(states - centre)  # [n, D]
    best, nearest = np.full(len(states), -np.inf), np.zeros(len(states), int)
    for start, cosines in _cosines(states, token_table, middle):
        here = cosines.argmax(-1)
        value = cosines[np.arange(len(states)), here]
        nearest, best = np.where(value > best, start + here, nearest), np.maximum(value, best)
    return nearest


def _cosines(states, token_table, middle):
    """Cosines of states [n, D] of length 1 with the centred token table, block by block: (first row, [n, rows])."""
    for start in range(0, token_table.shape[0], BLOCK):
        rows = np.asarray(token_table[start : start + BLOCK]) - middle  # [rows, D]
        yield start, states @ rows.T / np.maximum(np.sqrt(np.vecdot(rows, rows)), 1e-12)


def probe_classes(labels, train, test):
    """The CLASSES most frequent token types and as many rare ones -> {"frequent": ids, "rare": ids}.

    Both occur at least 5 times in training and twice in testing. Rare: the least frequent of those, without the
    frequent ones.
    """
    kinds, seen = np.unique(labels[train], return_counts=True)
    asked = np.array([(labels[test] == kind).sum() for kind in kinds])
    kinds, seen = kinds[(seen >= 5) & (asked >= 2)], seen[(seen >= 5) & (asked >= 2)]
    order = kinds[np.argsort(-seen, kind="stable")]
    return {"frequent": order[:CLASSES], "rare": order[CLASSES:][-CLASSES:]}


def probe(states, labels, texts, train, test, classes):
    """Balanced accuracy with which a linear probe reads the label from the state -> (accuracy, error).

    It is trained on the rows `train` and tested on the rows `test` (bool [n], from different texts) whose label is in
    `classes`. Every class has the same weight in training and in testing, so chance is 1 / C. None for fewer than two
    classes.
    """
    if len(classes) < 2:
        return None
    train, test = (np.flatnonzero(rows & np.isin(labels, classes)) for rows in (train, test))
    right = fit_probe(states[train], labels[train])(states[test]) == labels[test]
    known = np.unique(labels[test], return_inverse=True)[1]
    return over_texts(right, texts[test], 1 / np.bincount(known)[known])


def fit_probe(states, labels):
    """Ridge regression in closed form from states [n, D] to one-hot labels -> a function, states [m, D] -> labels [m].

    Every label has the same weight, however many rows it has.
    """
    classes, y = np.unique(labels, return_inverse=True)  # [C], [n]
    weights = 1 / np.bincount(y)[y] / len(classes)  # [n], sum 1
    x = states.astype(np.float64)  # [n, D]
    centre = weights @ x  # [D]
    scale = np.sqrt(weights @ (x - centre) ** 2) + 1e-12  # [D]
    x = (x - centre) / scale  # [n, D]
    hot = np.eye(len(classes))[y] - 1 / len(classes)  # [n, C]
    gram = (x * weights[:, None]).T @ x + RIDGE * np.eye(x.shape[1])  # [D, D]
    coefficients = np.linalg.solve(gram, (x * weights[:, None]).T @ hot)  # [D, C]
    return lambda states: classes[((states - centre) / scale @ coefficients).argmax(-1)]


def shared_variance(states, labels, texts):
    """The fraction of the states' variance that the label explains -> (fraction, jackknife error over blocks of texts).

    1 - (variance within the position's label, mean over positions) / (variance of all states). The variance within a
    label is divided by its degrees of freedom, so labels that explain nothing give 0 even if each has few positions. A
    label that occurs once has no degree of freedom and is left out; None if every label occurs once. (The adjusted R2
    of a table of means weighs each label by its degrees of freedom. Frequent labels then count more, most of all in
    small samples, and the states of rare tokens vary less: the result would depend on the size of the sample.)
    """
    kinds, labels = np.unique(labels, return_inverse=True)
    x = states - states.mean(0)  # [n, D]
    blocks = min(BLOCKS, len(np.unique(texts)))
    block = np.searchsorted(np.unique(texts), texts) % blocks
    sums = np.zeros((blocks, len(kinds), x.shape[1]), np.float32)  # [B, C, D]
    counts = np.zeros((blocks, len(kinds)))  # [B, C]
    squares = np.zeros((blocks, len(kinds)))  # [B, C]
    for b in range(blocks):
        rows = block == b
        hot = np.arange(len(kinds))[:, None] == labels[rows]  # [C, n of the block]
        sums[b], counts[b] = hot.astype(np.float32) @ x[rows], hot.sum(-1)
        squares[b] = np.bincount(labels[rows], np.vecdot(x[rows], x[rows]), len(kinds))

    def fraction(total, count, square):  # [C, D], [C], [C]
        total, count, square = (array[count > 1] for array in (total.astype(np.float64), count, square))
        n, within = count.sum(), square - np.vecdot(total, total) / count  # [C], sums of squares
        overall = (square.sum() - (total.sum(0) ** 2).sum() / n) / (n - 1)
        return float(1 - (within * count / (count - 1)).sum() / n / overall)

    all_sums, all_counts, all_squares = sums.sum(0), counts.sum(0), squares.sum(0)
    if not (all_counts > 1).any():
        return None
    if blocks == 1:
        return fraction(all_sums, all_counts, all_squares), None
    without = [fraction(all_sums - sums[b], all_counts - counts[b], all_squares - squares[b]) for b in range(blocks)]
    error = np.sqrt((blocks - 1) / blocks * ((without - np.mean(without)) ** 2).sum())
    return fraction(all_sums, all_counts, all_squares), float(error)


def sense_separation(states, words, senses, texts):
    """How well the state tells the two senses of a word apart: the nearest centroid's balanced accuracy, and its error.

    The centroids of both senses come from texts with an even index; texts with an odd index test them. (Doing it the
    other way round as well would use each text twice, and the two results would not be independent.) Distances are
    divided, dimension by dimension, by the spread within senses. Every sense has the same weight, so chance is 1/2. A
    tie counts one half: at depth 0 a token has the same state in both senses. If a word has several forms, the form may
    give the sense away; depth 0 shows how much. None if there is no word to test.
    """
    train, test = (texts % 2 == 0) & (words != ""), (texts % 2 == 1) & (words != "")
    pairs = {}  # word -> its senses
    for word, sense in sorted(set(zip(words[train], senses[train], strict=True))):
        pairs.setdefault(word, []).append(sense)
    pairs = {word: both for word, both in pairs.items() if len(both) == 2}
    test &= np.isin(words, list(pairs))
    if not test.any():
        return None
    keys = [(word, sense) for word, both in pairs.items() for sense in both]
    rows = {key: np.flatnonzero(train & (words == key[0]) & (senses == key[1])) for key in keys}
    centroids = {key: states[where].mean(0) for key, where in rows.items()}  # [D] each
    spread = np.concatenate([states[where] - centroids[key] for key, where in rows.items()]).std(0)  # [D]
    spread = np.maximum(spread, 1e-6 * np.abs(states).max())
    right = np.zeros(len(words))
    for word, both in pairs.items():
        asked = np.flatnonzero(test & (words == word))
        far = [(((states[asked] - centroids[word, sense]) / spread) ** 2).sum(-1) for sense in both]
        away = (far[1] - far[0]) * np.where(senses[asked] == both[0], 1, -1)  # above 0: nearer to its own
        right[asked] = np.where(np.abs(away) <= 1e-5 * (far[0] + far[1]), 0.5, away > 0)
    known = np.unique(np.char.add(np.char.add(words[test], "\n"), senses[test]), return_inverse=True)[1]
    return over_texts(right[test], texts[test], 1 / np.bincount(known)[known])


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def by_column(pairs):
    """[(mean, error) or None, ...] -> {"mean": [...], "error": [...]}, for JSON."""
    return {
        "mean": [None if pair is None else pair[0] for pair in pairs],
        "error": [None if pair is None else pair[1] for pair in pairs],
    }


# ----------------------------------------------------------------------------------------------------- all of them
@dataclass(frozen=True)
class Measure:
    """One number that is measured at every depth."""

    name: str
    reads: str  # "drawn": the states of the drawn positions, "all": of all positions, "ranks": of `retrieval_ranks`
    of: Callable  # that array -> (value, standard error), or None where there is nothing to measure
    chance: float  # what guessing gives
    neighbours: bool = False  # also read from the embeddings of the two neighbours


def measures_of(sample, asked, vocabulary):
    """The measures of a Sample's states -> [Measure].

    asked: the positions [m] whose ranks are read; column 0 of the ranks is the own token's, column 1 the next token's.
    vocabulary: number of rows of the token table.
    """
    drawn, where = sample.drawn, sample.texts[asked]
    texts = sample.texts[drawn]
    train, test = texts % 2 == 0, texts % 2 == 1
    senses = {"words": sample.words, "senses": sample.senses, "texts": sample.texts}
    log_rank = float(np.log10(np.arange(1, vocabulary + 1)).mean())
    found = [
        Measure("retrieval", "ranks", lambda ranks: over_texts(ranks[:, 0] == 1, where), 1 / vocabulary),
        Measure("retrieval, log10 of rank", "ranks", lambda ranks: over_texts(np.log10(ranks[:, 0]), where), log_rank),
        Measure("retrieval, next token", "ranks", lambda ranks: over_texts(ranks[:, 1] == 1, where), 1 / vocabulary),
        Measure("senses", "all", partial(sense_separation, **senses), 0.5),
    ]
    for label, array in (("token", sample.tokens), ("previous", sample.previous), ("next", sample.following)):
        known = {"labels": array[drawn], "texts": texts}
        found.append(Measure(f"variance, {label}", "drawn", partial(shared_variance, **known), 0.0))
        for group, classes in probe_classes(array[drawn], train, test).items():
            read = partial(probe, **known, train=train, test=test, classes=classes)
            chance = 1 / max(1, len(classes))
            found.append(Measure(f"probe, {label}, {group}", "drawn", read, chance, neighbours=label == "token"))
    return found
