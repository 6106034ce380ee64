"""The exercises of notebook 03."""

import course
import numpy as np

from minigemma import Trace, forward
from minigemma.ops import attention_scores, visible

from . import Calls, Tap, Values


def writer(model):
    """The last sliding layer that makes K and V."""
    return [layer.index for layer in model.config.layers if layer.window and not layer.shares_kv][-1]


def passes(model):
    """The facts through the loaded model and through one with two key heads: what it is -> (config, weights, Trace)."""
    ids = model.tokenizer.encode(course.FACTS)
    for name, config, weights in (
        ("one key head", model.config, model.weights),
        ("two key heads", *course.two_kv_heads(model.config.vocab_size)),
    ):
        trace = Trace()
        forward(ids, weights, config, tap=trace)
        yield name, config, weights, trace


def head_cases(model):
    return {
        f"{name}, head {n}": (n, trace["layers.0.attn.rot_q"], trace["layers.0.attn.rot_k"])
        for name, _, _, trace in passes(model)
        for n in (0, 1, 3)
    }


def spread_of(model):
    """A function: a layer -> the spread of its scores."""

    def spread(layer):
        own, donor = model.weights.layers[layer.index], model.weights.layers[layer.kv_from]
        return np.linalg.norm(own.q_norm * donor.k_norm)

    return spread


def mask(positions, length, window):
    return visible(positions, length, window, length)


def attention_target(model):
    """What the pass adds, on layers of both models."""
    cases, answers = {}, {}
    for name, config, weights, trace in passes(model):
        for layer in config.layers[:5]:
            if layer.index == 0 or layer.window is None:
                w = weights.layers[layer.index]
                cases[f"{name}, {layer.kind}"] = trace[f"layers.{layer.index}.resid_pre"], layer, w, config.rms_norm_eps
                answers[id(w)] = trace[f"layers.{layer.index}.attn_out"]
    return Calls(lambda x, layer, w, eps: answers[id(w)], cases, "T D")


TARGETS = {
    "03.1": lambda model: Tap(f"layers.{writer(model)}.attn.v", model.tokenizer.encode(course.FACTS)),
    "03.2": lambda model: Calls(spread_of(model), {f"layer {n.index}": (n,) for n in model.config.layers}),
    "03.3": lambda model: Calls(lambda n, q, k: attention_scores(q, k)[n], head_cases(model)),
    "03.4": lambda model: Calls(
        mask,
        {
            "a global layer": (np.arange(6), 6, None),
            "as many tokens as the window": (np.arange(4), 4, 4),
            "one more than the window": (np.arange(5), 5, 4),
            "two queries behind a cache": (np.array([8, 9]), 10, 4),
        },
    ),
    "03.5": lambda model: Values([int(mask(np.arange(8192), 8192, window).sum()) for window in (None, 512)]),
    "03.6": attention_target,
    "03.7": lambda model: Values(sum(layer.window - 1 for layer in model.config.layers if layer.window)),
}
