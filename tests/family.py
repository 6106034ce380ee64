"""The Gemma 4 family in miniature: every released member's features at sizes where a test takes milliseconds."""

import json
import shutil
from types import SimpleNamespace

import numpy as np

import minigemma
from minigemma import Config, random_weights
from minigemma.checkpoint import _value_of, assemble_tower, read_header, write_safetensors
from minigemma.config import GLOBAL, SLIDING
from minigemma.tensors import audio_tensors, text_tensors, vision_tensors

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


def model_of(member, dtype="float32", seed=1, **changes):
    """Config and random weights as one object, for searches in every layer: E2B has six in place of ten."""
    short = {"layer_types": kinds(2, 2), "num_kv_shared_layers": 3} if member == "E2B" else {}
    config, weights = small(member, dtype, seed, **short | changes)
    return SimpleNamespace(config=config, weights=weights)


TOWER = {
    "hidden_size": 20, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 4, "head_dim": 8, "patch_size": 4, "pooling_kernel_size": 3, "position_embedding_size": 300,
    "standardize": False, "use_clipped_linears": True,
}  # fmt: skip
VISION = {
    "E2B": TOWER,
    "31B": TOWER | {"standardize": True, "use_clipped_linears": False, "num_key_value_heads": 2},
    "12B": {"patch_size": 2, "pooling_kernel_size": 3, "mm_embed_dim": 20, "mm_posemb_size": 110},
}  # by a member that has such vision
HEARING = {
    "E2B": {
        "hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "subsampling_conv_channels": [128, 3],
        "output_proj_dims": 20, "use_clipped_linears": True,
    },
    "12B": {"audio_embed_dim": 40},
}  # fmt: skip
IDS = {"boi_token_id": 101, "image_token_id": 102, "eoi_token_id": 103, "audio_token_id": 104, "video_token_id": 105}
SOUND_IDS = {"boa_token_id": 106, "eoa_token_id": 107}


def seeing(member, vision=None, ids=IDS, **changes):
    """A whole config.json of that member in miniature: text, vision, and ids below the small vocabulary's end."""
    if vision is None:
        vision = VISION["12B" if member == "12B" else "E2B" if member.startswith("E") else "31B"]
    kind = "gemma4_unified" if "mm_embed_dim" in vision else "gemma4"
    text = fields(member, **{"use_bidirectional_attention": None if member.startswith("E") else "vision"} | changes)
    return {"model_type": kind, "text_config": text, "vision_config": vision, "audio_config": None} | ids


def hearing(member, audio=None, **changes):
    """A whole config.json of that member in miniature, with an audio_config."""
    audio = HEARING["12B" if member == "12B" else "E2B"] | (audio or {})
    return seeing(member, **changes) | {"audio_config": audio} | SOUND_IDS


def tower_table(config, part):
    """The tensors of a config's "vision" or "audio"."""
    tensors = {"vision": vision_tensors, "audio": audio_tensors}[part]
    return tensors(vars(getattr(config, part)), config.hidden_size)


def random_vision(config, seed=3, dtype=np.float32):
    """Random weights for a config's vision."""
    return random_tower(tower_table(config, "vision"), seed, dtype)


def random_audio(config, seed=4, dtype=np.float32):
    """Random weights for a config's audio."""
    return random_tower(tower_table(config, "audio"), seed, dtype)


def arrays_of(table, weights):
    """The arrays of a table's tensors, by their names in a checkpoint."""
    return {tensor.name: _value_of(tensor, weights) for tensor in table}


def text_arrays(config, weights):
    """The arrays of the text model, by their names in a checkpoint."""
    return arrays_of(text_tensors(config), weights)


def tower_arrays(config, part, weights):
    """The arrays of a tower, by their names in a checkpoint; its clip bounds are arrays without axes."""
    return {name: np.asarray(value) for name, value in arrays_of(tower_table(config, part), weights).items()}


def write_tower(path, config, part, weights, prefix="model.", leave_out=()):
    """A file with the tensors of one tower, but for those whose names end in `leave_out`."""
    kept = {name: array for name, array in tower_arrays(config, part, weights).items() if not name.endswith(leave_out)}
    write_safetensors(path, "F32", [(prefix + name, array.shape) for name, array in kept.items()], kept.values())


def write_whole(folder, member="E2B"):
    """A checkpoint that sees and hears: the tiny text model, and random towers, the audio of `member`; three shards."""
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copy(minigemma.TINY / name, folder)
    raw = json.loads((minigemma.TINY / "config.json").read_text())
    raw |= {"vision_config": VISION["E2B"], "audio_config": HEARING[member]}
    (folder / "config.json").write_text(json.dumps(raw))
    config = Config.from_dict(raw)
    write_tower(folder / "vision.safetensors", config, "vision", random_vision(config))
    write_tower(folder / "audio.safetensors", config, "audio", random_audio(config))
    header = read_header(minigemma.TINY / "model.safetensors")
    text = {name: stored for name, stored in header.items() if name.startswith("model.language_model.")}
    table = [(name, stored.shape) for name, stored in text.items()]
    write_safetensors(folder / "text.safetensors", "BF16", table, (stored.map() for stored in text.values()))
    shards = {name: path.name for path in folder.glob("*.safetensors") for name in read_header(path)}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))
    return folder


def random_tower(table, seed, dtype):
    """Random weights of a tower. Clip bounds bite: about one value in ten is beyond each of them."""
    rng, arrays = np.random.default_rng(seed), {}
    for tensor in table:
        if tensor.shape == ():
            side = 1 if tensor.name.endswith("max") else -1
            array = side * rng.uniform(0.8, 1.6)
        elif len(tensor.shape) == 1:
            array = rng.uniform(0.5, 1.5, tensor.shape) * (0.25 if "post_" in tensor.name else 1.0)
        else:
            array = rng.standard_normal(tensor.shape) * tensor.shape[-1] ** -0.5
        arrays[tensor.name] = np.asarray(array, np.float32).astype(dtype)  # numbers that both precisions have
    return assemble_tower(table, arrays)


def random_picture(height, width, seed=0):
    """A picture in which every pixel differs."""
    return np.random.default_rng([5, seed]).integers(0, 256, (height, width, 3), np.uint8)


def random_sound(samples, seed=0):
    """A sound of so many samples: two tones that grow, in noise."""
    rng, t = np.random.default_rng([7, seed]), np.arange(samples) / 16000
    tones = sum(np.sin(2 * np.pi * f * t * (1 + t)) for f in rng.uniform(80, 4000, 2))
    return (0.2 * tones + 0.05 * rng.standard_normal(samples)).astype(np.float32)


def picture_prompt(count):
    """Ids of a prompt with one picture of so many soft tokens, and text behind it."""
    return np.array([2, 9, IDS["boi_token_id"], *[IDS["image_token_id"]] * count, IDS["eoi_token_id"], 11, 12, 13])


def weight_sums(*models):
    """One number for each array of these weights, in the order of the attributes' names."""
    owners = [owner for weights in models for owner in (weights, *weights.layers)]
    values = [value for owner in owners for name, value in sorted(vars(owner).items()) if name != "layers"]
    return np.array([getattr(value, "weight", value).sum() for value in values])
