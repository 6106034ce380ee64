"""Taps: record every intermediate of a pass, or change any of them."""

import json
from collections.abc import Mapping
from fnmatch import fnmatchcase
from functools import cache

import numpy as np

from .errors import Error
from .files import read_safetensors_header, replacing
from .model import no_tap

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


@cache
def time_axis(name):
    """The axis of a tap's array that counts the tokens."""
    return SHAPES[shape_key(name)].split().index("T")
