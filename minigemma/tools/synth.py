"""Full-size checkpoints of random weights, for benchmarks and for people without the download."""

import json
import math
import os
import shutil

import numpy as np

from ..account.parameters import NOT_TEXT_PARTS
from ..account.towers import TOWERS
from ..checkpoint import FILE_DTYPES, random_vector, write_safetensors
from ..compressed import GROUP, INTEGERS, packs, rows_of
from ..errors import Error
from ..files import make_directory, progress, replacing
from ..gguf import BLOCKS, ROPE, nbytes_of
from ..packed import narrow
from ..released import RELEASED, released_config, released_name
from ..tensors import checkpoint_tensors, text_tensors
from . import gguf_file
from .quantize import about

PIECE = 2**24  # values of a synthetic tensor written at a time
FORMATS = {"bfloat16": 16, "w4a16": 4, "w8a16": 8, "q4_0": 4}  # bits a number of the text model's matrices
F32, Q4_0 = 0, 2  # numbers of types in GGUF
RMS = 4.6  # of random numbers from -8 to 7


def synthesize(name, directory, seed=0, format="bfloat16"):
    """Write a released model's checkpoint with random values, in Google's names, shapes and dtype -> bytes written.

    For benchmarks, and for people who cannot download the real one: the text it makes is nonsense, but time and memory
    are those of the real model. All values of a matrix share one exponent; sign and mantissa are random. This makes the
    generator as fast as the disk. format: one of FORMATS; w4a16 and w8a16 pack the matrices of the text model and both
    tables as compressed-tensors does; q4_0 is a GGUF file of the text model, with both tables in 4 bits
    too. Raises Error if the directory holds a checkpoint or the disk is too full.
    """
    name, directory = released_name(name), make_directory(directory)
    held = [p.name for p in directory.iterdir() if p.name == "config.json" or p.suffix in (".safetensors", ".gguf")]
    if held:
        raise Error(f"{directory}: holds {held[0]} already; give another directory, or delete it first")
    config, towers = released_config(name), TOWERS[name]
    if format == "q4_0":
        return _write_gguf(directory / f"gemma-4-{name}-q4_0.gguf", config, np.random.default_rng(seed))
    table, bits = checkpoint_tensors(config, towers, unused=True), FORMATS[format]
    rows = [row for tensor in table for row in _rows(tensor, bits)]
    size = sum(math.prod(shape) * (FILE_DTYPES | INTEGERS)[dtype].itemsize for _, shape, dtype in rows)
    _check_room(directory / f"gemma-4-{name}", size)
    rng = np.random.default_rng(seed)

    def pieces(advance):
        for tensor in table:
            for name, shape, dtype in _rows(tensor, bits):
                yield from _random(name, shape, dtype, tensor, bits, rng)
            advance(math.prod(tensor.shape))

    kind = "gemma4_unified" if name == "12B" else "gemma4"
    text = RELEASED[name] | {"model_type": f"{kind}_text"}
    parts = {part: tower and tower | {"model_type": f"{kind}_{part.split('_')[0]}"} for part, tower in towers.items()}
    architecture = "Gemma4UnifiedForConditionalGeneration" if name == "12B" else "Gemma4ForConditionalGeneration"
    with progress(f"writing {size / 1e9:.1f} GB", sum(math.prod(tensor.shape) for tensor in table)) as advance:
        write_safetensors(directory / "model.safetensors", "BF16", rows, pieces(advance))
    with replacing(directory / "config.json") as path:
        raw = {"architectures": [architecture], "model_type": kind, "dtype": "bfloat16", "text_config": text} | parts
        raw |= about(bits, rows) if bits < 16 else {}
        path.write_text(json.dumps(raw, indent=2) + "\n", encoding="utf-8")
    _leave_memory(directory / "model.safetensors")
    return size


def _check_room(path, size):
    """Raise Error if so many bytes do not fit on the disk of a path that does not exist yet."""
    free = shutil.disk_usage(path.parent).free
    if free < size + 2**20:
        raise Error(f"{path.parent}: {path.name} takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free there")


def _write_gguf(path, config, rng):
    """Write the text model as a GGUF file -> bytes of its tensors."""
    tensors = text_tensors(config)
    divisors = gguf_file.rope_divisors(config)
    table = [(ROPE, divisors.shape, F32), *((gguf_file.name_of(t.name), t.shape, _kind(t)) for t in tensors)]
    size = sum(nbytes_of(kind, shape) for _, shape, kind in table)
    _check_room(path, size)

    def pieces(advance):
        yield divisors
        for tensor, (_, shape, kind) in zip(tensors, table[1:], strict=True):
            if kind == F32:
                matrix = rng.standard_normal(shape) * shape[-1] ** -0.5
                yield (random_vector(tensor, rng) if len(shape) == 1 else matrix).astype(np.float32)
                continue
            scale, blocks = np.float16([shape[-1] ** -0.5 / RMS]).view(np.uint8), math.prod(shape) // 32
            for start in range(0, blocks, PIECE // 32):
                raw = rng.integers(0, 256, (min(PIECE // 32, blocks - start), BLOCKS[kind].size), np.uint8)
                raw[:, :2] = scale
                yield raw
            advance(math.prod(shape))

    with progress(f"writing {size / 1e9:.1f} GB", sum(math.prod(tensor.shape) for tensor in tensors)) as advance:
        gguf_file.write(path, gguf_file.keys_of(config), table, pieces(advance))
    _leave_memory(path)
    return size


def _kind(tensor):
    """Q4_0 for the matrices of whole blocks; a router is small, and its choice is delicate."""
    return Q4_0 if len(tensor.shape) > 1 and tensor.shape[-1] % 32 == 0 and "router" not in tensor.name else F32


def _leave_memory(path):
    """Let the system forget the pages of a file that was just written: it wrote them in large units, and would count
    such a unit as resident for each row that is read."""
    if hasattr(os, "posix_fadvise"):
        with open(path, "r+b") as file:
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _rows(tensor, bits):
    """The rows of the file for one tensor: name, shape, dtype."""
    if bits < 16 and tensor.part not in NOT_TEXT_PARTS and packs(tensor):
        return rows_of(tensor.name, tensor.shape, bits, GROUP)
    return [(tensor.name, tensor.shape, "BF16")]


def _random(name, shape, dtype, tensor, bits, rng):
    """Random values of one row of the file, a piece after the other."""
    count, rms = math.prod(shape), tensor.shape[-1] ** -0.5 if tensor.shape else 1  # of the weights
    if dtype == "I64":
        yield np.array(tensor.shape)
    elif shape == ():  # a clip bound, beyond nearly all values
        yield narrow(rng.uniform(4, 8) * (1 if name.endswith("max") else -1))
    elif len(shape) < 2:
        yield narrow(random_vector(tensor, rng))
    elif name.endswith("_scale"):  # numbers of `bits` bits have an rms of 2^bits / sqrt(12)
        yield narrow(rng.uniform(0.5, 1.5, shape).astype(np.float32) * (rms * 12**0.5 / 2**bits))
    else:
        item = (FILE_DTYPES | INTEGERS)[dtype]
        exponent = 127 + round(math.log2(rms / 1.53))  # 1.53 is the rms of numbers from 1 to 2
        for start in range(0, count, PIECE):
            random = rng.integers(0, 2 ** (8 * item.itemsize), min(PIECE, count - start), f"u{item.itemsize}")
            yield random.view(item) if dtype == "I32" else random & np.uint16(0x807F) | np.uint16(exponent << 7)
