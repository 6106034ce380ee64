"""The one table of tensors: every name in a checkpoint, its shape, its part of the model, its attribute in the code.

The loader, the accounting and the random weights all read this table, so each tensor is described once. Names are those
of the checkpoint without the prefix: `layers.0.self_attn.q_proj.weight`, not `model.language_model.layers...`. Only
`checkpoint_tensors` gives whole names; it also lists the vision and audio tensors of a released file.
"""

import re
from typing import NamedTuple

VISION = ("vision_tower.", "embed_vision.", "vision_embedder.")
AUDIO = ("audio_tower.", "embed_audio.")
# What programs put into the names: Google's files and transformers (model.language_model., model.), MLX
# (language_model.model.), PEFT (base_model.model.), DistributedDataParallel, torch.compile, FSDP, checkpointing.
WRAPPERS = {
    "model", "language_model", "base_model", "module", "_orig_mod", "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
}  # fmt: skip
BOUNDS = ("input_min", "input_max", "output_min", "output_max")  # of a clipped linear's inputs and outputs
TABLES = ("token table", "PLE table")  # read one row a token; the token table is also the output head


def bare_name(name):
    """model.language_model.layers.0.x, _orig_mod.layers.0.x, layers.0._orig_mod.x, ... -> layers.0.x"""
    return ".".join(part for part in name.split(".") if part not in WRAPPERS)


class Tensor(NamedTuple):
    """One row of the table."""

    name: str  # in the checkpoint, after the prefix
    shape: tuple[int, ...]
    part: str  # the part of the model that the accounting counts it under
    attribute: str | None  # of Weights, or of its layer; None for tensors that the pass never reads
    layer: int | None = None  # None for tensors outside the layers
    dtype: str = "BF16"  # as safetensors names it; the released files hold only this. Of a packed one its layout
    packed: int | None = None  # bytes in the file, of a packed matrix and in a GGUF file; else the dtype tells


def text_tensors(config):
    """Every tensor that the pass reads -> list of Tensor, layer by layer."""
    D, P, L = config.hidden_size, config.hidden_size_per_layer_input, config.num_hidden_layers
    tensors = [Tensor("embed_tokens.weight", (config.vocab_size, D), "token table", "embed_tokens")]
    if P:
        tensors += [
            Tensor(f"{name}.weight", shape, part, name)
            for name, shape, part in (
                ("embed_tokens_per_layer", (config.vocab_size_per_layer_input, L * P), "PLE table"),
                ("per_layer_model_projection", (L * P, D), "PLE projections and gates"),
                ("per_layer_projection_norm", (P,), "norms and scalars"),
            )
        ]
    for layer in config.layers:
        tensors += _layer_tensors(config, layer)
    return [*tensors, Tensor("norm.weight", (D,), "norms and scalars", "norm")]


def unused_tensors(config):
    """k_proj, v_proj and k_norm of the KV-sharing layers -> list of Tensor. No pass reads them.

    Google's files hold them; files saved again by transformers do not. Both kinds of file are right.
    """
    return [
        tensor._replace(part="unused", attribute=None)
        for layer in config.layers
        if layer.shares_kv
        for tensor in _kv_tensors(config, layer)
    ]


def checkpoint_tensors(config, towers=None, unused=False):
    """Every tensor of a checkpoint file, under its whole name -> list of Tensor.

    towers: the `vision_config` and `audio_config` of a config.json, with every field that the shapes need; None for a
    text-only file. unused: whether to list the tensors of unused_tensors too.
    """
    prefix = "model." if towers is None else "model.language_model."
    text = text_tensors(config) + (unused_tensors(config) if unused else [])
    tensors = [tensor._replace(name=prefix + tensor.name) for tensor in text]
    for part, shapes_of in (("vision", _vision_shapes), ("audio", _audio_shapes)):
        tower = (towers or {}).get(f"{part}_config")
        if tower is not None:
            shapes = shapes_of(tower, config.hidden_size)
            tensors += [Tensor(f"model.{name}", shape, part, None) for name, shape in shapes.items()]
    return tensors


def vision_tensors(vision, hidden_size):
    """Every tensor between pixels and soft tokens -> list of Tensor, named as in the file without `model.`.

    vision: the fields of a vision_config by name. A clipped linear and its bounds have the same attribute.
    """
    tensors = []
    for name, shape in _vision_shapes(vision, hidden_size).items():
        layer = int(name.split(".")[3]) if ".layers." in name else None
        tensors.append(Tensor(name, shape, "vision", _path(name).split(".")[-1], layer))
    return tensors


def audio_tensors(audio, hidden_size):
    """Every tensor between a sound and its soft tokens -> list of Tensor, named as in the file without `model.`.

    audio: the fields of an audio_config by name. An attribute is a path, such as lconv1d.linear_start.
    """
    tensors = []
    for name, shape in _audio_shapes(audio, hidden_size).items():
        _, layer, path = re.fullmatch(r"(audio_tower|embed_audio)\.(?:layers\.(\d+)\.)?(.*)", _path(name)).groups()
        tensors.append(Tensor(name, shape, "audio", path, None if layer is None else int(layer)))
    return tensors


def _path(name):
    """...mlp.up_proj.linear.weight, and the bounds beside it -> ...mlp.up_proj; patch_ln1.bias -> patch_ln1_bias."""
    name = name.removesuffix(".weight").removesuffix(".linear")
    owner, _, last = name.rpartition(".")
    return owner if last in BOUNDS else f"{owner}_bias" if last == "bias" else name


def _layer_tensors(config, layer):
    D, N, H, F = config.hidden_size, config.num_attention_heads, layer.head_dim, layer.intermediate_size
    P, E, M = config.hidden_size_per_layer_input, config.num_experts, config.moe_intermediate_size
    prefix = f"layers.{layer.index}."

    def rows(part, *entries):
        return [Tensor(prefix + name, shape, part, attribute, layer.index) for name, shape, attribute in entries]

    tensors = rows(
        "attention",
        ("self_attn.q_proj.weight", (N * H, D), "q_proj"),
        ("self_attn.o_proj.weight", (D, N * H), "o_proj"),
    )
    tensors += rows(
        "norms and scalars",
        ("self_attn.q_norm.weight", (H,), "q_norm"),
        ("input_layernorm.weight", (D,), "input_layernorm"),
        ("post_attention_layernorm.weight", (D,), "post_attention_layernorm"),
        ("pre_feedforward_layernorm.weight", (D,), "pre_feedforward_layernorm"),
        ("post_feedforward_layernorm.weight", (D,), "post_feedforward_layernorm"),
        ("layer_scalar", (1,), "layer_scalar"),
    )
    tensors += rows(
        "MLP",
        ("mlp.gate_proj.weight", (F, D), "gate_proj"),
        ("mlp.up_proj.weight", (F, D), "up_proj"),
        ("mlp.down_proj.weight", (D, F), "down_proj"),
    )
    if not layer.shares_kv:
        tensors += _kv_tensors(config, layer)
    if config.enable_moe_block:
        tensors += rows(
            "experts",
            ("experts.gate_up_proj", (E, 2 * M, D), "experts_gate_up_proj"),
            ("experts.down_proj", (E, D, M), "experts_down_proj"),
            ("router.proj.weight", (E, D), "router_proj"),
            ("router.scale", (D,), "router_scale"),
            ("router.per_expert_scale", (E,), "per_expert_scale"),
        )
        tensors += rows(
            "norms and scalars",
            ("post_feedforward_layernorm_1.weight", (D,), "post_feedforward_layernorm_1"),
            ("pre_feedforward_layernorm_2.weight", (D,), "pre_feedforward_layernorm_2"),
            ("post_feedforward_layernorm_2.weight", (D,), "post_feedforward_layernorm_2"),
        )
    if P:
        tensors += rows(
            "PLE projections and gates",
            ("per_layer_input_gate.weight", (P, D), "per_layer_input_gate"),
            ("per_layer_projection.weight", (D, P), "per_layer_projection"),
        )
        tensors += rows("norms and scalars", ("post_per_layer_input_norm.weight", (D,), "post_per_layer_input_norm"))
    return tensors


def _kv_tensors(config, layer):
    """k_proj, k_norm, and v_proj unless V is made from k_proj's output. v_norm has no weight, so it has no tensor."""
    KH, D = layer.num_key_value_heads * layer.head_dim, config.hidden_size
    entries = [("k_proj", (KH, D), "attention"), ("k_norm", (layer.head_dim,), "norms and scalars")]
    if not layer.k_eq_v:
        entries.insert(1, ("v_proj", (KH, D), "attention"))
    return [
        Tensor(f"layers.{layer.index}.self_attn.{name}.weight", shape, part, name, layer.index)
        for name, shape, part in entries
    ]


def _vision_shapes(tower, hidden_size):
    """Shapes by name of the tensors that turn pixels into soft tokens. Source: transformers' Gemma4VisionModel; for
    12B, Gemma4Unified."""
    if "mm_embed_dim" in tower:
        D, patch = tower["mm_embed_dim"], 3 * (tower["patch_size"] * tower["pooling_kernel_size"]) ** 2
        return {
            "vision_embedder.patch_ln1.weight": (patch,),
            "vision_embedder.patch_ln1.bias": (patch,),
            "vision_embedder.patch_dense.weight": (D, patch),
            "vision_embedder.patch_dense.bias": (D,),
            "vision_embedder.patch_ln2.weight": (D,),
            "vision_embedder.patch_ln2.bias": (D,),
            "vision_embedder.pos_embedding": (tower["mm_posemb_size"], 2, D),
            "vision_embedder.pos_norm.weight": (D,),
            "vision_embedder.pos_norm.bias": (D,),
            "embed_vision.embedding_projection.weight": (hidden_size, D),
        }
    D, F, H = tower["hidden_size"], tower["intermediate_size"], tower["head_dim"]
    NH, KH = tower["num_attention_heads"] * H, tower["num_key_value_heads"] * H
    shapes = {
        "patch_embedder.input_proj.weight": (D, 3 * tower["patch_size"] ** 2),
        "patch_embedder.position_embedding_table": (2, tower["position_embedding_size"], D),
    }
    if tower["standardize"]:  # statistics, not learned, but in the file
        shapes |= {"std_bias": (D,), "std_scale": (D,)}
    layer = {
        "input_layernorm.weight": (D,),
        "post_attention_layernorm.weight": (D,),
        "pre_feedforward_layernorm.weight": (D,),
        "post_feedforward_layernorm.weight": (D,),
        "self_attn.q_norm.weight": (H,),
        "self_attn.k_norm.weight": (H,),
    }
    layer |= _linears(
        tower["use_clipped_linears"],
        {
            "self_attn.q_proj": (NH, D),
            "self_attn.k_proj": (KH, D),
            "self_attn.v_proj": (KH, D),
            "self_attn.o_proj": (D, NH),
            "mlp.gate_proj": (F, D),
            "mlp.up_proj": (F, D),
            "mlp.down_proj": (D, F),
        },
    )
    for i in range(tower["num_hidden_layers"]):
        shapes |= {f"encoder.layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes = {f"vision_tower.{name}": shape for name, shape in shapes.items()}
    return shapes | {"embed_vision.embedding_projection.weight": (hidden_size, D)}


def _audio_shapes(tower, hidden_size):
    """Shapes by name of the tensors that turn sound into soft tokens: a Conformer, or in 12B one projection. Source:
    transformers' Gemma4AudioModel and Gemma4Unified."""
    if "audio_embed_dim" in tower:
        return {"embed_audio.embedding_projection.weight": (hidden_size, tower["audio_embed_dim"])}
    D, out = tower["hidden_size"], tower["output_proj_dims"]
    first, second = tower["subsampling_conv_channels"]
    shapes = {
        "subsample_conv_projection.layer0.conv.weight": (first, 1, 3, 3),
        "subsample_conv_projection.layer0.norm.weight": (first,),
        "subsample_conv_projection.layer1.conv.weight": (second, first, 3, 3),
        "subsample_conv_projection.layer1.norm.weight": (second,),
        "subsample_conv_projection.input_proj_linear.weight": (D, first // 4 * second),
        "output_proj.weight": (out, D),
        "output_proj.bias": (out,),
    }
    layer = {
        "lconv1d.depthwise_conv1d.weight": (D, 1, tower["conv_kernel_size"]),
        "self_attn.relative_k_proj.weight": (D, D),
        "self_attn.per_dim_scale": (D // tower["num_attention_heads"],),
    }
    norms = ("norm_pre_attn", "norm_post_attn", "norm_out", "lconv1d.pre_layer_norm", "lconv1d.conv_norm")
    norms += tuple(f"feed_forward{n}.{side}_layer_norm" for n in (1, 2) for side in ("pre", "post"))
    layer |= {f"{name}.weight": (D,) for name in norms}
    linears = {f"self_attn.{name}": (D, D) for name in ("q_proj", "k_proj", "v_proj", "post")}
    linears |= {"lconv1d.linear_start": (2 * D, D), "lconv1d.linear_end": (D, D)}
    for n in (1, 2):
        linears |= {f"feed_forward{n}.ffw_layer_1": (4 * D, D), f"feed_forward{n}.ffw_layer_2": (D, 4 * D)}
    layer |= _linears(tower["use_clipped_linears"], linears)
    for i in range(tower["num_hidden_layers"]):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes = {f"audio_tower.{name}": shape for name, shape in shapes.items()}
    return shapes | {"embed_audio.embedding_projection.weight": (hidden_size, out)}


def _linears(clipped, shapes):
    """Matrices of a tower; if clipped, each with four scalars: the bounds of its inputs and outputs."""
    tensors = {f"{name}.linear.weight": shape for name, shape in shapes.items()}
    if clipped:
        for bound in BOUNDS:
            tensors |= {f"{name}.{bound}": () for name in shapes}
    return tensors
