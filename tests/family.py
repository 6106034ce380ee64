"""The Gemma 4 family in miniature: every released member's features at sizes where a test takes milliseconds."""

from minigemma import Config, random_weights
from minigemma.config import GLOBAL, SLIDING

COMMON = {
    "vocab_size": 120,
    "hidden_size": 24,
    "intermediate_size": 40,
    "num_attention_heads": 4,
    "head_dim": 8,
    "global_head_dim": 16,
    "sliding_window": 5,
    "max_position_embeddings": 256,
    "final_logit_softcapping": 30.0,
}
PLE = {"hidden_size_per_layer_input": 6, "vocab_size_per_layer_input": 120}
BIG = {"hidden_size_per_layer_input": 0, "attention_k_eq_v": True, "num_global_key_value_heads": 1}


def kinds(*run):
    """kinds(4, 4): four sliding layers and a global one, twice."""
    return [kind for sliding in run for kind in [SLIDING] * sliding + [GLOBAL]]


MEMBERS = {
    "E2B": PLE | {"layer_types": kinds(4, 4), "num_key_value_heads": 1, "num_kv_shared_layers": 5}
    | {"use_double_wide_mlp": True},
    "E4B": PLE | {"layer_types": kinds(2, 2, 2), "num_key_value_heads": 2, "num_kv_shared_layers": 3},
    "12B": BIG | {"layer_types": kinds(3, 2), "num_key_value_heads": 2},
    "26B-A4B": BIG | {"layer_types": kinds(2, 2), "num_key_value_heads": 2, "enable_moe_block": True}
    | {"num_experts": 6, "top_k_experts": 2, "moe_intermediate_size": 12},
    "31B": BIG | {"layer_types": kinds(5), "num_key_value_heads": 4, "num_global_key_value_heads": 2},
}  # fmt: skip


def fields(member, **changes):
    """A config.json of that member in miniature."""
    chosen = COMMON | MEMBERS[member] | changes
    return {"num_hidden_layers": len(chosen["layer_types"])} | chosen


def small(member, dtype="float32", seed=1, **changes):
    """Its Config and random weights."""
    config = Config.from_dict(fields(member, **changes))
    return config, random_weights(config, seed, dtype)
