"""The released models by name: their text_config, each with its source."""

from .config import GLOBAL, ROPE_DEFAULTS, SLIDING, Config
from .errors import Error


def _released(layers, period, **fields):
    """A released model's text_config: the fields common to all five models, and its own."""
    kinds = [GLOBAL if (i + 1) % period == 0 else SLIDING for i in range(layers)]
    common = {
        "vocab_size": 262144,
        "vocab_size_per_layer_input": 262144,
        "head_dim": 256,
        "global_head_dim": 512,
        "final_logit_softcapping": 30.0,
        "rms_norm_eps": 1e-6,
        "rope_parameters": ROPE_DEFAULTS,
        "num_hidden_layers": layers,
        "layer_types": kinds,
    }
    return common | fields


_SMALL = {"num_attention_heads": 8, "hidden_size_per_layer_input": 256, "sliding_window": 512}
_SMALL |= {"max_position_embeddings": 131072}
_BIG = {"attention_k_eq_v": True, "hidden_size_per_layer_input": 0, "sliding_window": 1024}
_BIG |= {"max_position_embeddings": 262144, "use_bidirectional_attention": "vision"}
# The five released text models, from the config.json files of google/gemma-4-*-it on the Hugging Face hub. E2B: the
# file itself. E4B, 26B-A4B, 31B: rebuilt; their sha256 is the published one. 12B: field by field from public sources
# of engines; its parameter count is the published one.
RELEASED = {
    "E2B": _released(
        35, 5, **_SMALL, hidden_size=1536, intermediate_size=6144, num_key_value_heads=1,
        num_kv_shared_layers=20, use_double_wide_mlp=True,
    ),
    "E4B": _released(
        42, 6, **_SMALL, hidden_size=2560, intermediate_size=10240, num_key_value_heads=2,
        num_kv_shared_layers=18, use_double_wide_mlp=False,
    ),
    "12B": _released(
        48, 6, **_BIG, hidden_size=3840, intermediate_size=15360, num_attention_heads=16, num_key_value_heads=8,
        num_global_key_value_heads=1,
    ),
    "26B-A4B": _released(
        30, 6, **_BIG, hidden_size=2816, intermediate_size=2112, num_attention_heads=16, num_key_value_heads=8,
        num_global_key_value_heads=2, enable_moe_block=True, num_experts=128, top_k_experts=8,
        moe_intermediate_size=704,
    ),
    "31B": _released(
        60, 6, **_BIG, hidden_size=5376, intermediate_size=21504, num_attention_heads=32, num_key_value_heads=16,
        num_global_key_value_heads=4,
    ),
}  # fmt: skip
# "Effective" parameters on Google's model cards, in billions as printed there. The cards give no definition.
EFFECTIVE = {"E2B": "2.3", "E4B": "4.5"}


def released_name(name):
    """The key in RELEASED for "E2B", "gemma-4-e2b", "google/gemma-4-E2B-it", ... Raises Error for other names."""
    short = name.removeprefix("google/").removeprefix("gemma-4-").removesuffix("-it")
    for known in RELEASED:
        if short.lower() == known.lower():
            return known
    raise Error(f"{name!r} is not a released Gemma 4; use one of {', '.join(RELEASED)}")


def released_config(name):
    """The Config of a released text model, by any of its names. Raises Error for other names."""
    known = released_name(name)
    return Config.from_dict(RELEASED[known], f"gemma-4-{known}")
