"""Another engine's intermediates beside ours: differences of arrays, and each op judged on their inputs."""

from collections import defaultdict
from dataclasses import dataclass

import numpy as np

from ..ops import visible
from ..taps import axes_of, layer_of, time_axis
from .foreign import MASKED


@dataclass(frozen=True)
class Difference:
    """Relative difference between two arrays of the same tap."""

    errors: np.ndarray  # [T] ||ours - theirs|| / ||ours|| at each position
    cosine: float
    ratio: float  # ||theirs|| / ||ours||

    @property
    def error(self):
        """Error at the worst position: a mean over positions would hide an error of one token."""
        return float(self.errors.max())


def by_position(name, array):
    """A tap's array as rows of float64, one for each token: [T, everything else]."""
    rows = np.ascontiguousarray(np.moveaxis(np.asarray(array), time_axis(name), 0), np.float64)  # one copy
    return rows.reshape(len(rows), -1)


def in_words(places):
    """Positions in words, places [M] in order: "position 40", or "positions 3, 40 to 45, 50"; at most six parts."""
    runs = np.split(places, np.flatnonzero(np.diff(places) > 1) + 1)
    parts = [f"{run[0]} to {run[-1]}" if len(run) > 1 else f"{run[0]}" for run in runs]
    more = ", ..." if len(parts) > 6 else ""
    return f"position{'s' if len(places) > 1 else ''} {', '.join(parts[:6])}{more}"


def compare(name, ours, theirs):
    """Two arrays of one tap and one shape -> Difference; infinite at positions where theirs is not finite."""
    a, b = by_position(name, ours), by_position(name, theirs)  # [T, n] each
    finite = np.isfinite(b).all(-1)  # [T]
    b = b if finite.all() else np.where(finite[:, None], b, a)  # [T, n]
    d = a - b  # [T, n]
    aa, bb, ab, dd = np.vecdot(a, a), np.vecdot(b, b), np.vecdot(a, b), np.vecdot(d, d)  # [T] each
    size = np.sqrt(aa)  # [T]
    floor = 0.01 * size.mean() or 1.0  # a row of zeros has no relative error
    errors = np.where(finite, np.sqrt(dd) / np.maximum(size, floor), np.inf)  # [T]
    whole, other = aa.sum() ** 0.5, bb.sum() ** 0.5
    cosine = ab.sum() / (whole * other) if whole and other else float(whole == other)
    return Difference(errors, float(cosine), float(other / whole) if whole else float("inf" if other else 1))


def hidden_keys(config, name, shape, end, last=None):
    """Which keys the queries up to position `end` - 1 may not see, for scores of this shape -> bool [T, S].

    last: of the whole sequence, the last position that each token may see (ops.horizon); None: there is no picture.
    """
    T, S = shape[-2:]
    last = None if last is None else last[end - T : end]  # [T]
    return ~visible(np.arange(end - T, end), S, config.layers[layer_of(name)].window, end, last)


def wrong_masks(masked, hidden):
    """Of scores captured after the mask: keys masked though visible, and hidden ones left unmasked in a masked row.

    masked [N, T, S], hidden [T, S], from `hidden_keys` -> two of [N, T, S], all bool.
    """
    after = (masked & hidden).any(-1, keepdims=True)  # [N, T, 1]: this row was captured after the mask
    return masked & ~hidden, after & hidden & ~masked


def unmasked(name, theirs, ours, config, end, last=None):
    """Their array; in scores captured after the mask, masked ones are replaced by ours, because they say nothing.

    A key that is masked though visible keeps its value, far from ours; a hidden key left unmasked becomes NaN.
    config: None if it is not known; then every masked key counts as hidden. end, last: as in `hidden_keys`.
    """
    if name.startswith("audio.") or not name.endswith("attn.scores") or not (theirs <= MASKED).any():
        return theirs
    masked = theirs <= MASKED  # [N, T, S]
    hidden = masked if config is None else hidden_keys(config, name, theirs.shape, end, last)  # [N, T, S] or [T, S]
    return np.where(masked & hidden, ours, np.where(wrong_masks(masked, hidden)[1], np.nan, theirs))


def differences(ours, theirs, config, last=None):
    """Two whole traces -> tap: Difference, for taps whose shapes agree. last: as in `hidden_keys`.

    An array of theirs with fewer positions is compared with our last ones. Choices of experts are left to Replay.
    """
    found = {}
    for name in [name for name in ours if name in theirs and not name.endswith("router.experts")]:
        a, b, axis = ours[name], theirs[name], time_axis(name)
        end = a.shape[axis]
        if a.ndim == b.ndim:
            a = ending(name, a, b.shape[axis])
        if a.shape == b.shape:
            found[name] = compare(name, a, unmasked(name, b, a, config, end, last))
    return found


def ending(name, array, rows):
    """The last positions of a tap's array, at most so many."""
    axis = time_axis(name)
    return np.take(array, range(max(array.shape[axis] - rows, 0), array.shape[axis]), axis=axis)


class Replay:
    """A tap that compares every intermediate with another engine's and then goes on with theirs.

    So each op is judged on *their* input: an error that an op only passes on does not count against it, and one pass
    separates a broken op from amplified drift. `found` has a Difference for each tap, `misshapen` a pair of shapes.
    theirs: tap name -> array. If it has fewer positions than the prompt, they are its last ones. Where theirs is not
    finite, or if it has another shape, the pass goes on with ours. config: of the pass; it says which scores must be
    masked. known: tap name -> (our array, Difference) of an earlier replay: most ops give the same array again, and
    checking that is quicker than comparing anew. last: as in `hidden_keys`. count: how many tokens the prompt has, for
    a prompt that comes in several calls. start: the position at which the first call begins, behind a cache.
    """

    def __init__(self, theirs, config=None, known=None, last=None, count=None, start=0):
        self.theirs, self.config, self.known, self.last, self.count = theirs, config, known or {}, last, count
        self._found, self.misshapen = {}, {}
        self._calls = defaultdict(list)  # tap -> pairs (ours, theirs) of later calls, still to compare
        self.begin = self.start = self.end = start  # the positions of this call: a sequence may come in several

    @property
    def found(self):
        """tap -> Difference. Arrays of many calls, one token each, are compared together, in a tenth of the time."""
        for name, pairs in self._calls.items():
            ours, theirs = (np.concatenate(arrays, time_axis(name)) for arrays in zip(*pairs, strict=True))
            self._keep(name, compare(name, ours, theirs))
        self._calls.clear()
        return self._found

    def __call__(self, name, array):
        if name == "embed":
            self.start, self.end = self.end, self.end + len(array)
        if name.endswith("router.probs"):
            self.probs = array
        theirs = self._theirs_at(name, array)
        if theirs is None:
            return array
        if theirs.shape != array.shape:
            self.misshapen[name] = array.shape, theirs.shape
            return array
        captured = theirs
        theirs = unmasked(name, captured, array, self.config, self.end, self.last)
        if theirs is captured and name in self.known and np.array_equal(self.known[name][0], array):
            self._keep(name, self.known[name][1])
        elif ".router." in name:
            self._keep(name, self._router(name, array, theirs))
        elif self.start > 0:
            self._calls[name].append((array, theirs))
        else:
            self._keep(name, compare(name, array, theirs))
        if ".heads." in name or theirs.dtype != array.dtype or not np.isfinite(theirs).all():
            theirs = np.where(np.isfinite(theirs), theirs, array).astype(array.dtype)  # a head's array is used again
        if name.endswith("router.probs"):
            self.probs = theirs
        return theirs

    def _theirs_at(self, name, array):
        """Their array for this call's positions; None if it was not captured, or cannot be cut to this call."""
        if name not in self.theirs:
            return None
        theirs, axis = np.asarray(self.theirs[name]), time_axis(name)
        rows = theirs.shape[axis] if theirs.ndim > axis else 0
        count = self.count or max(rows, self.end)
        first = count - rows  # the position of their first row
        if name.startswith(("vision.", "audio.")) or not rows or first < 0:
            return theirs
        if "S" in axes_of(name):
            if (self.start, self.end) != (self.begin, count):
                return None  # a later call sees other keys
            theirs = theirs[..., -np.shape(array)[-1] :] if self.begin else theirs
        begin = max(first, self.start)
        if begin >= self.end:
            return None
        if rows > self.end - begin:
            theirs = np.take(theirs, range(begin - first, self.end - first), axis=axis)
        if begin > self.start and ending(name, array, 1).shape == ending(name, theirs, 1).shape:
            before = np.take(array, range(begin - self.start), axis=axis)
            theirs = np.concatenate([before, theirs], axis=axis)
        return theirs

    def _router(self, name, ours, theirs):
        """The Difference of a router's tap; the order of the chosen experts does not matter."""
        if name.endswith("probs"):
            return compare(name, ours, theirs)
        best = np.argsort(-self.probs, axis=-1, kind="stable")[:, : ours.shape[1]]  # [T, k], as the pass chooses
        chosen = self._theirs_at(name.replace(".weights", ".experts"), best)  # [T, k]
        chosen = best if chosen is None or chosen.shape != best.shape else chosen.astype(int)
        if name.endswith("experts"):  # the probability that their choice loses: a tie may go either way
            p, q = (np.take_along_axis(self.probs, e, -1).sum(-1) for e in (best, theirs.astype(int)))  # [T] each
            return Difference((p - q) / p, 1.0, 1.0)
        dense = np.zeros((2, *self.probs.shape))  # [2, T, E]
        np.put_along_axis(dense[0], best, ours, -1)
        np.put_along_axis(dense[1], chosen, theirs, -1)
        other = (np.sort(best) != np.sort(chosen)).any(-1)  # [T]: a wrong choice counts at `experts`, not here again
        dense[1][other] = dense[0][other]
        return compare(name.replace(".weights", ".probs"), *dense)

    def _keep(self, name, new):
        """Join the Differences of several calls: all positions, and the worst cosine and ratio."""
        if name in self._found and self.start > 0:
            old = self._found[name]
            new = Difference(
                np.concatenate([old.errors, new.errors]),
                min(old.cosine, new.cosine),
                max(old.ratio, new.ratio, key=lambda ratio: abs(ratio - 1)),
            )
        self._found[name] = new
