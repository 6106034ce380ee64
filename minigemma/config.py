"""config.json -> Config: every fact about every layer, resolved once, so that the pass has nothing left to decide.

Two spellings of config.json are read: Google's (`text_config` inside, global layers described by `global_head_dim` and
`num_global_key_value_heads`) and the one transformers 5.23 saves (fields at top level, `per_layer_config` holding only
what differs from them). The rules were read in transformers 5.23.0, models/gemma4/configuration_gemma4.py.
"""

import sys
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .errors import Error
from .files import read_json

SLIDING, GLOBAL = "sliding_attention", "full_attention"

# What a config.json may leave out (transformers' own defaults); every other field must be there.
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
# Where transformers' class for 12B (model_type gemma4_unified) has other defaults.
UNIFIED_DEFAULTS = {
    "hidden_size_per_layer_input": 0,
    "max_position_embeddings": 262144,
    "use_bidirectional_attention": "vision",
}
# Fields that become facts of the layers, and so are no fields of Config.
LAYERED = ("global_head_dim", "layer_types", "num_global_key_value_heads", "per_layer_config", "rope_parameters")
SMALLEST = 1e-30  # with its inverse, the range of numbers that the pass can divide by in float32
ROPE_DEFAULTS = {
    SLIDING: {"rope_type": "default", "rope_theta": 10_000.0},
    GLOBAL: {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1_000_000.0},
}
LAYERS, HEAD_DIM = 1000, 2**14  # far above any model; a config.json of nonsense must not fill the memory
MODEL_TYPES = ("gemma4", "gemma4_text", "gemma4_unified", "gemma4_unified_text")


@dataclass(frozen=True, eq=False)
class Layer:
    """What is particular to one decoder layer."""

    index: int
    kind: str  # "sliding_attention" or "full_attention"
    head_dim: int  # H: global heads are wider than sliding ones
    num_key_value_heads: int  # K
    window: int | None  # keys a query sees, itself included; None on global layers
    inv_freq: np.ndarray  # [H/2] RoPE's frequencies in float64; 0 where a pair does not rotate
    kv_from: int  # the layer whose K and V this one reads: itself, or the donor of a KV-sharing layer
    k_eq_v: bool  # V is made from k_proj's output; there is no v_proj
    intermediate_size: int  # F: doubled on KV-sharing layers where use_double_wide_mlp says so

    @property
    def shares_kv(self):
        return self.kv_from != self.index


@dataclass(frozen=True, eq=False)
class Config:
    """The text model's facts, under the names of config.json; `layers` holds what differs from layer to layer."""

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
    layers: tuple[Layer, ...] = field(repr=False)
    source: dict = field(repr=False)  # the text fields as they were read, for saving

    @property
    def first_kv_shared_layer(self):
        """The first layer that writes no K and V of its own; num_hidden_layers where none shares."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    @classmethod
    def from_json(cls, path):
        """Read a config.json, or the one in a directory."""
        path = Path(path)
        path = path / "config.json" if path.is_dir() else path
        return cls.from_dict(read_json(path), str(path))

    @classmethod
    def from_dict(cls, data, where="config"):
        """Resolve the fields of a config.json. Raises Error at the first value that is unsupported or contradictory."""
        return cls(**_resolve(data, where))

    def to_dict(self):
        """A text-only config.json (`model_type: gemma4_text`, fields at top level) that transformers reads."""
        return self.source | {"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"]}


def inverse_frequencies(rope, head_dim, where="rope_parameters"):
    """The angle per position of each of the head_dim/2 pairs that RoPE rotates -> [H/2], float64.

    "default" turns all pairs, theta^(-2j/H). "proportional" turns only the first partial_rotary_factor of the pairs and
    leaves the others still (frequency 0). Its exponents divide by the whole head_dim, not by the rotated part, and
    nothing in it depends on the context length. Source: transformers, _compute_proportional_rope_parameters.
    """
    unknown = sorted(set(rope) - {"rope_type", "rope_theta", "partial_rotary_factor", "factor"})
    if unknown:
        raise Error(f"{where}: {unknown[0]!r} is no setting of Gemma 4's RoPE, and nothing here would follow it")
    kind, theta = rope.get("rope_type", "default"), rope.get("rope_theta")
    factor, scale = rope.get("partial_rotary_factor", 1.0), rope.get("factor", 1.0)
    if kind not in ("default", "proportional"):
        raise Error(f"{where}: rope_type {kind!r} is not one Gemma 4 has; it is 'default' or 'proportional'")
    if kind == "default" and (factor, scale) != (1, 1):
        raise Error(f"{where}: rope_type 'default' takes no partial_rotary_factor or factor; only 'proportional' does")
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
            raise Error(f"{where}: {name} is {data[name]!r}, and {text[name]!r} in text_config; it cannot be both")
    if text.get("rope_parameters") is None and (old := sorted({"rope_theta", "rope_scaling"} & set(text))):
        raise Error(f"{where}: {old[0]} is an older form of rope_parameters, which hold it for each kind of layer")
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
            raise Error(f"{here}: head_dim {head_dim} is odd; RoPE rotates pairs")
        if heads % kv_heads:
            raise Error(f"{here}: {heads} query heads cannot be divided among {kv_heads} key/value heads")
        donor = layers[donors[i]] if donors[i] != i else None
        if donor and (donor.head_dim, donor.num_key_value_heads) != (head_dim, kv_heads):
            raise Error(f"{here}: reads the K and V of layer {donors[i]}, whose heads have another shape")
        ropes = ROPE_DEFAULTS if text.get("rope_parameters") is None else text["rope_parameters"]
        rope = ropes.get(kind) if isinstance(ropes, dict) else None
        if not isinstance(rope, dict):
            raise Error(f"{where}: rope_parameters has no object for {kind}")
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
        raise Error(f"{where}: the PLE table has {ple_vocab} rows for {vocab} tokens (vocab_size_per_layer_input)")
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


def _is_number(value):
    """A finite int or float; an int that no float holds is none."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


def _refuse_unsupported(text, where):
    """Values that would change the pass in a way no Gemma 4 does."""
    for name, only in (("hidden_activation", "gelu_pytorch_tanh"), ("tie_word_embeddings", True)):
        if type(text[name]) is not type(only) or text[name] != only:
            raise Error(f"{where}: {name} {text[name]!r} is not supported; every Gemma 4 has {only!r}")
    for name in ("attention_bias", "attention_k_eq_v", "enable_moe_block", "use_double_wide_mlp"):
        if not isinstance(text[name], bool):
            raise Error(f"{where}: {name} must be true or false, not {text[name]!r}")
    if text["attention_bias"]:
        raise Error(f"{where}: attention_bias is not supported; no Gemma 4 has biases")
    if text["use_bidirectional_attention"] not in (None, "vision"):
        value = text["use_bidirectional_attention"]
        raise Error(f"{where}: use_bidirectional_attention {value!r} is not supported; text attends causally here")
    eps, cap = text["rms_norm_eps"], text["final_logit_softcapping"]
    if not _is_number(eps) or not SMALLEST <= eps < 1:  # 0 would make NaN of a row of zeros
        raise Error(f"{where}: rms_norm_eps must be a number from {SMALLEST:g} to 1, not {eps!r}")
    if cap is not None and not (_is_number(cap) and SMALLEST <= cap <= 1 / SMALLEST):
        limits = f"null or from {SMALLEST:g} to {1 / SMALLEST:g}"
        raise Error(f"{where}: final_logit_softcapping must be {limits}, not {cap!r}")


def _layer_types(text, num_layers, where):
    """The kind of each layer; without layer_types, transformers' default of five sliding to one global."""
    kinds = text.get("layer_types")
    if kinds is None:
        kinds = [GLOBAL if (i + 1) % 6 == 0 else SLIDING for i in range(num_layers - 1)] + [GLOBAL]
    if not isinstance(kinds, list) or len(kinds) != num_layers:
        raise Error(f"{where}: layer_types must list num_hidden_layers = {num_layers} kinds")
    for i, kind in enumerate(kinds):
        if kind not in (SLIDING, GLOBAL):
            raise Error(f"{where}: layer_types[{i}] is {kind!r}; expected {SLIDING!r} or {GLOBAL!r}")
    if kinds[-1] != GLOBAL:
        raise Error(f"{where}: the last of layer_types must be {GLOBAL!r}, as in every Gemma 4")
    return kinds


def _kv_donors(kinds, shared, where):
    """Whose K and V each layer reads.

    The last `shared` layers read from the last non-sharing layer *of their own kind*: the two kinds differ in head size
    and RoPE, so "the last layer that has K and V" would not even fit.
    """
    first = len(kinds) - shared
    if shared and first < 1:
        raise Error(f"{where}: num_kv_shared_layers {shared} leaves none of the {len(kinds)} layers to share from")
    donors = list(range(len(kinds)))
    for i in range(first, len(kinds)):
        own_kind = [j for j in range(first) if kinds[j] == kinds[i]]
        if not own_kind:
            raise Error(f"{where}: layer {i} shares K and V, but no {kinds[i]} layer before layer {first} has any")
        donors[i] = own_kind[-1]
    return donors


def _layer_overrides(text, kinds, where):
    """head_dim and num_key_value_heads of each layer where they differ from the top-level fields; either spelling."""
    overrides = [{} for _ in kinds]
    sparse = text.get("per_layer_config")
    if sparse is None:  # Google's spelling
        geometry = {"head_dim": text.get("global_head_dim", 512)}
        if text["attention_k_eq_v"] and text.get("num_global_key_value_heads") is not None:
            geometry["num_key_value_heads"] = text["num_global_key_value_heads"]
        return [geometry if kind == GLOBAL else {} for kind in kinds]
    if not isinstance(sparse, dict):
        raise Error(f"{where}: per_layer_config must be an object of layer numbers")
    for key, values in sparse.items():
        number = int(key) if key.isascii() and key.isdecimal() and len(key) < 10 else -1  # "05", "11": zero-padded
        if not 0 <= number < len(kinds):
            raise Error(f"{where}: per_layer_config has a key {key!r} that is no layer number below {len(kinds)}")
        unknown = sorted(set(values) - {"head_dim", "num_key_value_heads"}) if isinstance(values, dict) else [values]
        if unknown:
            raise Error(f"{where}: per_layer_config[{key!r}] sets {unknown[0]!r}, which no Gemma 4 varies by layer")
        if overrides[number]:
            raise Error(f"{where}: per_layer_config describes layer {number} twice")
        overrides[number] = values
    return overrides
