"""The exercises of notebook 13."""

import numpy as np

from minigemma.packed import widen

from . import Calls, Values

BITS = np.array([1 << 15 | 0b01111011 << 7 | 0b1001101], np.uint16)
GROUPS = np.array([16, 32, 64, 128])
NUMBERS = np.random.default_rng(0).integers(0, 16, 32).astype(np.uint8)

TARGETS = {
    "13.1": lambda model: Values(float(widen(BITS)[0])),
    "13.2": lambda model: Calls(lambda stored: stored[:16] + 16 * stored[16:], {"": (NUMBERS,)}),
    "13.3": lambda model: Values(4 + 16 / GROUPS),
    "13.4": lambda model: Values((255 / 15) ** 2),
}
