"""Bytes of the weights by number format, of the KV cache, and of a prompt's activations.

The tests compare the sums with the bytes of a real cache and with the arrays of a real run.
"""

import math
from collections import Counter

import numpy as np

from ..config import AudioTower, VisionTower
from ..inputs import BUDGETS
from ..sounds import RATE
from .compute import SECONDS, check_context, chunks, visible_keys
from .parameters import DISK, PARTS, nbytes_of, size_of

# Bits of each weight. Vectors (norms, scalars) keep 16 in every scheme. The scales of a real format are not counted.
# Google's mobile files mix 2 and 4 bits and do not say where each is; here the widest matrices get 2.
SCHEMES = {
    "bfloat16": dict.fromkeys(PARTS, 16),
    "int8": dict.fromkeys(PARTS, 8),
    "4-bit": dict.fromkeys(PARTS, 4),
    "mixed 2/4-bit": dict.fromkeys(PARTS, 4) | {"MLP": 2, "experts": 2},
}
# Published footprints: the claim, its bytes, the nearest sum of footprints(), and a remark on the difference. The
# claims are from public pages of engines and of LiteRT. None of these pages says what it counts.
FOOTPRINTS = {
    "E2B": (
        ("bfloat16, the lowest published", 9.6e9, "text and vision, bfloat16", "the same digits; not confirmed"),
        ("bfloat16, the highest published", 11.4e9, "whole file and full KV cache, bfloat16", "open"),
        ("2 and 4 bits, PLE mapped: under", 1.5e9, "resident, 4-bit", "below, as claimed; room for cache and scales"),
        ("2 and 4 bits, PLE mapped: under", 1.5e9, "resident, mixed 2/4-bit", "below, as claimed"),
        ("LiteRT's file", 2.583e9, "whole file, 4-bit", "open; scales would add, 2-bit matrices subtract"),
        ("LiteRT's mapped embeddings", 1.12e9, "PLE table, 4-bit", "open; 1.12 GiB would be 1.203 GB, with scales"),
    ),
}


def kv_cache(config, length, sharing=True, bounded=True, itemsize=2):
    """Bytes of K and V after `length` tokens -> list, one number for each layer.

    sharing: KV-sharing layers store nothing. bounded: a sliding layer keeps window - 1 keys; its next query sees these
    and its own. With both, the sizes are those of minigemma.cache (with itemsize 4: its arrays are float32).
    """
    sizes = []
    for layer in config.layers:
        rows = min(length, layer.window - 1) if bounded and layer.window is not None else length
        stores = not (sharing and layer.shares_kv)
        sizes.append(stores * 2 * rows * layer.num_key_value_heads * layer.head_dim * itemsize)
    return sizes


def weights_in_memory(account):
    """Bytes of the weights under each of SCHEMES -> by scheme: file, resident in memory, on disk (see DISK).

    Of a file with packed matrices also its own bytes, as "this file", scales included.
    """
    result = {}
    if any(tensor.packed is not None for tensor in account.tensors):
        sizes = Counter()
        for tensor in account.tensors:
            sizes["disk" if tensor.part in DISK else "resident"] += nbytes_of(tensor)
        result["this file"] = {"file": sum(sizes.values()), "resident": sizes["resident"], "disk": sizes["disk"]}
    for scheme, bits in SCHEMES.items():
        sizes = Counter()
        for tensor in account.tensors:
            width = bits[tensor.part] if len(tensor.shape) > 1 else 16
            sizes["disk" if tensor.part in DISK else "resident"] += size_of(tensor) * width
        resident, disk = (math.ceil(sizes[place] / 8) for place in ("resident", "disk"))
        result[scheme] = {"file": resident + disk, "resident": resident, "disk": disk}
    return result


def activations(config, new, past=0):
    """Bytes of the largest arrays, in float32, during a prompt's last chunk -> by name of the tap.

    The chunk has `new` tokens after `past` cached ones, and gives logits for its last position; the KV-sharing layers
    run for that position only. "peak" estimates the memory at the step that needs most. That is either softmax (three
    arrays of scores, the pattern of the layer before, three arrays of the MLP) or the gated MLP (five arrays of its own
    and two of scores).
    """
    D, N, P, L = config.hidden_size, config.num_attention_heads, config.hidden_size_per_layer_input, len(config.layers)
    rows = [(new if layer.index < config.first_kv_shared_layer else 1, layer) for layer in config.layers]
    scores = [N * T * int(visible_keys(layer, new, past)) for T, layer in rows]
    sizes = {
        "resid_pre": new * D,
        "attn.rot_q": max(T * N * layer.head_dim for T, layer in rows),
        "attn.scores": max(scores),
        "mlp.act": max(T * layer.intermediate_size for T, layer in rows),
    }
    if P:
        sizes["ple"] = new * L * P
    sizes["logits"] = config.vocab_size
    sizes = {name: 4 * size for name, size in sizes.items()}
    softmax = 4 * max(3 * size + before for size, before in zip(scores, [0, *scores], strict=False))
    hungriest = max(softmax + 3 * sizes["mlp.act"], 2 * sizes["attn.scores"] + 5 * sizes["mlp.act"])
    small = 6 * sizes["resid_pre"] + 3 * sizes["attn.rot_q"] + 3 * sizes.get("ple", 0)
    return sizes | {"peak": small + hungriest}


def picture_memory(config, context):
    """For each budget, if a picture fills it -> {budget: bytes and pictures}; {} for a model that cannot see.

    "encoder" estimates the memory of encode_image at its peak: arrays of a patch's width and of its values, and the
    scores of one head or four arrays of the MLP; of embed_image likewise. "KV cache" is of the soft tokens and the two
    marks around them, at the start of a text. "pictures" is how many fit into the context.
    """
    sizes = {}
    for budget in BUDGETS if config.vision else ():
        size, width, _ = config.vision.patches
        patches, values = budget * (config.vision.side // size) ** 2, 3 * size**2
        peak = 4 * width + 3 * values
        if isinstance(config.vision, VisionTower):
            peak = 2 * values + max(patches + 16 * width, 4 * config.vision.intermediate_size + 7 * width)
        sizes[budget] = {
            "soft tokens": 4 * budget * config.hidden_size,
            "encoder": 4 * patches * peak,
            "KV cache": sum(kv_cache(config, budget + 2)),
            "pictures": context // (budget + 2),
        }
    return sizes


def sound_memory(config, context):
    """As picture_memory, for sounds of so many seconds; {} for a model that does not hear.

    "encoder" is the peak of encode_audio, which is at the second convolution: its input twice, and a square of nine for
    each of its outputs.
    """
    sizes, audio = {}, config.audio
    for seconds in SECONDS if audio else ():
        count = audio.count(seconds * RATE)
        if isinstance(audio, AudioTower):
            half, quarter = 2 * count * (audio.bins // 2), count * (audio.bins // 4)
            peak = audio.subsampling_conv_channels[0] * (2 * half + 9 * quarter)
        else:
            peak = count * (3 * audio.audio_embed_dim + config.hidden_size)
        sizes[seconds] = {
            "soft tokens": 4 * count * config.hidden_size,
            "encoder": 4 * peak,
            "KV cache": sum(kv_cache(config, count + 2)),
            "sounds": context // (count + 2),
        }
    return sizes


def memory_account(account, context):
    """Bytes of weights, KV cache and activations at `context` tokens -> a dict for JSON. Raises Error if context is
    longer than the model's."""
    config = account.config
    check_context(config, context)
    ways = {
        "shared, bounded": {}, "shared, unbounded": {"bounded": False}, "unshared, bounded": {"sharing": False},
        "unshared, unbounded": {"sharing": False, "bounded": False},
    }  # fmt: skip
    per_layer = {way: kv_cache(config, context, **options) for way, options in ways.items()}
    new, past = chunks(config, context)
    largest = int(np.argmax(new + past))
    return {
        "name": account.name,
        "context": context,
        "weights": weights_in_memory(account),
        "kv_cache": {way: sum(sizes) for way, sizes in per_layer.items()},
        "kv_cache_layers": per_layer,
        "activations": {"chunk": int(new[0])} | activations(config, int(new[largest]), int(past[largest])),
        "pictures": picture_memory(config, context),
        "sounds": sound_memory(config, context),
        "published": footprints(account),
    }


def footprints(account):
    """Published footprints of this model, each beside the nearest of our sums -> list of dicts."""
    full = sum(kv_cache(account.config, account.config.max_position_embeddings))
    schemes, ple = weights_in_memory(account), account.parts.get("PLE table", 0)
    vision = account.parts.get("vision", 0)
    ours = {
        "text and vision, bfloat16": 2 * (account.text + vision),
        "whole file, bfloat16": schemes["bfloat16"]["file"],
        "whole file and full KV cache, bfloat16": schemes["bfloat16"]["file"] + full,
        "resident, 4-bit": schemes["4-bit"]["resident"],
        "resident, mixed 2/4-bit": schemes["mixed 2/4-bit"]["resident"],
        "whole file, 4-bit": schemes["4-bit"]["file"],
        "PLE table, 4-bit": ple // 2,
    }
    return [
        {"claim": claim, "published": size, "ours": name, "bytes": ours[name], "difference": ours[name] - size}
        | {"remark": remark}
        for claim, size, name, remark in FOOTPRINTS.get(account.name, ())
    ]
