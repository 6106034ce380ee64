"""How files of 4 to 8 bits a number lay their numbers out, and how to read them.

Every layout keeps small whole numbers q, and one scale for each group of 16 to 128 columns: a weight is q x scale. Two
layouts of GGUF and those of MLX also keep a minimum for each group, and the weight is q x scale - minimum. Sources: the
compressed-tensors library (w4a16, w8a16), mlx.core.quantize (MLX) and llama.cpp's ggml-quants.c (the others). A
tensor's rows are always whole.

Letters: R rows, B blocks of a row, G groups of a row, g columns of a group.
"""

from collections.abc import Callable
from typing import NamedTuple

import numpy as np


class Layout(NamedTuple):
    """One way to keep a matrix in few bits."""

    name: str
    bits: float  # of the file, for one weight, its part of the scales included
    group: int  # columns that share a scale
    unpack: Callable  # rows of the file's arrays -> q [R, in] of int8 or int16, scale [R, G], minimum [R, G] or None
    columns: int  # of a block, which the file keeps together
    size: int  # bytes of a block; 0 for compressed-tensors and MLX, which keep scales in an array of their own
    quick: Callable | None = None  # as unpack without zero points, for one product, in QUICK_UNITS


def nibbles(packed):
    """Bytes of two numbers each, the lower bits first -> numbers of 0 to 15, [R, bytes] -> [R, 2 x bytes] of uint8.

    byte      hhhhllll             u16, then |= << 4:   0000hhhh hhhhllll
    & 0x0f0f  0000hhhh 0000llll    which is two bytes in the order l, h on a little-endian machine
    """
    pairs = packed.astype("<u2")
    pairs |= pairs << 4
    pairs &= 0x0F0F
    return pairs.view(np.uint8)


def unpack_w4a16(packed, scale, zero=None):
    """compressed-tensors, 4 bits: each byte holds columns 2k (lower bits) and 2k + 1; the file stores q + 8."""
    q = nibbles(packed).view(np.int8)  # [R, in]
    q -= 8
    return _less_zero(q, scale, zero)


QUICK_UNITS = np.array([1 / 16, 1], np.float32)  # of even and odd columns
QUICK_ZERO = 8  # what a column of weight 0 holds, in these units


def quick_w4a16(packed, scale):
    """As unpack_w4a16, in one step: an even column as 16 x (q + 8), an odd one as q + 8.

    byte  hhhhllll  x 16:  0000hhhh llll0000, which is two bytes in the order 16 x l, h on a little-endian machine
    """
    return np.multiply(packed, 16, dtype="<u2").view(np.uint8), _float32(scale), None


def unpack_w8a16(packed, scale, zero=None):
    """compressed-tensors, 8 bits: a byte a column; the file stores q + 128."""
    return _less_zero((packed ^ 0x80).view(np.int8), scale, zero)


def unpack_mlx4(packed, scale, bias):
    """MLX, affine, 4 bits: packed as w4a16, q = 0 to 15, and a weight is q x scale + bias."""
    return nibbles(packed), _float32(scale), -_float32(bias)


def unpack_mlx8(packed, scale, bias):
    """MLX, affine, 8 bits: a byte a column."""
    return packed, _float32(scale), -_float32(bias)


def _less_zero(q, scale, zero):
    """With a zero point for each group, q is counted from there."""
    scale = _float32(scale)
    if zero is not None:
        q = (q.reshape(*scale.shape, -1) - zero[..., None].astype(np.int16)).reshape(q.shape)
    return q, scale, None


def unpack_q4_0(blocks):
    """32 columns in 18 bytes, q = 4 bits - 8.

    | scale: float16 | 16 bytes: column j in the lower bits of byte j, column j + 16 in the upper bits |
    """
    scale, packed = _split(blocks, 2, 16)
    q = _weave([packed & 15, packed >> 4], 16).view(np.int8)  # [R, in]
    q -= 8
    return q, _half(scale), None


def unpack_q8_0(blocks):
    """32 columns in 34 bytes: | scale: float16 | 32 of int8 |"""
    scale, q = _split(blocks, 2, 32)
    return q.view(np.int8), _half(scale), None


def unpack_q4_k(blocks):
    """256 columns in 144 bytes, eight groups of 32.

    | d, dmin: float16 | 12 bytes: eight scales and eight minima of 6 bits | 128 bytes: group 2i in the lower bits of
    its 32 bytes, group 2i + 1 in the upper |. scale = d x its 6 bits, minimum = dmin x its 6 bits.
    """
    d, dmin, packed_scales, packed = _split(blocks, 2, 2, 12, 128)
    scale, minimum = _six_bits(packed_scales)
    return _weave([packed & 15, packed >> 4], 32).view(np.int8), _times(d, scale), _times(dmin, minimum)


def unpack_q5_k(blocks):
    """256 columns in 176 bytes: as Q4_K, with 32 bytes more before the last 128: bit j of byte l is bit 4 of column l
    of group j."""
    d, dmin, packed_scales, fifth, packed = _split(blocks, 2, 2, 12, 32, 128)
    scale, minimum = _six_bits(packed_scales)
    q = _weave([packed & 15, packed >> 4], 32)  # [R, in]
    q |= _four_up(_weave([fifth >> j & 1 for j in range(8)], 32))
    return q.view(np.int8), _times(d, scale), _times(dmin, minimum)


def unpack_q6_k(blocks):
    """256 columns in 210 bytes, sixteen groups of 16, q = 6 bits - 32.

    | 128 bytes: lower 4 bits | 64 bytes: upper 2 bits | 16 scales: int8 | d: float16 |, scale = d x its int8. In each
    half of 128 columns, bytes 0 to 63 hold columns 0 to 63 in their lower bits and 64 to 127 in their upper bits, and
    byte l of the upper 32 holds two bits each of columns l, l + 32, l + 64 and l + 96.
    """
    low, high, scale, d = _split(blocks, 128, 64, 16, 2)
    q = _weave([low & 15, low >> 4], 64)  # [R, in]
    q |= _four_up(_weave([high >> j & 3 for j in (0, 2, 4, 6)], 32))
    q = q.view(np.int8)
    q -= 32
    return q, _times(d, scale.view(np.int8)), None


def _split(blocks, *lengths):
    """Rows of whole blocks [R, bytes] -> the fields of the blocks by their lengths, [R, B x length] each.

    As items of a structured array: NumPy copies one item of 16 bytes eight times as fast as 16 items of one.
    """
    fields = blocks.view([(str(i), f"V{length}") for i, length in enumerate(lengths)])  # [R, B]
    return [np.ascontiguousarray(fields[name]).view(np.uint8) for name in fields.dtype.names]


def _weave(planes, unit):
    """Arrays of bytes [R, n] -> one [R, len(planes) x n]: `unit` bytes of the first, of the second, and so on."""
    R, n = planes[0].shape
    woven = np.empty((R, n // unit, len(planes)), f"V{unit}")
    for i, plane in enumerate(planes):
        woven[:, :, i] = plane.view(woven.dtype)
    return woven.view(np.uint8).reshape(R, -1)


def _four_up(upper):
    """Bytes below 16 -> the same times 16. NumPy shifts large words to the left faster than bytes."""
    return (upper.view(np.uint64) << 4).view(np.uint8)


def _half(field):
    """A field of one float16 a block -> [R, B] of float32."""
    return field.view("<f2").astype(np.float32)


def _float32(scale):
    """Scales as the file has them, bfloat16 as its bits -> float32."""
    return (scale.astype(np.uint32) << 16).view(np.float32) if scale.dtype == np.uint16 else scale.astype(np.float32)


def _times(d, scale):
    """A float16 of each block, times the small numbers of its groups [R, G] -> [R, G]."""
    d = _half(d)  # [R, B]
    return (d[..., None] * scale.reshape(*d.shape, -1)).reshape(scale.shape)


def _six_bits(packed):
    """12 bytes a block -> eight scales and eight minima of each, [R, 8 x B] each.

    Numbers 0 to 3 of both are the lower 6 bits of bytes 0 to 3 and 4 to 7. Of numbers 4 to 7 the lower 4 bits are in
    bytes 8 to 11 (scales below, minima above), and the upper 2 in the bits that the first eight bytes have left.
    """
    first, second, third = _split(packed, 4, 4, 4)  # [R, 4 x B] each
    scale = _weave([first & 63, third & 15 | first >> 6 << 4], 4)
    minimum = _weave([second & 63, third >> 4 | second >> 6 << 4], 4)
    return scale, minimum


W4A16 = Layout("w4a16", 4.5, 32, unpack_w4a16, 8, 0, quick_w4a16)
W8A16 = Layout("w8a16", 8.5, 32, unpack_w8a16, 4, 0)
MLX4 = Layout("MLX 4-bit", 4.5, 64, unpack_mlx4, 8, 0)
MLX8 = Layout("MLX 8-bit", 8.5, 64, unpack_mlx8, 4, 0)
BLOCKS = {  # of GGUF, by the number of the type in the file
    2: Layout("Q4_0", 4.5, 32, unpack_q4_0, 32, 18),
    8: Layout("Q8_0", 8.5, 32, unpack_q8_0, 32, 34),
    12: Layout("Q4_K", 4.5, 32, unpack_q4_k, 256, 144),
    13: Layout("Q5_K", 5.5, 32, unpack_q5_k, 256, 176),
    14: Layout("Q6_K", 6.5625, 16, unpack_q6_k, 256, 210),
}
