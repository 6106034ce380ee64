"""How well a hidden state still shows its token, layer by layer, and how well it shows the tokens beside it.

Depth 0 is the scaled embedding; depth i + 1 is the output of layer i (`resid_post`). Where a model has PLE, the state
just before a layer's PLE (`resid_ffn`) is measured too. Each measure is a function of hidden states [n, D] and labels
[n]; `at_depth` takes them all. Letters: n positions, C classes, B blocks of texts, R splits; the others are those of
model.py.

In released Gemma weights one or two of the D coordinates can hold most of the variance. So all measures but the one
marked "raw" first standardise each coordinate: to multiply a coordinate of every state by a constant changes none of
them. The share of the largest coordinate is measured too: where it is large, the raw number is about that coordinate.

Errors are standard errors over texts, because positions of one text are not independent. For a mean they come from
the linearised ratio (`over_texts`), for a fraction of variance from a jackknife over blocks of texts. They do not
include the difference between two training runs of the same model. <bos> (an attention sink) and the last token of each
text are left out.
"""

from dataclasses import dataclass

import numpy as np

RETRIEVAL = 2 * 10**11  # multiply-adds of one retrieval: the larger the token table, the fewer positions
BLOCK = 1024  # rows of the token table read at a time: 6 MB for E2B, still in the cache when they are multiplied
FREQUENT = 50  # token types that count as frequent, the others of a probe are rare
TEXTS_EACH = 8  # texts that a token type must occur in to be asked for by a probe
RIDGES = (0.001, 0.01, 0.1, 1.0)  # added to the covariance within classes, of coordinates whose variance is 1
SPLITS = 3  # random halves of the texts
PROBED = ("token, frequent", "token, rare", "next, frequent", "next, rare", "shuffled labels")
LEADING = 3  # principal components that one of the measures of variance leaves out
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


def moments(states):
    """Mean and spread of each coordinate of states [n, D] -> ([D], [D]), the spread never 0."""
    spread = states.std(0, dtype=np.float64)
    return states.mean(0, dtype=np.float64), np.maximum(spread, 1e-6 * max(spread.max(), 1e-30))


def table_moments(token_table):
    """`moments` of a token table [V, D] that may lie on disk."""
    total, squares = 0, 0
    for start in range(0, token_table.shape[0], BLOCK):
        rows = np.asarray(token_table[start : start + BLOCK]).astype(np.float64)
        total, squares = total + rows.sum(0), squares + (rows**2).sum(0)
    mean = total / token_table.shape[0]
    return mean, np.sqrt(np.maximum(squares / token_table.shape[0] - mean**2, 1e-30))


def standardised(states, scale):
    """States [n, D] less their mean, each coordinate divided by its spread; scale: of `moments`."""
    return ((states - scale[0]) / scale[1]).astype(np.float32)


def largest_share(states):
    """The share of the variance that the coordinate with the largest variance has."""
    variances = states.var(0, dtype=np.float64)
    return float(variances.max() / variances.sum())


def retrieval_ranks(states, labels, token_table, scale):
    """Rank of the rows `labels` [n, m] among all rows of the token table by cosine with the state -> [n, m], from 1.

    Both are standardised: states [n, D] already, the table by its moments `scale`. By chance every rank is equally
    probable.
    """
    states = _unit(states)  # [n, D]
    rows = [_unit(standardised(np.asarray(token_table[column]), scale)) for column in labels.T]  # m of [n, D]
    own = np.stack([np.vecdot(states, row) for row in rows], axis=-1)  # [n, m]
    ranks = np.ones(labels.shape, int)  # [n, m]
    for _, cosines in _cosines(states, token_table, scale):
        for column in range(labels.shape[1]):
            ranks[:, column] += (cosines > own[:, column, None] + 1e-6).sum(-1)  # 1e-6: the own row, rounded otherwise
    return ranks


def nearest_tokens(states, token_table, scale):
    """The input lens: the row of the token table nearest to each state by cosine, standardised as above -> [n]."""
    states = _unit(states)  # [n, D]
    best, nearest = np.full(len(states), -np.inf), np.zeros(len(states), int)
    for start, cosines in _cosines(states, token_table, scale):
        here = cosines.argmax(-1)
        value = cosines[np.arange(len(states)), here]
        nearest, best = np.where(value > best, start + here, nearest), np.maximum(value, best)
    return nearest


def _cosines(states, token_table, scale):
    """Cosines of states [n, D] of length 1 with the standardised table, block by block: (first row, [n, rows])."""
    for start in range(0, token_table.shape[0], BLOCK):
        yield start, states @ _unit(standardised(np.asarray(token_table[start : start + BLOCK]), scale)).T


def probe_types(labels, texts):
    """The token types that a probe asks for, [C], the most frequent first: those that occur in TEXTS_EACH texts."""
    kinds, seen = np.unique(labels, return_counts=True)
    among = np.unique(np.stack([labels, texts]), axis=1)[0]  # each type once for each text
    kinds, seen = (array[np.unique(among, return_counts=True)[1] >= TEXTS_EACH] for array in (kinds, seen))
    return kinds[np.argsort(-seen, kind="stable")]


def halves(texts, split):
    """Which half of the texts each position belongs to, in one of the random splits -> [n] of 0 and 1."""
    return (np.random.default_rng(split).permutation(1 + texts.max()) % 2)[texts]


class CrossProbe:
    """Linear probes that name the token type of a state, each for texts that it was not trained on.

    In each split of the texts one probe is trained on either half and reads the other half. states [n, D], labels [n]
    and texts [n] are the training data; only labels in `types` are asked for.
    """

    def __init__(self, states, labels, texts, types, splits=SPLITS):
        asked = np.isin(labels, types)
        states, labels, texts = states[asked], labels[asked], texts[asked]
        self.probes = []
        for split in range(splits if len(types) > 1 else 0):
            half = halves(texts, split)
            self.probes.append([fit_probe(states[half != h], labels[half != h], texts[half != h]) for h in (0, 1)])

    @property
    def ridges(self):
        """The regularisation that held-out texts chose for each probe."""
        return [probe.ridge for pair in self.probes for probe in pair]

    def __call__(self, states, texts):
        """The types that the probes name, [R, n]; `texts` must be those of the training data. -1: there is no probe."""
        named = [np.full(len(texts), -1)] * (not self.probes)
        for split, pair in enumerate(self.probes):
            zero, one = (probe(states) for probe in pair)
            named.append(np.where(halves(texts, split) == 0, zero, one))
        return np.stack(named)


@dataclass(frozen=True, eq=False)
class Probe:
    """A linear probe: the class of the largest score wins."""

    classes: np.ndarray  # [C]
    centre: np.ndarray  # [D]
    scale: np.ndarray  # [D]
    coefficients: np.ndarray  # [D, C]
    bias: np.ndarray  # [C]
    ridge: float

    def __call__(self, states):
        """States [m, D] -> labels [m]."""
        scores = (states - self.centre) / self.scale @ self.coefficients + self.bias  # [m, C]
        return self.classes[scores.argmax(-1)]


def fit_probe(states, labels, texts):
    """Linear discriminant analysis of states [n, D] by label -> Probe. Every fourth text chooses the regularisation.

    Every label has the same weight, however many rows it has.
    """
    held = np.isin(texts, np.unique(texts)[1::4])  # [n]
    tried = list(_probes(states[~held], labels[~held], RIDGES))
    right = [np.bincount(labels[held], probe(states[held]) == labels[held]) for probe in tried]  # [ids] each
    alike = [(found / np.maximum(np.bincount(labels[held]), 1)).sum() for found in right]
    return next(_probes(states, labels, (tried[int(np.argmax(alike))].ridge,)))


def _probes(states, labels, ridges):
    """A Probe for each regularisation. They score a class by the distance to its mean, whitened within classes."""
    classes, y = np.unique(labels, return_inverse=True)  # [C], [n]
    x, counts = states.astype(np.float64), np.bincount(y)  # [n, D], [C]
    centre, scale = moments(x)
    x = (x - centre) / scale  # [n, D]
    hot = np.eye(len(classes))[y]  # [n, C]
    means = (hot.T @ x) / counts[:, None]  # [C, D]
    within = (x - means[y]) / np.sqrt(counts[y] * len(classes))[:, None]  # [n, D]
    sizes, axes = principal(within)  # [k], [D, k]
    for ridge in ridges:
        shrink = (1 / (sizes + ridge) - 1 / ridge)[:, None]  # [k, 1]
        coefficients = means.T / ridge + axes @ (shrink * (axes.T @ means.T))  # [D, C]
        bias = -np.vecdot(means, coefficients.T) / 2  # [C]
        yield Probe(classes, centre, scale, coefficients, bias, ridge)


def principal(x):
    """The principal axes of x [n, D], the largest first -> (sums of squares along them [k], axes [D, k])."""
    wide = len(x) < x.shape[1]
    sizes, axes = np.linalg.eigh(x @ x.T if wide else x.T @ x)
    kept = sizes > 1e-10 * sizes.max(initial=0)
    sizes, axes = sizes[kept][::-1], axes[:, kept][:, ::-1]
    return sizes, (x.T @ axes / np.sqrt(sizes) if wide else axes)


def without_leading(states):
    """Centred states [n, D] without their first LEADING principal components."""
    axes = principal(states.astype(np.float64))[1][:, :LEADING]  # [D, LEADING]
    return (states - states @ axes @ axes.T).astype(np.float32)


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
def chances(types, vocabulary):
    """What guessing gives, for each measure at which one can guess -> {name: value}."""
    log_rank = float(np.log10(np.arange(1, vocabulary + 1)).mean())
    found = {"retrieval": 1 / vocabulary, "retrieval, log10 of rank": log_rank, "senses": 0.5}
    return found | {f"probe, {label}": 1 / max(1, len(types)) for label in PROBED}


def at_depth(states, sample, asked, types, token_table, scale):
    """Every measure of the states [n, D] of a Sample at one depth -> ({name: (value, error) or None}, a CrossProbe).

    asked: the positions [m] whose ranks are read. types: of `probe_types`. scale: the token table's moments. The probe
    is the one for the token at the position.
    """
    drawn, texts = sample.drawn, sample.texts[sample.drawn]
    raw, own, following = states[drawn], sample.tokens[drawn], sample.following[drawn]
    centred = moments(raw)
    plain, found = standardised(raw, centred), {}
    asked_states, where = standardised(states[asked], centred), sample.texts[asked]
    ranks = retrieval_ranks(asked_states, sample.tokens[asked, None], token_table, scale)[:, 0]
    found["retrieval"] = over_texts(ranks == 1, where)
    found["retrieval, log10 of rank"] = over_texts(np.log10(ranks), where)
    probes = {}
    for label, labels in (("token", own), ("next", following)):
        probes[label] = CrossProbe(raw, labels, texts, types)
        right = (probes[label](raw, texts) == labels).mean(0)  # [drawn], over splits
        for group, kinds in (("frequent", types[:FREQUENT]), ("rare", types[FREQUENT:])):
            found[f"probe, {label}, {group}"] = balanced(right, labels, texts, kinds)
    shuffled = CrossProbe(raw, np.random.default_rng(0).permutation(own), texts, types, splits=1)
    found["probe, shuffled labels"] = balanced((shuffled(raw, texts) == own).mean(0), own, texts, types)
    found["variance, token"] = shared_variance(plain, own, texts)
    found["variance, token, less 3 components"] = shared_variance(without_leading(plain), own, texts)
    found["variance, token, raw"] = shared_variance(raw, own, texts)
    found["variance, previous"] = shared_variance(plain, sample.previous[drawn], texts)
    found["variance, next"] = shared_variance(plain, following, texts)
    found["largest coordinate"] = (largest_share(raw), None)
    found["senses"] = sense_separation(standardised(states, centred), sample.words, sample.senses, sample.texts)
    return found, probes["token"]


def balanced(right, labels, texts, kinds):
    """The mean of `right` [n] over the positions whose label is one of `kinds`, each kind alike -> (mean, error).

    None for fewer than two kinds.
    """
    asked = np.isin(labels, kinds)
    if len(kinds) < 2 or not asked.any():
        return None
    known = np.unique(labels[asked], return_inverse=True)[1]
    return over_texts(right[asked], texts[asked], 1 / np.bincount(known)[known])
