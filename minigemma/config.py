"""config.json -> Config: every fact about every layer, resolved once. The pass makes no decisions of its own.

Two spellings of config.json are read. Google's nests the text model in `text_config` and describes global layers by
`global_head_dim` and `num_global_key_value_heads`. A text-only save of transformers 5.23 has the fields at top level,
and in `per_layer_config` the values of single layers that differ from them. Where a file has both, per_layer_config
counts, as in transformers. Source of the rules: transformers 5.23.0, models/gemma4/configuration_gemma4.py.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from .errors import Error
from .files import read_json
from .inputs import BUDGETS

SLIDING, GLOBAL = "sliding_attention", "full_attention"

# Of the defaults in FIELDS, those that differ in transformers' class for 12B (model_type gemma4_unified).
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
LAYERS = 1000  # the most that are accepted
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
class AudioTower:
    """The audio tower of E2B and E4B, under the names of audio_config."""

    hidden_size: int
    num_hidden_layers: int
    num_attention_heads: int
    conv_kernel_size: int
    subsampling_conv_channels: tuple[int, int]
    output_proj_dims: int
    use_clipped_linears: bool
    attention_context_left: int
    attention_logit_cap: float
    residual_weight: float
    gradient_clipping: float
    rms_norm_eps: float

    heard = 161, 480_000  # the fewest samples of a sound, 16,000 a second, and the most

    @staticmethod
    def count(samples):
        """How many soft tokens a sound of so many samples becomes: one for each four mel frames, begun ones too."""
        return -(-((samples - 161) // 160 + 1) // 4)

    @property
    def window(self):
        """How many frames a frame attends to, itself included: 12 in the released models, though the field says 13."""
        return self.attention_context_left - 1

    @property
    def bins(self):
        """Mel bins of a frame. The reference derives a matrix's width from the channels as if they were the bins."""
        return self.subsampling_conv_channels[0]


@dataclass(frozen=True, eq=False)
class AudioEmbedder:
    """What 12B has in place of an audio tower, under the names of audio_config."""

    audio_embed_dim: int  # samples of a soft token
    rms_norm_eps: float

    heard = 1, None  # as of AudioTower

    def count(self, samples):
        """As AudioTower.count. The last soft token is filled with silence."""
        return -(-samples // self.audio_embed_dim)


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
    boa_token_id: int  # stands before a sound, eoa_token_id behind it
    audio_token_id: int
    eoa_token_id: int
    video_token_id: int
    vision: VisionTower | VisionEmbedder | None = field(repr=False)  # None: the model cannot see
    audio: AudioTower | AudioEmbedder | None = field(repr=False)  # None: the model cannot hear
    image_budget: int = field(repr=False)  # most soft tokens of a picture, where nobody asks for another number
    layers: tuple[Layer, ...] = field(repr=False)
    source: dict = field(repr=False)  # the text fields as read, with defaults; saved again by to_dict
    beside: dict = field(repr=False)  # what stands beside text_config in a whole config.json

    @property
    def first_kv_shared_layer(self):
        """The index of the first KV-sharing layer; num_hidden_layers if no layer shares."""
        return self.num_hidden_layers - self.num_kv_shared_layers

    @classmethod
    def from_json(cls, path):
        """Read a config.json, given by its path or by its directory. Raises Error as from_dict does.

        Of a directory the image_budget is that of its processor_config.json, which transformers reads too.
        """
        path = Path(path)
        if not path.is_dir():
            return cls.from_dict(read_json(path), str(path))
        processor = path / "processor_config.json"
        given = read_json(processor).get("image_processor") if processor.exists() else None
        budget = given.get("max_soft_tokens", 280) if isinstance(given, dict) else 280
        if type(budget) is not int or budget not in BUDGETS:
            raise Error(f"{processor}: max_soft_tokens must be one of {', '.join(map(str, BUDGETS))}, not {budget!r}")
        return replace(cls.from_dict(read_json(path / "config.json"), str(path / "config.json")), image_budget=budget)

    @classmethod
    def from_dict(cls, data, where="config"):
        """Resolve the fields of a config.json. Raises Error at the first unsupported or contradictory value.

        where: the name of the file, for messages.
        """
        return cls(**_resolve(data, where))

    def budget(self, asked):
        """The most soft tokens of a picture: what a caller asked for, and for None image_budget."""
        return self.image_budget if asked is None else asked

    def to_dict(self, towers=()):
        """A config.json that transformers reads: a whole one with these towers ("vision", "audio").

        Without any it is text-only (`model_type: gemma4_text`, fields at top level).
        """
        if not towers:
            return self.source | {"model_type": "gemma4_text", "architectures": ["Gemma4ForCausalLM"]}
        others = {f"{part}_config": None for part in ("vision", "audio") if part not in towers}
        return self.beside | {"text_config": self.source} | others


def _is_number(value):
    """Whether value is an int or float that float64 can hold; NaN and infinity are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) <= sys.float_info.max


REQUIRED = object()


class Rule(NamedTuple):
    """The supported values of one field."""

    supports: Callable[[object], bool]
    message: str  # about any other value
    default: object = REQUIRED  # transformers' default; REQUIRED: a config.json must have the field


def _size(low, high=2**31, default=REQUIRED):
    """Whole numbers. Absurd sizes must be refused before anything is allocated."""
    message = f"must be a whole number from {low} to {high}, not {{!r}}"
    return Rule(lambda value: type(value) is int and low <= value <= high, message, default)


def _number(low, high, default=REQUIRED):
    """Numbers; and null if that is the default."""
    null = default is None
    message = f"must be {'null or ' * null}a number from {low:g} to {high:g}, not {{!r}}"
    return Rule(lambda v: (v is None and null) or (_is_number(v) and low <= v <= high), message, default)


def _one_of(*values):
    """These values; the first is the default."""
    message = f"{{!r}} is not supported; Gemma 4 has {' or '.join(map(json.dumps, values))}"
    return Rule(lambda value: any(type(value) is type(one) and value == one for one in values), message, values[0])


def _defaults(rules):
    return {name: rule.default for name, rule in rules.items() if rule.default is not REQUIRED}


# The fields of the text model whose values need no other field to be judged, with transformers' defaults.
FIELDS = {
    "attention_bias": _one_of(False),
    "attention_k_eq_v": _one_of(False, True),
    "enable_moe_block": _one_of(False, True),
    "final_logit_softcapping": _number(SMALLEST, 1 / SMALLEST, default=None),
    "hidden_activation": _one_of("gelu_pytorch_tanh"),
    "hidden_size": _size(1),
    "hidden_size_per_layer_input": _size(0, default=256),
    "intermediate_size": _size(1),
    "max_position_embeddings": _size(1, default=131072),
    "num_attention_heads": _size(1),
    "num_hidden_layers": _size(1, LAYERS),
    "num_kv_shared_layers": _size(0, default=0),
    "rms_norm_eps": _number(SMALLEST, 1, default=1e-6),  # with 0, a row of zeros would become NaN
    "sliding_window": _size(1),
    "tie_word_embeddings": _one_of(True),
    "use_bidirectional_attention": _one_of(None, "vision"),
    "use_double_wide_mlp": _one_of(False, True),
    "vocab_size": _size(1),
}
EXPERT_FIELDS = {"num_experts": _size(1, 100_000), "moe_intermediate_size": _size(1)}
LAYER_FIELDS = {"head_dim": _size(1, 2**14), "num_key_value_heads": _size(1)}
VISION_FIELDS = {  # of vision_config
    "patch_size": _size(1, 256),
    "pooling_kernel_size": _size(1, 16, default=3),
    "rms_norm_eps": _number(SMALLEST, 1, default=1e-6),
}
EMBEDDER_FIELDS = {"mm_embed_dim": _size(1, 2**24), "mm_posemb_size": _size(1, 2**24)}  # 12B
TOWER_FIELDS = {
    "attention_bias": _one_of(False),
    "hidden_activation": _one_of("gelu_pytorch_tanh"),
    "hidden_size": _size(1, 2**24),
    "intermediate_size": _size(1, 2**24),
    "num_hidden_layers": _size(1, LAYERS),
    "num_attention_heads": _size(1, 2**24),
    "num_key_value_heads": _size(1, 2**24),
    "head_dim": _size(1, 2**14),
    "position_embedding_size": _size(1, 2**24),
    "standardize": _one_of(False, True),
    "use_clipped_linears": _one_of(False, True),
}
AUDIO_FIELDS = {  # of audio_config
    "attention_context_left": _size(2, 2**16, default=13),
    "attention_context_right": _one_of(0),
    "attention_invalid_logits_value": _number(-1e38, -1e4, default=-1e9),  # as good as the minus infinity used here
    "attention_logit_cap": _number(SMALLEST, 1 / SMALLEST, default=50.0),
    "conv_kernel_size": _size(1, 2**10, default=5),
    "gradient_clipping": _number(SMALLEST, 1 / SMALLEST, default=1e10),
    "hidden_act": _one_of("silu"),
    "hidden_size": _size(2, 2**24),
    "num_attention_heads": _size(1, 2**24),
    "num_hidden_layers": _size(1, LAYERS),
    "output_proj_dims": _size(1, 2**24),
    "residual_weight": _number(-1e6, 1e6, default=0.5),
    "rms_norm_eps": _number(SMALLEST, 1, default=1e-6),
    "use_clipped_linears": _one_of(True, False),
}
AUDIO_EMBEDDER_FIELDS = {  # 12B
    "audio_embed_dim": _size(1, 2**24),
    "rms_norm_eps": _number(SMALLEST, 1, default=1e-6),
}
MEDIA_IDS = {
    "boi_token_id": _size(0, default=255999),
    "image_token_id": _size(0, default=258880),
    "eoi_token_id": _size(0, default=258882),
    "boa_token_id": _size(0, default=256000),
    "audio_token_id": _size(0, default=258881),
    "eoa_token_id": _size(0, default=258883),
    "video_token_id": _size(0, default=258884),
}
ROPE_FIELDS = {
    "rope_type": _one_of("default", "proportional"),
    "rope_theta": _number(SMALLEST, 1e12),
    "partial_rotary_factor": _number(SMALLEST, 1, default=1.0),
    "factor": _number(SMALLEST, 1e6, default=1.0),
}
DEFAULTS = _defaults(FIELDS) | {"pad_token_id": 0}


def _check(rules, fields, where):
    """Raise Error for the first of `fields` whose value is not supported. rules: name -> Rule."""
    for name, rule in rules.items():
        if not rule.supports(fields.get(name)):
            raise Error(f"{where}: {name} {rule.message.format(fields.get(name))}")


def inverse_frequencies(rope, head_dim, where="rope_parameters"):
    """RoPE's angle per position for each of the head_dim/2 pairs -> [H/2], float64.

    "default" rotates all pairs: theta^(-2j/H). "proportional" rotates the first partial_rotary_factor of the pairs; the
    others have frequency 0. Its exponents divide by the whole head_dim, not by the rotated part. Nothing depends on the
    context length. Source: transformers, _compute_proportional_rope_parameters. Raises Error for any other setting.
    """
    if unknown := sorted(set(rope) - set(ROPE_FIELDS)):
        raise Error(f"{where}: {unknown[0]!r} is not a RoPE setting that Gemma 4 uses; remove it")
    rope = _defaults(ROPE_FIELDS) | rope
    factor, scale = rope["partial_rotary_factor"], rope["factor"]
    if rope["rope_type"] == "default" and (factor, scale) != (1, 1):
        raise Error(f"{where}: only rope_type 'proportional' has partial_rotary_factor or factor; 'default' does not")
    _check(ROPE_FIELDS, rope, where)
    rotating = int(factor * head_dim // 2)
    inv_freq = np.zeros(head_dim // 2)  # [H/2]
    inv_freq[:rotating] = float(rope["rope_theta"]) ** (-2.0 * np.arange(rotating) / head_dim) / scale
    return inv_freq


def _resolve(data, where):
    """The arguments of Config from a parsed config.json."""
    text = _text_fields(data, where)
    _check(FIELDS, text, where)
    vocab, rules = text["vocab_size"], {"pad_token_id": _size(0, text["vocab_size"] - 1)}
    fields = {"vocab_size_per_layer_input": vocab} | text
    absent = {}  # fields of parts that the model does not have
    if text["hidden_size_per_layer_input"]:
        message = f"must be a whole number from {vocab} up, not {{!r}}: the rows of the PLE table"
        rules["vocab_size_per_layer_input"] = _size(vocab)._replace(message=message)
    else:
        absent["vocab_size_per_layer_input"] = 0
    if text["enable_moe_block"]:
        _check(EXPERT_FIELDS, text, where)
        rules["top_k_experts"] = _size(1, text["num_experts"])
    else:
        absent |= dict.fromkeys((*EXPERT_FIELDS, "top_k_experts"))
    _check(rules, fields, where)
    fields |= absent | _media_ids(data, where)
    fields |= {"layers": _layers(text, where), "vision": _vision(data, where), "audio": _audio(data, where)}
    beside = {name: value for name, value in data.items() if name != "text_config"}
    fields |= {"image_budget": 280, "source": text, "beside": beside if "text_config" in data else {}}
    return {name: fields[name] for name in Config.__dataclass_fields__}


def _text_fields(data, where):
    """The fields of the text model in a parsed config.json, with defaults. Raises Error if two of them contradict."""
    model_type = data.get("model_type", "gemma4_text")
    if model_type not in MODEL_TYPES:
        raise Error(f"{where}: model_type {model_type!r} is not Gemma 4; expected one of {', '.join(MODEL_TYPES)}")
    text = data.get("text_config", data)
    if not isinstance(text, dict):
        raise Error(f"{where}: text_config must be an object, not {type(text).__name__}")
    read = {*Config.__dataclass_fields__, *Layer.__dataclass_fields__, *DEFAULTS, *LAYERED}
    for name in sorted(read & set(data) & set(text)) if text is not data else ():
        if data[name] != text[name]:
            both = f"{data[name]!r} at top level and {text[name]!r} in text_config"
            raise Error(f"{where}: {name} is {both}; remove the wrong one")
    if text.get("rope_parameters") is None and (old := sorted({"rope_theta", "rope_scaling"} & set(text))):
        raise Error(f"{where}: {old[0]} is an older form of rope_parameters, which are given for each kind of layer")
    return DEFAULTS | (UNIFIED_DEFAULTS if model_type.startswith("gemma4_unified") else {}) | text


def _layers(text, where):
    """The facts of every layer -> tuple of Layer."""
    kinds = _layer_types(text, where)
    donors = _kv_donors(kinds, text["num_kv_shared_layers"], where)
    ropes = ROPE_DEFAULTS if text.get("rope_parameters") is None else text["rope_parameters"]
    heads, layers = text["num_attention_heads"], []
    for i, (kind, overrides) in enumerate(zip(kinds, _layer_overrides(text, kinds, where), strict=True)):
        here, geometry = f"{where}: layer {i}", text | overrides
        _check(LAYER_FIELDS, geometry, where)
        head_dim, kv_heads = geometry["head_dim"], geometry["num_key_value_heads"]
        if head_dim % 2:
            raise Error(f"{here}: head_dim {head_dim} is odd; RoPE rotates pairs, so it must be even")
        if heads % kv_heads:
            raise Error(f"{here}: num_attention_heads {heads} is not a multiple of num_key_value_heads {kv_heads}")
        donor = layers[donors[i]] if donors[i] != i else None
        if donor and (donor.head_dim, donor.num_key_value_heads) != (head_dim, kv_heads):
            raise Error(f"{here}: shares the K and V of layer {donors[i]}, but its heads have another shape")
        rope = ropes.get(kind) if isinstance(ropes, dict) else None
        if not isinstance(rope, dict):
            raise Error(f"{where}: rope_parameters has no object named {kind}")
        layers.append(
            Layer(
                index=i,
                kind=kind,
                head_dim=head_dim,
                num_key_value_heads=kv_heads,
                window=text["sliding_window"] if kind == SLIDING else None,
                inv_freq=inverse_frequencies(rope, head_dim, f"{where}: rope_parameters.{kind}"),
                kv_from=donors[i],
                k_eq_v=text["attention_k_eq_v"] and kind == GLOBAL,
                intermediate_size=text["intermediate_size"] * (2 if text["use_double_wide_mlp"] and donor else 1),
            )
        )
    return tuple(layers)


def _media_ids(data, where):
    """The ids around and in place of pictures and sounds. Raises Error for what is not an id."""
    data = {"eoa_token_id": data.get("eoa_token_index")} | data  # the released files have both names, others one
    ids = _defaults(MEDIA_IDS) | {name: data[name] for name in MEDIA_IDS if data.get(name) is not None}
    _check(MEDIA_IDS, ids, where)
    return ids


def _vision(data, where):
    """vision_config of a parsed config.json -> VisionTower, VisionEmbedder (12B), or None if there is none.

    Source: transformers, Gemma4VisionConfig and Gemma4UnifiedVisionConfig. Raises Error for what the pass cannot do.
    """
    given = data.get("vision_config")
    if given is None:
        return None
    where = f"{where}: vision_config"
    if not isinstance(given, dict):
        raise Error(f"{where} must be an object or null, not {given!r}")
    unified = "mm_embed_dim" in given
    rules = VISION_FIELDS | (EMBEDDER_FIELDS if unified else TOWER_FIELDS)
    vision = _defaults(rules) | {"rope_parameters": {"rope_type": "axial", "rope_theta": 100.0}} | given
    _check(rules, vision, where)
    made = VisionEmbedder if unified else VisionTower
    values = {name: vision[name] for name in made.__dataclass_fields__ if name != "inv_freq"}
    if unified:
        return VisionEmbedder(**values)
    rope = vision["rope_parameters"]
    if values["head_dim"] % 4 or values["num_attention_heads"] % values["num_key_value_heads"]:
        raise Error(f"{where}: head_dim must be a multiple of 4, num_attention_heads one of num_key_value_heads")
    if not isinstance(rope, dict) or rope.get("rope_type") not in ("default", "axial"):
        raise Error(f"{where}.rope_parameters must have rope_type 'default' or 'axial', not {rope!r:.60}")
    rope = rope | {"rope_type": "default"}  # the released files' name for axial
    return VisionTower(
        **values, inv_freq=inverse_frequencies(rope, values["head_dim"] // 2, f"{where}.rope_parameters")
    )


def _audio(data, where):
    """audio_config of a parsed config.json -> AudioTower, AudioEmbedder (12B), or None if there is none.

    Source: transformers, Gemma4AudioConfig and Gemma4UnifiedAudioConfig. Raises Error for what the pass cannot do.
    """
    given = data.get("audio_config")
    if given is None:
        return None
    where = f"{where}: audio_config"
    if not isinstance(given, dict):
        raise Error(f"{where} must be an object or null, not {given!r}")
    unified = "audio_embed_dim" in given
    rules, made = (AUDIO_EMBEDDER_FIELDS, AudioEmbedder) if unified else (AUDIO_FIELDS, AudioTower)
    audio = _defaults(rules) | {"subsampling_conv_channels": [128, 32]} | given
    _check(rules, audio, where)
    values = {name: audio[name] for name in made.__dataclass_fields__}
    if unified:
        return made(**values)
    channels, size, heads = audio["subsampling_conv_channels"], audio["hidden_size"], audio["num_attention_heads"]
    if not (isinstance(channels, list) and len(channels) == 2 and all(map(_size(1, 2**20).supports, channels))):
        raise Error(f"{where}: subsampling_conv_channels must be a list of two sizes, not {channels!r:.60}")
    if channels[0] % 4 or size % 2 or size % heads:
        raise Error(
            f"{where}: the first of subsampling_conv_channels must be a multiple of 4, and hidden_size of 2 and of "
            "num_attention_heads"
        )
    reach = audio["attention_context_left"] - 1
    if audio.get("attention_chunk_size", reach) != reach:
        raise Error(f"{where}: attention_chunk_size must be attention_context_left - 1, which is {reach}")
    return made(**values | {"subsampling_conv_channels": tuple(channels)})


def _layer_types(text, where):
    """The kind of each layer. Without layer_types: transformers' default, five sliding layers to one global."""
    kinds, num_layers = text.get("layer_types"), text["num_hidden_layers"]
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
