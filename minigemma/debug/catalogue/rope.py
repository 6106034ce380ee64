"""E: RoPE."""

from functools import partial

import numpy as np

from ...config import GLOBAL, SLIDING
from ...ops import rope, rotation
from .changes import edited, layer_facts, together
from .entry import Fault


def frequencies(factor=0.25, theta=1e6, part=1.0):
    """For layer_facts: the share `factor` of the pairs turns, and exponents divide by the share `part` of the head."""

    def facts(layer):
        rotating = int(factor * layer.head_dim // 2)
        inv_freq = np.zeros(layer.head_dim // 2)  # [H/2]
        inv_freq[:rotating] = theta ** (-2.0 * np.arange(rotating) / (part * layer.head_dim))
        return {"inv_freq": inv_freq}

    return facts


def rotated(turn, taps=("attn.rot_q", "attn.rot_k")):
    """A change: RoPE gives turn(at, x) of the normed q and k, x [T, heads, H], or of one of them."""

    def edit(tap):
        return edited(tap, lambda at, x: turn(at, at[tap.replace("rot_", "")]))

    return together(*map(edit, taps))


def placed(place, taps=("attn.rot_q", "attn.rot_k")):
    """A change: RoPE turns q and k, or one of them, as if they stood at other positions: place(at) [T]."""
    return rotated(lambda at, x: rope(x, *rotation(place(at), at.layer.inv_freq, x.dtype)), taps)


def since_bos(at):
    """Positions that start again at each <bos>: [T]."""
    bos = at.ids == at.config.source.get("bos_token_id")  # [T]
    return at.positions - np.maximum.accumulate(np.where(bos, at.positions, 0))


def jumped(port, by):
    """q and k are turned as if they stood `by` positions further."""
    placed(lambda at: at.positions + by)(port)


def neighbouring_halves(at, x):
    (cos, sin), n = at.rotation(x), int((at.layer.inv_freq > 0).sum())
    if at.layer.kind != GLOBAL:
        return rope(x, cos, sin)
    return np.concatenate([rope(x[..., : 2 * n], cos[..., :n], sin[..., :n]), x[..., 2 * n :]], axis=-1)


def neighbouring_numbers(at, x):
    (cos, sin), out = at.rotation(x), np.empty_like(x)
    out[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
    out[..., 1::2] = x[..., 1::2] * cos + x[..., ::2] * sin
    return out


ENTRIES = (
    Fault("E1", "global layers rotate the pairs (j, j + n), not (j, j + H/2), with n rotating pairs in a head",
          first="layers.*.attn.rot_q", probe="nine",
          symptom="at each global layer the cosine falls a little; the 64 frequencies themselves are right",
          remedy="pad the frequencies with zeros to H/2, then rotate halves of the whole head",
          seen="Megatron-Bridge#4195; apple/coreai-models#66; Xilinx/mlir-air", changes=rotated(neighbouring_halves)),
    Fault("E2", "in global layers RoPE's exponents are divided by the rotating part of the head",
          first="layers.*.attn.rot_q", probe="nine", symptom="quality falls as the context grows",
          remedy="exponents 2j / head_dim, over the whole head", seen="pegainfer#820; pie-project/pie#603",
          changes=layer_facts(frequencies(part=0.25), GLOBAL)),
    Fault("E3", "in global layers all pairs rotate", first="layers.*.attn.rot_q", probe="far",
          symptom="not visible before about position 64; long contexts fail",
          remedy="rotate a quarter of the pairs, leave the others as they are",
          seen="kekzl/imp#9, #10, #20; jagmarques/nexusquant#12; ollama37#373",
          changes=layer_facts(frequencies(factor=1.0), GLOBAL)),
    Fault("E5", "global layers use the theta of sliding layers", first="layers.*.attn.rot_q", probe="far",
          symptom="errors grow with position", remedy="rope_parameters has one theta for each layer type",
          seen="google/gemma.cpp#986; mlx-vlm#1709; llama.cpp#14367",
          changes=layer_facts(frequencies(theta=1e4), GLOBAL)),
    Fault("E5b", "sliding layers use the theta of global layers", first="layers.*.attn.rot_q", probe="nine",
          symptom="errors grow with position", remedy="rope_parameters has one theta for each layer type",
          seen="google/gemma.cpp#986; antonellof/ferrox#39", changes=layer_facts(frequencies(factor=1.0), SLIDING)),
    Fault("E6", "sliding layers rotate a quarter of their pairs, as global layers do", first="layers.*.attn.rot_q",
          probe="nine", symptom="errors grow with position",
          remedy="only global layers, with rope_type proportional, rotate a part of the pairs", seen="ollama37#373",
          changes=layer_facts(frequencies(theta=1e4), SLIDING)),
    Fault("E7", "positions start at 0 again in every call", first="layers.*.attn.rot_q", probe="cached",
          symptom="the prompt is right; every decoded token gets position 0",
          remedy="add the cache's length to the positions", seen="a near relative of B9c", needs=("cached",),
          changes=placed(lambda at: at.positions - at.port.start)),
    Fault("E8", "RoPE rotates neighbours (2j, 2j + 1)", first="layers.*.attn.rot_q", probe="nine",
          symptom="text falls apart after a few words", remedy="rotate halves of a head: the pairs (j, j + H/2)",
          seen="the interleaved layout of other models and of GGUF files", changes=rotated(neighbouring_numbers)),
    Fault("E9", "queries are rotated in the opposite direction", first="layers.*.attn.rot_q", probe="nine",
          symptom="scores depend on the sum of two positions, not on their difference",
          remedy="use the same sign of sin for q and k", seen="a near relative of E8",
          changes=placed(lambda at: -at.positions, ["attn.rot_q"])),
    Fault("E10", "positions start again at the second <bos>, but its tokens see those before it",
          first="layers.*.attn.rot_q", probe="far", symptom="the second prompt answers the first",
          remedy="two prompts in one row: mask them apart, or run each alone", seen="transformers#46634",
          needs=("packed",), changes=placed(since_bos)),
    Fault("E11", "positions jump", first="layers.*.attn.rot_q", probe="cached",
          symptom="the prompt is right, later tokens are further from it than they should be",
          remedy="the position of a token is the number of tokens before it: padding, and drafts that were refused, "
          "do not count", seen="maclocal-api#92; mlxcel#211", needs=("late",),
          changes=tuple(partial(jumped, by=by) for by in (*range(1, 65), *range(-8, 0)))),
)  # fmt: skip
