"""The exercises of notebook 05."""

import course
import numpy as np

from minigemma import Trace, forward
from minigemma.ops import experts, gelu, linear
from minigemma.released import released_config

from . import Calls, Tap, Values


def mlp(h, gate_proj, up_proj, down_proj):
    return linear(gelu(linear(h, gate_proj)) * linear(h, up_proj), down_proj)


def mlp_case(size):
    """Random arguments of `mlp`; the hidden states have this size."""
    rng = np.random.default_rng(1)
    shapes = (5, 8), (16, 8), (16, 8), (8, 16)
    h, *matrices = (rng.standard_normal(shape) for shape in shapes)
    return size * h, *matrices


def strongest(act, n):
    out = np.zeros_like(act)
    for row, kept in zip(out, act, strict=True):
        best = np.argsort(-np.abs(kept))[:n]
        row[best] = kept[best]
    return out


def factors(model):
    """The product of each layer's and all later scalars, [L]."""
    scalars = [float(layer.layer_scalar[0]) for layer in model.weights.layers]
    return np.array([np.prod(scalars[i:]) for i in range(len(scalars))])


def large(model, name):
    """A tap of the miniature with K = V and experts, on the facts; g stands for its first global layer."""
    config, weights = course.large_kind()
    g = next(layer.index for layer in config.layers if layer.k_eq_v)
    trace = Trace()
    forward(model.tokenizer.encode(course.FACTS), weights, config, tap=trace)
    return trace[name.format(g=g)]


def mixture_case(T, E, k):
    """Random arguments of the mixture: T tokens, E experts, k of them for each token."""
    rng = np.random.default_rng(E)
    chosen = np.array([rng.permutation(E)[:k] for _ in range(T)])
    matrices = rng.standard_normal((E, 2 * 6, 8)), rng.standard_normal((E, 8, 6))
    return rng.standard_normal((T, 8)), *matrices, chosen, rng.random((T, k))


def read_for_a_token():
    config = released_config("26B-A4B")
    one = 3 * config.moe_intermediate_size * config.hidden_size
    return config.num_hidden_layers * config.top_k_experts * one


TARGETS = {
    "05.1": lambda model: Tap(f"layers.{model.config.num_hidden_layers - 2}.mlp.act", course.question(model)),
    "05.2": lambda model: Calls(mlp, {"": mlp_case(1), "large values": mlp_case(9)}, "T D"),
    "05.3": lambda model: Calls(
        strongest, {f"n = {n}": (np.random.default_rng(n).standard_normal((6, 20)), n) for n in (1, 3, 20)}, "T F"
    ),
    "05.4": lambda model: Values(factors(model)),
    "05.5": lambda model: Values(large(model, "layers.{g}.attn.v"), "T K H"),
    "05.6": lambda model: Values(large(model, "layers.0.router.weights")),
    "05.7": lambda model: Calls(
        experts, {f"{E} experts, {k} a token": mixture_case(5, E, k) for E, k in ((4, 1), (8, 2))}, "T D"
    ),
    "05.8": lambda model: Values(read_for_a_token()),
}
