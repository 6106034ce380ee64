"""The exercises of notebook 13."""

import numpy as np

from minigemma.packed import widen

from . import Calls, Values

BITS = np.array([1 << 15 | 0b01111011 << 7 | 0b1001101], np.uint16)
GROUPS = np.array([16, 32, 64, 128])
NUMBERS = np.random.default_rng(0).integers(0, 16, 32).astype(np.uint8)

def in_four_bits(row, block):
    """A row rounded to 4 bits in blocks, one at a time."""
    out = np.zeros_like(row)
    for start in range(0, len(row), block):
        part = row[start : start + block]
        scale = np.float32(np.float16(part[np.abs(part).argmax()] / -8))
        if scale:
            out[start : start + block] = scale * np.clip(np.rint(part / scale), -8, 7)
    return out


def row_of_weights(zeros=0):
    row = np.random.default_rng(3).standard_normal(64).astype(np.float32)
    row[:zeros] = 0
    return row


TARGETS = {
    "13.1": lambda model: Values(float(widen(BITS)[0])),
    "13.2": lambda model: Calls(lambda stored: stored[:16] + 16 * stored[16:], {"": (NUMBERS,)}),
    "13.3": lambda model: Values(4 + 16 / GROUPS),
    "13.4": lambda model: Calls(
        in_four_bits,
        {
            "blocks of 32": (row_of_weights(), 32),
            "blocks of 16": (row_of_weights(), 16),
            "a block of zeros": (row_of_weights(zeros=32), 32),
        },
    ),
    "13.5": lambda model: Values((255 / 15) ** 2),
}
