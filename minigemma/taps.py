"""Taps: record every intermediate of a pass, or change any of them."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache

import numpy as np

from .errors import Error
from .files import read_safetensors_header, replacing
from .model import no_tap
from .ops import visible

# Every tap of `forward`, in the order of execution, with its axes (the letters of model.py; k: experts a token).
SHAPES = {
    "embed": "T D",
    "ple.token": "T L P",
    "ple.context": "T L P",
    "ple": "T L P",
    "layers.*.resid_pre": "T D",
    "layers.*.attn.in": "T D",
    "layers.*.attn.q_raw": "T N H",
    "layers.*.attn.q": "T N H",
    "layers.*.attn.rot_q": "T N H",
    "layers.*.attn.k_raw": "T K H",
    "layers.*.attn.v_raw": "T K H",
    "layers.*.attn.k": "T K H",
    "layers.*.attn.rot_k": "T K H",
    "layers.*.attn.v": "T K H",
    "layers.*.attn.scores": "N T S",
    "layers.*.attn.pattern": "N T S",
    "layers.*.attn.z": "T N H",
    "layers.*.attn.o": "T D",
    "layers.*.attn_out": "T D",
    "layers.*.resid_mid": "T D",
    "layers.*.mlp.in": "T D",
    "layers.*.mlp.gate": "T F",
    "layers.*.mlp.up": "T F",
    "layers.*.mlp.act": "T F",
    "layers.*.mlp.down": "T D",
    "layers.*.router.probs": "T E",
    "layers.*.router.weights": "T k",
    "layers.*.router.experts": "T k",
    "layers.*.mlp.dense_out": "T D",
    "layers.*.mlp.moe_out": "T D",
    "layers.*.mlp_out": "T D",
    "layers.*.resid_ffn": "T D",
    "layers.*.ple.gate": "T P",
    "layers.*.ple.gated": "T P",
    "layers.*.ple.proj": "T D",
    "layers.*.ple_out": "T D",
    "layers.*.resid_post": "T D",
    "final_norm": "T D",
    "logits": "T V",
}


PRECISIONS = ("float64", "float32", "float16", "bfloat16")  # number formats that an engine computes in


def names_of(config):
    """Every tap of a model's pass, in the order of execution."""
    ple, names = config.hidden_size_per_layer_input, list(SHAPES)
    first, last = names.index("layers.*.resid_pre"), names.index("final_norm")
    writing = ("attn.k_raw", "attn.v_raw", "attn.k", "attn.rot_k", "attn.v")
    inside = []
    for layer in config.layers:
        for name in names[first:last]:
            part = name.removeprefix("layers.*.")
            routed = part.startswith("router.") or part in ("mlp.dense_out", "mlp.moe_out")
            absent = (layer.shares_kv and part in writing) or (routed and not config.enable_moe_block)
            if not absent and (ple or not part.startswith("ple")):
                inside.append(f"layers.{layer.index}.{part}")
    return [*(name for name in names[:first] if ple or name == "embed"), *inside, *names[last:]]


@cache
def layer_of(name):
    """The layer a tap stands in, None outside the layers."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" and len(parts) > 2 and parts[1].isdecimal() else None


@cache
def shape_key(name):
    """The entry of SHAPES that a tap's name belongs to: `layers.3.attn.q` -> `layers.*.attn.q`."""
    layer = layer_of(name)
    return name if layer is None else name.replace(f"layers.{layer}.", "layers.*.", 1)


class Trace(Mapping):
    """A tap that records: after `forward(..., tap=trace)`, trace["layers.3.attn.pattern"] is that array.

    only: a pattern such as "layers.3.*", or several; everything else is not kept.
    """

    def __init__(self, only=None):
        self.only = [only] if isinstance(only, str) else only
        self.arrays = {}

    def __call__(self, name, array):
        if self.only is None or any(fnmatchcase(name, pattern) for pattern in self.only):
            self.arrays[name] = array
        return array

    def __getitem__(self, name):
        return self.arrays[name]

    def __iter__(self):
        return iter(self.arrays)

    def __len__(self):
        return len(self.arrays)

    def save(self, path, **metadata):
        """Write the arrays as safetensors; metadata (the prompt's ids, the model, ...) is kept as JSON.

        `axes` is always among it: with as many tokens as heads a reader could not tell [T, N, H] from [N, T, H].
        """
        from safetensors import SafetensorError
        from safetensors.numpy import save_file

        arrays = {name: np.ascontiguousarray(array) for name, array in self.arrays.items()}
        metadata = {"axes": "T N H"} | metadata
        with replacing(path) as temporary:
            try:
                save_file(arrays, temporary, {name: json.dumps(value) for name, value in metadata.items()})
            except SafetensorError as error:  # the library's own name for a full disk
                raise OSError(error) from None

    @classmethod
    def load(cls, path):
        """A saved trace -> Trace, its metadata in `.metadata`."""
        import safetensors

        trace = cls()
        read_safetensors_header(path)
        try:
            with safetensors.safe_open(path, framework="np") as file:
                metadata = file.metadata() or {}
                trace.arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            trace.metadata = {name: json.loads(value) for name, value in metadata.items()}
        except (safetensors.SafetensorError, OSError, TypeError, ValueError, RecursionError) as error:
            raise Error(f"{path}: not a trace that minigemma saved ({error})") from None
        return trace


class Edit:
    """A tap that changes: Edit({"layers.*.ple_out": np.zeros_like}) calls the function of the first fitting pattern."""

    def __init__(self, functions):
        self.functions = functions

    def __call__(self, name, array):
        for pattern, function in self.functions.items():
            if fnmatchcase(name, pattern):
                return function(array)
        return array


class Finite:
    """A tap that stops the pass at the first NaN or infinity, with an Error that names the tap where it appeared.

    No tap of a sound model has any: scores are tapped before they are masked. tap: another tap, which sees each array
    first, so that a Trace still holds the one that is not finite.
    """

    def __init__(self, tap=no_tap):
        self.tap = tap

    def __call__(self, name, array):
        array = self.tap(name, array)
        finite = np.isfinite(array)
        if not finite.all():
            where = np.argwhere(~finite)
            raise Error(
                f"{name}: {len(where)} of {array.size} values are NaN or infinite, the first at {where[0].tolist()} "
                f"({SHAPES.get(shape_key(name), '')}); every tap before it is finite: look at the weights it reads"
            )
        return array


@dataclass(frozen=True)
class Difference:
    """How far two arrays of one tap are apart."""

    errors: np.ndarray  # [T] ||ours - theirs|| / ||ours|| at each position
    cosine: float
    ratio: float  # ||theirs|| / ||ours||

    @property
    def error(self):
        """At the worst position: a mean over positions would hide what is wrong with one token only."""
        return float(self.errors.max())


@cache
def time_axis(name):
    """The axis of a tap's array that counts the tokens."""
    return SHAPES[shape_key(name)].split().index("T")


def by_position(name, array):
    """A tap's array as rows of float64, one for each token: [T, everything else]."""
    rows = np.moveaxis(np.asarray(array, np.float64), time_axis(name), 0)
    return rows.reshape(len(rows), -1)


def compare(name, ours, theirs):
    """Two arrays of one tap and one shape -> Difference; infinitely far where theirs is not finite."""
    a, b = by_position(name, ours), by_position(name, theirs)  # [T, n] each
    finite = np.isfinite(b).all(-1)  # [T]
    b = np.where(finite[:, None], b, a)  # [T, n]
    d = a - b  # [T, n]
    aa, bb, ab, dd = np.vecdot(a, a), np.vecdot(b, b), np.vecdot(a, b), np.vecdot(d, d)  # [T] each
    size = np.sqrt(aa)  # [T]
    floor = 0.01 * size.mean() or 1.0  # a row of zeros has no relative error
    errors = np.where(finite, np.sqrt(dd) / np.maximum(size, floor), np.inf)  # [T]
    whole, other = aa.sum() ** 0.5, bb.sum() ** 0.5
    cosine = ab.sum() / (whole * other) if whole and other else float(whole == other)
    return Difference(errors, float(cosine), float(other / whole) if whole else float("inf" if other else 1))


MASKED = -9e3  # a score at or below this was masked: engines write -inf, -1e4 (-9984 in bfloat16) or the lowest float


def hidden_keys(config, name, shape, end):
    """Which keys the queries up to position `end` - 1 may not see, for scores of this shape -> bool [T, S]."""
    T, S = shape[-2:]
    return ~visible(np.arange(end - T, end), S, config.layers[layer_of(name)].window, end)


def wrong_masks(masked, hidden):
    """Of scores captured after the mask: keys masked though visible, and hidden ones left unmasked in a masked row.

    masked [N, T, S], hidden [T, S], from `hidden_keys` -> two of [N, T, S], all bool.
    """
    after = (masked & hidden).any(-1, keepdims=True)  # [N, T, 1]: this row was captured after the mask
    return masked & ~hidden, after & hidden & ~masked


def unmasked(name, theirs, ours, config, end):
    """Their array; of scores captured after the mask, ours in place of the masked ones, which say nothing.

    A masked key that is visible keeps its value, which is far from ours, and a hidden one left unmasked becomes NaN.
    config: None where it is not known; then each masked key is taken to be hidden. end: as in `hidden_keys`.
    """
    if not name.endswith("attn.scores") or not (theirs <= MASKED).any():
        return theirs
    masked = theirs <= MASKED  # [N, T, S]
    hidden = masked if config is None else hidden_keys(config, name, theirs.shape, end)  # [N, T, S] or [T, S]
    return np.where(masked & hidden, ours, np.where(wrong_masks(masked, hidden)[1], np.nan, theirs))


class Replay:
    """A tap that compares every intermediate with somebody else's and then goes on with theirs.

    Each op is so judged on *their* input: an error that an op only passes on does not count against it, and one pass
    tells a broken op from amplified drift. `found` has a Difference for each tap, `misshapen` a pair of shapes.
    theirs: tap name -> array. Arrays of one position, from a longer prompt, are its last. Where theirs is not finite or
    has another shape, the pass goes on with ours. config: of the pass, to tell which masked scores had to be masked.
    known: tap name -> (our array, Difference) of an earlier replay: most ops give again what they gave then, and
    looking at their bits is quicker than comparing anew.
    """

    def __init__(self, theirs, config=None, known=None):
        self.theirs, self.config, self.known, self.found, self.misshapen = theirs, config, known or {}, {}, {}
        self.start = self.end = 0  # the positions of this call: a sequence may come in several

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
        theirs = unmasked(name, captured, array, self.config, self.end)
        if theirs is captured and name in self.known and np.array_equal(self.known[name][0], array):
            difference = self.known[name][1]
        else:
            difference = self._router(name, array, theirs) if ".router." in name else compare(name, array, theirs)
        self._keep(name, difference)
        if not np.isfinite(theirs).all():
            return array
        if name.endswith("router.probs"):
            self.probs = theirs
        return theirs.astype(array.dtype)

    def _theirs_at(self, name, array):
        """Their array for this call's positions; None where it was not captured, or cannot be cut to this call."""
        if name not in self.theirs:
            return None
        theirs, axis = np.asarray(self.theirs[name]), time_axis(name)
        length = theirs.shape[axis] if theirs.ndim > axis else 0
        if length == 1 and array.shape[axis] > 1:  # the last position only
            before = np.take(array, range(array.shape[axis] - 1), axis=axis)
            return np.concatenate([before, theirs], axis=axis) if before[..., :1].ndim == theirs.ndim else theirs
        whole = self.start == 0 and length == array.shape[axis]
        if whole or length < self.end:
            return theirs
        if "S" in SHAPES[shape_key(name)].split():
            return None  # a later call sees other keys
        return np.take(theirs, range(self.start, self.end), axis=axis)

    def _router(self, name, ours, theirs):
        """Differences of a router, for which the order of the chosen experts does not matter."""
        if name.endswith("probs"):
            return compare(name, ours, theirs)
        best = np.argsort(-self.probs, axis=-1, kind="stable")[:, : ours.shape[1]]  # [T, k], as the pass chooses
        chosen = np.asarray(self.theirs.get(name.replace(".weights", ".experts"), best)).astype(int)  # [T, k]
        if chosen.shape != best.shape:
            chosen = best
        if name.endswith("experts"):  # what probability the other choice gives away: ties may go either way
            p, q = (np.take_along_axis(self.probs, e, -1).sum(-1) for e in (best, theirs.astype(int)))  # [T] each
            return Difference((p - q) / p, 1.0, 1.0)
        dense = np.zeros((2, *self.probs.shape))  # [2, T, E]
        np.put_along_axis(dense[0], best, ours, -1)
        np.put_along_axis(dense[1], chosen, theirs, -1)
        other = (np.sort(best) != np.sort(chosen)).any(-1)  # [T]: another choice is judged at `experts`, not twice
        dense[1][other] = dense[0][other]
        return compare(name.replace(".weights", ".probs"), *dense)

    def _keep(self, name, new):
        """Several calls of one sequence make one Difference: its positions one after another, the worst of the rest."""
        if name in self.found and self.start > 0:
            old = self.found[name]
            new = Difference(
                np.concatenate([old.errors, new.errors]),
                min(old.cosine, new.cosine),
                max(old.ratio, new.ratio, key=lambda ratio: abs(ratio - 1)),
            )
        self.found[name] = new
