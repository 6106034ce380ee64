"""Small GGUF files for tests: the keys and tensors of a model and of its towers."""

import json

import numpy as np

from minigemma import mmproj
from minigemma.checkpoint import find_text_tensors
from minigemma.gguf import ROPE
from minigemma.packed import widen
from minigemma.tools import gguf_file
from minigemma.tools.gguf_file import keys_of, name_of, rope_divisors

VISIBLE = "<|channel>", "<channel|>", "<|tool_call>", "<tool_call|>", '<|"|>'  # llama.cpp prints these


def describe(model):
    """A loaded model -> the keys of a GGUF file of it, and its tensors as llama.cpp names them, in float32."""
    config, where, keys = model.config, model.directory, keys_of(model.config)
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
    tensors = {ROPE: rope_divisors(config)}
    tensors |= {name_of(name): np.asarray(widen(stored.map())) for name, stored in find_text_tensors(where).items()}
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


def write(path, keys, tensors, kinds=None):
    """Write a GGUF file. tensors: name -> array; kinds: name -> (number of its type, its rows as bytes, its shape)."""
    rows = {name: (0, np.ascontiguousarray(array, "<f4").tobytes(), array.shape) for name, array in tensors.items()}
    rows |= kinds or {}
    table = [(name, shape, kind) for name, (kind, _, shape) in rows.items()]
    gguf_file.write(path, keys, table, (raw for _, raw, _ in rows.values()))
    return path
