"""Taps: record every intermediate of a pass, or change any of them."""

import difflib
import json
import os
import re
import sys
from collections.abc import Mapping
from fnmatch import translate
from functools import cache
from typing import NamedTuple

import numpy as np

from .errors import Error
from .files import read_safetensors_header, replacing
from .inputs import check_tap, free_memory, no_tap


class Tap(NamedTuple):
    """A row of TAPS."""

    axes: str  # the letters of model.py, or of vision.py
    made_by: str  # the op that makes the value, in words
    module: str = ""  # where transformers shows it: modules that return it > modules that it goes into
    when: str = ""  # which models and layers have it: "ple", "moe", "writes" (layers that write K and V); "": all


# Every tap of `forward`, in the order of execution. Modules are those of transformers 5.23.0, models/gemma4; inside a
# layer their paths follow `layers.3.`, "." is the layer itself, and ":1" is the second value that goes in or out.
TAPS = {
    "embed": Tap("T D", "the token table's row times sqrt(D)", "embed_tokens > per_layer_model_projection"),
    "ple.token": Tap("T L P", "the PLE table's row times sqrt(P)", "embed_tokens_per_layer", "ple"),
    "ple.context": Tap(
        "T L P", "the context projection of the embedding, and per_layer_projection_norm", "per_layer_projection_norm",
        "ple",
    ),
    "ple": Tap("T L P", "(context + lookup) * 2**-0.5", "", "ple"),
    "layers.*.resid_pre": Tap("T D", "the hand-over from the layer before", "> . input_layernorm"),
    "layers.*.attn.in": Tap(
        "T D", "input_layernorm", "input_layernorm > self_attn self_attn.q_proj self_attn.k_proj self_attn.v_proj"
    ),
    "layers.*.attn.q_raw": Tap("T N H", "q_proj", "self_attn.q_proj > self_attn.q_norm"),
    "layers.*.attn.q": Tap("T N H", "q_norm", "self_attn.q_norm"),
    "layers.*.attn.rot_q": Tap("T N H", "RoPE on q"),
    "layers.*.attn.k_raw": Tap("T K H", "k_proj", "self_attn.k_proj > self_attn.k_norm", "writes"),
    "layers.*.attn.v_raw": Tap("T K H", "v_proj", "self_attn.v_proj > self_attn.v_norm", "writes"),
    "layers.*.attn.k": Tap("T K H", "k_norm", "self_attn.k_norm", "writes"),
    "layers.*.attn.rot_k": Tap("T K H", "RoPE on k", "", "writes"),
    "layers.*.attn.v": Tap("T K H", "v_norm, which has no weight", "self_attn.v_norm", "writes"),
    "layers.*.attn.scores": Tap("N T S", "q k, not scaled"),
    "layers.*.attn.pattern": Tap("N T S", "the mask and softmax", "self_attn:1"),
    "layers.*.attn.z": Tap("T N H", "the sum of values by the pattern", "> self_attn.o_proj"),
    "layers.*.attn.o": Tap("T D", "o_proj", "self_attn self_attn.o_proj > post_attention_layernorm"),
    "layers.*.attn_out": Tap("T D", "post_attention_layernorm", "post_attention_layernorm"),
    "layers.*.resid_mid": Tap(
        "T D", "the residual plus attention's output",
        "> pre_feedforward_layernorm router router.norm pre_feedforward_layernorm_2",
    ),
    "layers.*.mlp.in": Tap(
        "T D", "pre_feedforward_layernorm", "pre_feedforward_layernorm > mlp mlp.gate_proj mlp.up_proj"
    ),
    "layers.*.mlp.gate": Tap("T F", "gate_proj", "mlp.gate_proj > mlp.act_fn"),
    "layers.*.mlp.up": Tap("T F", "up_proj", "mlp.up_proj"),
    "layers.*.mlp.act": Tap("T F", "gelu_tanh(gate) * up", "> mlp.down_proj"),
    "layers.*.mlp.down": Tap("T D", "down_proj", "mlp mlp.down_proj > post_feedforward_layernorm_1"),
    "layers.*.router.probs": Tap("T E", "the router: norm, scale, projection, softmax", "router", "moe"),
    "layers.*.router.weights": Tap(
        "T k", "the chosen experts' weights, renormalised and scaled", "router:1 > experts:2", "moe"
    ),
    "layers.*.router.experts": Tap("T k", "the choice of the experts", "router:2 > experts:1", "moe"),
    "layers.*.mlp.dense_out": Tap("T D", "post_feedforward_layernorm_1", "post_feedforward_layernorm_1", "moe"),
    "layers.*.mlp.moe_out": Tap(
        "T D", "the experts and post_feedforward_layernorm_2", "post_feedforward_layernorm_2", "moe"
    ),
    "layers.*.mlp_out": Tap("T D", "post_feedforward_layernorm", "post_feedforward_layernorm"),
    "layers.*.resid_ffn": Tap("T D", "the residual plus the MLP's output", "> per_layer_input_gate"),
    "layers.*.ple.gate": Tap("T P", "per_layer_input_gate and gelu_tanh", "act_fn", "ple"),
    "layers.*.ple.gated": Tap(
        "T P", "the gate times this layer's per-layer embedding", "> per_layer_projection", "ple"
    ),
    "layers.*.ple.proj": Tap(
        "T D", "per_layer_projection", "per_layer_projection > post_per_layer_input_norm", "ple"
    ),
    "layers.*.ple_out": Tap("T D", "post_per_layer_input_norm", "post_per_layer_input_norm", "ple"),
    "layers.*.resid_post": Tap("T D", "the residual plus PLE's output, all times layer_scalar", "."),
    "final_norm": Tap("T D", "the final norm", "norm > lm_head"),
    "logits": Tap("T V", "the tied head and the softcap"),
}  # fmt: skip

AFTER = ("final_norm", "logits")  # the taps behind the last layer

# Every tap of `encode_image` and `embed_image`, with the letters of vision.py. 12B's modules stand under embed_vision.
VISION_TAPS = {
    "vision.patches": Tap(
        "T X", "the values of the pixels", "> vision_tower.patch_embedder.input_proj embed_vision.patch_ln1"
    ),
    "vision.patch_embed": Tap(
        "T D", "the patches' matrix; in 12B with a norm before and behind it",
        "vision_tower.patch_embedder.input_proj embed_vision.patch_ln2",
    ),
    "vision.embed": Tap(
        "T D", "rows of the position table for column and row; in 12B a norm behind them",
        "vision_tower.patch_embedder embed_vision.pos_norm > embed_vision.multimodal_embedder "
        "embed_vision.multimodal_embedder.embedding_pre_projection_norm",
    ),
    "vision.layers.*.resid_pre": Tap("T D", "the hand-over from the layer before", "> . input_layernorm"),
    "vision.layers.*.attn.in": Tap(
        "T D", "input_layernorm", "input_layernorm > self_attn.q_proj self_attn.k_proj self_attn.v_proj"
    ),
    "vision.layers.*.attn.q_raw": Tap("T N H", "q_proj, clipped", "self_attn.q_proj > self_attn.q_norm"),
    "vision.layers.*.attn.q": Tap("T N H", "q_norm", "self_attn.q_norm"),
    "vision.layers.*.attn.rot_q": Tap("T N H", "RoPE in two directions on q"),
    "vision.layers.*.attn.k_raw": Tap("T K H", "k_proj, clipped", "self_attn.k_proj > self_attn.k_norm"),
    "vision.layers.*.attn.v_raw": Tap("T K H", "v_proj, clipped", "self_attn.v_proj > self_attn.v_norm"),
    "vision.layers.*.attn.k": Tap("T K H", "k_norm", "self_attn.k_norm"),
    "vision.layers.*.attn.rot_k": Tap("T K H", "RoPE in two directions on k"),
    "vision.layers.*.attn.v": Tap("T K H", "v_norm, which has no weight", "self_attn.v_norm"),
    "vision.layers.*.attn.heads.*.scores": Tap("T T", "q k, not scaled"),
    "vision.layers.*.attn.heads.*.pattern": Tap("T T", "softmax, without a mask"),
    "vision.layers.*.attn.z": Tap("T N H", "the sum of values by the pattern", "> self_attn.o_proj"),
    "vision.layers.*.attn.o": Tap(
        "T D", "o_proj, clipped", "self_attn self_attn.o_proj > post_attention_layernorm"
    ),
    "vision.layers.*.attn_out": Tap("T D", "post_attention_layernorm", "post_attention_layernorm"),
    "vision.layers.*.resid_mid": Tap("T D", "the residual plus attention's output", "> pre_feedforward_layernorm"),
    "vision.layers.*.mlp.in": Tap(
        "T D", "pre_feedforward_layernorm", "pre_feedforward_layernorm > mlp mlp.gate_proj mlp.up_proj"
    ),
    "vision.layers.*.mlp.gate": Tap("T F", "gate_proj, clipped", "mlp.gate_proj > mlp.act_fn"),
    "vision.layers.*.mlp.up": Tap("T F", "up_proj, clipped", "mlp.up_proj"),
    "vision.layers.*.mlp.act": Tap("T F", "gelu_tanh(gate) * up", "> mlp.down_proj"),
    "vision.layers.*.mlp.down": Tap("T D", "down_proj, clipped", "mlp mlp.down_proj > post_feedforward_layernorm"),
    "vision.layers.*.mlp_out": Tap("T D", "post_feedforward_layernorm", "post_feedforward_layernorm"),
    "vision.layers.*.resid_post": Tap("T D", "the residual plus the MLP's output", "."),
    "vision.pooled": Tap("M D", "the mean of a square of patches, times sqrt(D)", "vision_tower.pooler"),
    "vision.standardized": Tap("M D", "std_bias and std_scale"),
    "vision.soft_tokens": Tap(
        "M Y", "a norm without a weight, and the projection into the text model",
        "embed_vision embed_vision.embedding_projection embed_vision.multimodal_embedder "
        "embed_vision.multimodal_embedder.embedding_projection",
    ),
}  # fmt: skip


def _feed_forward(n):
    """The taps of a conformer block's MLP, n 1 or 2."""
    at, module = f"audio.layers.*.ffn{n}", f"feed_forward{n}"
    return {
        f"{at}.in": Tap("T D", "pre_layer_norm", f"{module}.pre_layer_norm > {module}.ffw_layer_1"),
        f"{at}.hidden": Tap("T F", "ffw_layer_1, clipped", f"{module}.ffw_layer_1 > {module}.act_fn"),
        f"{at}.act": Tap("T F", "silu", f"{module}.act_fn > {module}.ffw_layer_2"),
        f"{at}.down": Tap("T D", "ffw_layer_2, clipped", f"{module}.ffw_layer_2 > {module}.post_layer_norm"),
        f"{at}_out": Tap("T D", "post_layer_norm, times residual_weight"),
        f"audio.layers.*.resid_ffn{n}": Tap("T D", "the residual plus the MLP's output", module),
    }


# Every tap of `encode_audio` and `embed_sound`, with the letters of audio.py; R/2 is rounded up.
AUDIO_TAPS = {
    "audio.frames": Tap("T X", "samples, 40 ms a row"),
    "audio.mel": Tap("R C", "log_mel", "> audio_tower"),
    "audio.half": Tap("R/2 C/2 A", "a convolution, a norm over channels, ReLU"),
    "audio.quarter": Tap("T C/4 B", "a convolution, a norm over channels, ReLU"),
    "audio.embed": Tap("T D", "input_proj_linear", "audio_tower.subsample_conv_projection.input_proj_linear"),
    "audio.layers.*.resid_pre": Tap("T D", "the hand-over from the layer before", "> . feed_forward1"),
    **_feed_forward(1),
    "audio.layers.*.attn.in": Tap(
        "T D", "norm_pre_attn", "norm_pre_attn > self_attn.q_proj self_attn.k_proj self_attn.v_proj"
    ),
    "audio.layers.*.attn.q_raw": Tap("T N H", "q_proj, clipped", "self_attn.q_proj"),
    "audio.layers.*.attn.k_raw": Tap("T N H", "k_proj, clipped", "self_attn.k_proj"),
    "audio.layers.*.attn.v": Tap("T N H", "v_proj, clipped", "self_attn.v_proj"),
    "audio.layers.*.attn.q": Tap("T N H", "a scale for each dimension of a head, by per_dim_scale"),
    "audio.layers.*.attn.k": Tap("T N H", "one scale, log2(1 + e)"),
    "audio.layers.*.attn.rel_k": Tap("S N H", "relative_k_proj of the distances"),
    "audio.layers.*.attn.scores": Tap("N T S", "q k and q rel_k, and the softcap"),
    "audio.layers.*.attn.pattern": Tap("N T S", "softmax over the frames that exist"),
    "audio.layers.*.attn.z": Tap("T N H", "the sum of values by the pattern", "> self_attn.post"),
    "audio.layers.*.attn.o": Tap("T D", "post, clipped", "self_attn self_attn.post > norm_post_attn"),
    "audio.layers.*.attn_out": Tap("T D", "norm_post_attn", "norm_post_attn"),
    "audio.layers.*.resid_mid": Tap("T D", "the residual plus attention's output", "> lconv1d lconv1d.pre_layer_norm"),
    "audio.layers.*.conv.in": Tap("T D", "pre_layer_norm", "lconv1d.pre_layer_norm > lconv1d.linear_start"),
    "audio.layers.*.conv.start": Tap("T 2D", "linear_start, clipped", "lconv1d.linear_start"),
    "audio.layers.*.conv.gated": Tap("T D", "the first half times the sigmoid of the second"),
    "audio.layers.*.conv.mixed": Tap("T D", "depthwise_conv1d: each dimension over a few frames"),
    "audio.layers.*.conv.act": Tap("T D", "conv_norm and silu", "lconv1d.act_fn > lconv1d.linear_end"),
    "audio.layers.*.conv_out": Tap("T D", "linear_end, clipped", "lconv1d.linear_end"),
    "audio.layers.*.resid_conv": Tap("T D", "the residual plus the convolution's output", "lconv1d > feed_forward2"),
    **_feed_forward(2),
    "audio.layers.*.resid_post": Tap("T D", "norm_out, of the residual itself", ". norm_out"),
    "audio.encoded": Tap("T O", "output_proj and its bias", "audio_tower.output_proj"),
    "audio.soft_tokens": Tap(
        "M Y", "a norm without a weight, and the projection into the text model",
        "embed_audio embed_audio.embedding_projection",
    ),
}  # fmt: skip

PRECISIONS = ("float64", "float32", "float16", "bfloat16")  # number formats that an engine computes in


def names_of(config):
    """Every tap of a model's pass, in the order of execution."""
    has = {"": True, "writes": True, "ple": bool(config.hidden_size_per_layer_input), "moe": config.enable_moe_block}
    names = _by_layer([kind for kind, tap in TAPS.items() if has[tap.when]], config.num_hidden_layers)
    sharing = {layer.index for layer in config.layers if layer.shares_kv}
    return [name for name in names if layer_of(name) not in sharing or TAPS[tap_kind(name)].when != "writes"]


def vision_names(vision):
    """Every tap of a picture's pass, in the order of execution. vision: a Config's `vision`; None has no taps."""
    if not hasattr(vision, "num_attention_heads"):  # 12B
        without = ("vision.pooled", "vision.standardized")
        return [kind for kind in VISION_TAPS if ".*." not in kind and kind not in without] if vision else []
    kinds = [kind for kind in VISION_TAPS if vision.standardize or kind != "vision.standardized"]
    first = kinds.index("vision.layers.*.attn.heads.*.scores")  # and the pattern: both once for each head
    heads = range(vision.num_attention_heads)
    each = [kind.replace("heads.*", f"heads.{n}") for n in heads for kind in kinds[first : first + 2]]
    return _by_layer([*kinds[:first], *each, *kinds[first + 2 :]], vision.num_hidden_layers)


def audio_names(audio):
    """Every tap of a sound's pass, in the order of execution. audio: a Config's `audio`; None has no taps."""
    if not hasattr(audio, "num_hidden_layers"):
        return ["audio.frames", "audio.soft_tokens"] if audio else []
    return _by_layer([kind for kind in AUDIO_TAPS if kind != "audio.frames"], audio.num_hidden_layers)


def _by_layer(kinds, layers):
    """Kinds of taps in the order of execution -> names: those of a layer once for each of so many layers."""
    inside = [kind for kind in kinds if "layers.*." in kind]
    first = kinds.index(inside[0])
    names = [kind.replace("*", str(i)) for i in range(layers) for kind in inside]
    return [*kinds[:first], *names, *kinds[first + len(inside) :]]


@cache
def layer_of(name):
    """The number of the layer that a tap belongs to, None outside the layers."""
    match = re.match(r"(?:(?:vision|audio)\.)?layers\.([0-9]+)\.", name)
    return int(match[1]) if match else None


@cache
def part_of(name):
    """What a tap is called inside its layer or tower: `layers.3.attn.q` and `vision.layers.0.attn.q` -> `attn.q`."""
    return re.sub(r"^((?:vision|audio)\.)?(layers\.([0-9]+|\*)\.)?", "", name)


@cache
def tap_kind(name):
    """The key of TAPS, VISION_TAPS or AUDIO_TAPS that a tap belongs to: `layers.3.attn.q` -> `layers.*.attn.q`."""
    return re.sub(r"\b(layers|heads)\.\d+\.", r"\1.*.", name)


@cache
def axes_of(name):
    """The letters of a tap's axes, such as ("T", "N", "H")."""
    return tuple(tap_of(name).axes.split())


@cache
def tap_of(name):
    """The row of TAPS, VISION_TAPS or AUDIO_TAPS that a tap belongs to."""
    return (TAPS | VISION_TAPS | AUDIO_TAPS)[tap_kind(name)]


@cache
def time_axis(name):
    """The axis of a tap's array that counts the tokens, patches, frames or soft tokens; 0 if there is none."""
    return next((axis for axis, letter in enumerate(axes_of(name)) if letter in "TM"), 0)


SHOWN = 5  # names in a message
LAYERS = 128  # before the model is known, a pattern may name any layer of a model with this many,
TOWER_LAYERS, HEADS = 48, 24  # and any layer and head of a tower with so many


@cache
def all_names():
    """Every tap that any model could have."""
    names = {kind.replace("*", str(i)): None for kind in TAPS for i in range(LAYERS)}
    for kind in VISION_TAPS | AUDIO_TAPS:
        for i in range(TOWER_LAYERS):
            layer = kind.replace("*", str(i), 1)
            names |= {layer.replace("*", str(n)): None for n in range(HEADS if "*" in layer else 1)}
    return names


def fits(pattern, names):
    """Whether a pattern fits one of the names."""
    return pattern in names or any(map(re.compile(translate(pattern)).match, names))


def nearest(pattern, names):
    """Names and patterns that fit some of `names`: the five that are spelt most like a pattern that fits none."""
    kinds = [*TAPS, *VISION_TAPS, *AUDIO_TAPS]
    if "*" in pattern:
        kinds += [kind.removeprefix("layers.") for kind in TAPS] + [kind.rpartition(".")[0] + ".*" for kind in TAPS]
    ranges = {"*", *re.findall(r"\[[\d-]+\]", pattern), *(f"[{pair}]" for pair in re.findall(r"\d+-\d+", pattern))}
    forms = dict.fromkeys(kind.replace("*", layers, 1) for kind in kinds for layers in sorted(ranges))
    known = dict.fromkeys([*(form for form in forms if fits(form, names)), *names])
    matcher, bounds, likeness = difflib.SequenceMatcher(b=pattern), {}, {}
    for name in known:
        matcher.set_seq1(name)
        bounds[name] = matcher.quick_ratio()  # at least the ratio, and a tenth of its cost
    for name in sorted(known, key=bounds.get, reverse=True):
        if len(likeness) >= SHOWN and bounds[name] < sorted(likeness.values())[-SHOWN]:
            break
        matcher.set_seq1(name)
        likeness[name] = matcher.ratio()
    return sorted(filter(likeness.__contains__, known), key=likeness.get, reverse=True)[:SHOWN]


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
            names = names_of(config) + vision_names(config.vision) + audio_names(config.audio)
            self._check(names, f"no tap of this model, which has {config.num_hidden_layers} layers")
            self.known = config

    def _check(self, names, what):
        for pattern in self.patterns:
            if not fits(pattern, names):
                raise Error(f"{pattern!r} fits {what}; the nearest names are {', '.join(nearest(pattern, names))}")

    def fitting(self, name):
        """The first pattern that fits a tap's name, or None."""
        return next((pattern for pattern, form in self.patterns.items() if form.match(name)), None)


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
        if name in self.arrays:
            return self.arrays[name]
        if not self.arrays:
            raise KeyError(f"{name}: nothing is recorded yet; call forward(..., tap=trace)")
        near = difflib.get_close_matches(str(name), self.arrays, 3, 0)
        raise KeyError(f"{name} is not recorded; the nearest names are {', '.join(near)}")

    def __contains__(self, name):
        return name in self.arrays

    def get(self, name, default=None):
        """The array of a tap, `default` if it is not recorded."""
        return self.arrays.get(name, default)

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
            axes = " ".join(axes_of(name)) if tap_kind(name) in TAPS | VISION_TAPS | AUDIO_TAPS else ""
            raise Error(
                f"{name}: {len(where)} of {array.size} values are NaN or infinite, the first at {where[0].tolist()} "
                f"({axes}); every tap before it is finite: look at the weights it reads"
            )
        return array


PASSES = ("model", "vision", "audio")  # the modules that call taps


def place_in_pass():
    """Where a pass calls its tap now -> the frame, and its line such as "model.py:81".

    To be called by the tap itself. Outside of our passes it is the caller of the tap.
    """
    frame = caller = sys._getframe(2)
    while frame and frame.f_globals.get("__name__") not in {f"{__package__}.{name}" for name in PASSES}:
        frame = frame.f_back
    frame = frame or caller
    return frame, f"{os.path.basename(frame.f_code.co_filename)}:{frame.f_lineno}"


class Stop(Selection):
    """A tap that opens Python's debugger, pdb, in the pass itself: Stop("layers.4.attn.pattern"), or several patterns.

    It opens behind the line that made the array, where its name has its value. The debugger's own commands work
    there: `n` runs the next line, `p x.shape` prints, `c` goes on to the next tap that fits, `q` ends the pass
    (bdb.BdbQuit). First it prints the tap, its line, and the name and shape of every array that the pass has there.
    """

    def __init__(self, *patterns):
        import pdb

        super().__init__(patterns)
        self.debugger = pdb.Pdb()

    def __call__(self, name, array):
        if self.fitting(name) is not None:
            frame, place = place_in_pass()
            arrays = [f"{key} {list(x.shape)}" for key, x in frame.f_locals.items() if isinstance(x, np.ndarray)]
            print(f"{name} {list(array.shape)}, made at {place}: {tap_of(name).made_by}")
            print(f"arrays, where later lines still have those of the layer before: {', '.join(arrays)}")
            self._open(frame)
        return array

    def _open(self, frame):
        """Stop at the next line of this frame: not in the functions between the tap and it, as pdb.set_trace would."""
        self.debugger.reset()
        self.debugger.set_next(frame)
        while frame:
            frame.f_trace = self.debugger.trace_dispatch
            self.debugger.botframe = frame
            frame = frame.f_back
        sys.settrace(self.debugger.trace_dispatch)
