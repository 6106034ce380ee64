"""The one table of tensors: every name in a checkpoint, its shape, its part of the model, its attribute in the code.

The loader, the accounting and the random weights all read this table, so a tensor is described once. Names are the
checkpoint's without its prefix (`layers.0.self_attn.q_proj.weight`, not `model.language_model.layers...`).
"""

from typing import NamedTuple

PREFIXES = ("model.language_model.", "model.", "")  # Google's files; text-only saves of transformers; neither
NOT_TEXT = tuple(f"model.{name}." for name in ("vision_tower", "audio_tower", "embed_vision", "embed_audio"))
TABLES = ("token table", "PLE table")  # read a row at a time: these parts stay on disk whatever the dtype

class Tensor(NamedTuple):
    name: str  # in the checkpoint, after the prefix
    shape: tuple[int, ...]
    part: str  # the part of the model it is accounted under
    attribute: str | None  # in Weights or in its layer; None for tensors that the pass never reads
    layer: int | None = None


def text_tensors(config):
    """Every tensor of the text model that the pass reads -> list of Tensor, in the order of the pass."""
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
    """What Google's files hold and nothing reads: k_proj, v_proj and k_norm of the KV-sharing layers.

    Files saved again by transformers drop them; both kinds of file are right.
    """
    return [
        tensor._replace(part="unused", attribute=None)
        for layer in config.layers
        if layer.shares_kv
        for tensor in _kv_tensors(config, layer)
    ]


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
        tensors += rows(
            "norms and scalars", ("post_per_layer_input_norm.weight", (D,), "post_per_layer_input_norm")
        )
    return tensors


def _kv_tensors(config, layer):
    """k_proj, k_norm and, unless V is made from k_proj's output, v_proj. v_norm has no weight: it has no tensor."""
    KH, D = layer.num_key_value_heads * layer.head_dim, config.hidden_size
    entries = [("k_proj", (KH, D), "attention"), ("k_norm", (layer.head_dim,), "norms and scalars")]
    if not layer.k_eq_v:
        entries.insert(1, ("v_proj", (KH, D), "attention"))
    return [
        Tensor(f"layers.{layer.index}.self_attn.{name}.weight", shape, part, name, layer.index)
        for name, shape, part in entries
    ]
