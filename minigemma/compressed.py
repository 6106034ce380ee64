"""Matrices of 4 and 8 bits in a safetensors directory, as the compressed-tensors library and MLX write them.

Google's checkpoints of 4 bits are of the first kind. In place of `q_proj.weight` a file holds `q_proj.weight_packed`,
`q_proj.weight_scale` and `q_proj.weight_shape`, and `q_proj.weight_zero_point` if its groups have zero points. A file
of MLX holds `q_proj.weight`, `q_proj.scales` and `q_proj.biases`. Sources: the library's format pack-quantized; MLX's
mode affine.
"""

import re
from typing import Any, NamedTuple

import numpy as np

from .errors import Error
from .layouts import MLX4, MLX8, W4A16, W8A16, Layout
from .packed import ExpertStack, PackedMatrix, narrow, widen
from .tensors import bare_name

INTEGERS = {"I32": np.dtype("<i4"), "I64": np.dtype("<i8"), "U32": np.dtype("<u4")}
LAYOUTS = {4: W4A16, 8: W8A16}  # by bits a number
AFFINE = {4: MLX4, 8: MLX8}
GROUP = 32  # columns that share a scale in what we write
EXPERT = re.compile(r"(.*\bexperts)\.(\d+)\.(gate|up|down)_proj\.weight")
FIELDS = ("packed", "scale", "shape", "zero_point")  # after the name of a matrix and "_"


class Packed(NamedTuple):
    """The places of one matrix in the files. It has `shape`, `dtype` and `map`, as a tensor that is stored whole."""

    layout: Layout
    shape: tuple[int, ...]
    numbers: Any  # checkpoint.Stored, [out, in x bits / 32] of 32-bit whole numbers
    groups: tuple  # of checkpoint.Stored, [out, G] each: the scales, and of MLX the biases
    zero: Any = None  # checkpoint.Stored, [out x bits / 32, G] of int32, packed along the rows; None: no zero points

    @property
    def dtype(self):
        return self.layout.name

    def map(self):
        """The PackedMatrix: views of the file, except that zero points are unpacked."""
        numbers = self.numbers.map(INTEGERS).view(np.ndarray).view(np.uint8)  # [out, in x bits / 8]
        parts = [numbers, *(place.map().view(np.ndarray) for place in self.groups)]
        if self.zero is not None:
            packed = np.ascontiguousarray(self.zero.map(INTEGERS).T)  # [G, out x bits / 32]
            one = np.zeros((len(packed), 1), np.float32)
            zero, _, _ = self.layout.unpack(packed.view(np.uint8), one)  # [G, out, and what fills the last int32]
            parts.append(zero.T[: self.shape[0]])
        return PackedMatrix(self.layout, parts, self.shape)


class Stacked(NamedTuple):
    """The places of a layer's experts, which are matrices of their own in the files. It has `shape`, `dtype`, `map`."""

    shape: tuple[int, ...]
    dtype: str
    experts: tuple  # of each expert its Packed or Stored: gate and up, or down alone

    def map(self):
        return ExpertStack(self.experts, self.shape)


def fold(found, quantization=None):
    """Tensors by name -> the same with each packed matrix as one Packed, under the name of its weight.

    quantization: of MLX's config.json: group_size, and under the names of modules theirs if it differs. Experts that
    are matrices of their own become one Stacked, under the names of the released files. Raises Error for a matrix of
    which a part is missing, and for shapes that do not belong together.
    """
    folded = dict(found)
    for name in [name for name in found if name.endswith(".weight_packed")]:
        weight = name.removesuffix("_packed")
        numbers, scale, shape, zero = (folded.pop(f"{weight}_{field}", None) for field in FIELDS)
        for field, stored in (("scale", scale), ("shape", shape)):
            if stored is None:
                raise Error(f"{numbers.path}: holds {name} without {weight}_{field}; download the file again")
        folded[weight] = _packed(weight, numbers, scale, shape, zero)
    for name in [name for name, place in found.items() if place.dtype == "U32" and name.endswith(".weight")]:
        module = name.removesuffix(".weight")
        scale, bias = (folded.pop(f"{module}.{field}", None) for field in ("scales", "biases"))
        folded[name] = _affine(name, found[name], scale, bias, quantization or {})
    return _stack_experts(folded)


def _affine(name, numbers, scale, bias, quantization):
    """The Packed of one matrix of MLX, if its parts fit together."""
    own = {bare_name(module): about for module, about in quantization.items() if isinstance(about, dict)}
    group = own.get(bare_name(name.removesuffix(".weight")), quantization).get("group_size")
    shapes = [place.shape if place and len(place.shape) == 2 else None for place in (numbers, scale, bias)]
    if None in shapes or shapes[1] != shapes[2] or shapes[0][0] != shapes[1][0] or group not in (32, 64, 128):
        raise Error(f"{numbers.path}: {name}: not packed as MLX packs a matrix in groups of 32, 64 or 128")
    columns = shapes[1][1] * group
    bits = 32 * shapes[0][1] / columns
    if bits not in AFFINE:
        raise Error(f"{numbers.path}: {name}: packed in {bits:g} bits; of MLX, minigemma reads 4 and 8")
    return Packed(AFFINE[int(bits)], (shapes[0][0], columns), numbers, (scale, bias))


def _stack_experts(found):
    """The same tensors by name, with experts.gate_up_proj in place of experts.0.gate_proj.weight and so on."""
    names = {match[0]: match.groups() for match in map(EXPERT.fullmatch, found) if match}
    owners = {}
    for name, (owner, number, part) in names.items():
        owners.setdefault(owner, {})[int(number), part] = found[name]
    stacked = {name: place for name, place in found.items() if name not in names}
    for owner, held in owners.items():
        for name, parts in (("gate_up_proj", ("gate", "up")), ("down_proj", ("down",))):
            experts = [[held.get((e, part)) for part in parts] for e in range(len(held) // 3)]
            kinds = {place and (place.dtype, place.shape) for expert in experts for place in expert}
            if len(kinds) != 1 or None in kinds or len(held) % 3:
                raise Error(f"{owner}: an expert lacks a matrix, or differs in its {name} from others; download again")
            ((dtype, (rows, width)),) = kinds
            stacked[f"{owner}.{name}"] = Stacked((len(experts), len(parts) * rows, width), dtype, tuple(experts))
    return stacked


def _packed(name, numbers, scale, shape, zero):
    """The Packed of one matrix of compressed-tensors, if its parts fit together."""

    def refuse(why):
        raise Error(f"{numbers.path}: {name}: {why}")

    if shape.shape != (2,) or len(numbers.shape) != 2 or len(scale.shape) != 2 or numbers.dtype != "I32":
        refuse("not packed as compressed-tensors packs a matrix")
    rows, columns = map(int, shape.map(INTEGERS))
    bits = 32 * numbers.shape[1] // max(columns, 1)
    if bits not in LAYOUTS:
        refuse(f"packed in {bits} bits; minigemma reads {' and '.join(map(str, LAYOUTS))}")
    groups = scale.shape[1]
    fits = numbers.shape == (rows, columns * bits // 32) and columns * bits % 32 == 0 and scale.shape[0] == rows
    if not fits or not 0 < groups <= columns or columns % groups:
        refuse(f"{rows} x {columns} numbers do not fit {list(numbers.shape)} of int32 and {list(scale.shape)} scales")
    if zero is not None and (zero.shape, zero.dtype) != ((-(-rows * bits // 32), groups), "I32"):
        refuse(f"{list(zero.shape)} zero points do not fit its {list(scale.shape)} scales")
    return Packed(LAYOUTS[bits], (rows, columns), numbers, (scale,), zero)


def packs(tensor):
    """Whether a tensor of the text model is a matrix of whole groups; a router is small, and its choice is delicate."""
    return len(tensor.shape) == 2 and tensor.shape[1] % GROUP == 0 and "router" not in tensor.name


def rows_of(name, shape, bits, group):
    """The table rows of one matrix [out, in] for checkpoint.write_safetensors, in the order of `pack`."""
    rows, columns = shape
    yield f"{name}_packed", (rows, columns * bits // 32), "I32"
    yield f"{name}_scale", (rows, columns // group), "BF16"
    yield f"{name}_shape", (2,), "I64"


def pack(matrix, bits, group):
    """A float32 matrix [out, in] -> its numbers, scales and shape, rounded to the nearest and without zero points.

    The largest weight of a group lies at the end of what `bits` can hold: scale = 2 x |largest| / (2^bits - 1), as in
    the library. Each number is rounded with the scale that the file keeps, in bfloat16.
    """
    half = 2 ** (bits - 1)
    groups = matrix.reshape(len(matrix), -1, group)  # [out, G, g]
    scale = narrow(2 * np.abs(groups).max(-1) / (2 * half - 1))  # [out, G], the bits of bfloat16
    step = widen(scale)[..., None]  # [out, G, 1]
    q = np.rint(np.divide(groups, step, out=np.zeros_like(groups), where=step > 0)).clip(-half, half - 1)
    q = (q + half).astype(np.uint8).reshape(matrix.shape)  # [out, in]
    if bits == 4:
        q = q[:, ::2] | q[:, 1::2] << 4  # [out, in / 2]
    return q.view("<i4"), scale, np.array(matrix.shape)


def rounded(matrix, bits, group):
    """A float32 matrix [out, in] -> the PackedMatrix that a file with it would give."""
    numbers, scale, _ = pack(matrix, bits, group)
    return PackedMatrix(LAYOUTS[bits], (numbers.view(np.uint8), scale), matrix.shape)
