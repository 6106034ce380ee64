"""The exercises of notebook 04."""

from types import SimpleNamespace

import course
import numpy as np

from minigemma.account.memory import kv_cache
from minigemma.ops import attention_scores, attention_values, softmax, visible
from minigemma.released import released_config

from . import Calls, Judged, Values, judge


def attend(q, k, v, past_k, past_v, window):
    """Attention of a call that continues a cache -> z, and the keys and values that the next call needs."""
    keys, values = np.concatenate([past_k, k]), np.concatenate([past_v, v])
    T, S = len(q), len(keys)
    mask = visible(np.arange(S - T, S), S, window, S)
    z = attention_values(softmax(np.where(mask, attention_scores(q, keys), -np.inf)), values)
    kept = slice(None) if window is None else slice(max(0, S - (window - 1)), None)
    return z, keys[kept], values[kept]


def attend_cases(T, past, window):
    """Random arguments of `attend`: T new tokens after `past` rows, 4 query heads, 2 key heads."""
    rng = np.random.default_rng(T + past)
    shapes = (T, 4, 8), (T, 2, 8), (T, 2, 8), (past, 2, 8), (past, 2, 8)
    return *(rng.standard_normal(shape) for shape in shapes), window


ATTEND = {
    "the first call, shorter than the window": attend_cases(3, 0, 5),
    "one token after a full cache": attend_cases(1, 4, 5),
    "a call longer than the window": attend_cases(9, 4, 5),
    "a global layer": attend_cases(3, 7, None),
}


def wrong_attend(mine):
    """What is wrong with a function like `attend`, or None: one of its three results at a time."""
    for place, name in enumerate(("z", "the kept keys", "the kept values")):
        target = Calls(lambda *given, place=place: attend(*given)[place], ATTEND, "T N H" if not place else "")
        verdict, words = judge(target, lambda *given, place=place: _result(mine(*given), place))
        if not verdict:
            return words if "hole is still open" in words or "raises" in words else f"{name}: {words}"
    return None


def _result(answer, place):
    if answer is None or answer is ...:
        return None
    if not isinstance(answer, tuple) or len(answer) != 3:
        raise ValueError("return three arrays: z, the kept keys, the kept values")
    return answer[place]


def cache_bytes(layers, n, itemsize):
    return sum(kv_cache(SimpleNamespace(layers=layers), n, itemsize=itemsize))


def pairs(T, window):
    return int(visible(np.arange(T), T, window, T).sum())


def donors(kinds, first):
    return [i if i < first else max(j for j in range(first) if kinds[j] == kinds[i]) for i in range(len(kinds))]


def donor_cases():
    cases = {}
    for name in ("E2B", "E4B"):
        config = released_config(name)
        cases[name] = [layer.kind for layer in config.layers], config.first_kv_shared_layer
    return cases | {"no pattern": (["a", "b", "b", "a", "b", "a", "a", "b"], 3)}


TARGETS = {
    "04.1": lambda model: Values(
        np.minimum(np.arange(1, 2 * model.config.sliding_window), model.config.sliding_window - 1)
    ),
    "04.2": lambda model: Judged(wrong_attend),
    "04.3": lambda model: Calls(
        cache_bytes,
        {
            f"{name}, {n} tokens": (released_config(name).layers, n, size)
            for name, n, size in (("E2B", 511, 2), ("E2B", 512, 2), ("E4B", 10_000, 2), ("31B", 100, 4))
        },
    ),
    "04.4": lambda model: Values(
        sum(kv_cache(released_config("E2B"), 10_001)) - sum(kv_cache(released_config("E2B"), 10_000))
    ),
    "04.5": lambda model: Calls(
        pairs,
        {f"{T} tokens, window {window}": (T, window) for T, window in ((40, None), (40, 8), (8, 8), (5, 8), (9, 8))},
    ),
    "04.6": lambda model: Calls(donors, donor_cases()),
    "04.7": lambda model: Values((model.config.num_attention_heads, 1, len(course.question(model)))),
}
