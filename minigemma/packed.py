"""Matrices that stay in 16, 8 or 4 bits where they lie (a memory-mapped file) and multiply from there.

A released checkpoint is bfloat16: the upper half of a float32. NumPy has no such type, and converting a whole model
takes twice its size in memory; but a row can be converted when it is read, and a block of rows when it is multiplied.
The same holds for files of fewer bits (layouts.py), which would take four to eight times their size.
"""

import threading
from typing import NamedTuple

import numpy as np

from .layouts import QUICK_UNITS, QUICK_ZERO
from .threads import SMALL, blocks, share_out

PIECE = 2**20  # numbers of a block that is unpacked for one row of x: with fewer, the calls cost more than the work
GAP = 16  # numbers between unpacked rows: at a distance of 4,096 bytes they would push each other out of the cache
BY_ROW = 3  # rows of x up to which one matrix-vector product a row is the fastest
WORK = 3 * 2**18  # least numbers of a block: 150 us, where sharing costs 10 to 30
READ = 16  # products of numbers in the time in which one is read or widened
LEAST = 128  # least rows of a block: the BLAS packs the other factor again for each block
FEW = 128  # rows of x up to which the BLAS is faster at matrix times x than at x times matrix
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
        """np.asarray(matrix): the whole of it as float32. Raises ValueError for copy=False: this is always a copy."""
        if copy is False:
            raise ValueError("a HalfMatrix becomes an array only by a copy; leave out copy=False")
        wide = widen(self.bits)
        return wide if dtype is None else wide.astype(dtype, copy=False)


class PackedMatrix:
    """[..., out, in] in one of the layouts of layouts.py, held as it is in the file.

    parts: arrays with a row for each row of the matrix, as layout.unpack takes them. Indexing gives float32 rows,
    except that indexing a stack of matrices by one number gives the PackedMatrix of that number.
    """

    def __init__(self, layout, parts, shape):
        self.layout, self.parts, self.shape = layout, parts, tuple(shape)

    @property
    def nbytes(self):
        return sum(part.nbytes for part in self.parts)

    def __repr__(self):
        return f"PackedMatrix({self.layout.name} {list(self.shape)})"

    def __getitem__(self, index):
        parts = tuple(part[index] for part in self.parts)
        if len(self.shape) == 3 and isinstance(index, int | np.integer):
            return PackedMatrix(self.layout, parts, self.shape[1:])
        rows = self.parts[0][index].shape[:-1]
        flat = [part.reshape(-1, part.shape[-1]) for part in parts]
        return self._rows(flat).reshape(*rows, self.shape[-1])

    def __array__(self, dtype=None, copy=None):
        """np.asarray(matrix): the whole of it as float32. Raises ValueError for copy=False: this is always a copy."""
        if copy is False:
            raise ValueError("a PackedMatrix becomes an array only by a copy; leave out copy=False")
        wide = np.empty(self.shape, np.float32)
        flat, parts = wide.reshape(-1, self.shape[-1]), [part.reshape(-1, part.shape[-1]) for part in self.parts]
        share_out(lambda rows: self._rows([part[rows] for part in parts], flat[rows]), blocks(*flat.shape))
        return wide if dtype is None else wide.astype(dtype, copy=False)

    def _rows(self, parts, out=None):
        """Rows of the parts -> [R, in] of float32, in `out` if given."""
        q, scale, minimum = self.layout.unpack(*parts)  # [R, in], [R, G], [R, G]
        out = np.empty(q.shape, np.float32) if out is None else out
        out[...] = q
        groups = out.reshape(*scale.shape, -1)  # [R, G, g]
        groups *= scale[..., None]
        if minimum is not None:
            groups -= minimum[..., None]
        return out

    def multiply(self, x, rows, out):
        """x [T, in] times these rows transposed, into out [T, R].

        For one x the scales are applied to the sums of the groups: there are fewer sums than weights.
        """
        parts, width = [part[rows] for part in self.parts], self.shape[-1]
        R = len(parts[0])
        if len(x) > 1:
            wide = _memory(R * width).view(np.float32).reshape(R, width)  # [R, in]
            _multiply(x, self._rows(parts, wide), out)
            return
        quick = self.layout.quick if len(parts) == 2 else None
        q, scale, minimum = (quick or self.layout.unpack)(*parts)  # [R, in], [R, G], [R, G]
        inputs = x.reshape(-1, 2) * QUICK_UNITS if quick else x
        wide = _memory(R * (width + GAP)).view(np.float32).reshape(R, -1)[:, :width]  # [R, in]
        wide[...] = q
        groups = inputs.reshape(scale.shape[1], -1, 1)  # [G, g, 1]
        sums = (wide.reshape(*scale.shape, -1).transpose(1, 0, 2) @ groups)[..., 0]  # [G, R]
        ones = x.reshape(groups.shape[:2]).sum(1)  # [G]
        if quick:
            sums -= QUICK_ZERO * ones[:, None]
        out[0] = np.vecdot(sums.T, scale)
        if minimum is not None:
            out[0] -= minimum @ ones


class ExpertStack:
    """[E, out, in] whose matrices lie apart in a file. Indexing by a number gives the matrix of that expert.

    experts: of each expert the places of its matrices, one below the other, as checkpoint.Stored or compressed.Packed.
    """

    def __init__(self, experts, shape):
        self.experts, self.shape = experts, tuple(shape)

    @property
    def nbytes(self):
        return sum(place.map().nbytes for expert in self.experts for place in expert)

    def __getitem__(self, e):
        matrices = [place.map() for place in self.experts[e]]
        if isinstance(matrices[0], PackedMatrix):
            parts = [np.concatenate(parts) for parts in zip(*(matrix.parts for matrix in matrices), strict=True)]
            return PackedMatrix(matrices[0].layout, parts, self.shape[1:])
        rows = np.concatenate(matrices)
        return rows if rows.dtype == np.float32 else HalfMatrix(rows)

    def __array__(self, dtype=None, copy=None):
        """np.asarray(stack): all of it as float32."""
        return np.stack([np.asarray(self[e], dtype or np.float32) for e in range(len(self.experts))])


class Clipped(NamedTuple):
    """A matrix of a tower, [out, in], with the bounds of its inputs and outputs; see ops.clipped."""

    weight: object  # an array, a HalfMatrix or a PackedMatrix
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
    share_out(lambda part: _widen_into(words[part], flat[part]), blocks(flat.size, 1, SMALL))
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


def product(x, matrix):
    """x [T, in] times matrix [out, in] transposed -> [T, out]. matrix: an array, a HalfMatrix or a PackedMatrix.

    A large product is cut into blocks of the matrix's rows. Each thread widens its own blocks, and multiplies a block
    while it is in the cache.
    """
    rows, width = matrix.shape
    dense = isinstance(matrix, np.ndarray)
    if dense and rows * width * (READ + len(x)) < 2 * WORK * READ:
        return _multiply(x, matrix)
    out = np.empty((len(x), rows), np.result_type(x, matrix) if dense else np.float32)  # [T, out]

    def work(part):
        if isinstance(matrix, PackedMatrix):
            matrix.multiply(x, part, out[:, part])
        else:
            _multiply(x, matrix[part] if dense else _widened(matrix.bits[part]), out[:, part])

    unpacked = isinstance(matrix, PackedMatrix) and len(x) == 1
    share_out(work, product_blocks(rows, width, len(x), max(PIECE, LEAST * width) if unpacked else None))
    return out


def _multiply(x, block, out=None):
    """x [T, in] times block [R, in] transposed -> [T, R], into `out` where it is given, the fastest way for this T."""
    if len(x) == 1 or len(x) > FEW:
        return np.matmul(x, block.T, out=out)
    result = (x[:, None] @ block.T)[:, 0] if len(x) <= BY_ROW else (block @ x.T).T.copy()
    if out is not None:
        out[...] = result
    return result


def stacked_product(a, b, out=None):
    """a [K, R, H] @ b [K, H, S] -> [K, R, S], in `out` if given, shared out in blocks of a's rows where it is large."""
    K, R, H = a.shape
    S = b.shape[2]
    if b.size * (READ + R) < 2 * WORK * READ:
        return np.matmul(a, b, out=out)
    out = np.empty((K, R, S), np.result_type(a, b)) if out is None else out  # [K, R, S]
    parts = [(k, rows) for k in range(K) for rows in product_blocks(R, H, S)]
    share_out(lambda part: np.matmul(a[part], b[part[0]], out=out[part]), parts)
    return out


def product_blocks(rows, width, count, most=None):
    """The blocks of a matrix [rows, width] that is multiplied by `count` vectors, of at most `most` numbers.

    To read or widen a number takes as long as READ products. A block has WORK numbers to read, or as much to multiply,
    and LEAST rows.
    """
    return blocks(rows, width, max(LEAST, WORK * READ // (width * (READ + count))), most)


def _widened(bits):
    """bits as float32 in memory of this thread, valid until its next call."""
    words = _memory(bits.size).reshape(bits.shape)
    _widen_into(words, bits)
    return words.view(np.float32)


def _memory(size):
    """Memory of this thread for so many numbers, valid until its next call: fresh memory costs as much as widening."""
    if getattr(_local, "words", np.empty(0)).size < size:
        _local.words = np.empty(size, np.uint32)
    return _local.words[:size]
