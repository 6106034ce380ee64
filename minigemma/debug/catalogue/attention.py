"""D: attention."""

import numpy as np

from ...config import GLOBAL, ROPE_DEFAULTS, SLIDING, inverse_frequencies
from ...ops import attention_scores, attention_values, rope, softcap, softmax, visible
from .changes import edited, masked_softmax, passes, scaled, together
from .entry import Fault


def value(tap, key):
    """A change: in K = V layers, this tap of V is made of key(at)."""
    return edited(tap, lambda at, x: key(at) if at.layer.k_eq_v else x)


def normed_key(at):
    """K before RoPE, computed before its own tap: [T, K, H]."""
    return at.norm(at["attn.k_raw"], at.w.k_norm)


def rotated_key(at):
    """K after RoPE, computed before its own tap: [T, K, H]."""
    k = normed_key(at)  # [T, K, H]
    return rope(k, *at.rotation(k))


def scrambled_heads(at, x):
    T, N, H = x.shape
    return x.reshape(T, H, N).swapaxes(1, 2) if at.layer.kind == GLOBAL else x


def tiled_kv_heads(port):
    def scores(at, x):
        k = at.from_donor("attn.rot_k")  # [S, K, H]
        return np.einsum("tnh,snh->nts", at["attn.rot_q"], k[:, np.arange(x.shape[0]) % k.shape[1]])

    def z(at, x):
        v = at.from_donor("attn.v")  # [S, K, H]
        return np.einsum("nts,snh->tnh", at["attn.pattern"], v[:, np.arange(x.shape[1]) % v.shape[1]])

    if any(layer.num_key_value_heads > 1 for layer in port.config.layers):
        port.edit("attn.scores", scores)
        port.edit("attn.z", z)


def sliding_layer_taken_for_global(port):
    sliding = [layer for layer in port.config.layers if layer.kind == SLIDING]
    wrong = next((layer for layer in sliding if layer.index == port.suspect), sliding[-1] if sliding else None)
    if wrong:
        facts = {"window": None, "inv_freq": inverse_frequencies(ROPE_DEFAULTS[GLOBAL], wrong.head_dim)}
        port.change_layers(lambda layer: facts if layer is wrong else {})


def visible_keys(at, x):
    """Which keys each query of a pattern x [N, T, S] may see: bool [T, S]."""
    T, S = x.shape[1:]
    return visible(at.positions[-T:], S, at.layer.window, at.positions[-1] + 1, at.last[-T:])


def uniform(at, x):
    seen = visible_keys(at, x)  # [T, S]
    return np.broadcast_to(seen / seen.sum(-1, keepdims=True), x.shape).astype(x.dtype)


def turned_and_normed(at, x):
    return at.norm(rope(at["attn.q_raw"], *at.rotation(x)), at.w.q_norm)  # [T, N, H]


def acausal(at, x, ahead):
    """The pattern if a query sees the window's keys before it and `ahead` keys from itself on: [N, T, S]."""
    end = at.positions[-1] + 1
    away = at.positions[-x.shape[1] :, None] - np.arange(end - x.shape[-1], end)  # [T, S]
    return masked_softmax(at, (away < (at.layer.window or x.shape[-1])) & (away > -ahead))


def added_mask(at, x):
    return softmax(at["attn.scores"] + visible_keys(at, x)).astype(x.dtype)


def in_float8(x):
    """Numbers with three bits of mantissa (e4m3), at most 448, as float32."""
    step = 2.0 ** (np.maximum(np.frexp(x)[1], -5) - 4)  # the distance of neighbours, a power of 2
    return (np.round(np.clip(x, -448, 448) / step) * step).astype(x.dtype)


def in_int8(x):
    """Numbers of 8 bits, with one scale for each token and head: x [T, K, H]."""
    step = np.abs(x).max(-1, keepdims=True) / 127  # [T, K, 1]
    return (np.round(x / step) * step).astype(x.dtype)


def rescored(scores):
    """Two changes: attention uses scores(at, x) of the right ones x [N, T, S], and the engine records these, or x."""
    return (
        edited("attn.scores", scores),
        edited("attn.pattern", lambda at, x: masked_softmax(at, visible_keys(at, x), scores(at, at["attn.scores"]))),
    )


def of_few_bits(rounded):
    """Three changes: attention reads K and V rounded, and the engine records these, or those before the rounding."""

    def scores(at, x):
        return attention_scores(at["attn.rot_q"], rounded(at.from_donor("attn.rot_k")))

    def z(at, x):
        return attention_values(at["attn.pattern"], rounded(at.from_donor("attn.v")))

    stored = (edited(tap, lambda at, x: rounded(x)) for tap in ("attn.rot_k", "attn.v"))
    return *(together(change, edited("attn.z", z)) for change in rescored(scores)), together(*stored)


ENTRIES = (
    Fault("D1", "scores are divided by sqrt(head_dim)", first="layers.*.attn.scores", probe="nine",
          symptom="attention is too flat; on E2B the scores are 1/16 (sliding) or 1/22.6 (global) of the right ones",
          remedy="do not scale (scale 1.0): the weights of q_norm and k_norm contain the scale",
          seen="TheCause/gemma4-zml-probe; mlc-llm#3485; pegainfer#874",
          changes=scaled("attn.scores", lambda at: at.layer.head_dim**-0.5)),
    Fault("D2", "V is not normed, because the checkpoint has no v_norm weight", first="layers.*.attn.v", probe="one",
          symptom="rms(v) is not 1", remedy="apply RMSNorm without a weight to V", seen="TheCause/gemma4-zml-probe",
          changes=passes("attn.v", of="attn.v_raw")),
    Fault("D3", "in K = V layers, V is made from the output of k_norm", first="layers.*.attn.v", probe="one",
          symptom="global layers are wrong", remedy="V = v_norm(output of k_proj)",
          seen="mlx-swift-lm#231, #300; Megatron-Bridge#4683", needs=("k_eq_v",),
          changes=(value("attn.v", lambda at: at.norm(at["attn.k"])), value("attn.v_raw", normed_key))),
    Fault("D3b", "in K = V layers, V is made from K after RoPE", first="layers.*.attn.v", probe="nine",
          symptom="position 0 is right, later positions are wrong", remedy="V = v_norm(output of k_proj)",
          seen="mlx-swift-lm#250, #300", needs=("k_eq_v",),
          changes=(value("attn.v", lambda at: at.norm(at["attn.rot_k"])), value("attn.v_raw", rotated_key))),
    Fault("D5", "K is used as V", first="layers.*.attn.v", probe="one",
          symptom="a base model hardly changes, a tuned model writes nonsense", remedy="read the V cache",
          seen="ik_llama.cpp#1592", changes=passes("attn.v", of="attn.rot_k")),
    Fault("D6", "in global layers q is reshaped to heads in the wrong order", first="layers.*.attn.q_raw", probe="one",
          symptom="no error, because the sizes fit; the heads are mixed up",
          remedy="reshape to [T, heads, head_dim] with that layer's head_dim", seen="larql#178; interp-engine#1",
          changes=edited("attn.q_raw", scrambled_heads)),
    Fault("D6b", "query head n reads kv head n mod K", first="layers.*.attn.scores", probe="one",
          symptom="heads read their neighbours' values",
          remedy="head n reads kv head n // (N / K): repeat each kv head, do not tile them", seen="interp-engine#1",
          changes=tiled_kv_heads),
    Fault("D7", "a sliding layer is treated as a global one: no window, global RoPE", first="layers.*.attn.rot_q",
          probe="nine", symptom="one layer is wrong", remedy="read layer_types; do not compute it from a period",
          seen="NVIDIA-NeMo/Megatron-Bridge#5441", changes=sliding_layer_taken_for_global),
    Fault("D8", "every softmax is uniform", first="layers.*.attn.pattern", probe="nine",
          symptom="each row is 1 / number of visible keys",
          remedy="squeeze the single kv head's axis before the product, not the query axis", seen="Xilinx/mlir-air",
          changes=edited("attn.pattern", uniform)),
    Fault("D9", "queries are not normed", first="layers.*.attn.q", probe="nine",
          symptom="attention is too sharp or too flat, by another factor for each head and token",
          remedy="q_norm after q_proj, before RoPE", seen="a near relative of D2",
          changes=passes("attn.q", of="attn.q_raw")),
    Fault("D9b", "keys are not normed", first="layers.*.attn.k", probe="nine",
          symptom="attention is too sharp or too flat, by another factor for each key",
          remedy="k_norm after k_proj, before RoPE", seen="a near relative of D2",
          changes=passes("attn.k", of="attn.k_raw")),
    Fault("D10", "queries get RoPE before q_norm", first="layers.*.attn.rot_q", probe="nine",
          symptom="position 0 is right; at other positions q_norm's weights meet the wrong channels",
          remedy="first the projection, then the norm, then RoPE", seen="a near relative of D3",
          changes=(
              edited("attn.rot_q", turned_and_normed),
              together(edited("attn.q", turned_and_normed), passes("attn.rot_q", of="attn.q")))),
    Fault("D11", "no causal mask", first="layers.*.attn.pattern", probe="nine",
          symptom="earlier positions depend on later tokens", remedy="a query sees keys up to its own position",
          seen="a near relative of G1",
          changes=(
              edited("attn.pattern", lambda at, x: acausal(at, x, ahead=x.shape[-1])),
              edited("attn.pattern", lambda at, x: acausal(at, x, ahead=at.layer.window or x.shape[-1])))),
    Fault("D12", "scores are soft-capped at 50, as in Gemma 2", first="layers.*.attn.scores", probe="nine",
          symptom="large scores are too small; only the final logits of Gemma 4 have a cap",
          remedy="no cap in attention", seen="llama.cpp#21613",
          changes=rescored(lambda at, x: softcap(x, 50.0))),
    Fault("D13", "K and V are rounded to 8 bits", first="layers.*.attn.scores", probe="nine",
          symptom="attention is a little off in every layer, most of all where it is sharp",
          remedy="keep K and V in 16 bits, or give each head and token a scale and accept the rounding",
          seen="sglang#26518; kekzl/imp#91", flips=True,
          changes=(*of_few_bits(in_float8), *of_few_bits(in_int8))),
    Fault("D14", "a mask of 0 and 1 is added to the scores", first="layers.*.attn.pattern", probe="nine",
          symptom="queries see all keys, the allowed ones a little better",
          remedy="add 0 for keys that are seen and -inf for all others", seen="NVIDIA-NeMo/Automodel#2116",
          changes=edited("attn.pattern", added_mask)),
)  # fmt: skip
