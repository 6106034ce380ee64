"""V: pictures, in the vision tower and in the text model behind it.

V1 is A2 (soft tokens scaled as well), V19 is B10 and B10b (PLE at soft tokens). V5 to V9, V12 and V24 show in the text
model, the others in the tower, or in 12B's embedder. How many soft tokens a picture makes shows in the ids: see COUNTS.
"""

import math
from dataclasses import replace

import numpy as np

from ...config import GLOBAL, SLIDING
from ...inputs import fit_image
from ...ops import horizon, linear, rope_2d, rotation, visible
from .changes import edited, layer_weights, masked_softmax, passes, scaled, together, zeroed
from .embedding import erf_gelu
from .entry import Fault

# ------------------------------------------------------------------------------------------------- in the text model


def picture_ends(at):
    """The last position of each token's picture, or its own, whatever the config says: [T]."""
    return horizon(at.ids, at.positions, replace(at.config, use_bidirectional_attention="vision"))


def picture_starts(at):
    """The first position of each token's picture, or its own: [T]."""
    ends, positions = picture_ends(at), at.positions
    _, first, which = np.unique(ends, return_index=True, return_inverse=True)
    return positions[first][which]


def sees(seen, *kinds):
    """A change: in layers of these kinds queries see the keys seen(at, positions [T, 1], keys [S]), [T, S]."""

    def edit(at, x):
        if at.layer.kind not in kinds:
            return x
        T, S = x.shape[1:]
        keys = np.arange(at.positions[-1] + 1 - S, at.positions[-1] + 1)  # [S]
        return masked_softmax(at, seen(at, at.positions[-T:, None], keys))

    return edited("attn.pattern", edit)


def ahead(at, positions, keys):
    """Up to the end of the picture, from the window's first key on."""
    return (keys <= picture_ends(at)[-len(positions) :, None]) & (keys > positions - (at.layer.window or len(keys)))


def without_window(at, positions, keys):
    starts, ends = picture_starts(at)[:, None], picture_ends(at)[:, None]
    window = visible(positions[:, 0], len(keys), at.layer.window, keys[-1] + 1)
    return window | ((keys >= starts) & (keys <= ends))


def only_short_pictures(at, positions, keys):
    starts, ends = picture_starts(at), picture_ends(at)
    last = np.where(ends - starts < at.layer.window, ends, positions[:, 0])
    return visible(positions[:, 0], len(keys), at.layer.window, keys[-1] + 1, last)


def window_both_ways(at, positions, keys):
    return ahead(at, positions, keys) & (keys < positions + at.layer.window)


def cut(at, positions, keys):
    """As if the prompt had been cut inside a picture: behind the last wrong position, or in the longest's middle."""
    starts, ends = picture_starts(at), picture_ends(at)
    longest = np.argmax(ends - starts)
    edge = (starts[longest] + ends[longest] + 1) // 2
    if len(at.port.wrong) and at.port.wrong[-1] < ends[at.port.wrong[-1]]:
        edge = at.port.wrong[-1] + 1
    last = np.where(positions[:, 0] < edge, np.minimum(ends, edge - 1), ends)
    return visible(positions[:, 0], len(keys), at.layer.window, keys[-1] + 1, last)


def causal(port):
    port.config = replace(port.config, use_bidirectional_attention=None)


def rows_of_later_pictures(change):
    """A change: the soft tokens of all pictures but the first become change(the first's, how many)."""

    def put(port):
        where, rows = port.soft_tokens
        order = np.argsort(where)
        pictures = np.split(order, np.flatnonzero(np.diff(where[order]) > 1) + 1)
        rows = np.array(rows)
        for later in pictures[1:]:
            rows[later] = change(rows[pictures[0]], len(later))
        port.soft_tokens = where, rows

    return put


# ------------------------------------------------------------------------------------------------------ in the tower


def before_projection(at):
    """What the last norm reads: [M, D]."""
    names = ("standardized", "pooled", "embed")
    return next(at[name] for name in names if name in at.port.seen[None])


def normed_late(at, x):
    return at.norm(linear(before_projection(at), at.w.embedding_projection))  # [M, Y]


def transposed(at, x):
    weight = np.asarray(at.w.embedding_projection)  # [Y, D]
    wrong = weight.reshape(weight.shape[::-1]).T  # [Y, D], read as if it lay [D, Y] in the file
    return linear(at.norm(before_projection(at)), np.ascontiguousarray(wrong))


def unclipped(*names):
    """These matrices of each layer lose their bounds."""
    return layer_weights(lambda layer, w: {name: getattr(w, name)._replace(bounds=None) for name in names})


QKV = ("q_proj", "k_proj", "v_proj")


def pixels(at, x):
    """The values of the pixels, from 0 to 1: [T, X / 3, 3]."""
    return ((x + 1) / 2).reshape(len(x), -1, 3)


def as_imagenet(at, x):
    mean, deviation = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    return ((pixels(at, x) - mean) / deviation).reshape(x.shape).astype(x.dtype)


def places(at):
    """Column and row of each patch, and the number of columns: [T], [T]."""
    size = at.config.vision.patches[0]
    rows, columns = (n // size for n in at.port.image.shape[:2])
    return np.tile(np.arange(columns), rows), np.repeat(np.arange(rows), columns), columns


def pooled_by_two(at, x):
    """Means of 2 x 2 patches, the first M of them: [M, D]."""
    column, row, columns = places(at)
    last = at.config.vision.num_hidden_layers - 1
    states, out = at.port.seen[last]["resid_post"], np.zeros_like(x)
    block = column // 2 + columns // 2 * (row // 2)  # [T]
    here = block < len(x)
    np.add.at(out, block[here], states[here] / 4)
    return out * at.config.vision.hidden_size**0.5


def turned_by(one, other):
    """RoPE with these axes, 0 the column and 1 the row, for the first and the second half of a head."""

    def turn(at, x):
        angles = [rotation(places(at)[axis], at.layer.inv_freq, x.dtype) for axis in (one, other)]
        return rope_2d(x, *angles)

    return together(*(edited(f"attn.rot_{letter}", lambda at, x, of=f"attn.{letter}": turn(at, at[of]))
                      for letter in "qk"))  # fmt: skip


def bilinear(port):
    colours, budget = port.source
    port.image = fit_image(colours, budget, port.config.vision.side, "BILINEAR")


# Entries of other parts whose changes name taps and weights that a layer of the tower has too.
SHARED = ("A4", "A8", "D2", "D5", "D9", "D9b", "M1", "M2")


# Ways to count a picture's soft tokens wrongly: rows and columns of height, width, budget and pixels of a side.
def rounded_only(height, width, budget, side):
    return max(1, round(height / side)), max(1, round(width / side))


def side_raised(height, width, budget, side):
    factor = math.sqrt(budget * side**2 / (height * width))
    return max(1, math.floor(factor * height / side)), max(1, math.floor(factor * width / side))


COUNTS = {
    "V10": (lambda *_: (1, 280), lambda *_: (1, 256)),
    "V13": (rounded_only,),
    "V15": (side_raised,),
}

ENTRIES = (
    Fault("V2", "the projection's norm comes after it", first="vision.soft_tokens", probe="picture",
          symptom="things are found in the wrong places", remedy="first the norm without a weight, then the projection",
          seen="mlx-vlm#906; vllm#40411",
          changes=edited("soft_tokens", normed_late)),
    Fault("V3", "padding is not zero when patches are pooled", probe="picture",
          symptom="the first soft token is wrong, more so the more padding there is",
          remedy="set padding to zero before the mean, or do not pad", seen="mlx-vlm#906"),
    Fault("V4", "clip bounds are not used", first="vision.layers.*.attn.q_raw", probe="picture",
          symptom="E2B and E4B see badly, 26B and 31B, which have no bounds, see well",
          remedy="read the four bounds of every matrix (448 numbers), those of fused q, k, v too; refuse a missing one",
          seen="tpu-inference#3355; AI-Hypercomputer/maxtext#4790", needs=("clipped",),
          changes=(unclipped(*QKV, "o_proj", "gate_proj", "up_proj", "down_proj"), unclipped(*QKV))),
    Fault("V5", "pictures look ahead in a model whose pictures are causal", first="layers.*.attn.pattern", probe="soft",
          symptom="E4B misreads text in pictures, E2B repeats a line",
          remedy="look ahead only where use_bidirectional_attention is vision: not in E2B and E4B",
          seen="ggml-org/llama.cpp#28318; quic/efficient-transformers#1163", needs=("soft", "causal"),
          changes=(sees(ahead, SLIDING), sees(ahead, SLIDING, GLOBAL))),
    Fault("V6", "pictures do not look ahead", first="layers.*.attn.pattern", probe="soft",
          symptom="12B, 26B-A4B and 31B see less well",
          remedy="on sliding layers a picture's tokens see all of their picture", seen="vllm#40534; vllm-gaudi#1797",
          needs=("soft", "ahead"), changes=causal),
    Fault("V7", "pictures look ahead on global layers too", first="layers.*.attn.pattern", probe="soft",
          symptom="small", remedy="global layers stay causal", seen="transformers#46711; vllm, clear_mm_prefix",
          needs=("soft", "ahead"), changes=sees(ahead, SLIDING, GLOBAL)),
    Fault("V8", "a picture longer than the window is not limited by it, or does not look ahead",
          first="layers.*.attn.pattern", probe="soft", symptom="only at 1,120 soft tokens, with a window of 1,024",
          remedy="a key is seen if it is at most at the picture's end, and less than a window before the query",
          seen="transformers#46850; vllm#47217", needs=("soft", "ahead"),
          changes=(sees(without_window, SLIDING), sees(only_short_pictures, SLIDING), sees(window_both_ways, SLIDING))),
    Fault("V9", "a chunk of the prompt ends inside a picture", first="layers.*.attn.pattern", probe="soft",
          symptom="long prompts are slightly wrong, and nothing says so",
          remedy="move the chunk's edge to the picture's", needs=("soft", "ahead"),
          seen="lmstudio-ai/mlx-engine#340, #362; openvino#36708; TensorRT-LLM#14134; optimum-rbln#646",
          changes=sees(cut, SLIDING)),
    Fault("V10", "every picture is taken to have 280 or 256 soft tokens", probe="ids",
          symptom="a count does not fit, or the last rows are empty", remedy="count rows times columns of the grid",
          seen="quic/efficient-transformers#1163; mlx-vlm#1425, #1426, #1503; ollama#17152"),
    Fault("V11", "patches are pooled by 2 x 2", first="vision.pooled", probe="picture",
          symptom="soft tokens of a part of the picture, or empty ones",
          remedy="pooling_kernel_size, 3; it does not follow from the number of patches", seen="mlx-swift-lm#290",
          needs=("tower",), changes=edited("pooled", pooled_by_two)),
    Fault("V12", "the second picture is pooled into the places of the first", first="embed", probe="soft",
          symptom="the soft tokens of all pictures but the first are zeros", remedy="one picture a call",
          seen="llmmanorg/llmman#143", needs=("soft", "pictures"),
          changes=rows_of_later_pictures(lambda first, count: 0)),
    Fault("V13", "a picture is rounded to whole soft tokens, and not enlarged", probe="ids",
          symptom="small pictures are seen coarsely", remedy="scale the picture until the budget is filled",
          seen="llama.cpp#24146"),
    Fault("V14", "bilinear resampling", first="vision.patches", probe="picture", symptom="text is softer",
          remedy="bicubic with antialiasing, on 8 bits a colour", seen="llama.cpp#24629; ollama#17152",
          needs=("source",), changes=bilinear),
    Fault("V15", "in a thin picture one side is raised to a soft token, and the other is not shrunk", probe="ids",
          symptom="more soft tokens than the budget, and a crash", seen="vllm#40796",
          remedy="one row, and as many columns as the shape and the budget allow"),
    Fault("V16", "pixels are not moved from 0..1 to -1..1, or normalised in another way", first="vision.patches",
          probe="picture", symptom="what is seen is wrong but plausible", remedy="2 * pixels - 1, once",
          seen="m87-labs/kestrel#163; onnxruntime-extensions#1052", needs=("tower",),
          changes=(
              edited("patches", lambda at, x: (x + 1) / 2),
              edited("patches", as_imagenet),
              edited("patches", lambda at, x: 2 * x - 1))),
    Fault("V16b", "12B's pixels are moved to -1..1", first="vision.patches", probe="picture", symptom="none",
          remedy="nothing to do", seen="a near relative of V16", needs=("embedder",),
          benign="the norm of the patches takes it back", changes=edited("patches", lambda at, x: 2 * x - 1)),
    Fault("V17", "k_norm is loaded from q_norm", first="vision.layers.*.attn.k", probe="picture",
          symptom="nothing is recognised", remedy="load each norm by its own name", seen="turboderp-org/exllamav3#200",
          needs=("tower",), changes=layer_weights(lambda layer, w: {"k_norm": w.q_norm})),
    Fault("V17b", "the halves of a head do not turn with column and row", first="vision.layers.*.attn.rot_q",
          probe="picture", symptom="places in the picture are mixed up",
          remedy="the first half turns with the column, the second with the row", seen="turboderp-org/exllamav3#200",
          needs=("tower",), changes=(turned_by(0, 0), turned_by(1, 1), turned_by(1, 0))),
    Fault("V18", "what is pooled is not standardized", first="vision.standardized", probe="picture",
          symptom="<pad> for an answer on 26B-A4B and 31B only",
          remedy="(x - std_bias) * std_scale, in float32: std_bias reaches 5.4e4",
          seen="gemma-4-swift-mlx#3; vllm#40290, #40347; unsloth-zoo#931; transformers#46277", needs=("standardize",),
          changes=passes("standardized", of="pooled")),
    Fault("V20", "a padding mask of 0 and 1 is added to the scores", probe="picture", symptom="padding is attended to",
          remedy="add 0 and -inf, or do not pad", seen="quic/efficient-transformers#1163"),
    Fault("V21", "12B's first product overflows float16", probe="picture", symptom="<unused49>, or empty answers",
          remedy="sum its 6,912 terms in float32", seen="llama.cpp#24146; vllm#48231"),
    Fault("V22", "the projection is not loaded, or transposed", first="vision.soft_tokens", probe="picture",
          symptom="one letter is repeated", remedy="read every tensor of the file, and refuse what is left over",
          seen="kekzl/imp#489, #490", changes=(zeroed("soft_tokens"), edited("soft_tokens", transposed))),
    Fault("V23", "a batch smaller than a picture", probe="soft", symptom="an assertion fails",
          remedy="a batch must hold a picture", seen="llama.cpp#21461, #21816; ollama#17154"),
    Fault("V24", "a later picture gets the soft tokens of the first", first="embed", probe="soft",
          symptom="the second picture is described as the first", remedy="key a cache of pictures by their content",
          seen="ik_llama.cpp#1893", needs=("soft", "pictures"),
          changes=rows_of_later_pictures(lambda first, count: np.resize(first, (count, first.shape[1])))),
    Fault("V25", "what is pooled is not multiplied by sqrt(D), before it is standardized", first="vision.pooled",
          probe="picture", symptom="26B-A4B and 31B see nothing", remedy="multiply the mean by sqrt(hidden_size)",
          seen="a step of transformers 5.23.0, Gemma4VisionPooler", needs=("standardize",),
          changes=scaled("pooled", lambda at: at.config.vision.hidden_size**-0.5)),
    Fault("V25b", "what is pooled is not multiplied by sqrt(D)", first="vision.pooled", probe="picture", symptom="none",
          remedy="nothing to do", seen="a step of transformers 5.23.0, Gemma4VisionPooler", needs=("plain",),
          benign="the norm before the projection takes it back",
          changes=scaled("pooled", lambda at: at.config.vision.hidden_size**-0.5)),
    Fault("V26", "the erf form of GELU in the tower", first="vision.layers.*.mlp.act", probe="picture",
          symptom="an error of 1e-3 in one layer", remedy="the tanh form: gelu_pytorch_tanh",
          seen="a near relative of A9", needs=("tower",), benign="it is less than bfloat16's rounding in one layer",
          changes=edited("mlp.act", lambda at, x: erf_gelu(at["mlp.gate"]) * at["mlp.up"])),
    Fault("V27", "the tower's scores are divided by sqrt(head_dim)", first="vision.layers.*.attn.heads.*.scores",
          probe="picture", symptom="attention is too flat", remedy="do not scale: q_norm and k_norm contain the scale",
          seen="a near relative of D1", needs=("tower",),
          changes=scaled("attn.heads.*.scores", lambda at: at.layer.head_dim**-0.5)),
    Fault("V28", "pixels differ by up to 2 of 255", probe="picture", symptom="none", remedy="nothing to do",
          seen="transformers 5.23.0, image_processing_gemma4.py",
          benign="transformers resamples with torchvision where that is installed, and we with Pillow"),
)  # fmt: skip
