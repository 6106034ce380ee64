"""Writes a GGUF file of Gemma 4's text model, with llama.cpp's keys and names. Source: as gguf.py."""

import struct

import numpy as np

from ..config import GLOBAL, ROPE_DEFAULTS, SLIDING
from ..files import replacing
from ..gguf import LAYER, OUTSIDE, ROPE, nbytes_of

ALIGNMENT = 32  # bytes; every tensor begins at a multiple
FORMS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}  # the number of a type, and its form for struct


def keys_of(config):
    """The keys that gguf.config_of reads as this Config; without a vocabulary."""
    raw, layers = config.source, config.layers
    ropes = raw.get("rope_parameters") or ROPE_DEFAULTS
    keys = {
        "block_count": len(layers),
        "context_length": config.max_position_embeddings,
        "embedding_length": config.hidden_size,
        "embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "feed_forward_length": [layer.intermediate_size for layer in layers],
        "attention.head_count": config.num_attention_heads,
        "attention.head_count_kv": [layer.num_key_value_heads for layer in layers],
        "attention.key_length": next(layer.head_dim for layer in layers if layer.kind == GLOBAL),
        "attention.key_length_swa": next(layer.head_dim for layer in layers if layer.kind == SLIDING),
        "attention.shared_kv_layers": config.num_kv_shared_layers,
        "attention.sliding_window": config.sliding_window,
        "attention.sliding_window_pattern": [layer.kind == SLIDING for layer in layers],
        "attention.layer_norm_rms_epsilon": config.rms_norm_eps,
        "final_logit_softcapping": config.final_logit_softcapping,
        "rope.freq_base": ropes[GLOBAL]["rope_theta"],
        "rope.freq_base_swa": ropes[SLIDING]["rope_theta"],
    }
    if config.enable_moe_block:
        keys["expert_count"], keys["expert_used_count"] = config.num_experts, config.top_k_experts
        keys["expert_feed_forward_length"] = config.moe_intermediate_size
    return {"general.architecture": "gemma4"} | {f"gemma4.{name}": value for name, value in keys.items()}


def rope_divisors(config):
    """The tensor of gguf.ROPE: what the frequencies of a global head's pairs are divided by."""
    turns = next(layer.inv_freq for layer in config.layers if layer.kind == GLOBAL)
    return np.where(turns > 0, 1, 1e30).astype(np.float32)  # [H/2]


def name_of(ours):
    """llama.cpp's name of a tensor of the text model."""
    outside, inside = ({name: theirs for theirs, name in table.items()} for table in (OUTSIDE, LAYER))
    if ours == ROPE or ours in outside:
        return outside.get(ours, ours)
    _, number, rest = ours.split(".", 2)
    return f"blk.{number}.{inside[rest]}"


def write(path, keys, table, pieces):
    """Write a GGUF file of these keys and of tensors (name, shape, number of the type).

    pieces: the bytes of the tensors, in the order of the table; a tensor may be several of them.
    """
    header = b"GGUF" + struct.pack("<IQQ", 3, len(table), len(keys))
    header += b"".join(_text(name) + _value(value) for name, value in keys.items())
    sizes, end = [nbytes_of(kind, shape) for _, shape, kind in table], 0
    for (name, shape, kind), size in zip(table, sizes, strict=True):
        header += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape[::-1], kind, end)
        end += size + -size % ALIGNMENT
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(header + bytes(-len(header) % ALIGNMENT))
        pieces = iter(pieces)
        for size in sizes:
            written = 0
            while written < size:
                written += file.write(next(pieces))
            file.write(bytes(-size % ALIGNMENT))


def _value(value):
    """A key's value as bytes, with its type in front."""
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, list):
        items = [_value(one) for one in value]
        return struct.pack("<I", 9) + items[0][:4] + struct.pack("<Q", len(items)) + b"".join(one[4:] for one in items)
    kind, form = FORMS[type(value)]
    return struct.pack(f"<I{form}", kind, value)


def _text(string):
    raw = string.encode()
    return struct.pack("<Q", len(raw)) + raw
