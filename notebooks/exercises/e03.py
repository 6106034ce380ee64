"""The exercises of notebook 03."""

import course
import numpy as np

from minigemma.ops import attention_scores

from . import Calls, Tap


def queries_and_keys(seed, N, K):
    """Random queries [5, N, 8] and keys [7, K, 8]."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((5, N, 8)), rng.standard_normal((7, K, 8))


def scores_of_head(n, q, k):
    return attention_scores(q, k)[n]


def writer(model):
    """The last sliding layer that makes K and V."""
    return [layer.index for layer in model.config.layers if layer.window and not layer.shares_kv][-1]


TARGETS = {
    "03.1": lambda model: Tap(f"layers.{writer(model)}.attn.v", model.tokenizer.encode(course.FACTS)),
    "03.2": lambda model: Calls(
        scores_of_head,
        {
            f"N = {N}, K = {K}, head {n}": (n, *queries_and_keys(n, N, K))
            for N, K, n in ((4, 1, 2), (4, 2, 3), (8, 2, 5))
        },
    ),
}
