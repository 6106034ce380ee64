"""A safetensors directory -> Weights, and back; random weights for tests.

Weights are data. The safetensors library checks a file's header before we use it, and nothing in a checkpoint is ever
executed. Tensors are views of the memory-mapped file. Loading copies only small ones (norms, and matrices that fit in a
core's cache), unless the caller asks for another dtype.
"""

import hashlib
import json
import math
import mmap
import os
import re
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np

from . import gguf, mmproj
from .compressed import INTEGERS, fold
from .errors import Error
from .files import make_directory, progress, read_json, read_safetensors_header, replacing
from .gguf import is_gguf
from .packed import Clipped, ExpertStack, HalfMatrix, PackedMatrix, narrow, widen
from .tensors import AUDIO, BOUNDS, VISION, audio_tensors, bare_name, text_tensors, unused_tensors, vision_tensors
from .threads import blocks

DTYPES = ("bfloat16", "float32", "float64")
FILE_DTYPES = {"BF16": np.dtype("<u2"), "F16": np.dtype("<f2"), "F32": np.dtype("<f4")}  # bfloat16 as its bits

ADAPTER = re.compile(r"\.(lora_\w+|base_layer|modules_to_save|original_module)\.")  # PEFT's names
SERIES = re.compile(r"(?P<name>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.safetensors")
BYSTANDERS = {"k_scale", "v_scale", "q_scale", "inv_freq", "_extra_state"}  # of a KV cache of 8 bits; computed; empty
HEAD = "lm_head.weight"  # files may hold a copy of the token table under this name
SMALL = 256 * 1024  # bytes, of a packed matrix those that 16 bits would take. A smaller matrix is converted at load:
# mapping would save little and slow the product.


def assemble(config, arrays):
    """Arrays by name, as text_tensors names them -> Weights: `.embed_tokens`, `.layers[3].q_proj`, ..."""
    weights = SimpleNamespace(layers=[SimpleNamespace() for _ in config.layers])
    for tensor in text_tensors(config):
        owner = weights if tensor.layer is None else weights.layers[tensor.layer]
        setattr(owner, tensor.attribute, arrays[tensor.name])
    return weights


def assemble_tower(table, arrays):
    """Arrays by name, as vision_tensors or audio_tensors names them -> weights: `.input_proj`, `.layers[3].q_proj`, ...

    Matrices that a tower may clip are Clipped, also where the model has no bounds. An attribute with dots is nested.
    """
    weights = SimpleNamespace(layers=[])
    for tensor in table:
        if tensor.layer == len(weights.layers):
            weights.layers.append(SimpleNamespace())
        owner, value = weights if tensor.layer is None else weights.layers[tensor.layer], arrays[tensor.name]
        *groups, attribute = tensor.attribute.split(".")
        for group in groups:
            owner = vars(owner).setdefault(group, SimpleNamespace())
        if tensor.name.endswith(".linear.weight"):
            value = Clipped(value)
        elif tensor.shape == ():  # the bounds follow their matrix, in the order of BOUNDS
            matrix = getattr(owner, attribute)
            value = matrix._replace(bounds=(*(matrix.bounds or ()), float(value)))
        setattr(owner, attribute, value)
    return weights


class Stored(NamedTuple):
    """The place of one tensor in a safetensors file."""

    path: Path
    dtype: str  # as safetensors names it: "BF16", "F16", "F32"
    shape: tuple[int, ...]
    offset: int  # bytes from the start of the file

    def map(self, dtypes=FILE_DTYPES):
        """A read-only view of the file, bfloat16 as its bits in uint16. Raises Error for a dtype that is not read."""
        if self.dtype not in dtypes:
            raise Error(f"{self.path}: holds {self.dtype} tensors; minigemma reads {', '.join(dtypes)}")
        return np.memmap(self.path, dtypes[self.dtype], "r", self.offset, self.shape)


def read_weights(directory, config, dtype="bfloat16"):
    """The Weights in a checkpoint directory. Raises Error if its tensors do not fit `config`.

    dtype "bfloat16" maps the file and converts during each product. "float32" converts everything but the PLE table at
    load; the token table too, because it is also the output head. "float64" converts everything, for exact tests.
    """
    if dtype not in DTYPES:
        raise Error(f"dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    table, found = text_tensors(config), find_text_tensors(directory)
    head = table[0]._replace(name=HEAD)  # of the token table's shape
    _check(directory, found, table, [*unused_tensors(config), head])
    if HEAD in found:
        _check_head(directory, found[HEAD], found[table[0].name])
    return assemble(config, _convert_all(table, found, dtype))


def read_vision(directory, config, dtype="bfloat16"):
    """What turns pictures into soft tokens, from a checkpoint directory; dtype as in read_weights.

    Nobody needs it for text, so it is not a part of read_weights. Raises Error if the model has no vision, or if its
    tensors do not fit `config`.
    """
    if config.vision is None:
        _refuse_gguf(directory)
        raise Error(f"{directory}: this model cannot see: config.json has no vision_config; use a whole checkpoint")
    return _read_tower(directory, vision_tensors(vars(config.vision), config.hidden_size), VISION, dtype)


def read_audio(directory, config, dtype="bfloat16"):
    """What turns sounds into soft tokens, as read_vision. Raises Error if the model does not hear."""
    if config.audio is None:
        _refuse_gguf(directory)
        what = "this checkpoint has no audio tower (config.json has no audio_config)"
        raise Error(f"{directory}: {what}: E2B, E4B and 12B hear")
    return _read_tower(directory, audio_tensors(vars(config.audio), config.hidden_size), AUDIO, dtype)


def _refuse_gguf(path):
    """Raise Error for a GGUF file without towers: there is no mmproj file beside it, or several."""
    if not is_gguf(path):
        return
    files = mmproj.files_beside(path)
    if len(files) > 1:
        names = ", ".join(file.name for file in files)
        raise Error(f"{path}: {len(files)} mmproj files beside it fit it ({names}); keep one of them in its directory")
    what = "holds the text model" if not files else f"{files[0].name} holds the other tower alone"
    raise Error(f"{path}: {what}; for pictures and sound put the model's whole mmproj file (mmproj-*.gguf) beside it")


def _read_tower(directory, table, prefixes, dtype):
    found = {name: stored for name, stored in find_tensors(directory).items() if name.startswith(prefixes)}
    if not found:
        raise Error(f"{directory}: config.json promises {table[0].part}, and no file holds its tensors; download all")
    _check(directory, found, table)
    return assemble_tower(table, _convert_all(table, found, dtype))


def _convert_all(table, found, dtype):
    """The tensors of a table, in the form in which a pass multiplies them -> arrays by name."""
    arrays = {}
    with progress("converting the weights", sum(math.prod(tensor.shape) for tensor in table)) as advance:
        for tensor in table:
            arrays[tensor.name] = _convert(tensor, found[tensor.name], dtype)
            advance(math.prod(tensor.shape))
    return arrays


def find_text_tensors(directory):
    """Every tensor of the text model -> its place by bare name. Towers are left out. Raises Error as find_tensors does.

    directory: of safetensors files, or the path of a GGUF file.
    """
    found = find_tensors(directory)
    return {name: stored for name, stored in found.items() if not name.startswith((*VISION, *AUDIO))}


def find_tensors(directory):
    """The tensors of all shards -> Stored by bare name, or Packed for a packed matrix.

    Raises Error if two of them have one name, and for a LoRA that is not merged. directory: of safetensors files, or a
    GGUF file, whose towers are in the mmproj file beside it.
    """
    if is_gguf(directory):
        return gguf.text_tensors_of(directory) | mmproj.tensors_beside(directory)
    found = {}
    for path in shards(Path(directory)):
        for whole, stored in read_header(path).items():
            name = bare_name(whole)
            if ADAPTER.search(whole):
                raise Error(f"{path}: holds a LoRA that is not merged ({whole}); merge it with peft's merge_and_unload")
            if name in found:
                raise Error(f"{path}: holds {name} twice, under two prefixes or in two shards; remove one")
            found[name] = stored
    return fold(found, mlx_settings(directory))


def mlx_settings(directory):
    """`quantization` of a config.json, which MLX writes; {} where there is none."""
    path = Path(directory) / "config.json"
    about = read_json(path).get("quantization") if path.exists() else None
    return about if isinstance(about, dict) else {}


def read_header(path):
    """Every tensor in a safetensors file -> Stored by name. Raises Error if the file is not whole."""
    header, start = read_safetensors_header(path)
    return {
        name: Stored(Path(path), entry["dtype"], tuple(entry["shape"]), start + entry["data_offsets"][0])
        for name, entry in header.items()
        if name != "__metadata__"
    }


def shards(directory):
    """The safetensors files of a checkpoint directory -> list of paths.

    Raises Error if they differ from its index, or if there is no index and the names do not say which belong together.
    """
    if not directory.is_dir():
        raise Error(f"{directory}: no such directory; give the folder that holds config.json and model.safetensors")
    index = directory / "model.safetensors.index.json"
    if not index.exists():
        return _shards_by_name(directory)
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise Error(f"{index}: has no weight_map from tensor names to file names; download it again")
    names = sorted(set(weight_map.values()))
    for name in names:
        if name != os.path.basename(name) or not name.endswith(".safetensors"):
            raise Error(f"{index}: {name!r} must be the name of a .safetensors file in the same directory")
    if (directory / "model.safetensors").exists() and "model.safetensors" not in names:
        raise Error(f"{directory}: has model.safetensors and also an index of other files; remove one of the two")
    for name in names:
        held = read_header(directory / name)
        listed = {tensor for tensor, file in weight_map.items() if file == name}
        odd = sorted(listed ^ held.keys())
        if odd:
            where = "not in" if odd[0] in listed else "in"
            raise Error(f"{index}: {len(odd)} tensors differ from {name}; {odd[0]} is {where} it; download both again")
    return [directory / name for name in names]


def _shards_by_name(directory):
    """The safetensors files of a directory without an index: model.safetensors, else a whole series, else the only one.

    Adapters lie in files of their own and are no part of it. Raises Error for several files that are no series.
    """
    if (directory / "model.safetensors").exists():
        return [directory / "model.safetensors"]
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    parts = [SERIES.fullmatch(name) for name in names]
    if names and all(parts) and len({(part["name"], part["count"]) for part in parts}) == 1:
        lacking = set(range(1, int(parts[0]["count"]) + 1)) - {int(part["number"]) for part in parts}
        if lacking:
            raise Error(f"{directory}: part {min(lacking)} of {parts[0]['count']} is missing; download it again")
    elif len(names) > 1:
        listed = ", ".join(names[:4])
        raise Error(f"{directory}: no index says which of {listed} belong together; keep the files of one model")
    elif not names:
        raise Error(f"{directory}: holds no .safetensors file; download the whole repository")
    return [directory / name for name in names]


def _check(directory, found, table, unused=()):
    """Compare names and shapes with the table. Raises one Error that lists every kind of difference.

    Warns once of tensors that cannot change the pass: those of other modules, and BYSTANDERS.
    """
    table, unused = ({tensor.name: tensor.shape for tensor in tensors} for tensors in (table, unused))
    problems = []
    missing = [name for name in table if name not in found]
    known = table | unused
    modules = {name.split(".")[0] for name in known}
    unknown = [name for name in found if name not in known]
    aside = [n for n in unknown if n.split(".")[0] not in modules or n.split(".")[-1] in BYSTANDERS]
    unknown = [name for name in unknown if name not in aside]
    wrong = [
        f"{name} is {list(found[name].shape)} and should be {list(shape)}"
        for name, shape in known.items()
        if name in found and found[name].shape != shape
    ]
    for problem, names in (("missing", missing), ("of the wrong shape", wrong), ("unknown", unknown)):
        if names:
            shown = ", ".join(names[:5]) + (", ..." if len(names) > 5 else "")
            problems.append(f"{len(names)} {problem} ({shown})")
    if problems:
        raise Error(f"{directory}: tensors do not fit config.json: {'; '.join(problems)}")
    if aside:
        shown = ", ".join(aside[:3]) + ", ..." * (len(aside) > 3)
        note = Error(f"{directory}: {len(aside)} tensors are not part of the model and are not read: {shown}")
        warnings.warn(str(note), stacklevel=4)


def _check_head(directory, head, table):
    """Raise Error if the file's output head is not the token table, as it is in Gemma 4. A copy is accepted."""
    head, table = head.map(), table.map()
    odd = sum((widen(head[rows]) != widen(table[rows])).any(axis=1).sum() for rows in blocks(*table.shape))
    if odd:
        raise Error(
            f"{directory}: {HEAD} differs from the token table in {odd} of its {table.shape[0]} rows. Gemma 4's "
            "head is that table, and minigemma runs no other; take a checkpoint that was trained with the two tied"
        )


def _convert(tensor, stored, dtype):
    """A tensor of the file, in the form in which the pass multiplies it."""
    bits = stored.map()
    packed = isinstance(bits, PackedMatrix | ExpertStack)
    if dtype == "float64":
        return (np.asarray(bits) if packed else widen(bits)).astype(np.float64)
    if tensor.part == "PLE table":
        for array in bits.parts if packed else [bits]:
            _expect_single_rows(array)
    mapped = tensor.part == "PLE table" or dtype == "bfloat16"
    size = 2 * math.prod(tensor.shape) if packed else bits.nbytes
    if not mapped or len(tensor.shape) < 2 or size <= SMALL:
        return np.asarray(bits) if packed else widen(bits)
    if packed:
        return bits
    return bits.view(np.ndarray) if bits.dtype == np.float32 else HalfMatrix(bits.view(np.ndarray))


def _expect_single_rows(mapped):
    """Tell the system that few rows of this table will be read, far apart: no read-ahead, no pages of 2 MB."""
    while isinstance(mapped, np.ndarray):  # a view of a view of a file
        mapped = mapped.base
    for advice in ("MADV_RANDOM", "MADV_NOHUGEPAGE"):
        if hasattr(mmap, advice):  # some systems lack it
            mapped.madvise(getattr(mmap, advice))


def save(directory, weights, config, dtype="bfloat16", vision=None, audio=None):
    """Write config.json and model.safetensors, as transformers loads them; dtype bfloat16 or float32.

    vision, audio: weights of read_vision and read_audio. With one of them the checkpoint is whole, else it is that of
    the text model alone. Raises Error for another dtype, and for a tower that the config does not describe. If it
    fails, the old files stay as they were.
    """
    if dtype not in ("bfloat16", "float32"):
        raise Error(f"dtype {dtype!r} cannot be saved; use bfloat16 or float32")
    towers = {part: tower for part, tower in (("vision", vision), ("audio", audio)) if tower is not None}
    prefix = "model.language_model." if towers else "model."
    rows = [(prefix + tensor.name, tensor, weights) for tensor in text_tensors(config)]
    for part, tower in towers.items():
        if getattr(config, part) is None:
            raise Error(f"this config has no {part}_config, so no {part} can be saved with it")
        table = {"vision": vision_tensors, "audio": audio_tensors}[part]
        tensors = table(vars(getattr(config, part)), config.hidden_size)
        rows += [(f"model.{tensor.name}", tensor, tower) for tensor in tensors]
    directory = make_directory(directory)

    def arrays():
        for _, tensor, owner in rows:
            array = np.asarray(_value_of(tensor, owner), np.float32)
            yield narrow(array) if dtype == "bfloat16" else array

    table = [(name, tensor.shape) for name, tensor, _ in rows]
    write_safetensors(directory / "model.safetensors", "BF16" if dtype == "bfloat16" else "F32", table, arrays())
    with replacing(directory / "config.json") as path:
        path.write_text(json.dumps(config.to_dict(towers) | {"dtype": dtype}, indent=2) + "\n", encoding="utf-8")


def _value_of(tensor, weights):
    """The value of a tensor of a table in weights that `assemble` or `assemble_tower` made."""
    value = weights if tensor.layer is None else weights.layers[tensor.layer]
    for part in tensor.attribute.split("."):
        value = getattr(value, part)
    if not isinstance(value, Clipped):
        return value
    return value.weight if tensor.shape else value.bounds[BOUNDS.index(tensor.name.rpartition(".")[2])]


def write_safetensors(path, dtype, table, arrays, notes=None):
    """Write a safetensors file: one array after the other, under the names and shapes of `table`.

    dtype: a key of FILE_DTYPES; a row of the table may name another one, or one of compressed.INTEGERS, as its third
    value. A large tensor may be several of the arrays. notes: text by name, for the header's metadata. We do not use
    the library here, because it cannot write bfloat16 from NumPy and needs the whole file in memory. The format is the
    header's length, the header in JSON, and the data.
    """
    header, end, rows = {"__metadata__": {"format": "pt"} | (notes or {})}, 0, []
    for name, shape, *own in table:
        (kind,) = own or [dtype]
        item = (FILE_DTYPES | INTEGERS)[kind]
        start, end = end, end + math.prod(shape) * item.itemsize
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [start, end]}
        rows.append((end, item))
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)  # the data starts at a multiple of 8
    with replacing(path) as temporary, open(temporary, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        written = 0
        for array in arrays:
            item = next((item for end, item in rows if written < end), item)
            written += file.write(np.ascontiguousarray(array, item).data)


def random_weights(config, seed=0, dtype=np.float32):
    """Random Weights for any config, for tests.

    Norm weights and layer_scalar are far from 1, so that a test notices if one is left out. q_norm keeps attention
    scores near 1, and the post-norms keep a layer's output smaller than the residual. Otherwise a deep random net
    amplifies rounding so much that two right implementations differ.
    """
    rng = np.random.default_rng(seed)
    arrays = {}
    for tensor in text_tensors(config):
        if len(tensor.shape) == 1:
            arrays[tensor.name] = random_vector(tensor, rng).astype(dtype)
        else:
            array = rng.standard_normal(tensor.shape) * tensor.shape[-1] ** -0.5
            arrays[tensor.name] = array.astype(dtype)
    return assemble(config, arrays)


def random_vector(tensor, rng):
    """Random values for a norm weight or a scalar."""
    attribute = tensor.attribute or ""
    low, high = (0.3, 0.9) if attribute == "layer_scalar" else (0.5, 1.5)
    scale = tensor.shape[0] ** -0.5 if attribute == "q_norm" else 0.25 if attribute.startswith("post_") else 1.0
    return scale * rng.uniform(low, high, tensor.shape)


def read_unused(directory, config):
    """k_proj, v_proj and k_norm of the KV-sharing layers -> float32 arrays by name.

    Google's files and our tiny weights hold them, and the pass never reads them; a port may use them by mistake. The
    result is empty if the file lacks them, as one saved again by transformers does.
    """
    found = find_text_tensors(directory)
    held = {tensor.name: found[tensor.name].map() for tensor in unused_tensors(config) if tensor.name in found}
    return {name: np.asarray(bits) if isinstance(bits, PackedMatrix) else widen(bits) for name, bits in held.items()}


def fingerprint(weights):
    """A short hash of the values. It differs between two checkpoints of one shape, but not between number formats."""
    digest = hashlib.sha256()
    for owner in (weights, *weights.layers):
        for name, value in sorted(vars(owner).items()):
            if name != "layers":
                row = value
                while len(row.shape) > 1:  # of a matrix, the first row only: all of it would take seconds
                    row = row[0]
                row = np.asarray(row, np.float32)
                digest.update(name.encode() + row.tobytes())
    return digest.hexdigest()[:16]
