"""Random small Gemma 4 configs across every feature, in both spellings of config.json."""

import numpy as np

from minigemma.config import DEFAULTS, GLOBAL, ROPE_DEFAULTS, SLIDING

# What a config.json may leave out, and the value that it then has.
OPTIONAL = DEFAULTS | {"num_global_key_value_heads": None, "rope_parameters": ROPE_DEFAULTS}


def random_config(seed):
    """A config.json as a dict, and a prompt that is longer than the window.

    No size is below 6: a norm over three or four numbers amplifies rounding up to a thousandfold, and in float32 there
    is then nothing left to compare.
    """
    rng = np.random.default_rng([4, seed])

    def pick(*options):
        return options[rng.integers(len(options))]

    def chance(p):
        return bool(rng.random() < p)

    heads, vocab, experts = pick(1, 2, 4, 8), pick(37, 50, 101), pick(3, 4, 8)
    moe, k_eq_v = chance(0.3), chance(0.35)
    kinds = _random_kinds(rng)
    text = {
        "vocab_size": vocab,
        "hidden_size": pick(16, 20, 32, 48),
        "intermediate_size": pick(16, 24, 40),
        "num_hidden_layers": len(kinds),
        "layer_types": kinds,
        "num_attention_heads": heads,
        "num_key_value_heads": pick(*_divisors(heads)),
        "head_dim": pick(6, 8, 16),
        "global_head_dim": pick(6, 8, 16, 24, 32),
        "attention_k_eq_v": k_eq_v,
        "num_global_key_value_heads": pick(None, *_divisors(heads)) if k_eq_v else None,
        "num_kv_shared_layers": pick(0, *_possible_sharing(kinds)),
        "use_double_wide_mlp": chance(0.5),
        "hidden_size_per_layer_input": pick(0, 6, 8, 12),
        "vocab_size_per_layer_input": vocab + pick(0, 7),
        "sliding_window": pick(1, 2, 3, 5, 9),
        "rope_parameters": pick(ROPE_DEFAULTS, {SLIDING: _random_rope(pick), GLOBAL: _random_rope(pick)}),
        "final_logit_softcapping": pick(None, 30.0, 3.0),
        "rms_norm_eps": pick(1e-6, 1e-6, 1e-5, 1e-2),
        "pad_token_id": pick(0, 3),
        "use_bidirectional_attention": pick(None, "vision"),  # of text it says nothing: text is always causal
        "enable_moe_block": moe,
        "num_experts": experts if moe else None,
        "top_k_experts": int(rng.integers(1, experts + 1)) if moe else None,
        "moe_intermediate_size": pick(8, 12) if moe else None,
    }
    prompt = rng.integers(0, vocab, int(rng.integers(text["sliding_window"] + 1, 20)))
    spelling = pick(googles, transformers_own)
    raw = spelling(text, leave_out_defaults=chance(0.5))
    return raw, prompt


def googles(text, leave_out_defaults=False):
    """The spelling of Google's files: the text model inside, global layers by fields of their own."""
    text = _sparse(text) if leave_out_defaults else text
    return {"model_type": "gemma4", "text_config": text | {"model_type": "gemma4_text"}}


def transformers_own(text, leave_out_defaults=False):
    """The spelling transformers 5.23 saves: fields at top level, `per_layer_config` holding only what differs."""
    special = {"head_dim": text["global_head_dim"]}
    kv_heads = text.get("num_global_key_value_heads")
    if text.get("attention_k_eq_v") and kv_heads is not None:
        special["num_key_value_heads"] = kv_heads
    special = {name: value for name, value in special.items() if text[name] != value}
    kinds = text["layer_types"]
    digits = len(str(len(kinds) - 1))
    overrides = {str(i).zfill(digits): special for i, kind in enumerate(kinds) if kind == GLOBAL and special}
    text = _sparse(text) if leave_out_defaults else text
    flat = {name: value for name, value in text.items() if not name.startswith(("global_", "num_global_"))}
    return flat | {"model_type": "gemma4_text", "per_layer_config": overrides}


def _sparse(text):
    """Without the fields that have their default value; layer_types' default is five sliding layers to a global one."""
    count = text["num_hidden_layers"]
    default_kinds = [GLOBAL if (i + 1) % 6 == 0 or i == count - 1 else SLIDING for i in range(count)]
    optional = OPTIONAL | {"layer_types": default_kinds}
    return {name: value for name, value in text.items() if name not in optional or optional[name] != value}


def _random_kinds(rng):
    """One to eleven layers, the last of them global as in every Gemma 4."""
    count = int(rng.integers(1, 12 if rng.random() < 0.2 else 8))
    every = rng.integers(2, 7) if rng.random() < 0.5 else None  # regular as in the released models, or any order
    sliding = [(i + 1) % every != 0 if every else rng.random() < 0.65 for i in range(count - 1)]
    return [SLIDING if slides else GLOBAL for slides in sliding] + [GLOBAL]


def _possible_sharing(kinds):
    """How many layers may share: each kind among them must still have a layer of its own before them."""
    return [n for n in range(1, len(kinds)) if set(kinds[-n:]) <= set(kinds[:-n])]


def _divisors(heads):
    return [k for k in (1, 2, 4) if heads % k == 0]


def _random_rope(pick):
    theta = pick(10.0, 1e4, 1e6)
    if pick(True, False):
        return {"rope_type": "default", "rope_theta": theta}
    factors = {"partial_rotary_factor": pick(0.25, 0.5, 1.0), "factor": pick(1.0, 1.0, 4.0)}
    return {"rope_type": "proportional", "rope_theta": theta} | factors
