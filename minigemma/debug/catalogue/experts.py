"""H: the mixture of experts."""

from dataclasses import replace

import numpy as np

from ...ops import gelu, linear, softmax, top_k
from .changes import edited, layer_weights, ones, zeroed
from .entry import Fault


def mixture(at, router_weights, activation=gelu):
    """The experts' branch with other weights of the chosen experts [T, k], or another activation -> [T, D]."""
    h = at.norm(at["resid_mid"], at.w.pre_feedforward_layernorm_2)  # [T, D]
    out, chosen = np.zeros_like(h), at["router.experts"]  # [T, D], [T, k]
    for e in np.unique(chosen):
        token, slot = np.nonzero(chosen == e)
        gate, up = np.split(linear(h[token], at.w.experts_gate_up_proj[int(e)]), 2, axis=-1)
        out[token] += router_weights[token, slot, None] * linear(activation(gate) * up, at.w.experts_down_proj[int(e)])
    return at.norm(out, at.w.post_feedforward_layernorm_2)


def routed(at, h):
    """The router's probabilities for its input h [T, D] -> [T, E]."""
    return softmax(linear(h * at.w.router_scale * at.config.hidden_size**-0.5, at.w.router_proj))


def router_of_normed_input(at, x):
    return routed(at, at.norm(at.norm(at["resid_mid"], at.w.pre_feedforward_layernorm_2)))


def scale_folded_in_and_applied(at, x):
    return mixture(at, at["router.weights"] * at.w.per_expert_scale[at["router.experts"]])


def one_expert_too_few(port):
    port.config = replace(port.config, top_k_experts=max(1, port.config.top_k_experts - 1))


def not_renormalised(at, x):
    probs = at["router.probs"]  # [T, E]
    return x * np.take_along_axis(probs, top_k(probs, x.shape[1]), axis=-1).sum(-1, keepdims=True)


def unforeseeable(port):
    """Changes nothing: nobody can foretell how a port rounds. What rounding may reach is known, see Fault.rounds."""


ENTRIES = (
    Fault("H1", "the router reads the experts' normed input and norms it again", first="layers.*.router.probs",
          probe="one", symptom="the wrong experts are chosen",
          remedy="give the router the residual itself, and norm it without a weight", seen="NVIDIA-NeMo/Automodel#1852",
          needs=("moe",), changes=edited("router.probs", router_of_normed_input)),
    Fault("H1b", "the router's norm is left out", first="layers.*.router.probs", probe="one",
          symptom="one expert gets all the weight", remedy="RMSNorm without a weight before router.scale",
          seen="kekzl/imp#65", needs=("moe",),
          changes=edited("router.probs", lambda at, x: routed(at, at["resid_mid"]))),
    Fault("H2", "router.scale is left out", first="layers.*.router.probs", probe="one",
          symptom="the model stops at once", remedy="multiply the router's normed input by router.scale",
          seen="kekzl/imp#65", needs=("moe",), changes=ones("router_scale")),
    Fault("H2b", "per_expert_scale is left out", first="layers.*.router.weights", probe="one",
          symptom="the model stops at once", remedy="multiply each chosen expert's weight by its per_expert_scale",
          seen="kekzl/imp#65", needs=("moe",), changes=ones("per_expert_scale")),
    Fault("H3", "per_expert_scale is applied twice", first="layers.*.router.weights", probe="one",
          symptom="some experts count too much", remedy="down_proj already contains it: apply it once",
          seen="onnxruntime/mobius#546", needs=("moe",),
          changes=(
              layer_weights(lambda layer, w: {"per_expert_scale": w.per_expert_scale**2}),
              edited("mlp.moe_out", scale_folded_in_and_applied))),
    Fault("H4", "the experts replace the dense MLP", first="layers.*.mlp.dense_out", probe="one",
          symptom="half of the feed-forward is missing",
          remedy="norm both branches, add them, then apply post_feedforward_layernorm",
          seen="interp-engine#3", needs=("moe",), changes=zeroed("mlp.dense_out")),
    Fault("H4b", "only the dense MLP is used, not the experts", first="layers.*.mlp.moe_out", probe="one",
          symptom="half of the feed-forward is missing",
          remedy="norm both branches, add them, then apply post_feedforward_layernorm",
          seen="interp-engine#3", needs=("moe",), changes=zeroed("mlp.moe_out")),
    Fault("H5", "one expert too few", first="layers.*.router.weights", probe="one",
          symptom="the expert with the smallest weight is missing", remedy="choose top_k_experts experts",
          seen="vllm#39067; interp-engine#1", needs=("moe",), changes=one_expert_too_few),
    Fault("H6", "the router computes in float16", first="layers.*.router.probs", probe="nine",
          symptom="mostly the right experts, sometimes another one: the error jumps, it does not grow slowly",
          remedy="compute softmax and choose the experts in float32", seen="kekzl/imp#10; tt-metal#44959",
          needs=("moe",), rounds="layers.*.router.*", changes=unforeseeable),
    Fault("H7", "softmax is applied to the router's probabilities once more", first="layers.*.router.probs",
          probe="one", symptom="the experts' weights are nearly equal",
          remedy="the first output of transformers' router is a softmax already",
          seen="interp-engine GEMMA4_REMAINING.md", needs=("moe",),
          changes=edited("router.probs", lambda at, x: softmax(x))),
    Fault("H8", "the chosen experts' weights are not renormalised", first="layers.*.router.weights", probe="one",
          symptom="hardly visible", remedy="divide them by their sum", seen="a near relative of H2b", needs=("moe",),
          benign="post_feedforward_layernorm_2 divides away one factor for each token, except for its eps",
          changes=edited("router.weights", not_renormalised)),
)  # fmt: skip
