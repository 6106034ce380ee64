"""The arithmetic of Gemma 4, one function an operation. Every rule was read in transformers 5.23.0, models/gemma4.

Letters: T new tokens, S visible positions, D hidden_size, N query heads, K kv heads, H head_dim, F MLP width,
E experts, k experts a token.
"""

import math

import numpy as np

from .errors import Error
from .packed import HalfMatrix, half_linear


def as_tokens(tokens, cache, config):
    """Token ids as a new array [T] of int64. Raises Error for none, for ids outside the vocabulary, for too many."""
    try:
        ids = np.asarray(tokens)
    except ValueError:  # a ragged list
        ids = np.empty((0, 0))
    if ids.ndim != 1 or ids.size == 0 or ids.dtype.kind not in "iu":
        raise Error(f"tokens must be a non-empty list of ids, not {type(tokens).__name__} of shape {ids.shape}")
    if ids.min() < 0 or ids.max() >= config.vocab_size:
        wrong = ids[(ids < 0) | (ids >= config.vocab_size)][0]
        raise Error(f"token id {wrong} is outside the vocabulary, 0 to {config.vocab_size - 1}")
    if cache.length + len(ids) > config.max_position_embeddings:
        raise Error(
            f"{cache.length} cached and {len(ids)} new tokens are more than the model's "
            f"{config.max_position_embeddings} positions (max_position_embeddings)"
        )
    return ids.astype(np.int64)


def as_soft_tokens(soft_tokens, count, config):
    """(positions [M], rows [M, D]) as arrays. Raises Error where they do not fit `count` tokens of this model."""
    if config.use_bidirectional_attention:
        raise Error("soft tokens: this model's images need bidirectional attention, and minigemma's pass is causal")
    where, rows = (np.asarray(part) for part in soft_tokens)
    if where.ndim != 1 or (where.size and where.dtype.kind not in "iu"):
        raise Error(f"soft tokens: positions are a list of integers, not {where.dtype} of shape {list(where.shape)}")
    if rows.shape != (where.size, config.hidden_size):
        raise Error(f"soft tokens: {where.size} position(s) need rows of {config.hidden_size}, not {list(rows.shape)}")
    for position in where:
        if not 0 <= position < count:
            raise Error(f"soft tokens: position {position} is outside this call's {count} tokens")
    if len(np.unique(where)) != len(where):
        raise Error("soft tokens: a position is given twice")
    return where.astype(np.int64), rows


def linear(x, weight):
    """x [T, in], weight [out, in] as checkpoints store it -> [T, out]. No Gemma 4 has biases."""
    return half_linear(x, weight) if isinstance(weight, HalfMatrix) else x @ weight.T


@np.errstate(over="ignore")
def rms_norm(x, weight=None, eps=1e-6):
    """x / sqrt(mean(x^2) + eps) * weight over the last axis. The weight is plain: not 1 + weight as in Gemma 1 to 3."""
    mean_square = np.vecdot(x, x)[..., None] / x.shape[-1]
    if not np.isfinite(mean_square).all():  # squares overflowed: the same in units of the largest value
        unit = np.maximum(np.abs(x).max(-1, keepdims=True), 1)
        x, eps = x / unit, eps / unit / unit
        mean_square = np.vecdot(x, x)[..., None] / x.shape[-1]
    normed = x / np.sqrt(mean_square + eps)
    return normed if weight is None else normed * weight


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


def softmax(x):
    """Over the last axis; -inf entries (masked keys) get 0."""
    weights = x - x.max(-1, keepdims=True)
    np.exp(weights, out=weights)  # in place: a long prompt's scores are large
    weights /= weights.sum(-1, keepdims=True)
    return weights


def softcap(x, cap):
    """cap * tanh(x / cap): the logits' soft limit; None means none."""
    return x if cap is None else cap * np.tanh(x / cap)


def rotation(positions, inv_freq, dtype):
    """RoPE's angles -> their cos and sin, each [T, 1, H/2].

    The angles are float64: in float32, as the reference has them, they are off by up to 8e-3 at position 131,000.
    """
    angles = positions[:, None, None] * inv_freq  # [T, 1, H/2]
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)


def rope(x, cos, sin):
    """Rotate the pairs (j, j + H/2) of each head by their angle; x [T, N, H] -> [T, N, H].

    A common mistake with Gemma 4's global layers is to rotate (j, j + 64), the halves of the rotating part: a pair is
    always H/2 apart, and pairs that stand still have cos 1 and sin 0.
    """
    first, second = np.split(x, 2, axis=-1)  # [T, N, H/2] each
    return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)


def visible(positions, length, window, end):
    """Which of the `length` keys up to position `end` - 1 each query may see -> bool [T, S].

    A query sees itself and what came before; on a sliding layer the last `window` keys, itself counted.
    """
    keys = np.arange(end - length, end)  # [S]
    seen = keys <= positions[:, None]  # [T, S]
    return seen if window is None else seen & (keys > positions[:, None] - window)


def attention_scores(q, k):
    """q [T, N, H], k [S, K, H] -> [N, T, S]. No 1/sqrt(H): q_norm and k_norm have learned the scale.

    Grouped queries: head n reads kv head n // (N/K), so the N/K heads of a group are stacked as rows of one product.
    """
    T, N, H = q.shape
    S, K, _ = k.shape
    rows = q.transpose(1, 0, 2).reshape(K, N // K * T, H)  # [K, N/K*T, H]
    return (rows @ k.transpose(1, 2, 0)).reshape(N, T, S)


def attention_values(pattern, v):
    """pattern [N, T, S], v [S, K, H] -> [T, N, H]: each head's mix of the values it attends to."""
    N, T, S = pattern.shape
    _, K, H = v.shape
    mixed = pattern.reshape(K, N // K * T, S) @ v.transpose(1, 0, 2)  # [K, N/K*T, H]
    return mixed.reshape(N, T, H).transpose(1, 0, 2)


def top_k(probs, k):
    """The k most probable experts of each token, the best first -> [T, k]."""
    return np.argsort(-probs, axis=-1, kind="stable")[:, :k]


def experts(x, gate_up_proj, down_proj, chosen, weights):
    """The mixture: each token through its chosen experts, each a GeGLU, summed by weight. x [T, D] -> [T, D].

    gate_up_proj [E, 2M, D] holds gate over up, down_proj is [E, D, M]; chosen and weights are [T, k].
    """
    out = np.zeros_like(x)  # [T, D]
    for e in np.unique(chosen):
        token, slot = np.nonzero(chosen == e)  # the tokens that chose expert e
        gate, up = np.split(linear(x[token], gate_up_proj[int(e)]), 2, axis=-1)
        out[token] += weights[token, slot, None] * linear(gelu(gate) * up, down_proj[int(e)])
    return out
