"""Known mistakes in ports of Gemma 4, as data: what is wrong, how it shows, what to do, who made it.

Each mistake that activations can show also comes with a change, which puts it into our own pass (a `Port`): other facts
of the config, other weights, or an edit at a tap. So we know what a port with that mistake computes, and diagnosis.py
compares it with what somebody's port computed.

An id is a letter, which names the file, and a number; a small letter tells near relatives apart:
A embedding (with norms, activations and the head), B ple, C layer_scalar, D attention, E rope, F sharing, G window,
H experts, J tokens, L false_alarms, M mlp, S audio, T turns, V vision.
"""

from ...config import AudioTower, VisionEmbedder, VisionTower
from . import attention, embedding, experts, false_alarms, layer_scalar, mlp, ple, rope, sharing, tokens, turns, window
from . import audio as sounds
from . import vision as pictures
from .changes import to_bfloat16
from .entry import PROBES, Fault

__all__ = ["FAULTS", "PROBES", "Fault", "applicable", "to_bfloat16"]

PARTS = (
    embedding, ple, layer_scalar, attention, rope, sharing, window, experts, tokens, false_alarms, mlp, turns,
    pictures, sounds,
)  # fmt: skip
FAULTS = {fault.id: fault for part in PARTS for fault in part.ENTRIES}


def applicable(fault, config, cached=False, soft=False, unused=False, picture=False, sound=False, **more):
    """Whether a mistake can be made with this model, in this kind of run: of a text, of a picture or a sound alone."""
    if sound != (fault.first or "").startswith("audio."):
        return False
    sight, in_tower = config.vision, (fault.first or "").startswith("vision.")
    shared = fault.id in pictures.SHARED and isinstance(sight, VisionTower)
    if not (in_tower or shared if picture else not in_tower):
        return False
    has = {
        "ple": bool(config.hidden_size_per_layer_input),
        "moe": config.enable_moe_block,
        "k_eq_v": any(layer.k_eq_v for layer in config.layers),
        "sharing": config.num_kv_shared_layers > 0,
        "wide": config.source["use_double_wide_mlp"] and config.num_kv_shared_layers > 0,
        "cached": cached,
        "soft": soft,
        "unused": unused,
        "causal": config.use_bidirectional_attention != "vision",
        "ahead": config.use_bidirectional_attention == "vision",
        "tower": isinstance(sight, VisionTower),
        "embedder": isinstance(sight, VisionEmbedder),
        "clipped": getattr(sight, "use_clipped_linears", False),
        "standardize": getattr(sight, "standardize", False),
        "ears": isinstance(config.audio, AudioTower),
        "ears clipped": getattr(config.audio, "use_clipped_linears", False),
        "plain": isinstance(sight, VisionTower) and not sight.standardize,
    }
    return bool(fault.changes) and all((has | more).get(need) for need in fault.needs)
