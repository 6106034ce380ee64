"""Small GGUF files for tests: the keys and tensors of a model, and a writer of our own."""

import json
import struct

import numpy as np

from minigemma import gguf, mmproj
from minigemma.checkpoint import find_text_tensors
from minigemma.config import SLIDING
from minigemma.packed import widen

VISIBLE = "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'  # llama.cpp prints these
FORMS = {bool: (7, "?"), int: (4, "I"), float: (6, "f")}


def describe(model):
    """A loaded model -> the keys of a GGUF file of it, and its tensors as llama.cpp names them, in float32."""
    config, raw, where = model.config, model.config.source, model.directory
    keys = {
        "general.architecture": "gemma4",
        "gemma4.block_count": config.num_hidden_layers,
        "gemma4.context_length": raw["max_position_embeddings"],
        "gemma4.embedding_length": config.hidden_size,
        "gemma4.embedding_length_per_layer_input": config.hidden_size_per_layer_input,
        "gemma4.feed_forward_length": [layer.intermediate_size for layer in config.layers],
        "gemma4.attention.head_count": config.num_attention_heads,
        "gemma4.attention.head_count_kv": [layer.num_key_value_heads for layer in config.layers],
        "gemma4.attention.key_length": raw["global_head_dim"],
        "gemma4.attention.key_length_swa": raw["head_dim"],
        "gemma4.attention.shared_kv_layers": raw["num_kv_shared_layers"],
        "gemma4.attention.sliding_window": raw["sliding_window"],
        "gemma4.attention.sliding_window_pattern": [kind == SLIDING for kind in raw["layer_types"]],
        "gemma4.attention.layer_norm_rms_epsilon": raw["rms_norm_eps"],
        "gemma4.final_logit_softcapping": raw["final_logit_softcapping"],
        "gemma4.rope.freq_base": raw["rope_parameters"]["full_attention"]["rope_theta"],
        "gemma4.rope.freq_base_swa": raw["rope_parameters"]["sliding_attention"]["rope_theta"],
    }
    vocabulary = json.loads((where / "tokenizer.json").read_text(encoding="utf-8"))
    special = {token["content"] for token in vocabulary["added_tokens"]}
    tokens = sorted(vocabulary["model"]["vocab"], key=vocabulary["model"]["vocab"].get)
    keys |= {
        "tokenizer.ggml.model": "gemma4",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [
            4 if t in VISIBLE else 3 if t in special else 6 if t.startswith("<0x") else 1 for t in tokens
        ],
        "tokenizer.ggml.merges": [" ".join(pair) for pair in vocabulary["model"]["merges"]],
        "tokenizer.ggml.bos_token_id": 2,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.padding_token_id": 0,
    }
    if (where / "chat_template.jinja").exists():
        keys["tokenizer.chat_template"] = (where / "chat_template.jinja").read_text(encoding="utf-8")
    outside = {ours: theirs for theirs, ours in gguf.OUTSIDE.items()}
    layer = {ours: theirs for theirs, ours in gguf.LAYER.items()}
    pairs = raw["global_head_dim"] // 2
    tensors = {"rope_freqs.weight": np.array([1] * (pairs // 4) + [1e30] * (pairs - pairs // 4), np.float32)}
    for name, stored in find_text_tensors(where).items():
        _, number, rest = [*name.split(".", 2), "", ""][:3]
        tensors[outside.get(name) or f"blk.{number}.{layer[rest]}"] = np.asarray(widen(stored.map()))
    return keys, tensors


def describe_towers(config, arrays):
    """Keys and tensors of an mmproj file. arrays: of the towers in float32, by their names without `model.`"""
    kinds = {"vision": hasattr(config.vision, "mm_embed_dim"), "audio": hasattr(config.audio, "audio_embed_dim")}
    unified = any(kinds.values())
    kinds = {part: f"gemma4{'u' * unified}{part[0]}" for part in kinds if getattr(config, part)}
    keys = {"general.architecture": "clip"} | {f"clip.{part}.projector_type": kind for part, kind in kinds.items()}
    if config.vision:
        keys["clip.vision.attention.layer_norm_epsilon"] = config.vision.rms_norm_eps
        keys["clip.vision.projector.scale_factor"] = config.vision.pooling_kernel_size
    return keys, {tower_name(name, unified): tower_layout(name, array) for name, array in arrays.items()}


def tower_name(name, unified):
    """llama.cpp's name of a tower's tensor."""
    if "pos_embedding" in name or "position_embedding_table" in name:
        return "v.position_embd.weight"
    outside = mmproj.OUTSIDE | (mmproj.OUTSIDE_UNIFIED if unified else {})
    modules = {ours: theirs for theirs, ours in outside.items()}
    module, _, last = name.rpartition(".")
    if ".layers." not in name:
        return modules.get(name) or f"{modules[module]}.{last}"
    part, table = ("v", mmproj.VISION_LAYER) if name.startswith("vision") else ("a", mmproj.AUDIO_LAYER)
    modules = {ours.removesuffix(".linear"): theirs for theirs, ours in table.items()}
    number, inside = module.split(".layers.")[1].split(".", 1)
    if last == "per_dim_scale":
        return f"a.blk.{number}.per_dim_scale.weight"
    return f"{part}.blk.{number}.{modules[inside.removesuffix('.linear')]}.{last}"


def tower_layout(name, array):
    """A tensor as llama.cpp's conversion of gemma4 writes it."""
    if name.endswith("patch_embedder.input_proj.weight"):
        side = int((array.shape[1] // 3) ** 0.5)
        return array.reshape(-1, side, side, 3).transpose(0, 3, 1, 2)
    if "patch_dense.weight" in name or "patch_ln1" in name:
        side = int((array.shape[-1] // 3) ** 0.5)
        i = np.arange(array.shape[-1])
        return array[..., i % side**2 // side * side * 3 + i % side * 3 + i // side**2]
    if name.endswith("per_dim_scale"):
        return np.log1p(np.exp(array))
    if "depthwise" in name:
        return array[:, 0]
    if name.endswith("pos_embedding"):
        return array.transpose(1, 0, 2)
    return np.atleast_1d(array)


def value(item):
    """A key's value as bytes, with its type in front."""
    if isinstance(item, str):
        return struct.pack("<I", 8) + text(item)
    if isinstance(item, list):
        kind = value(item[0])[:4]
        return struct.pack("<I", 9) + kind + struct.pack("<Q", len(item)) + b"".join(value(one)[4:] for one in item)
    kind, form = FORMS[type(item)]
    return struct.pack(f"<I{form}", kind, item)


def text(string):
    raw = string.encode()
    return struct.pack("<Q", len(raw)) + raw


def write(path, keys, tensors, kinds=None):
    """Write a GGUF file. tensors: name -> array; kinds: name -> (number of its type, its rows as bytes, its shape)."""
    kinds = kinds or {}
    header = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(keys))
    header += b"".join(text(name) + value(item) for name, item in keys.items())
    data = b""
    for name, array in tensors.items():
        kind, raw, shape = kinds.get(name) or (0, np.ascontiguousarray(array, "<f4").tobytes(), array.shape)
        axes = struct.pack(f"<I{len(shape)}Q", len(shape), *shape[::-1])
        header += text(name) + axes + struct.pack("<IQ", kind, len(data))
        data += raw + bytes(-len(raw) % 32)
    path.write_bytes(header + bytes(-len(header) % 32) + data)
    return path
