"""A matrix that stays in 16 bits where it lies (a memory-mapped file) and multiplies from there.

A released checkpoint is bfloat16: the upper half of a float32. NumPy has no such type, and converting a whole model
takes twice its size in memory; but a row can be converted when it is read, and a block of rows when it is multiplied.
"""

import math
import os
import threading
from functools import cache, partial
from itertools import pairwise
from typing import NamedTuple

import numpy as np

FEW = 12  # rows of x up to which dot products on converted blocks beat the BLAS
BLOCK = 1536 * 1024  # values widened at a time, 6 MB: few calls, and still in the cache when they are multiplied
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
_local = threading.local()


class HalfMatrix:
    """[..., out, in] of bfloat16 or float16, held as it is in the file.

    `bits` is an array of uint16 (bfloat16, which NumPy lacks), in either byte order, or of float16. Indexing gives
    float32 rows, except that indexing a stack of matrices by one number gives the HalfMatrix of that number.
    """

    def __init__(self, bits):
        self.bits = bits

    @property
    def shape(self):
        return self.bits.shape

    @property
    def nbytes(self):
        return self.bits.nbytes

    def __repr__(self):
        return f"HalfMatrix({'bfloat16' if self.bits.dtype.kind == 'u' else 'float16'} {list(self.shape)})"

    def __getitem__(self, index):
        if self.bits.ndim == 3 and isinstance(index, int | np.integer):
            return HalfMatrix(self.bits[index])
        return widen(self.bits[index])

    def __array__(self, dtype=None, copy=None):
        """np.asarray(matrix): the whole of it as float32."""
        wide = widen(self.bits)
        return wide if dtype is None else wide.astype(dtype, copy=False)


class Clipped(NamedTuple):
    """A matrix of a tower, [out, in], with the bounds of its inputs and outputs; see ops.clipped."""

    weight: object  # an array or a HalfMatrix
    bounds: tuple[float, ...] | None = None  # input_min, input_max, output_min, output_max; None: not clipped

    @property
    def shape(self):
        return self.weight.shape


def widen(bits, out=None):
    """float16, float32 or the bits of bfloat16 -> float32, exactly, with all cores where it is large.

    The result is a new array, or `out`, an array of uint32 of the same shape whose memory is used.
    """
    wide = np.empty(bits.shape, np.float32) if out is None else out.view(np.float32)
    words, flat = wide.reshape(-1).view(np.uint32), bits.reshape(-1)

    def share(start, stop):
        for part in _blocks(start, stop, 1):
            _widen_into(words[part], flat[part])

    _all_cores(share, flat.size, flat.size)
    return wide


def _widen_into(words, bits):
    """Write bits as float32 into the uint32 array `words`: a bfloat16 is a float32 without its lower 16 bits."""
    if bits.dtype.kind == "u":
        words[...] = bits
        words <<= 16
    else:
        words.view(np.float32)[...] = bits


def narrow(array):
    """float32 -> the bits of the nearest bfloat16 (ties to even; NaN stays NaN), as uint16."""
    bits = np.ascontiguousarray(array, np.float32).view(np.uint32)
    rounded = (bits + (0x7FFF + ((bits >> 16) & 1))) >> 16
    return np.where(np.isnan(array), 0x7FC0, rounded).astype(np.uint16)


def half_linear(x, matrix):
    """x [T, in] times matrix [out, in] transposed -> [T, out] in float32, converting a block of rows at a time.

    Two regimes. Up to FEW rows of x, conversion is most of the work: each core converts its own blocks and multiplies
    them by dot products while they are in its cache. For more rows the product is most of the work: all cores convert a
    block, then the BLAS multiplies it. Every output is the same sum whatever the number of threads.
    """
    bits = matrix.bits  # [out, in]
    out = np.empty((len(x), len(bits)), np.float32)  # [T, out]
    if len(x) <= FEW:
        _all_cores(partial(_dots, x, bits, out), len(bits), bits.size)
    else:
        for rows in _blocks(0, *bits.shape, 2 * BLOCK):
            block = bits[rows]
            np.matmul(x, widen(block, _scratch(block.shape)).T, out=out[:, rows])
    return out


def _dots(x, bits, out, start, stop):
    """out[:, start:stop] from the rows start:stop of bits.

    NumPy lets another thread run only while it makes more than 500 dot products, so few long ones are cut in 8.
    """
    width = bits.shape[1]
    pieces = 8 if width % 8 == 0 and len(x) * (BLOCK // width) <= 500 else 1
    x = x.reshape(len(x), 1, pieces, -1)
    for rows in _blocks(start, stop, width):
        block = bits[rows]
        words = _scratch(block.shape)
        _widen_into(words, block)
        np.vecdot(words.view(np.float32).reshape(len(block), pieces, -1), x).sum(-1, out=out[:, rows])


def _blocks(start, stop, width, size=BLOCK):
    """Slices of the rows start:stop, each of about `size` values."""
    rows = max(1, size // max(1, width))
    return [slice(first, min(first + rows, stop)) for first in range(start, stop, rows)]


def _scratch(shape):
    """This thread's memory for widened values, valid until its next call: fresh memory costs as much as widening."""
    size = math.prod(shape)
    if getattr(_local, "words", np.empty(0)).size < size:
        _local.words = np.empty(size, np.uint32)
    return _local.words[:size].reshape(shape)


def _all_cores(work, rows, size):
    """work(start, stop) over range(rows), a share for each core; alone where shares would be under half a block."""
    shares = max(1, min(CORES, 2 * size // BLOCK))
    bounds = [rows * i // shares for i in range(shares + 1)]
    waiting = [_pool().submit(work, *pair) for pair in pairwise(bounds[1:])]
    work(*bounds[:2])
    for share in waiting:
        share.result()


@cache
def _pool():
    """The one pool of threads: with the caller, as many as there are cores."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(max(1, CORES - 1), "minigemma")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked child has none of its parent's threads
