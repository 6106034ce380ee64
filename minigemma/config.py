"""config.json -> Config: every fact about every layer, resolved once. The pass makes no decisions of its own.

Two spellings of config.json are read. Google's nests the text model in `text_config` and describes global layers by
`global_head_dim` and `num_global_key_value_heads`. A text-only save of transformers 5.23 has the fields at top level,
and in `per_layer_config` the values of single layers that differ from them. Where a file has both, per_layer_config
counts, as in transformers. Source of the rules: transformers 5.23.0, models/gemma4/configuration_gemma4.py.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import Error
from .files import read_json

SLIDING, GLOBAL = "sliding_attention", "full_attention"

# Fields that a config.json may leave out, with transformers' defaults. Every other field is required.
DEFAULTS = {
    "attention_bias": False,
    "attention_k_eq_v": False,
    "enable_moe_block": False,
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size_per_layer_input": 256,
    "max_position_embeddings": 131072,
    "num_kv_shared_layers": 0,
    "pad_token_id": 0,
    "rms_norm_eps": 1e-6,
    "tie_word_embeddings": True,
    "use_bidirectional_attention": None,
    "use_double_wide_mlp": False,
}
# Defaults that differ in transformers' class for 12B (model_type gemma4_unified).
UNIFIED_DEFAULTS = {
    "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262144,
    "use_bidirectional_attention": "vision",
}
# Fields that are resolved into the layers; Config does not repeat them.
LAYERED = ("global_head_dim", "layer_types", "num_global_key_value_heads", "per_layer_config", "rope_parameters")
SMALLEST = 1e-30  # float32 can divide by numbers from SMALLEST to 1 / SMALLEST
ROPE_DEFAULTS = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    GLOBAL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
# What a vision_config may leave out, with transformers' defaults, and the ids that config.json gives to media.
VISION_DEFAULTS = {
    "attention_bias": False,
    "hidden_activation": "gelu_pytorch_tanh",
    "pooling_kernel_size": 3,
    "rms_norm_eps": 1e-6,
    "rope_parameters": {"rope_type": "axial", "rope_theta": 100.0},
    "standardize": False,
    "use_clipped_linears": False,
}
MEDIA_IDS = {
    "boi_token_id": 255999,
    "image_token_id": 258880,
    "eoi_token_id": 258882,
    "audio_token_id": 258881,
    "video_token_id": 258884,
}
LAYERS, HEAD_DIM = 1000, 2**14  # the largest accepted: refuse absurd sizes before anything is allocated
MODEL_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")


@dataclass(frozen=True, eq=False)
class Layer:
    """The facts that differ from one decoder layer to the next."""

    index: int
    kind: str  # "sliding_attention" or "full_attention"
    head_dim: int  # H: global heads are wider than sliding ones
    num_key_value_heads: int  # K
    window: int | None  # how many keys a query sees, its own included; None on global layers
    inv_freq: np.ndarray  # [H/2] RoPE's frequencies in float64; 0 for a pair that does not rotate
    kv_from: int  # the layer whose K and V this one reads: itself, or for a KV-sharing layer its donor
    k_eq_v: bool  # V is made from k_proj's output; there is no v_proj
    intermediate_size: int  # F: twice as wide on KV-sharing layers if use_double_wide_mlp is true

    @property
    def shares_kv(self):
        """Whether this layer reads another layer's K and V."""
        return self.kv_from != self.index


@dataclass(frozen=True, eq=False)
class Vision:
    """The facts of a vision_config that every model has; each soft token is a square of `side` pixels."""

    patch_size: int
    pooling_kernel_size: int
    rms_norm_eps: float

    @property
    def side(self):
        """Pixels of one soft token's side."""
        return self.patch_size * self.pooling_kernel_size


@dataclass(frozen=True, eq=False)
class VisionTower(Vision):
    """The vision tower of E2B, E4B, 26B-A4B and 31B, under the names of vision_config."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    position_embedding_size: int
    standardize: bool  # 26B-A4B and 31B
    use_clipped_linears: bool  # E2B and E4B
    inv_freq: np.ndarray  # [H/4], of one half of a head: the first half turns with the column, the second with the row

    @property
    def patches(self):
        """Pixels of a patch's side, the width that a patch becomes, and how many columns or rows have a position."""
        return self.patch_size, self.hidden_size, self.position_embedding_size


@dataclass(frozen=True, eq=False)
class VisionEmbedder(Vision):
    """What 12B has in place of a tower, under the names of vision_config."""

    mm_embed_dim: int
    mm_posemb_size: int

    @property
    def patches(self):
        """As VisionTower.patches. Here a patch is a whole soft token."""
        return self.side, self.mm_embed_dim, self.mm_posemb_size


@dataclass(frozen=True, eq=False)
class Config:
    """The facts of the text model, under the names of config.json. `layers` holds those that differ by layer."""

    vocab_size: int
    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_kv_shared_layers: int
    hidden_size_per_layer_input: int  # 0: the model has no per-layer embeddings
    vocab_size_per_layer_input: int
    enable_moe_block: bool
    num_experts: int | None
    top_k_experts: int | None
    moe_intermediate_size: int | None
    sliding_window: int
    max_position_embeddings: int
    final_logit_softcapping: float | None
    rms_norm_eps: float
    pad_token_id: int
    use_bidirectional_attention: str | None
    boi_token_id: int  # stands before a picture, eoi_token_id behind it
    image_token_id: int  # stands once for each soft token of a picture
    eoi_token_id: int
    audio_token_id: int
    video_token_id: int
    vision: VisionTower | VisionEmbedder | None = field(repr=False)  # None: a text-only model
    layers: tuple[Layer, ...] = field(repr=False)
    source: dict = field(repr=False)  # the text fields as read, with defaults; saved again by to_dict

    @property
    def first_kv_shared_layer(self):
        """The index of the first KV-sharing layer; num_hidden_layers if no layer shares."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    @classmethod
    def from_json(cls, path):
        """Read a config.json, given by its path or by its directory. Raises Error as from_dict does."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls, data, where="config"):
        """Resolve the fields of a config.json. Raises Error at the first unsupported or contradictory value.

        where: the name of the file, for messages.
        """
        return cls(**_resolve(data, where), **_media_ids(data, where), vision=_vision(data, where))

    def to_dict(self):
        """A text-only config.json (`model_type: gemma4_text`, fields at top level) that transformers reads."""
        return self.source | {"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"]}


def inverse_frequencies(rope, head_dim, where="rope_parameters"):
    """RoPE's angle per position for each of the head_dim/2 pairs -> [H/2], float64.

    "default" rotates all pairs: theta^(-2j/H). "proportional" rotates the first partial_rotary_factor of the pairs; the
    others have frequency 0. Its exponents divide by the whole head_dim, not by the rotated part. Nothing depends on the
    context length. Source: transformers, _compute_proportional_rope_parameters. Raises Error for any other setting.
    """
    unknown = sorted(set(rope) - {"rope_type", "rope_theta", "partial_rotary_factor", "factor"})
    if unknown:
        raise Error(f"{where}: {unknown[0]!r} is not a RoPE setting that Gemma 4 uses; remove it")
    kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta")
    factor, scale = rope.get("partial_rotary_factor", 1.0), rope.get("factor", 1.0)
    if kind not in ("default", "proportional"):
        raise Error(f"{where}: rope_type {kind!r} is not supported; use 'default' or 'proportional'")
    if kind == "default" and (factor, scale) != (1, 1):
        raise Error(f"{where}: only rope_type 'proportional' has partial_rotary_factor or factor; 'default' does not")
    limits = (("rope_theta", theta, 1e12), ("partial_rotary_factor", factor, 1), ("factor", scale, 1e6))
    for name, value, high in limits:
        if not _is_number(value) or not 0 < value <= high:
            raise Error(f"{where}: {name} must be a number above 0 and up to {high:g}, not {value!r}")
    rotating = int(factor * head_dim // 2)
    inv_freq = np.zeros(head_dim // 2)  # [H/2]
    inv_freq[:rotating] = float(theta) ** (-2.0 * np.arange(rotating) / head_dim) / scale
    return inv_freq


def _resolve(data, where):
    """The arguments of Config from a parsed config.json."""
    model_type = data.get("model_type", "gemma4_text")
    if model_type not in MODEL_TYPES:
        raise Error(f"{where}: model_type {model_type!r} is not Gemma 4; expected one of {', '.join(MODEL_TYPES)}")
    text = data.get("text_config", data)
    if not isinstance(text, dict):
        raise Error(f"{where}: text_config must be an object, not {type(text).__name__}")
    read = {*Config.__dataclass_fields__, *Layer.__dataclass_fields__, *DEFAULTS, *LAYERED}
    for name in sorted(read) if text is not data else ():
        if name in data and name in text and data[name] != text[name]:
            both = f"{data[name]!r} at top level and {text[name]!r} in text_config"
            raise Error(f"{where}: {name} is {both}; remove the wrong one")
    if text.get("rope_parameters") is None and (old := sorted({"rope_theta", "rope_scaling"} & set(text))):
        raise Error(f"{where}: {old[0]} is an older form of rope_parameters, which are given for each kind of layer")
    text = DEFAULTS | (UNIFIED_DEFAULTS if model_type.startswith("gemma4_unified") else {}) | text
    _refuse_unsupported(text, where)

    def size(name, low=1, high=2**31, source=text):
        value = source.get(name)
        if type(value) is not int or not low <= value <= high:
            raise Error(f"{where}: {name} must be a whole number from {low} to {high}, not {value!r}")
        return value

    num_layers = size("num_hidden_layers", high=LAYERS)
    heads, shared = size("num_attention_heads"), size("num_kv_shared_layers", low=0)
    ple, vocab = size("hidden_size_per_layer_input", low=0), size("vocab_size")
    kinds = _layer_types(text, num_layers, where)
    donors = _kv_donors(kinds, shared, where)
    overrides = _layer_overrides(text, kinds, where)
    layers = []
    for i, kind in enumerate(kinds):
        here = f"{where}: layer {i}"
        geometry = text | overrides[i]
        head_dim, kv_heads = size("head_dim", 1, HEAD_DIM, geometry), size("num_key_value_heads", source=geometry)
        if head_dim % 2:
            raise Error(f"{here}: head_dim {head_dim} is odd; RoPE rotates pairs, so it must be even")
        if heads % kv_heads:
            raise Error(f"{here}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        donor = layers[donors[i]] if donors[i] != i else None
        if donor and (donor.head_dim, donor.num_key_value_heads) != (head_dim, kv_heads):
            raise Error(f"{here}: shares the K and V of layer {donors[i]}, but its heads have another shape")
        ropes = ROPE_DEFAULTS if text.get("rope_parameters") is None else text["rope_parameters"]
        rope = ropes.get(kind) if isinstance(ropes, dict) else None
        if not isinstance(rope, dict):
            raise Error(f"{where}: rope_parameters has no object named {kind}")
        layers.append(
            Layer(
                index=i,
                kind=kind,
                head_dim=head_dim,
                num_key_value_heads=kv_heads,
                window=size("sliding_window") if kind == SLIDING else None,
                inv_freq=inverse_frequencies(rope, head_dim, f"{where}: rope_parameters.{kind}"),
                kv_from=donors[i],
                k_eq_v=bool(text["attention_k_eq_v"]) and kind == GLOBAL,
                intermediate_size=size("intermediate_size") * (2 if text["use_double_wide_mlp"] and donor else 1),
            )
        )
    moe = bool(text["enable_moe_block"])
    experts = size("num_experts", high=100_000) if moe else None
    ple_vocab = size("vocab_size_per_layer_input", source={"vocab_size_per_layer_input": vocab} | text) if ple else 0
    if ple and ple_vocab < vocab:
        raise Error(f"{where}: the PLE table (vocab_size_per_layer_input {ple_vocab}) must have {vocab} rows or more")
    return {
        "vocab_size": vocab,
        "hidden_size": size("hidden_size"),
        "num_hidden_layers": num_layers,
        "num_attention_heads": heads,
        "num_kv_shared_layers": shared,
        "hidden_size_per_layer_input": ple,
        "vocab_size_per_layer_input": ple_vocab,
        "enable_moe_block": moe,
        "num_experts": experts,
        "top_k_experts": size("top_k_experts", high=experts) if moe else None,
        "moe_intermediate_size": size("moe_intermediate_size") if moe else None,
        "sliding_window": size("sliding_window"),
        "max_position_embeddings": size("max_position_embeddings"),
        "final_logit_softcapping": text["final_logit_softcapping"],
        "rms_norm_eps": text["rms_norm_eps"],
        "pad_token_id": size("pad_token_id", low=0, high=vocab - 1),
        "use_bidirectional_attention": text["use_bidirectional_attention"],
        "layers": tuple(layers),
        "source": text,
    }


def _media_ids(data, where):
    """The ids around and in place of pictures and sounds. Raises Error for what is no id."""
    ids = {name: data.get(name) for name in MEDIA_IDS}
    for name, value in ids.items():
        if value is not None and (type(value) is not int or not 0 <= value < 2**31):
            raise Error(f"{where}: {name} must be a token id, not {value!r}")
    return {name: MEDIA_IDS[name] if value is None else value for name, value in ids.items()}


def _vision(data, where):
    """vision_config of a parsed config.json -> VisionTower, VisionEmbedder (12B), or None where there is none.

    Source: transformers, Gemma4VisionConfig and Gemma4UnifiedVisionConfig. Raises Error for what the pass cannot do.
    """
    given = data.get("vision_config")
    if given is None:
        return None
    where = f"{where}: vision_config"
    if not isinstance(given, dict):
        raise Error(f"{where} must be an object or null, not {given!r}")
    unified = "mm_embed_dim" in given
    made, vision = VisionEmbedder if unified else VisionTower, VISION_DEFAULTS | given
    values = {name: vision.get(name) for name in made.__dataclass_fields__ if name != "inv_freq"}
    for name, value in values.items():
        high = {"num_hidden_layers": LAYERS, "head_dim": HEAD_DIM, "patch_size": 256, "pooling_kernel_size": 16}
        if name in ("standardize", "use_clipped_linears"):
            if not isinstance(value, bool):
                raise Error(f"{where}.{name} must be true or false, not {value!r}")
        elif name == "rms_norm_eps":
            if not _is_number(value) or not SMALLEST <= value < 1:
                raise Error(f"{where}.{name} must be a number from {SMALLEST:g} to 1, not {value!r}")
        elif type(value) is not int or not 1 <= value <= high.get(name, 2**24):
            raise Error(f"{where}.{name} must be a whole number from 1 to {high.get(name, 2**24)}, not {value!r}")
    if unified:
        return VisionEmbedder(**values)
    heads, kv_heads, rope = values["num_attention_heads"], values["num_key_value_heads"], vision["rope_parameters"]
    for name, only in (("hidden_activation", "gelu_pytorch_tanh"), ("attention_bias", False)):
        if vision[name] != only:
            raise Error(f"{where}.{name} {vision[name]!r} is not supported; Gemma 4 has {only!r}")
    if values["head_dim"] % 4 or heads % kv_heads:
        raise Error(f"{where}: head_dim must be a multiple of 4, num_attention_heads one of num_key_value_heads")
    if not isinstance(rope, dict) or rope.get("rope_type") not in ("default", "axial"):
        raise Error(f"{where}.rope_parameters must have rope_type 'default' or 'axial', not {rope!r:.60}")
    rope = rope | {"rope_type": "default"}  # the released files' name for axial
    return VisionTower(
        **values, inv_freq=inverse_frequencies(rope, values["head_dim"] // 2, f"{where}.rope_parameters")
    )


def _is_number(value):
    """Whether value is an int or float that float64 can hold; NaN and infinity are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _refuse_unsupported(text, where):
    """Raise Error for values that would need another pass than Gemma 4's."""
    for name, only in (("hidden_activation", "gelu_pytorch_tanh"), ("tie_word_embeddings", True)):
        if type(text[name]) is not type(only) or text[name] != only:
            raise Error(f"{where}: {name} {text[name]!r} is not supported; Gemma 4 has {only!r}")
    for name in ("attention_bias", "attention_k_eq_v", "enable_moe_block", "use_double_wide_mlp"):
        if not isinstance(text[name], bool):
            raise Error(f"{where}: {name} must be true or false, not {text[name]!r}")
    if text["attention_bias"]:
        raise Error(f"{where}: attention_bias true is not supported; Gemma 4 has no biases")
    if text["use_bidirectional_attention"] not in (None, "vision"):
        value = text["use_bidirectional_attention"]
        raise Error(f"{where}: use_bidirectional_attention {value!r} is not supported; use null or 'vision'")
    eps, cap = text["rms_norm_eps"], text["final_logit_softcapping"]
    if not _is_number(eps) or not SMALLEST <= eps < 1:  # with 0, a row of zeros would become NaN
        raise Error(f"{where}: rms_norm_eps must be a number from {SMALLEST:g} to 1, not {eps!r}")
    if cap is not None and not (_is_number(cap) and SMALLEST <= cap <= 1 / SMALLEST):
        limits = f"null or from {SMALLEST:g} to {1 / SMALLEST:g}"
        raise Error(f"{where}: final_logit_softcapping must be {limits}, not {cap!r}")


def _layer_types(text, num_layers, where):
    """The kind of each layer. Without layer_types: transformers' default, five sliding layers to one global."""
    kinds = text.get("layer_types")
    if kinds is None:
        kinds = [GLOBAL if (i + 1) % 6 == 0 else SLIDING for i in range(num_layers - 1)] + [GLOBAL]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise Error(f"{where}: layer_types must be a list with one kind for each of the {num_layers} layers")
    for i, kind in enumerate(kinds):
        if kind not in (SLIDING, GLOBAL):
            raise Error(f"{where}: layer_types[{i}] must be {SLIDING!r} or {GLOBAL!r}, not {kind!r}")
    if kinds[-1] != GLOBAL:
        raise Error(f"{where}: the last of layer_types must be {GLOBAL!r}, as in every Gemma 4")
    return kinds


def _kv_donors(kinds, shared, where):
    """The layer whose K and V each layer reads -> list of layer numbers.

    The last `shared` layers read from the last non-sharing layer *of their own kind*. The last non-sharing layer of
    either kind would be wrong: the two kinds differ in head size and RoPE.
    """
    first = len(kinds) - shared
    if shared and first < 1:
        raise Error(f"{where}: num_kv_shared_layers {shared} must be below num_hidden_layers {len(kinds)}")
    donors = list(range(len(kinds)))
    for i in range(first, len(kinds)):
        own_kind = [j for j in range(first) if kinds[j] == kinds[i]]
        if not own_kind:
            raise Error(f"{where}: layer {i} shares K and V, but no {kinds[i]} layer comes before layer {first}")
        donors[i] = own_kind[-1]
    return donors


def _layer_overrides(text, kinds, where):
    """Of each layer, the head_dim and num_key_value_heads that differ from the common fields; reads both spellings."""
    overrides, varied = [{} for _ in kinds], ("head_dim", "num_key_value_heads")
    sparse = text.get("per_layer_config")
    if sparse is None:  # Google's spelling
        geometry = {"head_dim": text.get("global_head_dim", 512)}
        if text["attention_k_eq_v"] and text.get("num_global_key_value_heads") is not None:
            geometry["num_key_value_heads"] = text["num_global_key_value_heads"]
        return [geometry if kind == GLOBAL else {} for kind in kinds]
    if not isinstance(sparse, dict):
        raise Error(f"{where}: per_layer_config must be an object whose keys are layer numbers")
    for key, values in sparse.items():
        number = int(key) if key.isascii() and key.isdecimal() and len(key) < 10 else -1  # "05", "11": zero-padded
        if not 0 <= number < len(kinds):
            raise Error(f"{where}: per_layer_config: key {key!r} is not a layer number from 0 to {len(kinds) - 1}")
        unknown = sorted(set(values) - set(varied)) if isinstance(values, dict) else [values]
        if unknown:
            raise Error(f"{where}: per_layer_config[{key!r}] sets {unknown[0]!r}; it may set {' and '.join(varied)}")
        if overrides[number]:
            raise Error(f"{where}: per_layer_config describes layer {number} twice")
        overrides[number] = values
    return overrides
