"""The arithmetic of Gemma 4, one function an operation. Every rule was read in transformers 5.23.0, models/gemma4.

Letters: T new tokens, S visible positions, D hidden_size, N query heads, K kv heads, H head_dim, F MLP width,
E experts, k experts a token. Of sounds: R mel frames, C mel bins, A and B channels.
"""

import math

import numpy as np

from .packed import product, stacked_product
from .threads import by_rows, one_blas_thread


@one_blas_thread
def linear(x, weight):
    """x [T, in], weight [out, in] as checkpoints store it -> [T, out]. No Gemma 4 has biases."""
    return product(x, weight)


def clipped(x, w):
    """A linear of a tower, w a Clipped: inputs and outputs are limited to its bounds. x [T, in] -> [T, out].

    E2B and E4B were trained so; bounds of -inf and inf change nothing. Without bounds it is `linear`.
    """
    if w.bounds is None:
        return linear(x, w.weight)
    input_min, input_max, output_min, output_max = w.bounds
    y = linear(clip(x, input_min, input_max), w.weight)
    return clip(y, output_min, output_max, out=y)


@by_rows
def clip(x, low, high, out=None):
    """x with every number limited to low and high; in `out`, an array like x, if given."""
    return x.clip(low, high, out=out)


@by_rows
@np.errstate(over="ignore")
def rms_norm(x, weight=None, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. The weight is plain: Gemma 1 to 3 have 1 + weight."""
    mean_square = np.vecdot(x, x)[..., None] / x.shape[-1]
    finite = np.isfinite(mean_square)
    if np.count_nonzero(finite) < finite.size:  # squares overflowed: the same in units of the largest value
        unit = np.maximum(np.abs(x).max(-1, keepdims=True), 1)
        x, eps = x / unit, eps / unit / unit
        mean_square = np.vecdot(x, x)[..., None] / x.shape[-1]
    normed = x / np.sqrt(mean_square + eps)
    return normed if weight is None else normed * weight


def layer_norm(x, weight, bias, eps=1e-5):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axis. Only for pictures of 12B and for sound."""
    x = x - x.mean(-1, keepdims=True)
    return x / np.sqrt(np.vecdot(x, x)[..., None] / x.shape[-1] + eps) * weight + bias


@by_rows
@np.errstate(over="ignore")  # x^2 may become infinite: tanh(+-inf) is the right limit
def gelu(x):
    """GELU in the tanh form that Gemma was trained with (gelu_pytorch_tanh), not the erf form:

    x/2 * (1 + tanh(sqrt(2/pi) * (x + 0.044715 x^3))). In place on one new array: it is the largest of the pass.
    """
    y = x * x
    y *= 0.044715
    y += 1
    y *= x
    y *= math.sqrt(2 / math.pi)
    np.tanh(y, out=y)
    y += 1
    y *= 0.5
    y *= x
    return y


@by_rows
def softmax(x, out=None):
    """Probabilities over the last axis; entries of -inf (masked keys) get 0. In `out`, an array like x, if given."""
    weights = np.subtract(x, x.max(-1, keepdims=True), out=out)
    np.exp(weights, out=weights)  # in place: a long prompt's scores are large
    weights /= weights.sum(-1, keepdims=True)
    return weights


@by_rows
def softcap(x, cap):
    """cap * tanh(x / cap): a soft limit of the logits. cap None: no limit."""
    return x if cap is None else cap * np.tanh(x / cap)


@np.errstate(over="ignore")
def gated(x, gate):
    """x * sigmoid(gate)"""
    return x / (1 + np.exp(-gate))


@by_rows
def silu(x):
    """x * sigmoid(x)"""
    return gated(x, x)


def rotation(positions, inv_freq, dtype):
    """RoPE's angles -> their cos and sin, each [T, 1, H/2].

    The angles are float64: in float32, as the reference has them, they are off by up to 8e-3 at position 131,000.
    """
    angles = positions[:, None, None] * inv_freq  # [T, 1, H/2]
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)  # [T, 1, H/2] each


def rope(x, cos, sin):
    """Rotate the pairs (j, j + H/2) of each head by their angle; x [T, N, H] -> [T, N, H].

    A common mistake with Gemma 4's global layers is to rotate (j, j + 64), the halves of the rotating part: a pair is
    always H/2 apart, and pairs that do not rotate have cos 1 and sin 0.
    """
    half = x.shape[-1] // 2
    first, second = x[..., :half], x[..., half:]  # [T, N, H/2] each
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)  # [T, N, H]


def rope_2d(x, by_column, by_row):
    """RoPE of the vision tower: the first half of each head turns with the patch's column, the second with its row.

    x [T, N, H] -> [T, N, H]. by_column and by_row: cos and sin of `rotation`, each [T, 1, H/4]. Inside a half the pairs
    are (j, j + H/4).
    """
    first, second = np.split(x, 2, axis=-1)  # [T, N, H/2] each
    return np.concatenate([rope(first, *by_column), rope(second, *by_row)], axis=-1)  # [T, N, H]


def horizon(ids, positions, config):
    """The last position that each token may see on a sliding layer -> [T]: its own, or the end of its picture.

    12B, 26B-A4B and 31B let the tokens of a picture (or of a frame of a video) see all of it there. A picture is a run
    of its placeholders in `ids` [T], and it must lie in one call whole. Global layers, sounds, and E2B and E4B are
    causal. Source: transformers, create_masks_for_vision_model.
    """
    if config.use_bidirectional_attention != "vision":
        return positions
    inside = np.isin(ids, (config.image_token_id, config.video_token_id))  # [T]
    ends = np.flatnonzero(inside & ~np.append(inside[1:], False))  # the last token of each picture
    last = positions.copy()  # [T]
    last[inside] = positions[ends[np.searchsorted(ends, np.flatnonzero(inside))]]
    return last


def visible(positions, length, window, end, last=None):
    """Which of the `length` keys up to position `end` - 1 each query may see -> bool [T, S].

    A query sees itself and all keys before it; on a sliding layer the last `window` keys, itself included, and what
    lies between it and `last` [T], its horizon. The window bounds the past only.
    """
    keys = np.arange(end - length, end)  # [S]
    if window is None or last is None:
        last = positions  # [T]
    seen = keys <= last[:, None]  # [T, S]
    return seen if window is None else seen & (keys > positions[:, None] - window)  # [T, S]


@one_blas_thread
def attention_scores(q, k, out=None):
    """q [T, N, H], k [S, K, H] -> [N, T, S], in `out` if K is 1. No 1/sqrt(H): q_norm and k_norm have learned it.

    Grouped queries: head n reads kv head n // (N/K), so the N/K heads of a group are stacked as rows of one product.
    """
    T, N, H = q.shape
    S, K, _ = k.shape
    rows = q.transpose(1, 0, 2).reshape(K, N // K * T, H)  # [K, N/K*T, H]
    return stacked_product(rows, k.transpose(1, 2, 0), out).reshape(N, T, S)  # [N, T, S]


@one_blas_thread
def attention_values(pattern, v):
    """pattern [N, T, S], v [S, K, H] -> [T, N, H]: each head's mix of the values it attends to."""
    N, T, S = pattern.shape
    _, K, H = v.shape
    mixed = stacked_product(pattern.reshape(K, N // K * T, S), v.transpose(1, 0, 2))  # [K, N/K*T, H]
    return mixed.reshape(N, T, H).transpose(1, 0, 2)  # [T, N, H]


def top_k(probs, k):
    """The k most probable experts of each token, the best first -> [T, k]."""
    return np.argsort(-probs, axis=-1, kind="stable")[:, :k]  # [T, k]


def experts(x, gate_up_proj, down_proj, router_experts, router_weights):
    """The mixture: each token through its experts, each a gated MLP, summed by the router's weights. x, result [T, D].

    gate_up_proj [E, 2*F, D] holds gate over up, down_proj is [E, D, F], where F is the width of one expert;
    router_experts (numbers from 0 to E - 1) and router_weights are [T, k].
    """
    out = np.zeros_like(x)  # [T, D]
    for e in np.unique(router_experts):
        token, slot = np.nonzero(router_experts == e)  # the tokens that go through expert e
        gate, up = np.split(linear(x[token], gate_up_proj[int(e)]), 2, axis=-1)
        out[token] += router_weights[token, slot, None] * linear(gelu(gate) * up, down_proj[int(e)])
    return out  # [T, D]


def halve(x, kernel):
    """A convolution over time and mel that keeps every second place: x [R, C, A], kernel [B, A, 3, 3] -> [R/2, C/2, B].

    A place is computed from the 3 x 3 square around it; beyond the edges there are zeros. R/2 and C/2 are rounded up.
    """
    (R, C, A), B = x.shape, len(kernel)
    padded = np.pad(x, ((1, 1), (1, 1), (0, 0)))  # [R+2, C+2, A]
    squares = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (0, 1))  # [R, C, A, 3, 3]
    squares = squares[::2, ::2].reshape(-1, 9 * A)  # [(R+1)//2*((C+1)//2), 9*A]
    return linear(squares, np.asarray(kernel).reshape(B, 9 * A)).reshape((R + 1) // 2, (C + 1) // 2, B)


def last_frames(x, count):
    """x [T, ...] -> a view [T, count, ...], where [t, d] is x[t - d]: the frame d before t, zeros before the first."""
    padded = np.concatenate([np.zeros((count - 1, *x.shape[1:]), x.dtype), x])
    return np.moveaxis(np.lib.stride_tricks.sliding_window_view(padded, count, 0)[..., ::-1], -1, 1)


def sinusoids(count, size, dtype):
    """Distances 0 to count - 1 as vectors [count, size]: sines, then cosines, of wavelengths 2 pi to 20,000 pi."""
    rates = 1e4 ** (-np.arange(size // 2) / max(size // 2 - 1, 1))
    angles = np.arange(count)[:, None] * rates
    return np.concatenate([np.sin(angles), np.cos(angles)], axis=1).astype(dtype)


def mel_triangles(bins, count=257):
    """How much each of `count` frequencies from 0 to 8 kHz counts in each mel bin -> [count, bins].

    Triangles of height 1, whose corners lie evenly on HTK's mel scale. The lowest of 128 falls between two frequencies
    and is empty.
    """
    hertz = np.linspace(0, 8000, count)[:, None]
    mels = np.linspace(0, 2595 * np.log10(1 + 8000 / 700), bins + 2)
    corners = 700 * (10 ** (mels / 2595) - 1)  # in Hz
    widths = np.diff(corners)
    return np.maximum(0, np.minimum((hertz - corners[:-2]) / widths[:-1], (corners[2:] - hertz) / widths[1:]))
