"""A matrix that stays in 16 bits where it lies (a memory-mapped file) and multiplies from there.

A released checkpoint is bfloat16: the upper half of a float32. NumPy has no such type, and converting a whole model
takes twice its size in memory; but a row can be converted when it is read, and a block of rows when it is multiplied.
"""

import sys

import numpy as np

BLOCK_BYTES = 1_500_000  # converted values at a time: they stay in the cores' cache until they are multiplied


class HalfMatrix:
    """[..., out, in] of bfloat16 or float16, held as it is in the file.

    `bits` is an array of uint16 (bfloat16, which NumPy lacks) or of float16. Indexing gives float32 rows, except that
    indexing a stack of matrices by one number gives the HalfMatrix of that number.
    """

    def __init__(self, bits):
        self.bits = bits

    @property
    def shape(self):
        return self.bits.shape

    def __repr__(self):
        return f"HalfMatrix({'bfloat16' if self.bits.dtype == np.uint16 else 'float16'} {list(self.shape)})"

    def __getitem__(self, index):
        if self.bits.ndim == 3 and isinstance(index, int | np.integer):
            return HalfMatrix(self.bits[index])
        return widen(self.bits[index])

    def __array__(self, dtype=None, copy=None):
        """np.asarray(matrix): the whole of it as float32."""
        wide = widen(self.bits)
        return wide if dtype is None else wide.astype(dtype, copy=False)


def widen(bits):
    """float16 or the bits of bfloat16 -> float32, exactly: bfloat16 is a float32 without its lower 16 bits."""
    if bits.dtype == np.float16:
        return bits.astype(np.float32)
    return (bits.astype(np.uint32) << 16).view(np.float32)


def narrow(array):
    """float32 -> the bits of the nearest bfloat16 (ties to even; NaN stays NaN), as uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def half_linear(x, matrix):
    """x [T, in] times matrix [out, in] transposed -> [T, out], in float32, converting one block of rows at a time."""
    bits = matrix.bits
    out = np.empty((len(x), len(bits)), np.float32)  # [T, out]
    rows = max(1, BLOCK_BYTES // (4 * max(1, bits.shape[1])))
    if len(x) == 1 and bits.dtype == np.uint16 and bits.shape[1] % 2 == 0 and sys.byteorder == "little":
        words = bits.view(np.uint32)  # [out, in/2]: two bfloat16 a word, the even column in the lower half
        even, odd = np.ascontiguousarray(x[0, ::2]), np.ascontiguousarray(x[0, 1::2])
        for start in range(0, len(bits), rows):
            block = words[start : start + rows]
            out[0, start : start + rows] = (block << 16).view(np.float32) @ even
            out[0, start : start + rows] += (block & 0xFFFF0000).view(np.float32) @ odd
    else:
        for start in range(0, len(bits), rows):
            out[:, start : start + rows] = x @ widen(bits[start : start + rows]).T
    return out
