"""Known mistakes in ports of Gemma 4, as data: what is wrong, how it shows, what to do, who made it.

Each entry that can be seen in numbers also puts its mistake into our own pass, through a `Port`: other facts of the
config, other weights, or an edit at a tap. What a port with that mistake computes is thus known, and diagnosis.py can
compare it with what somebody's port did compute.

An id is a letter for the part of the model and a number, and a small letter where one mistake has several forms:
A embedding, norms, head; B per-layer embeddings; C layer_scalar; D attention; E RoPE; F KV sharing; G sliding window;
H mixture of experts; J tokens and template; L what is taken for a mistake; M the MLP and the norms around it.
`seen` names the public thread or file where the mistake was made, nearly made, or written down as a trap.
"""

import math
from dataclasses import dataclass, replace

import numpy as np

from ..cache import Buffer, Entry
from ..config import GLOBAL, ROPE_DEFAULTS, SLIDING, inverse_frequencies
from ..ops import (
    attention_scores,
    attention_values,
    gelu,
    linear,
    rms_norm,
    rope,
    rotation,
    softcap,
    softmax,
    top_k,
    visible,
)
from ..packed import HalfMatrix, narrow, widen
from ..taps import Trace

# The probe ladder: the cheapest input on which a mistake shows.
PROBES = {
    "one": "one token (<bos>): softmax over one key is 1, so RoPE, masks, q and k drop out",
    "nine": "about nine tokens without a cache: RoPE and the causal mask are live",
    "far": "more than 64 positions: slow RoPE pairs have turned far enough to tell",
    "window": "one more token than the sliding window, and two more",
    "cached": "a prompt, then tokens one by one with the cache, beside the same ids in one call",
    "soft": "a prompt with image or audio rows in it",
    "ids": "the ids that their tokenizer and template make; no forward pass is needed",
}


@dataclass(frozen=True)
class Fault:
    """One known mistake. Each of `changes` puts it into a Port in one of its forms; none where no activation shows it.

    Two engineers can make one mistake at two places, so that taps show it differently though the logits are the same.
    """

    id: str
    title: str
    first: str | None  # the first tap at which it shows, on every layer that has it
    probe: str  # a key of PROBES
    symptom: str
    remedy: str
    seen: str
    needs: tuple  # what a model must have: "ple", "moe", "k_eq_v", "sharing", "wide", "unused"; a run: "cached", "soft"
    benign: str  # why it changes nothing that matters; "" where it does
    rounds: str = ""  # taps that it rounds to float16: an error of that size there is explained
    changes: tuple = ()


FAULTS = {}


def fault(id, title, first, probe, symptom, remedy, seen="", needs=(), benign="", rounds=""):
    """Register the decorated function as the change of a new entry."""

    FAULTS[id] = Fault(id, title, first, probe, symptom, remedy, seen, tuple(needs), benign, rounds)
    return form(id)


def form(id):
    """Register the decorated function as one more change of an entry: the same mistake made at another place."""

    def register(change):
        FAULTS[id] = replace(FAULTS[id], changes=(*FAULTS[id].changes, change))
        return change

    return register


def note(id, title, probe, symptom, remedy, seen="", benign=""):
    """Register an entry that no activation of the right ids can show."""
    FAULTS[id] = Fault(id, title, None, probe, symptom, remedy, seen, (), benign)


def silu(x):
    return x / (1 + np.exp(-np.clip(x, -80, 80)))


def erf_gelu(x):
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return (0.5 * x * (1 + erf(x / 2**0.5))).astype(x.dtype)


def to_bfloat16(x):
    return widen(narrow(np.asarray(x, np.float32)))


def constant(value):
    """An edit that multiplies by a number."""
    return lambda at, x: x * value


# ------------------------------------------------------------------------------------------- A: embedding, norms, head
NORMS = (
    "input_layernorm", "q_norm", "k_norm", "post_attention_layernorm", "pre_feedforward_layernorm",
    "post_feedforward_layernorm", "post_per_layer_input_norm", "pre_feedforward_layernorm_2",
    "post_feedforward_layernorm_1", "post_feedforward_layernorm_2",
)  # fmt: skip


@fault(
    "A1", "the embedding is not scaled by sqrt(D)", "embed", "one",
    "every normed input looks right, every residual is sqrt(D) too small",
    "multiply the token table's rows by hidden_size**0.5, once",
    "Xilinx/mlir-air gemma4_e2b_q4nx_weights.py; Blaizzy/mlx-vlm#893",
)  # fmt: skip
def _(port):
    port.edit("embed", constant(port.config.hidden_size**-0.5))


@fault(
    "A1b", "the embedding is scaled by sqrt(D) twice", "embed", "one",
    "the residual is sqrt(D) too large and the layers add next to nothing: fluent text without content",
    "the converted table already holds the scale: take one of the two away",
    "Xilinx/mlir-air gemma4_e2b_q4nx_weights.py",
)  # fmt: skip
def _(port):
    port.edit("embed", constant(port.config.hidden_size**0.5))


@fault(
    "A2", "soft tokens are scaled by sqrt(D) as well", "embed", "soft", "only prompts with images or audio are wrong",
    "scale in the branch that looks up tokens, not after the rows are merged",
    "sgl-project/sglang-jax#1323; vllm-project/vllm#52667", needs=("soft",),
)  # fmt: skip
def _(port):
    where, rows = port.soft_tokens
    port.soft_tokens = where, rows * rows.dtype.type(port.config.hidden_size**0.5)


@fault(
    "A3", "sqrt(D) is rounded to bfloat16", "embed", "one",
    "a constant ratio near 1 from the first tap on (E2B 39.25 / 39.1918), read as noise",
    "with float32 weights use sqrt(D) as it is; with bfloat16 weights transformers rounds it too",
    "pegainfer#879", benign="with weights in bfloat16 this is what transformers does",
)  # fmt: skip
def _(port):
    scale = port.config.hidden_size**0.5
    port.edit("embed", constant(np.float32(to_bfloat16(scale) / scale)))


@fault(
    "A4", "norms multiply by 1 + weight, as in Gemma 1 to 3", "layers.*.attn.in", "one",
    "random text; every norm's output is off by a factor of its own for each channel",
    "multiply by weight", "huggingface/candle#3968; townsendmerino/goinfer",
)  # fmt: skip
def _(port):
    for _, w in port.layers():
        for name in NORMS:
            if hasattr(w, name):
                setattr(w, name, 1 + getattr(w, name))
    port.weights.norm = 1 + port.weights.norm
    if port.config.hidden_size_per_layer_input:
        port.weights.per_layer_projection_norm = 1 + port.weights.per_layer_projection_norm


# A tap that a norm makes -> the tap it norms. Three norms read what has no tap: ple.context, moe_out and the router's.
NORMED = {
    "attn.in": "resid_pre", "attn.q": "attn.q_raw", "attn.k": "attn.k_raw", "attn.v": "attn.v_raw",
    "attn_out": "attn.o", "mlp.in": "resid_mid", "mlp.dense_out": "mlp.down", "ple_out": "ple.proj",
}  # fmt: skip


@fault(
    "A5", "the mean square of norms is rounded to bfloat16", "layers.*.attn.in", "nine",
    "no single op jumps; deep layers drift apart (31B: cosine 0.91 at layer 52, 0.51 at 58)",
    "compute the mean of squares and its root in float32", "sglang#27540; tt-metal#41426",
)  # fmt: skip
def _(port):
    eps = port.config.rms_norm_eps

    def coarse(x):
        mean = np.vecdot(x, x)[..., None] / x.shape[-1]
        return np.sqrt((mean + eps) / (to_bfloat16(mean) + eps)).astype(x.dtype)

    for name, source in NORMED.items():
        port.edit(name, lambda at, x, source=source: x * coarse(at[source]))
    if not port.config.enable_moe_block:
        port.edit("mlp_out", lambda at, x: x * coarse(at["mlp.down"]))
    last = port.config.num_hidden_layers - 1
    port.edit("final_norm", lambda at, x: x * coarse(port.seen[last]["resid_post"]))


@fault(
    "A6", "the final softcap is x * tanh(x / cap)", "logits", "one",
    "the largest logit stays the largest; log-probabilities reach -125 where -31 is right",
    "cap * tanh(x / cap)", "unslothai/unsloth-zoo#593",
)  # fmt: skip
def _(port):
    cap = port.config.final_logit_softcapping
    if cap is not None:
        port.edit("logits", lambda at, x: _head(at) * np.tanh(_head(at) / cap))


@fault(
    "A7", "no final softcap", "logits", "one", "greedy text is the same, log-probabilities and perplexity are wrong",
    "final_logit_softcapping * tanh(x / final_logit_softcapping)", "vllm#52173; NVIDIA-NeMo/Megatron-Bridge#4645",
)  # fmt: skip
def _(port):
    port.config = replace(port.config, final_logit_softcapping=None)


def _head(at):
    """The logits before the softcap, [T, V]."""
    return linear(at["final_norm"], at.port.weights.embed_tokens)


@fault(
    "A8", "SiLU in place of GELU in the MLP", "layers.*.mlp.act", "one", "empty answers, or quality lost by a third",
    "gelu_pytorch_tanh on the gate", "kekzl/imp#9",
)  # fmt: skip
def _(port):
    port.edit("mlp.act", lambda at, x: silu(at["mlp.gate"]) * at["mlp.up"])


@fault(
    "A8b", "SiLU in place of GELU at the PLE gate", "layers.*.ple.gate", "one", "every layer's PLE write is a bit off",
    "gelu_pytorch_tanh at the gate of per-layer embeddings too", "kekzl/imp#9", needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple.gate", lambda at, x: silu(linear(at["resid_ffn"], at.w.per_layer_input_gate)))


@fault(
    "A8c", "SiLU in place of GELU in the experts", "layers.*.mlp.moe_out", "one", "the dense branch is right",
    "gelu_pytorch_tanh on the gate half of gate_up_proj", "kekzl/imp#9", needs=("moe",),
)  # fmt: skip
def _(port):
    port.edit("mlp.moe_out", lambda at, x: mixture(at, at["router.weights"], silu))


def mixture(at, share, activation=gelu):
    """The experts' branch with other weights of the chosen experts [T, k], or another activation -> [T, D]."""
    h = at.norm(at["resid_mid"], at.w.pre_feedforward_layernorm_2)  # [T, D]
    out, chosen = np.zeros_like(h), at["router.experts"]  # [T, D], [T, k]
    for e in np.unique(chosen):
        token, slot = np.nonzero(chosen == e)
        gate, up = np.split(linear(h[token], at.w.experts_gate_up_proj[int(e)]), 2, axis=-1)
        out[token] += share[token, slot, None] * linear(activation(gate) * up, at.w.experts_down_proj[int(e)])
    return at.norm(out, at.w.post_feedforward_layernorm_2)


@fault(
    "A9", "the erf form of GELU in the MLP", "layers.*.mlp.act", "one",
    "1e-3 at one layer: below bfloat16's rounding there, above it after thirty",
    "the tanh form: gelu_pytorch_tanh", "tt-metal#55948",
)  # fmt: skip
def _(port):
    port.edit("mlp.act", lambda at, x: erf_gelu(at["mlp.gate"]) * at["mlp.up"])


@fault(
    "A9b", "the erf form of GELU at the PLE gate", "layers.*.ple.gate", "one", "1e-3 at one layer",
    "the tanh form: gelu_pytorch_tanh", "tt-metal#55948", needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple.gate", lambda at, x: erf_gelu(linear(at["resid_ffn"], at.w.per_layer_input_gate)))


@fault(
    "A10", "the embedding's scale lies in the table, so the tied head is scaled too", "logits", "one",
    "logits are sqrt(D) too large and saturate at the softcap",
    "scale after the lookup, not in the table", "ServiceNow/Fast-LLM#492",
)  # fmt: skip
def _(port):
    scale, cap = port.config.hidden_size**0.5, port.config.final_logit_softcapping
    port.edit("logits", lambda at, x: softcap(_head(at) * scale, cap))


@fault(
    "A11", "pre_feedforward_layernorm is loaded from post_attention_layernorm", "layers.*.mlp.in", "one",
    "a loss above that of uniform guessing (22.6 against 12.5)", "load each of a layer's norms by its own name",
    "NVIDIA-NeMo/Megatron-Bridge#4200",
)  # fmt: skip
def _(port):
    for _, w in port.layers():
        w.pre_feedforward_layernorm = w.post_attention_layernorm


@fault(
    "A12", "the dense MLP beside the experts gets its input without a norm", "layers.*.mlp.in", "one",
    "the dense branch saturates", "pre_feedforward_layernorm belongs to the dense MLP, the _2 norm to the experts",
    "kekzl/imp#65", needs=("moe",),
)  # fmt: skip
def _(port):
    port.edit("mlp.in", lambda at, x: at["resid_mid"])


@fault(
    "A13", "the final norm is left out", "final_norm", "one", "every hidden state is right, the logits are not",
    "norm the last layer's residual with model.norm before the head", "a near relative of A12",
)  # fmt: skip
def _(port):
    last = port.config.num_hidden_layers - 1
    port.edit("final_norm", lambda at, x: port.seen[last]["resid_post"])


# ----------------------------------------------------------------------------------------- B: per-layer embeddings
@fault(
    "B1", "no per-layer embeddings", "layers.*.ple_out", "one", "random text",
    "add the third branch of each layer: gate, product, projection, norm, residual", "huggingface/candle#3968, #3488",
    needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple_out", lambda at, x: np.zeros_like(x))


@form("B1")  # computed, and zero
def _(port):
    port.edit("ple", lambda at, x: np.zeros_like(x))


@fault(
    "B2", "no per-layer embeddings and no layer_scalar while decoding", "layers.*.ple_out", "cached",
    "the first token is right, then fragments of words", "the cached path needs the same end of layer as the prompt's",
    "chrishayuk/larql#98, #177", needs=("ple", "cached"),
)  # fmt: skip
def _(port):
    port.edit("ple_out", lambda at, x: x * (not at.decoding))
    port.edit("resid_post", lambda at, x: at["resid_ffn"] if at.decoding else x)


@fault(
    "B3", "the PLE lookup is not scaled by sqrt(P)", "ple.token", "one", "token identity is 16 times too faint (E2B)",
    "multiply the looked-up row by hidden_size_per_layer_input**0.5", "huggingface/transformers#45207", needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple.token", constant(port.config.hidden_size_per_layer_input**-0.5))


@fault(
    "B3b", "the PLE lookup is scaled by sqrt(P) twice", "ple.token", "one", "the context part is drowned",
    "the converted table already holds the scale: take one away", "Xilinx/mlir-air gemma4_e2b_q4nx_weights.py",
    needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple.token", constant(port.config.hidden_size_per_layer_input**0.5))


@fault(
    "B4", "the PLE lookup is scaled by sqrt(L * P), the width of the packed table", "ple.token", "one",
    "a ratio of sqrt(L), 5.92 for E2B", "scale by sqrt(P): the row is L vectors of P", "onnxruntime/mobius#296",
    needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple.token", constant(port.config.num_hidden_layers**0.5))


@fault(
    "B5", "the context projection reads each layer's hidden state", "layers.*.ple.gated", "one",
    "right shape and scale, layer 0 is right, later ones drift apart",
    "project the scaled embeddings once, before layer 0", "Xilinx/mlir-air gemma4_e2b_q4nx_weights.py", needs=("ple",),
)  # fmt: skip
def _(port):
    def gated(at, x):
        token = port.seen[None]["ple.token"][-len(x) :, at.i]  # [T, P]
        return at["ple.gate"] * (own_context(port, at.i, at["resid_pre"]) + token) * x.dtype.type(2**-0.5)

    port.edit("ple.gated", gated)


def own_context(port, i, x):
    """Layer i's part of the context projection, of any x [T, D] -> [T, P]."""
    P, config = port.config.hidden_size_per_layer_input, port.config
    rows = port.weights.per_layer_model_projection[i * P : (i + 1) * P]  # [P, D]
    return rms_norm(x @ rows.T * config.hidden_size**-0.5, port.weights.per_layer_projection_norm, config.rms_norm_eps)


@form("B5")  # captured as the context part of each layer: made with the layer, though it stands before all of them
def _(port):
    residuals = port.copy()
    FAULTS["B5"].changes[0](residuals)

    def context(at, x):
        seen = Trace("layers.*.resid_pre")
        residuals.run(seen)
        return np.stack([own_context(port, i, h) for i, h in enumerate(seen.values())], axis=1)  # [T, L, P]

    port.edit("ple.context", context)


@fault(
    "B6", "the PLE constants D**-0.5 and 2**-0.5 are swapped", "ple", "one",
    "the combined vector is sqrt(D / 2) too small (27.7 times for E2B); ple_out's norm hides most of it",
    "D**-0.5 after the projection, 2**-0.5 after the sum", "Xilinx/mlir-air, FastFlowLM's header", needs=("ple",),
    benign="a constant factor on `ple` is divided away by post_per_layer_input_norm, up to its eps",
)  # fmt: skip
def _(port):
    port.edit("ple", constant((port.config.hidden_size / 2) ** -0.5))


@fault(
    "B7", "context and lookup are added without 2**-0.5", "ple", "one", "`ple` is 1.414 too large",
    "(context + lookup) * 2**-0.5", "google-deepmind/gemma _modules.py; huggingface/transformers#45207", needs=("ple",),
    benign="a constant factor on `ple` is divided away by post_per_layer_input_norm, up to its eps",
)  # fmt: skip
def _(port):
    port.edit("ple", constant(2**0.5))


@fault(
    "B8", "the context projection is not scaled by D**-0.5", "ple.context", "one", "none",
    "keep the factor for fidelity", "atandra2000/Gemma-4-E2B-Lite", needs=("ple",),
    benign="per_layer_projection_norm follows and divides it away, up to its eps",
)  # fmt: skip
def _(port):
    shape = -1, port.config.num_hidden_layers, port.config.hidden_size_per_layer_input

    def context(at, x):
        projected = linear(at["embed"], port.weights.per_layer_model_projection).reshape(shape)  # [T, L, P]
        return at.norm(projected, port.weights.per_layer_projection_norm)

    port.edit("ple.context", context)


@fault(
    "B9", "every layer gets its neighbour's slice of the packed table", "ple", "one", "garbage",
    "layer i reads columns i*P to (i+1)*P of a row", "vllm#47765; NVIDIA-NeMo/Megatron-Bridge#5385", needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple", lambda at, x: np.roll(x, 1, axis=1))


@form("B9")  # of the lookup only
def _(port):
    port.edit("ple.token", lambda at, x: np.roll(x, 1, axis=1))


@fault(
    "B9b", "every token gets its neighbour's per-layer embedding", "ple", "nine", "garbage",
    "slice per-layer inputs by the same positions as the tokens", "Blaizzy/mlx-vlm#901", needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple", lambda at, x: np.roll(x, 1, axis=0))


@fault(
    "B9c", "after the prompt, the per-layer embeddings are still the prompt's first rows", "ple", "cached",
    "the prompt is right, every later token is not", "offset the per-layer inputs by the cache's length",
    "Blaizzy/mlx-vlm#901", needs=("ple", "cached"),
)  # fmt: skip
def _(port):
    first = []

    def ple(at, x):
        if not at.decoding:
            first[:] = [x]
        return first[0][: len(x)]

    port.edit("ple", ple)


@fault(
    "B10", "soft tokens look up the placeholder's PLE row, not the pad token's", "ple.token", "soft",
    "what the image says is lost", "look up pad_token_id at image and audio positions",
    "apple/coreai-models#83; AI-Hypercomputer/maxtext#4790", needs=("ple", "soft"),
)  # fmt: skip
def _(port):
    P = port.config.hidden_size_per_layer_input

    def token(at, x):
        where, x = port.soft_tokens[0], x.copy()
        rows = port.weights.embed_tokens_per_layer[port.tokens[where]] * P**0.5  # [M, L*P]
        x[where] = rows.reshape(len(where), -1, P)
        return x

    port.edit("ple.token", token)


@fault(
    "B10b", "the context projection reads the pad token's embedding under soft tokens", "ple.context", "soft",
    "what the image says is lost", "the projection reads the soft token itself; only the lookup reads the pad row",
    "AI-Hypercomputer/maxtext#4790", needs=("ple", "soft"),
)  # fmt: skip
def _(port):
    D, P, w = port.config.hidden_size, port.config.hidden_size_per_layer_input, port.weights

    def context(at, x):
        pad = linear(w.embed_tokens[[port.config.pad_token_id]] * D**0.5, w.per_layer_model_projection) * D**-0.5
        x = x.copy()
        x[port.soft_tokens[0]] = at.norm(pad.reshape(-1, P), w.per_layer_projection_norm)  # [L, P]
        return x

    port.edit("ple.context", context)


@fault(
    "B11", "from one layer on there are no per-layer embeddings", "layers.*.ple_out", "one",
    "the first layers are right", "hand the per-layer inputs on to every pipeline rank", "vllm#40786", needs=("ple",),
)  # fmt: skip
def _(port):
    first = port.config.num_hidden_layers // 2 if port.suspect is None else port.suspect
    port.edit("ple_out", lambda at, x: x * (at.i < first))


@fault(
    "B13", "the PLE table is rounded to 4 bits", "ple.token", "one", "garbage, or twice the divergence",
    "8 bits or more for the table", "raullenchai/Rapid-MLX#1114; exllamav3#253", needs=("ple",),
)  # fmt: skip
def _(port):
    def token(at, x):
        step = np.abs(x).max((1, 2), keepdims=True) / 7  # of the token's whole row
        return np.round(x / step) * step

    port.edit("ple.token", token)


@fault(
    "B15", "soft tokens have no PLE lookup", "ple.token", "soft", "image positions lose a constant",
    "look up pad_token_id there: its row is not zero", "huggingface/transformers#45874", needs=("ple", "soft"),
)  # fmt: skip
def _(port):
    def token(at, x):
        x = x.copy()
        x[port.soft_tokens[0]] = 0
        return x

    port.edit("ple.token", token)


@fault(
    "B16", "per_layer_projection_norm is left out", "ple.context", "one", "context and lookup are out of balance",
    "norm the projected embeddings over P, with per_layer_projection_norm", "a near relative of B8", needs=("ple",),
)  # fmt: skip
def _(port):
    def context(at, x):
        projected = linear(at["embed"], port.weights.per_layer_model_projection)  # [T, L*P]
        return projected.reshape(x.shape) * port.config.hidden_size**-0.5

    port.edit("ple.context", context)


@fault(
    "B17", "the PLE gate has no activation", "layers.*.ple.gate", "one", "gates are negative where they should close",
    "gelu_pytorch_tanh after per_layer_input_gate", "a near relative of A8", needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple.gate", lambda at, x: linear(at["resid_ffn"], at.w.per_layer_input_gate))


@fault(
    "B18", "per-layer embeddings without the lookup", "ple", "one", "every token's own vector is missing",
    "add the row of embed_tokens_per_layer", "huggingface/transformers#45927", needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple", lambda at, x: at["ple.context"] * x.dtype.type(2**-0.5))


@fault(
    "B19", "per-layer embeddings without the context projection", "ple", "one", "half of the vector is missing",
    "add per_layer_model_projection of the scaled embedding, normed", "huggingface/transformers#45207", needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple", lambda at, x: at["ple.token"] * x.dtype.type(2**-0.5))


@fault(
    "B20", "post_per_layer_input_norm is left out", "layers.*.ple_out", "one", "PLE's write has the wrong size",
    "norm what per_layer_projection gives before adding it", "a near relative of A12", needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("ple_out", lambda at, x: at["ple.proj"])


# --------------------------------------------------------------------------------------------------- C: layer_scalar
@fault(
    "C1", "layer_scalar is left out", "layers.*.resid_post", "one",
    "the residual grows 8 times by mid-network, float16 overflows; fresh random models have 1.0 and hide it",
    "multiply the whole residual at the end of each layer", "cloudrift-ai/emmy#371; kekzl/imp#65; larql#181",
)  # fmt: skip
def _(port):
    for _, w in port.layers():
        w.layer_scalar = np.ones_like(w.layer_scalar)


@fault(
    "C1b", "the last layer's scalar is left out", "layers.*.resid_post", "one", "none", "keep it for fidelity",
    "derived", benign="the final norm divides it away",
)  # fmt: skip
def _(port):
    port.weights.layers[-1].layer_scalar = np.ones_like(port.weights.layers[-1].layer_scalar)


@fault(
    "C2", "layer_scalar is applied before the per-layer embedding is added", "layers.*.resid_post", "one",
    "PLE weighs more than it should", "scale last, after all three branches are added", "pegainfer#874", needs=("ple",),
)  # fmt: skip
def _(port):
    port.edit("resid_post", lambda at, x: at["resid_ffn"] * at.w.layer_scalar + at["ple_out"])


@form("C2")  # scaled before the gate, which reads the scaled sum
def _(port):
    port.edit("resid_ffn", lambda at, x: x * at.w.layer_scalar)
    port.edit("resid_post", lambda at, x: at["resid_ffn"] + at["ple_out"])


@fault(
    "C2b", "layer_scalar is applied to what the layer adds, not to the whole residual", "layers.*.resid_post", "one",
    "the residual keeps everything that was ever written", "x = (x + branches) * layer_scalar", "pegainfer#874",
)  # fmt: skip
def _(port):
    def scaled(at, x):
        whole = at["resid_ffn"] + at["ple_out"] if port.config.hidden_size_per_layer_input else at["resid_ffn"]
        return at["resid_pre"] + at.w.layer_scalar * (whole - at["resid_pre"])

    port.edit("resid_post", scaled)


# ------------------------------------------------------------------------------------------------------- D: attention
@fault(
    "D1", "scores are divided by sqrt(head_dim)", "layers.*.attn.scores", "nine",
    "attention is too soft; ratios of 1/16 and 1/22.6 on E2B", "scale 1.0: q_norm and k_norm have learned it",
    "TheCause/gemma4-zml-probe; mlc-llm#3485; pegainfer#874",
)  # fmt: skip
def _(port):
    port.edit("attn.scores", lambda at, x: x * x.dtype.type(at.layer.head_dim**-0.5))


@fault(
    "D2", "V is not normed, because the checkpoint has no v_norm weight", "layers.*.attn.v", "one",
    "rms(v) is not 1", "RMSNorm without a weight on V", "TheCause/gemma4-zml-probe",
)  # fmt: skip
def _(port):
    port.edit("attn.v", lambda at, x: at["attn.v_raw"])


@fault(
    "D3", "V of the K = V layers is made from k_norm's output", "layers.*.attn.v", "one", "global layers are wrong",
    "V = v_norm(k_proj's raw output)", "mlx-swift-lm#231, #300; Megatron-Bridge#4683", needs=("k_eq_v",),
)  # fmt: skip
def _(port):
    port.edit("attn.v", lambda at, x: at.norm(at["attn.k"]) if at.layer.k_eq_v else x)


@fault(
    "D3b", "V of the K = V layers is made from K after RoPE", "layers.*.attn.v", "nine",
    "position 0 is right, later ones are not", "V = v_norm(k_proj's raw output)", "mlx-swift-lm#250, #300",
    needs=("k_eq_v",),
)  # fmt: skip
def _(port):
    port.edit("attn.v", lambda at, x: at.norm(at["attn.rot_k"]) if at.layer.k_eq_v else x)


def keys(at, turned):
    """K of this layer, normed and where asked for rotated, before its own taps: [T, K, H]."""
    k = at.norm(at["attn.k_raw"], at.w.k_norm)  # [T, K, H]
    return rope(k, *rotation(at.positions, at.layer.inv_freq, k.dtype)) if turned else k


@form("D3")
def _(port):
    port.edit("attn.v_raw", lambda at, x: keys(at, False) if at.layer.k_eq_v else x)


@form("D3b")
def _(port):
    port.edit("attn.v_raw", lambda at, x: keys(at, True) if at.layer.k_eq_v else x)


@fault(
    "D5", "K is used as V", "layers.*.attn.v", "one", "a base model hardly changes, a tuned one talks nonsense",
    "read the V cache", "ik_llama.cpp#1592",
)  # fmt: skip
def _(port):
    port.edit("attn.v", lambda at, x: at["attn.rot_k"])


@fault(
    "D6", "the numbers of global queries are dealt to the heads in the wrong order", "layers.*.attn.q_raw", "one",
    "the size divides evenly, so nothing fails; heads are scrambled", "view as [T, heads, head_dim] of that layer",
    "larql#178; interp-engine#1",
)  # fmt: skip
def _(port):
    def dealt(at, x):
        T, N, H = x.shape
        return x.reshape(T, H, N).swapaxes(1, 2) if at.layer.kind == GLOBAL else x

    port.edit("attn.q_raw", dealt)


@fault(
    "D6b", "query head n reads kv head n mod K", "layers.*.attn.scores", "one", "heads read their neighbours' values",
    "n // (N / K): repeat each kv head, do not tile them", "interp-engine#1",
)  # fmt: skip
def _(port):
    def scores(at, x):
        k = at.from_donor("attn.rot_k")  # [S, K, H]
        return np.einsum("tnh,snh->nts", at["attn.rot_q"], k[:, np.arange(x.shape[0]) % k.shape[1]])

    def z(at, x):
        v = at.from_donor("attn.v")  # [S, K, H]
        return np.einsum("nts,snh->tnh", at["attn.pattern"], v[:, np.arange(x.shape[1]) % v.shape[1]])

    if any(layer.num_key_value_heads > 1 for layer in port.config.layers):
        port.edit("attn.scores", scores)
        port.edit("attn.z", z)


@fault(
    "D7", "a sliding layer is taken for a global one: no window, the other RoPE", "layers.*.attn.rot_q", "nine",
    "one layer is wrong", "read layer_types; do not compute it from a period", "NVIDIA-NeMo/Megatron-Bridge#5441",
)  # fmt: skip
def _(port):
    sliding = [layer for layer in port.config.layers if layer.kind == SLIDING]
    wrong = next((layer for layer in sliding if layer.index == port.suspect), sliding[-1] if sliding else None)
    if wrong:
        changes = {"window": None, "inv_freq": inverse_frequencies(ROPE_DEFAULTS[GLOBAL], wrong.head_dim)}
        port.change_layers(lambda layer: changes if layer is wrong else {})


@fault(
    "D8", "every softmax is uniform", "layers.*.attn.pattern", "nine", "each row is 1 / number of visible keys",
    "squeeze the single kv head's axis before the product, not the query axis", "Xilinx/mlir-air",
)  # fmt: skip
def _(port):
    def uniform(at, x):
        seen = visible(at.positions, x.shape[-1], at.layer.window, at.positions[-1] + 1)  # [T, S]
        return np.broadcast_to(seen / seen.sum(-1, keepdims=True), x.shape).astype(x.dtype)

    port.edit("attn.pattern", uniform)


@fault(
    "D9", "queries are not normed", "layers.*.attn.q", "nine", "attention has one wrong temperature a head and token",
    "q_norm after q_proj, before RoPE", "a near relative of D2",
)  # fmt: skip
def _(port):
    port.edit("attn.q", lambda at, x: at["attn.q_raw"])


@fault(
    "D9b", "keys are not normed", "layers.*.attn.k", "nine", "attention has one wrong temperature a key",
    "k_norm after k_proj, before RoPE", "a near relative of D2",
)  # fmt: skip
def _(port):
    port.edit("attn.k", lambda at, x: at["attn.k_raw"])


@fault(
    "D10", "queries are rotated first and normed then", "layers.*.attn.rot_q", "nine",
    "position 0 is right; the norm's weight meets the wrong channels elsewhere", "projection, norm, RoPE",
    "a near relative of D3",
)  # fmt: skip
def _(port):
    port.edit("attn.rot_q", turned_and_normed)


def turned_and_normed(at, x):
    cos, sin = rotation(at.positions[-len(x) :], at.layer.inv_freq, x.dtype)
    return at.norm(rope(at["attn.q_raw"], cos, sin), at.w.q_norm)  # [T, N, H]


@form("D10")
def _(port):
    port.edit("attn.q", turned_and_normed)
    port.edit("attn.rot_q", lambda at, x: at["attn.q"])


@fault(
    "D11", "no causal mask", "layers.*.attn.pattern", "nine", "the past depends on the future",
    "a query sees keys up to its own position", "a near relative of G1",
)  # fmt: skip
def _(port):
    port.edit("attn.pattern", lambda at, x: acausal(at, x, ahead=x.shape[-1]))


@form("D11")  # the window reaches as far forwards as backwards
def _(port):
    port.edit("attn.pattern", lambda at, x: acausal(at, x, ahead=at.layer.window or x.shape[-1]))


def acausal(at, x, ahead):
    """The pattern where a query sees the window's keys before it and `ahead` keys from itself on: [N, T, S]."""
    away = at.positions[-x.shape[1] :, None] - np.arange(x.shape[-1])  # [T, S]
    seen = (away < (at.layer.window or x.shape[-1])) & (away > -ahead)  # [T, S]
    return softmax(np.where(seen, at["attn.scores"], -np.inf))


# ------------------------------------------------------------------------------------------------------------ E: RoPE
def inverse(factor=0.25, theta=1e6, part=1.0):
    """Frequencies with something wrong in them; `part` of the head is what the exponents divide by."""

    def change(layer):
        rotating = int(factor * layer.head_dim // 2)
        inv_freq = np.zeros(layer.head_dim // 2)  # [H/2]
        inv_freq[:rotating] = theta ** (-2.0 * np.arange(rotating) / (part * layer.head_dim))
        return {"inv_freq": inv_freq}

    return change


def rotate(port, turn, kind=None):
    """Edit rot_q and rot_k to turn(x, cos, sin, layer) of the normed q and k."""
    for name, source in (("attn.rot_q", "attn.q"), ("attn.rot_k", "attn.k")):

        def rotated(at, x, source=source):
            if kind not in (None, at.layer.kind):
                return x
            return turn(at[source], *rotation(at.positions[-len(x) :], at.layer.inv_freq, x.dtype), at.layer)

        port.edit(name, rotated)


@fault(
    "E1", "global layers rotate the pairs (j, j + their number), not (j, j + H/2)", "layers.*.attn.rot_q", "nine",
    "cosines fall a little at each global layer; a check of the 64 frequencies passes",
    "pad the frequencies with zeros to H/2, then rotate halves of the whole head",
    "Megatron-Bridge#4195; apple/coreai-models#66; Xilinx/mlir-air",
)  # fmt: skip
def _(port):
    def turn(x, cos, sin, layer):
        n = int((layer.inv_freq > 0).sum())
        return np.concatenate([rope(x[..., : 2 * n], cos[..., :n], sin[..., :n]), x[..., 2 * n :]], axis=-1)

    rotate(port, turn, GLOBAL)


@fault(
    "E2", "global layers' exponents divide by the rotating part of the head", "layers.*.attn.rot_q", "nine",
    "quality falls with context", "exponents 2j / head_dim, over the whole head", "pegainfer#820; pie-project/pie#603",
)  # fmt: skip
def _(port):
    port.change_layers(inverse(part=0.25), GLOBAL)


@fault(
    "E3", "all pairs of global heads rotate", "layers.*.attn.rot_q", "far",
    "invisible before position 64 or so, long contexts fail", "a quarter of the pairs rotate; the rest stand still",
    "kekzl/imp#9, #10, #20; jagmarques/nexusquant#12; ollama37#373",
)  # fmt: skip
def _(port):
    port.change_layers(inverse(factor=1.0), GLOBAL)


@fault(
    "E5", "global layers have the theta of sliding ones", "layers.*.attn.rot_q", "far", "errors grow with position",
    "rope_parameters has a theta for each kind", "google/gemma.cpp#986; mlx-vlm#1709; llama.cpp#14367",
)  # fmt: skip
def _(port):
    port.change_layers(inverse(theta=1e4), GLOBAL)


@fault(
    "E5b", "sliding layers have the theta of global ones", "layers.*.attn.rot_q", "nine", "errors grow with position",
    "rope_parameters has a theta for each kind", "google/gemma.cpp#986; antonellof/ferrox#39",
)  # fmt: skip
def _(port):
    port.change_layers(inverse(factor=1.0), SLIDING)


@fault(
    "E6", "sliding layers rotate a quarter of their pairs, as global ones", "layers.*.attn.rot_q", "nine",
    "errors grow with position", "only the proportional type is partial", "ollama37#373",
)  # fmt: skip
def _(port):
    port.change_layers(inverse(theta=1e4), SLIDING)


@fault(
    "E7", "positions begin at 0 again in every call", "layers.*.attn.rot_q", "cached",
    "the prompt is right, every decoded token believes to stand at its beginning", "add the cache's length",
    "a near relative of B9c", needs=("cached",),
)  # fmt: skip
def _(port):
    for name, source in (("attn.rot_q", "attn.q"), ("attn.rot_k", "attn.k")):
        port.edit(name, lambda at, x, source=source: at[source] if at.decoding else x)  # position 0 does not turn


@fault(
    "E8", "RoPE rotates neighbours (2j, 2j + 1)", "layers.*.attn.rot_q", "nine", "text falls apart after a few words",
    "halves: (j, j + H/2)", "the interleaved layout of other models and of GGUF files",
)  # fmt: skip
def _(port):
    def turn(x, cos, sin, layer):
        out = np.empty_like(x)
        out[..., ::2] = x[..., ::2] * cos - x[..., 1::2] * sin
        out[..., 1::2] = x[..., 1::2] * cos + x[..., ::2] * sin
        return out

    rotate(port, turn)


@fault(
    "E9", "queries turn the other way", "layers.*.attn.rot_q", "nine", "distance counts double and backwards",
    "the same sign of sin for q and k", "a near relative of E8",
)  # fmt: skip
def _(port):
    def rotated(at, x):
        cos, sin = rotation(at.positions[-len(x) :], at.layer.inv_freq, x.dtype)
        return rope(at["attn.q"], cos, -sin)

    port.edit("attn.rot_q", rotated)


# ------------------------------------------------------------------------------------------------------ F: KV sharing
def give_own_matrices(port):
    """Sharing layers get the copies of k_proj, v_proj and k_norm that Google's files still hold."""
    for layer, w in port.layers(sharing=True):
        for part in ("k_proj", "v_proj", "k_norm"):
            name = f"layers.{layer.index}.self_attn.{part}.weight"
            if name in port.unused:
                setattr(w, part, port.unused[name])


@fault(
    "F1", "nothing is shared: the unused k_proj and v_proj of the last layers are used", "layers.*.attn.scores", "one",
    "without a cache logits are garbage, with one they are right; a loss of 16 in place of 7",
    "share by layer index, cache or not", "transformers#45242; mlx-swift-lm#333; unsloth-zoo#813",
    needs=("sharing", "unused"),
)  # fmt: skip
def _(port):
    give_own_matrices(port)
    port.change_layers(lambda layer: {"kv_from": layer.index}, sharing=True)


@fault(
    "F3", "sharing layers write their own K and V into the donor's cache", "layers.*.attn.z", "cached",
    "the prompt is right, decoding is garbage", "sharing layers never write", "vllm-ascend#11791; maxtext#4053",
    needs=("sharing", "unused", "cached"),
)  # fmt: skip
def _(port):
    overwrite_donors(port, reading=False)


@form("F3")  # and attend to what they wrote
def _(port):
    overwrite_donors(port, reading=True)


def overwrite_donors(port, reading):
    """Each sharing layer writes its K and V over its donor's of this call: the last one's stay in the cache."""
    give_own_matrices(port)
    last = {layer.kv_from: layer.index for layer, _ in port.layers(sharing=True)}  # donor: the last to overwrite it
    call, written = {}, {}  # layer: (k, v) of this call; donor: (k, v) of all calls so far

    def write(at, x):
        if at.layer.shares_kv:
            shape = len(x), at.layer.num_key_value_heads, at.layer.head_dim
            k = at.norm(linear(at["attn.in"], at.w.k_proj).reshape(shape), at.w.k_norm)  # [T, K, H]
            v = at.norm(linear(at["attn.in"], at.w.v_proj).reshape(shape))  # [T, K, H]
            call[at.i] = rope(k, *rotation(at.positions, at.layer.inv_freq, x.dtype)), v
        return x

    def stored(at, which, length):
        """K (0) or V (1) in the donor's slots when this layer reads them: [S, K, H]."""
        before = written[at.layer.kv_from][which] if at.decoding else call[at.i][which][:0]
        return np.concatenate([before, call[at.i][which]])[-length:]

    def scores(at, x):
        return attention_scores(at["attn.rot_q"], stored(at, 0, x.shape[-1])) if at.layer.shares_kv else x

    def z(at, x):
        pattern = at["attn.pattern"]  # [N, T, S]
        return attention_values(pattern, stored(at, 1, pattern.shape[-1])) if at.layer.shares_kv else x

    def after_call(cache):
        entries = dict(cache.entries)
        for donor, writer in last.items():
            parts = [written[donor], call[writer]] if donor in written else [call[writer]]
            written[donor] = k, v = [np.concatenate(both) for both in zip(*parts, strict=True)]
            entries[donor] = Entry(Buffer(k, v, len(k)), 0, len(k)).trim(port.config.layers[donor].window)
        return cache._replace(entries=entries)

    port.edit("attn.q_raw", write)
    if reading:
        port.edit("attn.scores", scores)
        port.edit("attn.z", z)
    port.after_call = after_call


@fault(
    "F5", "sharing layers read from the first layer of their kind, not the last", "layers.*.attn.scores", "one",
    "the first sharing layer breaks", "the donor is the last non-sharing layer of the same kind (E2B: 13 and 14)",
    "Alberto-Codes/turboquant-vllm#79; axolotl#3701", needs=("sharing",),
)  # fmt: skip
def _(port):
    first = {layer.kind: layer.index for layer in reversed(port.config.layers)}
    port.change_layers(lambda layer: {"kv_from": first[layer.kind]}, sharing=True)


@fault(
    "F5b", "sharing layers read from the last but one layer of their kind", "layers.*.attn.scores", "one",
    "the first sharing layer breaks", "the donor is the last non-sharing layer of the same kind (E2B: 13 and 14)",
    "Alberto-Codes/turboquant-vllm#79", needs=("sharing",),
)  # fmt: skip
def _(port):
    def before(layer):
        same = [o.index for o in port.config.layers[: layer.kv_from] if o.kind == layer.kind]
        return {"kv_from": same[-1] if same else layer.kv_from}

    port.change_layers(before, SLIDING, sharing=True)


@fault(
    "F9", "the MLP of sharing layers is not double-wide", "layers.*.mlp.gate", "one",
    "shapes do not fit from the first sharing layer on, or half of each matrix is left unread",
    "use_double_wide_mlp doubles intermediate_size where K and V are shared", "huggingface/candle#3448",
    needs=("wide",),
)  # fmt: skip
def _(port):
    def first(matrix, rows, columns):
        if isinstance(matrix, HalfMatrix):
            return HalfMatrix(np.ascontiguousarray(matrix.bits[:rows, :columns]))
        return matrix[:rows, :columns]

    for layer, w in port.layers(sharing=True):
        F = layer.intermediate_size // 2
        w.gate_proj, w.up_proj = first(w.gate_proj, F, None), first(w.up_proj, F, None)
        w.down_proj = first(w.down_proj, None, F)


@fault(
    "F11", "sharing layers read what the donor keeps for its next call, not all it has computed in this one",
    "layers.*.attn.pattern", "window", "short prompts are right",
    "hand over all K and V of the call, then trim the donor's cache", "transformers#45312", needs=("sharing",),
)  # fmt: skip
def _(port):
    def pattern(at, x):
        if not at.layer.shares_kv or at.layer.window is None or x.shape[-1] < at.layer.window:
            return x
        kept = np.arange(x.shape[-1]) > x.shape[-1] - at.layer.window  # [S]
        seen = kept & visible(at.positions[-x.shape[1] :], x.shape[-1], at.layer.window, at.positions[-1] + 1)  # [T, S]
        blind = ~seen.any(-1, keepdims=True) & kept  # [T, S]: all keys masked alike, softmax is uniform over them
        return softmax(np.where(seen, at["attn.scores"], np.where(blind, 0, -np.inf))).astype(x.dtype)

    port.edit("attn.pattern", pattern)


# -------------------------------------------------------------------------------------------------- G: sliding window
@fault(
    "G1", "no window", "layers.*.attn.pattern", "window", "short prompts are right",
    "hand sliding_window to the attention of sliding layers", "vllm-project/vllm-metal#282",
)  # fmt: skip
def _(port):
    port.change_layers(lambda layer: {"window": None}, SLIDING)


@fault(
    "G2", "the window does not count the current token: one key too many", "layers.*.attn.pattern", "window",
    "right up to the window's length, wrong from one token more",
    "sliding_window keys, the current one among them: pass window - 1 to kernels that count keys on the left",
    "sglang#26147; Megatron-Bridge#4683; zml/zml#763; pegainfer#818",
)  # fmt: skip
def _(port):
    port.change_layers(lambda layer: {"window": layer.window + 1}, SLIDING)


@fault(
    "G2b", "the window is one key too short", "layers.*.attn.pattern", "window",
    "right up to one token less than the window",
    "sliding_window keys, the current one among them", "sglang#26147",
)  # fmt: skip
def _(port):
    port.change_layers(lambda layer: {"window": max(1, layer.window - 1)}, SLIDING)


@fault(
    "G2c", "the cache of sliding layers is cut one key too short", "layers.*.attn.z", "cached",
    "the prompt is right; decoding beyond the window is a little off",
    "keep window - 1 keys: the new one makes the window full", "a near relative of G2", needs=("cached",),
)  # fmt: skip
def _(port):
    windows = {layer.index: layer.window for layer, _ in port.layers(SLIDING)}

    def cut(cache):  # so that the shorter cache fits: from the second call on the window is one shorter
        port.change_layers(lambda layer: {"window": windows[layer.index] - 1}, SLIDING)
        entries = {i: e.trim(windows[i] - 1) if i in windows else e for i, e in cache.entries.items()}
        return cache._replace(entries=entries)

    port.after_call = cut


@fault(
    "G3", "the mask of sliding layers is built from position + 1", "layers.*.attn.pattern", "nine",
    "each query sees one token of its future", "mask by the query's own position",
    "quic/efficient-transformers#1250",
)  # fmt: skip
def _(port):
    def pattern(at, x):
        if at.layer.window is None:
            return x
        after = at.positions[-x.shape[1] :] + 1
        seen = visible(after, x.shape[-1], at.layer.window, at.positions[-1] + 1)  # [T, S]
        return softmax(np.where(seen, at["attn.scores"], -np.inf))

    port.edit("attn.pattern", pattern)


# ---------------------------------------------------------------------------------------------- H: mixture of experts
def routed(h, at):
    """The router's probabilities for its input h [T, D] -> [T, E]."""
    return softmax(linear(h * at.w.router_scale * at.config.hidden_size**-0.5, at.w.router_proj))


@fault(
    "H1", "the router reads the experts' normed input and norms it again", "layers.*.router.probs", "one",
    "the wrong experts", "the router reads the raw residual, normed without a weight", "NVIDIA-NeMo/Automodel#1852",
    needs=("moe",),
)  # fmt: skip
def _(port):
    def probs(at, x):
        return routed(at.norm(at.norm(at["resid_mid"], at.w.pre_feedforward_layernorm_2)), at)

    port.edit("router.probs", probs)


@fault(
    "H1b", "the router's norm is left out", "layers.*.router.probs", "one", "one expert takes all",
    "RMSNorm without a weight before router.scale", "kekzl/imp#65", needs=("moe",),
)  # fmt: skip
def _(port):
    port.edit("router.probs", lambda at, x: routed(at["resid_mid"], at))


@fault(
    "H2", "router.scale is left out", "layers.*.router.probs", "one", "the model stops at once",
    "multiply the router's normed input by router.scale", "kekzl/imp#65", needs=("moe",),
)  # fmt: skip
def _(port):
    for _, w in port.layers():
        w.router_scale = np.ones_like(w.router_scale)


@fault(
    "H2b", "per_expert_scale is left out", "layers.*.router.weights", "one", "the model stops at once",
    "multiply each chosen expert's weight by its per_expert_scale", "kekzl/imp#65", needs=("moe",),
)  # fmt: skip
def _(port):
    for _, w in port.layers():
        w.per_expert_scale = np.ones_like(w.per_expert_scale)


@fault(
    "H3", "per_expert_scale is applied twice", "layers.*.router.weights", "one", "some experts are too loud",
    "it is folded into down_proj already: neutralise one copy", "onnxruntime/mobius#546", needs=("moe",),
)  # fmt: skip
def _(port):
    for _, w in port.layers():
        w.per_expert_scale = w.per_expert_scale**2


@form("H3")  # folded into the experts' down_proj and used by the router too
def _(port):
    port.edit("mlp.moe_out", lambda at, x: mixture(
        at, at["router.weights"] * at.w.per_expert_scale[at["router.experts"]]))  # fmt: skip


@fault(
    "H4", "the experts replace the dense MLP", "layers.*.mlp.dense_out", "one", "half of the feed-forward is missing",
    "norm both branches, add them, then the common post-norm", "interp-engine#3", needs=("moe",),
)  # fmt: skip
def _(port):
    port.edit("mlp.dense_out", lambda at, x: np.zeros_like(x))


@fault(
    "H4b", "only the dense MLP is read", "layers.*.mlp.moe_out", "one", "half of the feed-forward is missing",
    "norm both branches, add them, then the common post-norm", "interp-engine#3", needs=("moe",),
)  # fmt: skip
def _(port):
    port.edit("mlp.moe_out", lambda at, x: np.zeros_like(x))


@fault(
    "H5", "one expert too few", "layers.*.router.weights", "one", "the least expert is missing",
    "top_k_experts of them", "vllm#39067; interp-engine#1", needs=("moe",),
)  # fmt: skip
def _(port):
    port.config = replace(port.config, top_k_experts=max(1, port.config.top_k_experts - 1))


@fault(
    "H6", "the router works in float16", "layers.*.router.probs", "nine",
    "mostly the right experts, now and then another: a jump, not a drift", "softmax and choice in float32",
    "kekzl/imp#10; tt-metal#44959", needs=("moe",), rounds="layers.*.router.*",
)  # fmt: skip
def _(port):
    pass  # rounding cannot be foretold: what it may reach is known, see Fault.rounds


@fault(
    "H7", "the router's probabilities are taken for logits", "layers.*.router.probs", "one", "nearly equal weights",
    "the first output of transformers' router is a softmax already", "interp-engine GEMMA4_REMAINING.md",
    needs=("moe",),
)  # fmt: skip
def _(port):
    port.edit("router.probs", lambda at, x: softmax(x))


@fault(
    "H8", "the chosen experts' weights are not renormalised", "layers.*.router.weights", "one", "hardly any",
    "divide them by their sum", "a near relative of H2b", needs=("moe",),
    benign="one factor for each token, which post_feedforward_layernorm_2 divides away, up to its eps",
)  # fmt: skip
def _(port):
    def shares(at, x):
        probs = at["router.probs"]
        return x * np.take_along_axis(probs, top_k(probs, x.shape[1]), axis=-1).sum(-1, keepdims=True)

    port.edit("router.weights", shares)


# ------------------------------------------------------------------------------------------- J: tokens and template
@fault(
    "J1", "<bos> is missing", "embed", "ids", "degenerate text, base models most",
    "the tokenizer adds no <bos> by itself: the template, or you, must", "llama.cpp#21500; unsloth#7903; larql#179",
)  # fmt: skip
def _(port):
    port.tokens = port.tokens[1:]


@fault(
    "J2", "<bos> twice", "embed", "ids", "a little worse everywhere",
    "the chat template writes <bos>: do not add another", "kekzl/imp#9; ollama#15252",
)  # fmt: skip
def _(port):
    port.tokens = np.concatenate([port.tokens[:1], port.tokens])


note(
    "J3", "the generation prompt opens a thought channel", "ids", "greedy decoding collapses to <pad>",
    "end the prompt with <|turn>model and a newline", "lablup/mlxcel#686",
)  # fmt: skip
note(
    "J4", "SentencePiece or byte-level BPE in place of rank-merge BPE on text with U+2581", "ids",
    "answers to a question nobody asked; decoding gives the text back perfectly",
    "compare ids, not the round trip; use tokenizer.json", "llama.cpp#21343; tinygrad#15630; ariannamethod/notorch#44",
)  # fmt: skip
note(
    "J5", "merges are applied whose product is not in the vocabulary", "ids", "names fall into bytes",
    "skip such merges", "kekzl/imp#37",
)  # fmt: skip
note(
    "J6", "byte pieces are dropped or not joined", "ids", "umlauts vanish", "collect bytes until they are UTF-8",
    "ollama#15278; cactus#684",
)  # fmt: skip
note(
    "J7", "the list of stop tokens is incomplete", "ids", "never stops, or stops when the text mentions it",
    "eos_token_id of generation_config.json: 1, 106 and 50", "osaurus-ai/vmlx-swift#93; axolotl#3756",
)  # fmt: skip
note(
    "J8", "placeholder ids are not suppressed", "ids", "<audio|> inside the text",
    "give image and audio ids no probability", "google-deepmind/gemma#649; jundot/omlx#1670",
)  # fmt: skip

# --------------------------------------------------------------------------------------- L: what is taken for a mistake
note(
    "L1", "an -it model scores a perplexity of 10,000 on raw text", "ids", "alarming numbers",
    "score tuned models inside their turn frame, with <bos>", "lablup/mlxcel#686; kekzl/imp#2044; Samsung/TICO#890",
    benign="tuned checkpoints predict text only inside their frame",
)  # fmt: skip
note(
    "L3", "greedy tokens differ from those of a bfloat16 run", "nine", "one token in a hundred flips",
    "compare logits and the margin between the two best", "TheCause/gemma4-zml-probe",
    benign="logits near 25 are 0.125 apart in bfloat16, so ties are common",
)  # fmt: skip
note(
    "L5", "the last entry of output_hidden_states is not the last layer's output", "one", "the last layer looks broken",
    "it is after the final norm: compare it with `final_norm`", "pegainfer hf-golden.md",
    benign="that is how transformers fills the list",
)  # fmt: skip
note(
    "L9", "hooks on the KV-sharing layers see one position", "nine", "shapes differ from the first sharing layer on",
    "run a plain forward, not generate(): its prefill needs these layers at the last position only",
    "transformers 5.23.0, _maybe_slice_kv_shared_inputs", benign="the result is the same",
)  # fmt: skip


@fault(
    "L6", "q_proj, k_proj and o_proj are scaled by a constant", "layers.*.attn.q_raw", "one", "none",
    "nothing to do", "TheCause/gemma4-zml-probe", benign="the norm behind each divides the constant away",
)  # fmt: skip
def _(port):
    for name in ("attn.q_raw", "attn.o"):
        port.edit(name, constant(2))
    port.edit("attn.k_raw", lambda at, x: x if at.layer.k_eq_v else x * 2)


# ----------------------------------------------------------------------------- M: the MLP and the norms around it
@fault(
    "M1", "gate_proj and up_proj are swapped", "layers.*.mlp.gate", "one", "random text",
    "gelu goes on gate_proj; a fused gate_up matrix holds the gate first", "a near relative of A8",
)  # fmt: skip
def _(port):
    for _, w in port.layers():
        w.gate_proj, w.up_proj = w.up_proj, w.gate_proj


@fault(
    "M2", "post_attention_layernorm is left out", "layers.*.attn_out", "one", "attention writes too much or too little",
    "norm the branch before it is added: there are four norms a layer", "a near relative of A11",
)  # fmt: skip
def _(port):
    port.edit("attn_out", lambda at, x: at["attn.o"])


@fault(
    "M3", "post_feedforward_layernorm is left out", "layers.*.mlp_out", "one", "the MLP writes too much or too little",
    "norm the branch before it is added: there are four norms a layer", "a near relative of A11",
)  # fmt: skip
def _(port):
    def unnormed(at, x):
        return at["mlp.dense_out"] + at["mlp.moe_out"] if port.config.enable_moe_block else at["mlp.down"]

    port.edit("mlp_out", unnormed)


def applicable(entry, config, cached=False, soft=False, unused=False):
    """Whether a mistake can be made with this model, in this kind of run."""
    has = {
        "ple": bool(config.hidden_size_per_layer_input),
        "moe": config.enable_moe_block,
        "k_eq_v": any(layer.k_eq_v for layer in config.layers),
        "sharing": config.num_kv_shared_layers > 0,
        "wide": config.source["use_double_wide_mlp"] and config.num_kv_shared_layers > 0,
        "cached": cached,
        "soft": soft,
        "unused": unused,
    }
    return bool(entry.changes) and all(has[need] for need in entry.needs)
