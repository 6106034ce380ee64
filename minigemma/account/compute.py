"""Multiply-adds of a token and of a prompt, by part of the model.

A multiply-add is one multiplication and one addition; double the numbers for FLOPs. The tests compare the sums with the
products of a real run.
"""

from collections import Counter

import numpy as np

from ..config import AudioTower, VisionTower
from ..errors import Error
from ..inputs import BUDGETS
from ..released import EFFECTIVE, RELEASED
from ..sampling import CHUNK, SCORE_BYTES
from ..sounds import RATE
from ..tensors import TABLES, audio_tensors, checkpoint_tensors, vision_tensors
from .parameters import DISK, count, read_of, size_of
from .towers import group_of

SECONDS = (1, 10, 30)  # of the sounds in an account
PIECES = 10**8  # the most chunks of a prompt, times layers, that are accounted for


def chunks(config, length):
    """How minigemma.prefill cuts a prompt -> two arrays: for each call, how many tokens are new, how many are cached.

    Raises Error for a prompt of more than PIECES chunks times layers.
    """
    chunk = max(1, min(CHUNK, SCORE_BYTES // (4 * config.num_attention_heads * length)))
    if length // chunk * len(config.layers) > PIECES:
        raise Error(f"a prompt of {length} tokens is too long to account for; prefill takes {chunk} at a time")
    past = np.arange(0, length, chunk)
    return np.minimum(chunk, length - past), past


def multiply_adds(config, new, past=0, logits="all", shortcut=True):
    """Multiply-adds of the matrix products in one call of `forward` -> dict by part.

    The call has `new` tokens after `past` cached ones; both may be arrays, for several calls. "attention over keys" is
    the products with K and V: as in the pass, each query meets every key of its layer, masked or not. shortcut=False
    runs the KV-sharing layers for all positions, even if the prompt needs only its last.
    """
    out = {"all": new, "last": np.ones_like(new), None: np.zeros_like(new)}[logits]
    rows = {None: new, "head": out}  # of a layer's number, how many positions it runs for
    for layer in config.layers:
        rows[layer.index] = out if shortcut and layer.index >= config.first_kv_shared_layer else new
    totals = Counter()
    for tensor in checkpoint_tensors(config):
        if len(tensor.shape) > 1 and tensor.part not in TABLES:
            totals[tensor.part] += int(np.sum(rows[tensor.layer])) * read_of(tensor, config)
    for layer in config.layers:
        pairs = int(np.sum(rows[layer.index] * visible_keys(layer, new, past)))  # of a query and a key
        totals["attention over keys"] += 2 * pairs * config.num_attention_heads * layer.head_dim
    totals["logits"] = int(np.sum(rows["head"])) * config.vocab_size * config.hidden_size
    return dict(totals)


def prefill_multiply_adds(config, length, shortcut=True):
    """Multiply-adds of a prompt in minigemma.prefill: in chunks, with logits for the last position only."""
    new, past = chunks(config, length)
    totals = Counter(multiply_adds(config, new[-1], past[-1], "last", shortcut))
    totals.update(multiply_adds(config, new[:-1], past[:-1], None, shortcut))
    return dict(totals)


def picture_multiply_adds(config, soft_tokens):
    """Multiply-adds that make so many soft tokens of a picture -> dict by group; {} for a model that cannot see.

    In 12B a patch is a soft token, and nothing but two products is done to it.
    """
    if config.vision is None:
        return {}
    patches = soft_tokens * (config.vision.side // config.vision.patches[0]) ** 2
    totals = Counter()
    for tensor in vision_tensors(vars(config.vision), config.hidden_size):
        if len(tensor.shape) == 2:
            rows = soft_tokens if tensor.attribute == "embedding_projection" else patches
            totals[group_of(tensor.name)] += rows * size_of(tensor)
    if isinstance(config.vision, VisionTower):
        tower = config.vision
        width = tower.num_attention_heads * tower.head_dim
        totals["attention over patches"] = 2 * tower.num_hidden_layers * width * patches**2
    return dict(totals)


def picture_accounts(config):
    """For each budget, if a picture fills it -> {budget: {"encode": by group, "read": by part of the text model}}.

    read: what `prefill` multiplies for so many soft tokens alone. {} for a model that cannot see.
    """
    budgets = BUDGETS if config.vision else ()
    return {
        budget: {"encode": picture_multiply_adds(config, budget), "read": prefill_multiply_adds(config, budget)}
        for budget in budgets
    }


def sound_multiply_adds(config, samples):
    """Multiply-adds that make the soft tokens of so many samples -> dict by group; {} for a model that does not hear.

    The log mel is not counted, and in 12B there is nothing but one product.
    """
    audio, totals = config.audio, Counter()
    if audio is None:
        return {}
    T = audio.count(samples)
    for tensor in audio_tensors(vars(audio), config.hidden_size):
        if len(tensor.shape) > 1:
            rows = T
            if tensor.attribute == "subsample_conv_projection.layer0.conv":
                rows = -(-((samples - 161) // 160 + 1) // 2) * (audio.bins // 2)
            elif tensor.attribute == "subsample_conv_projection.layer1.conv":
                rows = T * (audio.bins // 4)
            elif tensor.attribute == "self_attn.relative_k_proj":
                rows = audio.window
            totals[group_of(tensor.name)] += rows * size_of(tensor)
    if isinstance(audio, AudioTower):
        totals["attention over frames"] = 3 * audio.num_hidden_layers * T * audio.window * audio.hidden_size
    return dict(totals)


def sound_accounts(config):
    """As picture_accounts, for sounds of so many seconds."""
    return {
        seconds: {
            "encode": sound_multiply_adds(config, seconds * RATE),
            "read": prefill_multiply_adds(config, config.audio.count(seconds * RATE)),
        }
        for seconds in (SECONDS if config.audio else ())
    }


def compute_account(account, context):
    """Multiply-adds at `context` tokens, and PLE's share of them -> a dict for JSON. Raises Error as memory does."""
    config = account.config
    check_context(config, context)
    decode = multiply_adds(config, 1, context - 1)
    ple = "PLE projections and gates"
    matrices, row = account.parts.get(ple, 0), config.num_hidden_layers * config.hidden_size_per_layer_input
    stored = account.parts.get("PLE table", 0) + matrices
    return {
        "name": account.name,
        "context": context,
        "decode": decode,
        "prefill": {
            "with shortcut": prefill_multiply_adds(config, context),
            "without shortcut": prefill_multiply_adds(config, context, shortcut=False),
        },
        "ple": {
            "parameters stored": {"ple": stored, "of": account.text},
            "bytes stored, bfloat16": {"ple": 2 * stored, "of": 2 * account.text},
            "bytes read per token, bfloat16": {"ple": 2 * (row + matrices), "of": 2 * account.active},
            "multiply-adds per token, decode": {"ple": decode.get(ple, 0), "of": sum(decode.values())},
        },
        "pictures": picture_accounts(config),
        "sounds": sound_accounts(config),
    }


def overview():
    """The released models side by side -> {"models": ..., "effective": ...}, both by name.

    models: parameters of the text model that are stored, resident in memory, read for one token, and multiplied for one
    token without attention over the context. effective: for the models for which Google publishes such a number.
    """
    rows, effective = {}, {}
    for name in RELEASED:
        account = count(name)
        config = account.config
        kind = "PLE" if config.hidden_size_per_layer_input else "mixture" if config.enable_moe_block else "plain"
        products = multiply_adds(config, 1)
        rows[name] = {
            "kind": kind,
            "stored": account.text,
            "resident": account.total - sum(account.parts.get(part, 0) for part in DISK),
            "read": account.active,
            "computed": sum(products.values()) - products["attention over keys"],
        }
        if name in EFFECTIVE:
            effective[name] = account.effective
    return {"models": rows, "effective": effective}


def check_context(config, context):
    """Raise Error for a context that the model does not have."""
    if not 1 <= context <= config.max_position_embeddings:
        raise Error(f"context must be from 1 to the model's {config.max_position_embeddings} positions, not {context}")


def visible_keys(layer, new, past):
    """S: the number of keys that a call's queries meet; a sliding layer keeps window - 1 of the past."""
    return new + (past if layer.window is None else np.minimum(past, layer.window - 1))
