"""A: the embedding, norms, activations and the head."""

import math

import numpy as np

from ...ops import gelu, linear, softcap
from .changes import edited, half, layer_weights, passes, scaled, to_bfloat16, together
from .entry import Fault
from .experts import mixture
from .ple import gate


def silu(x):
    return x / (1 + np.exp(-np.clip(x, -80, 80)))


def erf_gelu(x):
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return (0.5 * x * (1 + erf(x / 2**0.5))).astype(x.dtype)


def table_gelu(x):
    """GELU as ggml's CPU kernels have it: beyond 10 exact, else a table of float16 in and out."""
    return np.where(np.abs(x) < 10, half(gelu(half(x))), np.maximum(x, 0))


def folded_projection(port):
    """D**-0.5 is multiplied into per_layer_model_projection, and the product is rounded to bfloat16."""
    if port.config.hidden_size_per_layer_input:
        scale = np.float32(port.config.hidden_size**-0.5)
        folded = to_bfloat16(np.asarray(port.weights.per_layer_model_projection) * scale)  # [L*P, D]
        port.weights.per_layer_model_projection = folded / scale


def scaled_soft_tokens(port):
    where, rows = port.soft_tokens
    port.soft_tokens = where, rows * rows.dtype.type(port.config.hidden_size**0.5)


def sqrt_in_bfloat16(at):
    """bfloat16(sqrt(D)) / sqrt(D)."""
    scale = at.config.hidden_size**0.5
    return np.float32(to_bfloat16(scale) / scale)


def one_plus_norms(port):
    for owner in (port.weights, *port.weights.layers):
        vars(owner).update({name: 1 + weight for name, weight in vars(owner).items() if "norm" in name})


def last_residual(at):
    """What the final norm reads: [T, D]."""
    return at.port.seen[at.config.num_hidden_layers - 1]["resid_post"]


# A tap that a norm makes -> the tap it norms. Three norms read what has no tap: ple.context, moe_out and the router's.
NORMED = {
    "attn.in": "resid_pre", "attn.q": "attn.q_raw", "attn.k": "attn.k_raw", "attn.v": "attn.v_raw",
    "attn_out": "attn.o", "mlp.in": "resid_mid", "mlp.dense_out": "mlp.down", "ple_out": "ple.proj",
}  # fmt: skip


def coarse(at, x):
    """What a norm of x [..., n] is multiplied by if its mean square is rounded to bfloat16: [..., 1]."""
    mean, eps = np.vecdot(x, x)[..., None] / x.shape[-1], at.config.rms_norm_eps  # [..., 1], a number
    return np.sqrt((mean + eps) / (to_bfloat16(mean) + eps)).astype(x.dtype)


coarse_norms = together(
    *(scaled(tap, lambda at, source=source: coarse(at, at[source])) for tap, source in NORMED.items()),
    scaled("mlp_out", lambda at: 1 if at.config.enable_moe_block else coarse(at, at["mlp.down"])),
    scaled("final_norm", lambda at: coarse(at, last_residual(at))),
)


def head(at):
    """The logits before the softcap: [T, V]."""
    return linear(at["final_norm"], at.w.embed_tokens)


def outer_softcap(at, x):
    cap = at.config.final_logit_softcapping
    return x if cap is None else head(at) * np.tanh(head(at) / cap)


def scaled_head(at, x):
    return softcap(head(at) * at.config.hidden_size**0.5, at.config.final_logit_softcapping)


ENTRIES = (
    Fault("A1", "the embedding is not scaled by sqrt(D)", first="embed", probe="one",
          symptom="the output of every norm looks right; every residual is sqrt(D) times too small",
          remedy="multiply the token table's rows by hidden_size**0.5, once",
          seen="Xilinx/mlir-air gemma4_e2b_q4nx_weights.py; Blaizzy/mlx-vlm#893",
          changes=scaled("embed", lambda at: at.config.hidden_size**-0.5)),
    Fault("A1b", "the embedding is scaled by sqrt(D) twice", first="embed", probe="one",
          symptom="the residual is sqrt(D) times too large, so layers add almost nothing: fluent text without content",
          remedy="the converted table already contains the scale: remove one of the two",
          seen="Xilinx/mlir-air gemma4_e2b_q4nx_weights.py",
          changes=scaled("embed", lambda at: at.config.hidden_size**0.5)),
    Fault("A2", "soft tokens are scaled by sqrt(D) as well", first="embed", probe="soft",
          symptom="only prompts with images or audio are wrong",
          remedy="scale the rows of the token table only, before the soft tokens are put in",
          seen="sgl-project/sglang-jax#1323; vllm-project/vllm#52667", needs=("soft",), changes=scaled_soft_tokens),
    Fault("A3", "sqrt(D) is rounded to bfloat16", first="embed", probe="one",
          symptom="a constant ratio near 1 from the first tap on (E2B: 39.25 / 39.1918); it looks like noise",
          remedy="with float32 weights do not round sqrt(D); with bfloat16 weights transformers rounds it too",
          seen="pegainfer#879", benign="with bfloat16 weights transformers does the same",
          changes=scaled("embed", sqrt_in_bfloat16)),
    Fault("A4", "norms multiply by 1 + weight, as in Gemma 1 to 3", first="layers.*.attn.in", probe="one",
          symptom="random text; the output of every norm is wrong by another factor in each channel",
          remedy="multiply by weight, not by 1 + weight", seen="huggingface/candle#3968; townsendmerino/goinfer",
          changes=one_plus_norms),
    Fault("A5", "the mean square of norms is rounded to bfloat16", first="layers.*.attn.in", probe="nine",
          symptom="no single op is far off, but the error grows with depth (31B: cosine 0.91 at layer 52, 0.51 at 58)",
          remedy="compute the mean of squares and its root in float32", seen="sglang#27540; tt-metal#41426",
          changes=coarse_norms),
    Fault("A6", "the final softcap is x * tanh(x / cap)", first="logits", probe="one",
          symptom="the largest logit stays the largest; log-probabilities reach -125 instead of -31",
          remedy="cap * tanh(x / cap)", seen="unslothai/unsloth-zoo#593", changes=edited("logits", outer_softcap)),
    Fault("A7", "no final softcap", first="logits", probe="one",
          symptom="greedy text is the same, log-probabilities and perplexity are wrong",
          remedy="final_logit_softcapping * tanh(x / final_logit_softcapping)",
          seen="vllm#52173; NVIDIA-NeMo/Megatron-Bridge#4645", changes=edited("logits", lambda at, x: head(at))),
    Fault("A8", "SiLU in place of GELU in the MLP", first="layers.*.mlp.act", probe="one",
          symptom="empty answers, or a third of the quality is lost", remedy="gelu_pytorch_tanh on the gate",
          seen="kekzl/imp#9", changes=edited("mlp.act", lambda at, x: silu(at["mlp.gate"]) * at["mlp.up"])),
    Fault("A8b", "SiLU in place of GELU at the PLE gate", first="layers.*.ple.gate", probe="one",
          symptom="what PLE adds is slightly wrong in every layer",
          remedy="gelu_pytorch_tanh at the gate of per-layer embeddings too", seen="kekzl/imp#9", needs=("ple",),
          changes=edited("ple.gate", lambda at, x: silu(gate(at)))),
    Fault("A8c", "SiLU in place of GELU in the experts", first="layers.*.mlp.moe_out", probe="one",
          symptom="the dense MLP is right, the experts' output is wrong",
          remedy="gelu_pytorch_tanh on the gate half of gate_up_proj", seen="kekzl/imp#9", needs=("moe",),
          changes=edited("mlp.moe_out", lambda at, x: mixture(at, at["router.weights"], silu))),
    Fault("A9", "the erf form of GELU in the MLP", first="layers.*.mlp.act", probe="one",
          symptom="an error of 1e-3 in one layer, less than bfloat16's rounding; after thirty layers it is more",
          remedy="the tanh form: gelu_pytorch_tanh", seen="tt-metal#55948",
          changes=edited("mlp.act", lambda at, x: erf_gelu(at["mlp.gate"]) * at["mlp.up"])),
    Fault("A9b", "the erf form of GELU at the PLE gate", first="layers.*.ple.gate", probe="one",
          symptom="an error of 1e-3 in one layer", remedy="the tanh form: gelu_pytorch_tanh", seen="tt-metal#55948",
          needs=("ple",), changes=edited("ple.gate", lambda at, x: erf_gelu(gate(at)))),
    Fault("A9c", "GELU from a table in float16", first="layers.*.mlp.act", probe="one",
          symptom="errors of 4e-4 in every MLP and at every PLE gate; nothing else is wrong",
          remedy="nothing to do; for equal numbers compute GELU in float32", seen="llama.cpp, ggml_vec_gelu_f32",
          benign="llama.cpp's CPU kernels do the same", flips=True,
          changes=together(
              edited("mlp.act", lambda at, x: table_gelu(at["mlp.gate"]) * at["mlp.up"]),
              edited("ple.gate", lambda at, x: table_gelu(gate(at))))),
    Fault("A10", "the token table is stored scaled by sqrt(D), so the tied head is scaled too", first="logits",
          probe="one", symptom="logits are sqrt(D) times too large and reach the softcap's limit",
          remedy="scale after the lookup, not in the table", seen="ServiceNow/Fast-LLM#492",
          changes=edited("logits", scaled_head)),
    Fault("A11", "pre_feedforward_layernorm is loaded from post_attention_layernorm", first="layers.*.mlp.in",
          probe="one", symptom="the loss is higher than that of uniform guessing (22.6 against 12.5)",
          remedy="load each of a layer's norms by its own name", seen="NVIDIA-NeMo/Megatron-Bridge#4200",
          changes=layer_weights(lambda layer, w: {"pre_feedforward_layernorm": w.post_attention_layernorm})),
    Fault("A12", "the dense MLP beside the experts gets its input without a norm", first="layers.*.mlp.in", probe="one",
          symptom="the dense MLP saturates",
          remedy="pre_feedforward_layernorm belongs to the dense MLP, the _2 norm to the experts", seen="kekzl/imp#65",
          needs=("moe",), changes=passes("mlp.in", of="resid_mid")),
    Fault("A13", "the final norm is left out", first="final_norm", probe="one",
          symptom="every hidden state is right, the logits are not",
          remedy="apply model.norm to the last layer's residual, before the head", seen="a near relative of A12",
          changes=edited("final_norm", lambda at, x: last_residual(at))),
    Fault("A14", "a constant scale was folded into 16-bit weights", first="embed", probe="one",
          symptom="one of embed, ple.token and ple.context is off by 2e-3, all other ops are right",
          remedy="multiply in float32 after the product or lookup: weights times a constant do not fit in 16 bits",
          seen="gemma4-pytorch-codex 0.2.0",
          changes=(
              edited("embed", lambda at, x: to_bfloat16(x).astype(x.dtype)),
              edited("ple.token", lambda at, x: to_bfloat16(x).astype(x.dtype)),
              folded_projection)),
)  # fmt: skip
