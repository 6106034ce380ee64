"""B: per-layer embeddings."""

import numpy as np

from ...ops import linear, rms_norm
from ...taps import Trace
from .changes import edited, passes, rolled, scaled, together, zeroed
from .entry import Fault


def gate(at):
    """The PLE gate before its activation: [T, P]."""
    return linear(at["resid_ffn"], at.w.per_layer_input_gate)


def projected(at, shape):
    """The context projection of the embedding, neither scaled nor normed, in this shape [T, L, P]."""
    return linear(at["embed"], at.w.per_layer_model_projection).reshape(shape)


def own_context(port, i, x):
    """Layer i's part of the context projection, of any x [T, D] -> [T, P]."""
    P, config = port.config.hidden_size_per_layer_input, port.config
    rows = port.weights.per_layer_model_projection[i * P : (i + 1) * P]  # [P, D]
    return rms_norm(x @ rows.T * config.hidden_size**-0.5, port.weights.per_layer_projection_norm, config.rms_norm_eps)


def gated_by_own_context(at, x):
    token = at["ple.token"][-len(x) :, at.i]  # [T, P]
    return at["ple.gate"] * (own_context(at.port, at.i, at["resid_pre"]) + token) * 2**-0.5


contexts_of_residuals = edited("ple.gated", gated_by_own_context)


def captured_contexts_of_residuals(port):
    """The same mistake, captured under the name `ple.context`: each layer makes its own part of it."""
    residuals = port.copy()
    contexts_of_residuals(residuals)

    def context(at, x):
        seen = Trace("layers.*.resid_pre")
        residuals.run(seen, cache=port.cache)
        return np.stack([own_context(port, i, h) for i, h in enumerate(seen.values())], axis=1)  # [T, L, P]

    port.edit("ple.context", context)


def first_rows_again(port):
    first = []

    def ple(at, x):
        if not at.decoding:
            first[:] = [x]
        return first[0][: len(x)]

    port.edit("ple", ple)


def at_soft_tokens(tap, rows):
    """A change: at soft tokens the tap holds rows(at, where), where `where` [M] has their positions."""

    def edit(at, x):
        x, where = x.copy(), at.port.soft_tokens[0]
        x[where] = rows(at, where)
        return x

    return edited(tap, edit)


def placeholder_rows(at, where):
    P = at.config.hidden_size_per_layer_input
    rows = at.w.embed_tokens_per_layer[at.port.tokens[where]] * P**0.5  # [M, L*P]
    return rows.reshape(len(where), -1, P)


def pad_context(at, where):
    D, P = at.config.hidden_size, at.config.hidden_size_per_layer_input
    pad = at.w.embed_tokens[[at.config.pad_token_id]] * D**0.5  # [1, D]
    context = linear(pad, at.w.per_layer_model_projection) * D**-0.5  # [1, L*P]
    return at.norm(context.reshape(-1, P), at.w.per_layer_projection_norm)  # [L, P]


def before_some_layer(at):
    """1 in the first layers, 0 from the layer on at which the deviation begins."""
    return at.i < (at.config.num_hidden_layers // 2 if at.port.suspect is None else at.port.suspect)


def in_four_bits(at, x):
    step = np.abs(x).max((1, 2), keepdims=True) / 7  # [T, 1, 1], of the token's whole row
    return np.round(x / step) * step


ENTRIES = (
    Fault("B1", "no per-layer embeddings", first="layers.*.ple_out", probe="one", symptom="random text",
          remedy="add the third branch of each layer: gate, product, projection, norm, residual",
          seen="huggingface/candle#3968, #3488", needs=("ple",), changes=(zeroed("ple_out"), zeroed("ple"))),
    Fault("B2", "no per-layer embeddings and no layer_scalar while decoding", first="layers.*.ple_out", probe="cached",
          symptom="the first new token is right, then come fragments of words",
          remedy="end each layer in decoding as in the prompt: add PLE, then multiply by layer_scalar",
          seen="chrishayuk/larql#98, #177", needs=("ple", "cached"),
          changes=together(
              scaled("ple_out", lambda at: not at.decoding),
              edited("resid_post", lambda at, x: at["resid_ffn"] if at.decoding else x))),
    Fault("B3", "the PLE lookup is not scaled by sqrt(P)", first="ple.token", probe="one",
          symptom="the lookup is 16 times too small (E2B)",
          remedy="multiply the looked-up row by hidden_size_per_layer_input**0.5",
          seen="huggingface/transformers#45207", needs=("ple",),
          changes=scaled("ple.token", lambda at: at.config.hidden_size_per_layer_input**-0.5)),
    Fault("B3b", "the PLE lookup is scaled by sqrt(P) twice", first="ple.token", probe="one",
          symptom="the lookup is 16 times too large (E2B) and hides the context part",
          remedy="the converted table already contains the scale: remove one of the two",
          seen="Xilinx/mlir-air gemma4_e2b_q4nx_weights.py", needs=("ple",),
          changes=scaled("ple.token", lambda at: at.config.hidden_size_per_layer_input**0.5)),
    Fault("B4", "the PLE lookup is scaled by sqrt(L * P), the width of the packed table", first="ple.token",
          probe="one", symptom="the lookup is sqrt(L) times too large, 5.92 for E2B",
          remedy="scale by sqrt(P): a row of the table is L vectors of P numbers", seen="onnxruntime/mobius#296",
          needs=("ple",), changes=scaled("ple.token", lambda at: at.config.num_hidden_layers**0.5)),
    Fault("B5", "the context projection reads each layer's hidden state", first="layers.*.ple.gated", probe="one",
          symptom="shapes and sizes are right, layer 0 is right, later layers are more and more wrong",
          remedy="project the scaled embeddings once, before layer 0",
          seen="Xilinx/mlir-air gemma4_e2b_q4nx_weights.py", needs=("ple",),
          changes=(contexts_of_residuals, captured_contexts_of_residuals)),
    Fault("B6", "the PLE constants D**-0.5 and 2**-0.5 are swapped", first="ple", probe="one",
          symptom="`ple` is sqrt(D / 2) times too small, 27.7 for E2B; the norm that makes ple_out hides most of it",
          remedy="D**-0.5 after the projection, 2**-0.5 after the sum", seen="Xilinx/mlir-air, FastFlowLM's header",
          needs=("ple",),
          benign="post_per_layer_input_norm divides a constant factor of `ple` away, except for its eps",
          changes=scaled("ple", lambda at: (at.config.hidden_size / 2) ** -0.5)),
    Fault("B7", "context and lookup are added without 2**-0.5", first="ple", probe="one",
          symptom="`ple` is 1.414 times too large", remedy="(context + lookup) * 2**-0.5",
          seen="google-deepmind/gemma _modules.py; huggingface/transformers#45207", needs=("ple",),
          benign="post_per_layer_input_norm divides a constant factor of `ple` away, except for its eps",
          changes=scaled("ple", lambda at: 2**0.5)),
    Fault("B8", "the context projection is not scaled by D**-0.5", first="ple.context", probe="one", symptom="none",
          remedy="keep the factor, so that the taps agree", seen="atandra2000/Gemma-4-E2B-Lite", needs=("ple",),
          benign="per_layer_projection_norm comes next and divides the factor away, except for its eps",
          changes=edited("ple.context", lambda at, x: at.norm(projected(at, x.shape), at.w.per_layer_projection_norm))),
    Fault("B9", "every layer reads its neighbour's slice of the packed PLE table", first="ple", probe="one",
          symptom="garbage text", remedy="layer i reads columns i*P to (i+1)*P of a row",
          seen="vllm#47765; NVIDIA-NeMo/Megatron-Bridge#5385", needs=("ple",),
          changes=(rolled("ple", axis=1), rolled("ple.token", axis=1))),
    Fault("B9b", "every token gets its neighbour's per-layer embedding", first="ple", probe="nine",
          symptom="garbage text", remedy="slice per-layer inputs by the same positions as the tokens",
          seen="Blaizzy/mlx-vlm#901", needs=("ple",), changes=rolled("ple", axis=0)),
    Fault("B9c", "decoded tokens get the per-layer embeddings of the prompt's first tokens", first="ple",
          probe="cached", symptom="the prompt is right, every decoded token is wrong",
          remedy="slice the per-layer inputs from the cache's length on", seen="Blaizzy/mlx-vlm#901",
          needs=("ple", "cached"), changes=first_rows_again),
    Fault("B10", "soft tokens look up the placeholder's PLE row, not the pad token's", first="ple.token", probe="soft",
          symptom="the content of the image is lost", remedy="look up pad_token_id at image and audio positions",
          seen="apple/coreai-models#83; AI-Hypercomputer/maxtext#4790", needs=("ple", "soft"),
          changes=at_soft_tokens("ple.token", placeholder_rows)),
    Fault("B10b", "at soft tokens the context projection reads the pad token's embedding", first="ple.context",
          probe="soft", symptom="the content of the image is lost",
          remedy="the projection reads the soft token itself; only the lookup reads the pad row",
          seen="AI-Hypercomputer/maxtext#4790", needs=("ple", "soft"),
          changes=at_soft_tokens("ple.context", pad_context)),
    Fault("B11", "the later layers get no per-layer embeddings", first="layers.*.ple_out", probe="one",
          symptom="the first layers are right, from some layer on all are wrong",
          remedy="send the per-layer inputs to every pipeline rank", seen="vllm#40786", needs=("ple",),
          changes=scaled("ple_out", before_some_layer)),
    Fault("B13", "the PLE table is rounded to 4 bits", first="ple.token", probe="one",
          symptom="garbage text, or twice the divergence", remedy="keep the table in 8 bits or more",
          seen="raullenchai/Rapid-MLX#1114; exllamav3#253", needs=("ple",), changes=edited("ple.token", in_four_bits)),
    Fault("B15", "soft tokens have no PLE lookup", first="ple.token", probe="soft",
          symptom="a constant vector is missing at image positions",
          remedy="look up pad_token_id at image and audio positions: its row is not zero",
          seen="huggingface/transformers#45874", needs=("ple", "soft"),
          changes=at_soft_tokens("ple.token", lambda at, where: 0)),
    Fault("B16", "per_layer_projection_norm is left out", first="ple.context", probe="one",
          symptom="the context part has the wrong size beside the lookup",
          remedy="apply per_layer_projection_norm to each layer's P numbers of the projection",
          seen="a near relative of B8", needs=("ple",),
          changes=edited("ple.context", lambda at, x: projected(at, x.shape) * at.config.hidden_size**-0.5)),
    Fault("B17", "the PLE gate has no activation", first="layers.*.ple.gate", probe="one",
          symptom="gates are negative where they should be near zero",
          remedy="gelu_pytorch_tanh after per_layer_input_gate", seen="a near relative of A8", needs=("ple",),
          changes=edited("ple.gate", lambda at, x: gate(at))),
    Fault("B18", "per-layer embeddings without the lookup", first="ple", probe="one",
          symptom="every token's own vector is missing", remedy="add the row of embed_tokens_per_layer",
          seen="huggingface/transformers#45927", needs=("ple",),
          changes=edited("ple", lambda at, x: at["ple.context"] * 2**-0.5)),
    Fault("B19", "per-layer embeddings without the context projection", first="ple", probe="one",
          symptom="half of the vector is missing",
          remedy="add per_layer_model_projection of the scaled embedding, normed",
          seen="huggingface/transformers#45207", needs=("ple",),
          changes=edited("ple", lambda at, x: at["ple.token"] * 2**-0.5)),
    Fault("B20", "post_per_layer_input_norm is left out", first="layers.*.ple_out", probe="one",
          symptom="what PLE adds has the wrong size",
          remedy="apply the norm to the output of per_layer_projection, then add it", seen="a near relative of A12",
          needs=("ple",), changes=passes("ple_out", of="ple.proj")),
)  # fmt: skip
