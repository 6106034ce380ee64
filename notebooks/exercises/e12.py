"""The exercises of notebook 12."""

from functools import cache

import numpy as np

from minigemma import TINY, Trace
from minigemma.ops import last_frames, softcap, softmax
from minigemma.sounds import RATE

from . import Calls, Values


@cache
def heard(model):
    """The trace of the word "kite"."""
    trace = Trace()
    model.hear(TINY / "kite.wav", tap=trace)
    return trace


def relative(model):
    layer = "audio.layers.0.attn."
    q, rel_k = (heard(model)[layer + name] for name in ("q", "rel_k"))  # [T, N, H], [S, N, H]
    return np.einsum("tnh,snh->nts", q, rel_k)  # [N, T, S]


def sees(kernels, strides):
    """How many inputs one output of a stack of convolutions sees."""
    return 1 + sum((kernel - 1) * int(np.prod(strides[:i])) for i, kernel in enumerate(kernels))


def local(q, k, v, rel_k, cap):
    """Attention of the audio tower: q, k, v [T, N, H], rel_k [S, N, H] -> z [T, N, H]."""
    T, S = len(q), len(rel_k)
    scores = np.einsum("tnh,tsnh->nts", q, last_frames(k, S)) + np.einsum("tnh,snh->nts", q, rel_k)  # [N, T, S]
    exists = np.arange(T)[:, None] >= np.arange(S)  # [T, S]
    pattern = softmax(np.where(exists, softcap(scores, cap), -np.inf))  # [N, T, S]
    return np.einsum("nts,tsnh->tnh", pattern, last_frames(v, S))  # [T, N, H]


def some(T, S, cap=50.0):
    """Random arguments of `local`, with scores that the cap bends."""
    rng = np.random.default_rng(T)
    q, k, v = rng.standard_normal((3, T, 2, 8))  # [T, N, H] each
    return 4 * q, 4 * k, v, rng.standard_normal((S, 2, 8)), cap


TARGETS = {
    "12.1": lambda model: Values(model.config.audio.count(int(2.5 * RATE))),
    "12.2": lambda model: Values(heard(model)["audio.mel"]),
    "12.3": lambda model: Calls(
        sees,
        {
            "two that halve": ([3, 3], [2, 2]),
            "no strides": ([3, 3, 3], [1, 1, 1]),
            "one layer": ([5], [2]),
            "three of different sizes": ([3, 5, 7], [2, 3, 2]),
        },
    ),
    "12.4": lambda model: Values(relative(model), "N T S"),
    "12.5": lambda model: Calls(
        local,
        {"one tick": some(1, 4), "as many as a tick sees": some(4, 4), "one more": some(5, 4)},
        "T N H",
    ),
    "12.6": lambda model: Values(heard(model)["audio.layers.0.conv.mixed"], "T D"),
}
