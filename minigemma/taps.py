"""Taps: record every intermediate of a pass, or change any of them."""

import difflib
import json
import re
from collections.abc import Mapping
from fnmatch import translate
from functools import cache

import numpy as np

from .errors import Error
from .files import read_safetensors_header, replacing
from .inputs import check_tap, no_tap

# Every tap of `forward`, in the order of execution, with its axes (the letters of model.py).
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

# Every tap of `encode_image` and `embed_image`, with the letters of vision.py.
VISION_SHAPES = {
    "vision.patches": "T X",
    "vision.patch_embed": "T D",
    "vision.embed": "T D",
    "vision.layers.*.resid_pre": "T D",
    "vision.layers.*.attn.in": "T D",
    "vision.layers.*.attn.q_raw": "T N H",
    "vision.layers.*.attn.q": "T N H",
    "vision.layers.*.attn.rot_q": "T N H",
    "vision.layers.*.attn.k_raw": "T K H",
    "vision.layers.*.attn.v_raw": "T K H",
    "vision.layers.*.attn.k": "T K H",
    "vision.layers.*.attn.rot_k": "T K H",
    "vision.layers.*.attn.v": "T K H",
    "vision.layers.*.attn.heads.*.scores": "T T",
    "vision.layers.*.attn.heads.*.pattern": "T T",
    "vision.layers.*.attn.z": "T N H",
    "vision.layers.*.attn.o": "T D",
    "vision.layers.*.attn_out": "T D",
    "vision.layers.*.resid_mid": "T D",
    "vision.layers.*.mlp.in": "T D",
    "vision.layers.*.mlp.gate": "T F",
    "vision.layers.*.mlp.up": "T F",
    "vision.layers.*.mlp.act": "T F",
    "vision.layers.*.mlp.down": "T D",
    "vision.layers.*.mlp_out": "T D",
    "vision.layers.*.resid_post": "T D",
    "vision.pooled": "M D",
    "vision.standardized": "M D",
    "vision.soft_tokens": "M Y",
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


def vision_names(vision):
    """Every tap of a picture's pass, in the order of execution. vision: a Config's `vision`; None has no taps."""
    kinds = list(VISION_SHAPES) if vision else []
    if not hasattr(vision, "num_attention_heads"):  # 12B
        return [kind for kind in kinds if ".*." not in kind and kind not in ("vision.pooled", "vision.standardized")]
    first, last, inside = kinds.index("vision.layers.*.resid_pre"), kinds.index("vision.pooled"), []
    heads = [f"attn.heads.{n}.{part}" for n in range(vision.num_attention_heads) for part in ("scores", "pattern")]
    for kind in kinds[first:last]:
        part = kind.removeprefix("vision.layers.*.")
        if part != "attn.heads.*.pattern":
            inside += heads if part == "attn.heads.*.scores" else [part]
    layers = [f"vision.layers.{i}.{part}" for i in range(vision.num_hidden_layers) for part in inside]
    return [*kinds[:first], *layers, *(kind for kind in kinds[last:] if vision.standardize or "standard" not in kind)]


@cache
def layer_of(name):
    """The number of the layer that a tap belongs to, None outside the layers."""
    parts = name.split(".")
    return int(parts[1]) if parts[0] == "layers" and len(parts) > 2 and parts[1].isdecimal() else None


@cache
def tap_kind(name):
    """The key of SHAPES or VISION_SHAPES that a tap belongs to: `layers.3.attn.q` -> `layers.*.attn.q`."""
    return re.sub(r"\b(layers|heads)\.\d+\.", r"\1.*.", name)


LAYERS = 128  # before the model is known, a pattern may name any layer of a model with this many,
VISION_LAYERS, HEADS = 48, 24  # and any layer and head of a vision tower with so many


@cache
def all_names():
    """Every tap that any model could have."""
    names = {kind.replace("*", str(i)): None for kind in SHAPES for i in range(LAYERS)}
    for kind in VISION_SHAPES:
        for i in range(VISION_LAYERS):
            layer = kind.replace("*", str(i), 1)
            names |= {layer.replace("*", str(n)): None for n in range(HEADS if "*" in layer else 1)}
    return names


def fits(pattern, names):
    """Whether a pattern fits one of the names."""
    return pattern in names or any(map(re.compile(translate(pattern)).match, names))


def nearest(pattern, names):
    """Names and patterns that fit some of `names`: the five that are spelt most like a pattern that fits none."""
    kinds = [*SHAPES, *VISION_SHAPES]
    if "*" in pattern:
        kinds += [kind.removeprefix("layers.") for kind in SHAPES] + [kind.rpartition(".")[0] + ".*" for kind in SHAPES]
    ranges = {"*", *re.findall(r"\[[\d-]+\]", pattern), *(f"[{pair}]" for pair in re.findall(r"\d+-\d+", pattern))}
    forms = dict.fromkeys(kind.replace("*", layers, 1) for kind in kinds for layers in sorted(ranges))
    known = dict.fromkeys([*(form for form in forms if fits(form, names)), *names])
    matcher = difflib.SequenceMatcher(b=pattern)
    likeness = {}
    for name in known:
        matcher.set_seq1(name)
        likeness[name] = matcher.ratio()
    return sorted(known, key=likeness.get, reverse=True)[:5]


class Selection:
    """Base of the taps that act where a pattern fits: "layers.3.attn.q", "layers.[2-4].attn.*" or "*.ple_out".

    Raises Error for a pattern that fits no tap: when it is made, if no model has such a tap; and in `check`, which
    `forward` calls before any work, if its model has none. The message suggests the nearest names.
    """

    def __init__(self, patterns):
        self.patterns, self.known = {}, None
        for pattern in patterns:
            if not isinstance(pattern, str):
                raise Error(f"name a tap by a text such as 'layers.3.attn.q', not by {pattern!r:.60}")
            self.patterns[pattern] = re.compile(translate(pattern))
        self._check(all_names(), "no tap")

    def check(self, config):
        """Raise Error for a pattern that fits no tap of this model."""
        if config is not self.known:
            names = names_of(config) + vision_names(config.vision)
            self._check(names, f"no tap of this model, which has {config.num_hidden_layers} layers")
            self.known = config

    def _check(self, names, what):
        for pattern in self.patterns:
            if not fits(pattern, names):
                raise Error(f"{pattern!r} fits {what}; the nearest names are {', '.join(nearest(pattern, names))}")

    def fitting(self, name):
        """The first pattern that fits a tap's name, or None."""
        return next((pattern for pattern, form in self.patterns.items() if form.match(name)), None)


def free_memory():
    """Bytes of memory that this machine can still give; None where the system does not tell it as Linux does."""
    try:
        with open("/proc/meminfo", encoding="ascii") as file:
            return next((int(line.split()[1]) * 1024 for line in file if line.startswith("MemAvailable")), None)
    except OSError:
        return None


class Trace(Selection, Mapping):
    """A tap that records: after `forward(..., tap=trace)`, trace["layers.3.attn.pattern"] is that array.

    only: a pattern such as "layers.3.*", or a list of them; it then records nothing else. The arrays are contiguous
    copies that cannot be written to. A second call with the same trace overwrites what the first one recorded.

    The scores and patterns of a picture's heads are large (0.4 GB each at 1,120 soft tokens). They are recorded only if
    a pattern names them, such as "vision.layers.3.attn.heads.*". Raises Error before the first of them if all that are
    asked for would take more than half of the free memory.
    """

    def __init__(self, only=None):
        only = "*" if only is None else only
        super().__init__(only if np.iterable(only) and not isinstance(only, str) else [only])
        self.arrays = {}

    def fitting(self, name):
        large = ".heads." in name
        fitting = (pattern for pattern, form in self.patterns.items() if form.match(name))
        return next((pattern for pattern in fitting if "heads" in pattern or not large), None)

    def _check_room(self, name, array):
        names, free = vision_names(self.known and self.known.vision), free_memory()
        asked = [other for other in names if ".heads." in other and self.fitting(other)]
        if free is not None and asked[:1] == [name] and len(asked) * array.nbytes > free / 2:
            raise Error(
                f"{name}: the trace asks for {len(asked)} arrays of {array.nbytes / 1e6:.0f} MB, and "
                f"{free / 1e9:.1f} GB are free; name fewer layers or heads"
            )

    def __call__(self, name, array):
        if self.fitting(name) is not None:
            if ".heads." in name:
                self._check_room(name, array)
            self.arrays[name] = np.array(array, order="C")
            self.arrays[name].flags.writeable = False
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

        metadata = {"axes": "T N H"} | metadata
        with replacing(path) as temporary:
            try:
                save_file(self.arrays, temporary, {name: json.dumps(value) for name, value in metadata.items()})
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


class Edit(Selection):
    """A tap that changes: Edit({"layers.*.ple_out": np.zeros_like}) calls the function of the first fitting pattern.

    A function gets a copy of the array and returns the new one, of the same shape and dtype; `forward` raises Error for
    anything else.
    """

    def __init__(self, functions):
        if not isinstance(functions, Mapping) or not all(map(callable, functions.values())):
            raise Error(f"Edit takes a dict, a pattern -> a function of an array, not {functions!r:.60}")
        super().__init__(functions)
        self.functions = functions

    def __call__(self, name, array):
        pattern = self.fitting(name)
        return array if pattern is None else self.change(self.functions[pattern], name, array.copy())

    def change(self, function, name, array):
        """What the function makes of the array."""
        return function(array)


class Finite:
    """A tap that stops the pass at the first NaN or infinity, with an Error that names the tap where it appeared.

    A sound model has none at any tap: scores are tapped before they are masked. tap: another tap, which gets each array
    first, so that a Trace still records the array that is not finite.
    """

    def __init__(self, tap=no_tap):
        self.tap = tap

    def check(self, config):
        """Raise Error where the other tap does not fit this model."""
        check_tap(self.tap, config)

    def __call__(self, name, array):
        array = self.tap(name, array)
        finite = np.isfinite(array)
        if not finite.all():
            where = np.argwhere(~finite)
            raise Error(
                f"{name}: {len(where)} of {array.size} values are NaN or infinite, the first at {where[0].tolist()} "
                f"({(SHAPES | VISION_SHAPES).get(tap_kind(name), '')}); "
                "every tap before it is finite: look at the weights it reads"
            )
        return array


@cache
def time_axis(name):
    """The axis of a tap's array that counts the tokens."""
    return SHAPES[tap_kind(name)].split().index("T")
