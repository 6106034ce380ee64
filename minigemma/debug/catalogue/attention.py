"""D: attention."""

import numpy as np

from ...config import GLOBAL, ROPE_DEFAULTS, SLIDING, inverse_frequencies
from ...ops import rope, visible
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


def uniform(at, x):
    seen = visible(at.positions, x.shape[-1], at.layer.window, at.positions[-1] + 1, at.last)  # [T, S]
    return np.broadcast_to(seen / seen.sum(-1, keepdims=True), x.shape).astype(x.dtype)


def turned_and_normed(at, x):
    return at.norm(rope(at["attn.q_raw"], *at.rotation(x)), at.w.q_norm)  # [T, N, H]


def acausal(at, x, ahead):
    """The pattern if a query sees the window's keys before it and `ahead` keys from itself on: [N, T, S]."""
    away = at.positions[-x.shape[1] :, None] - np.arange(x.shape[-1])  # [T, S]
    return masked_softmax(at, (away < (at.layer.window or x.shape[-1])) & (away > -ahead))


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
)  # fmt: skip
