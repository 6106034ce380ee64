"""The exercises of notebook 02."""

import numpy as np

from minigemma.ops import rms_norm, rope, rotation
from minigemma.released import released_config

from . import Calls, Judged, Values

E2B = released_config("E2B")
GLOBAL = next(layer for layer in E2B.layers if not layer.window)
RNG = np.random.default_rng(0)
X, G, HEADS = RNG.normal(size=(5, 8)), RNG.normal(size=8), RNG.normal(size=(6, 2, 8))


def turned(x, positions, inv_freq):
    return rope(x, *rotation(positions, inv_freq, x.dtype))


def frequencies(H, theta, share):
    """In one sum over pairs, so that it is not the solution's own line."""
    pairs = range(H // 2)
    return np.array([theta ** (-2 * j / H) if 2 * j < share * H else 0.0 for j in pairs])


def rotation_matrix(angle):
    z = np.exp(1j * angle)
    return np.array([[z.real, -z.imag], [z.imag, z.real]])


def wrong_rotation(mine):
    """What is wrong with a student's R, or None."""
    if not callable(mine):
        return "give the function itself"
    for angle in (0.3, 2.0):
        got = mine(angle)
        if got is None or got is ...:
            return "the hole is still open, or your function returns nothing"
        if np.shape(got) != (2, 2):
            return f"your shape is {np.shape(got)}, the answer's is (2, 2)"
        if np.allclose(got, rotation_matrix(-angle)):
            return "it is transposed: it turns the other way round"
        if not np.allclose(got, rotation_matrix(angle)):
            return f"R({angle}) turns (1, 0) to {np.round(np.asarray(got)[:, 0], 2)}"
    same = np.allclose(np.transpose(mine(0.5)) @ mine(1.2), mine(0.7))
    return None if same else "R(a)^T R(b) is not R(b - a)"


TARGETS = {
    "02.1": lambda model: Calls(
        rms_norm, {"one text": (X, G, 1e-6), "heads": (HEADS, G, 1e-6), "a tiny vector": (X / 1000, G, 1e-6)}
    ),
    "02.2": lambda model: Values(1),
    "02.3": lambda model: Values(model.config.layers[0].inv_freq),
    "02.4": lambda model: Calls(
        turned,
        {
            "a sliding head": (HEADS, np.arange(6), frequencies(8, 1e4, 1)),
            "a global head": (HEADS, np.arange(100, 106), frequencies(8, 1e6, 0.25)),
        },
        "T N H",
    ),
    "02.5": lambda model: Judged(wrong_rotation),
    "02.6": lambda model: Calls(
        frequencies, {"E2B, sliding": (256, 1e4, 1), "E2B, global": (512, 1e6, 0.25), "tiny, global": (64, 1e6, 0.25)}
    ),
    "02.7": lambda model: Values(2 * np.pi / GLOBAL.inv_freq[GLOBAL.inv_freq > 0][-1], tolerance=0.05),
}
