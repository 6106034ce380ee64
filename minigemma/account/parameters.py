"""What a Gemma 4 stores and what one token reads: parameters and bytes, exact, from config.json alone.

Each number is a sum over the table of tensors. The tests compare the sums with the released files and with
transformers.
"""

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from ..checkpoint import Stored, find_tensors, mlx_settings, read_header, shards
from ..compressed import fold
from ..config import Config
from ..errors import Error
from ..files import read_json
from ..formats import check_quantization
from ..gguf import is_gguf
from ..mmproj import config_of
from ..released import EFFECTIVE, RELEASED, released_name
from ..tensors import AUDIO, TABLES, VISION, Tensor, bare_name, checkpoint_tensors
from .towers import GROUPS, TOWERS, group_of

PARTS = (
    *TABLES, "PLE projections and gates", "attention", "MLP", "experts", "norms and scalars", "vision", "audio",
    "unused",
)  # fmt: skip
NOT_TEXT_PARTS = ("vision", "audio")
DISK = ("PLE table", "vision", "audio", "unused")  # a token of text needs one row of the first, none of the others
USES = (
    "multiplied for every token", "looked up, one row per token", "experts that are not chosen",
    "only for pictures and sound", "never read",
)  # fmt: skip
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
ITEMSIZE = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}


@dataclass(frozen=True, eq=False)
class Account:
    """The parameters of one checkpoint, by part and by layer; print() shows the table."""

    name: str
    config: Config
    tensors: list[Tensor]
    effective_published: str | None = None  # billions, as printed on the model card
    differences: tuple[str, ...] | None = None  # between a checkpoint's file and the table; None if there is no file

    @property
    def total(self):
        """Parameters stored, those that no pass reads included."""
        return sum(size_of(tensor) for tensor in self.tensors)

    @property
    def nbytes(self):
        """Bytes stored."""
        return sum(nbytes_of(tensor) for tensor in self.tensors)

    @property
    def parts(self):
        """Parameters by part, in the order of PARTS; parts that the model lacks are left out."""
        return _by_part(self.tensors)

    @property
    def layers(self):
        """For each decoder layer, the facts that differ by layer and its parameters by part -> list of dicts."""
        rows = []
        for layer in self.config.layers:
            tensors = [tensor for tensor in self.tensors if tensor.layer == layer.index]
            row = {"index": layer.index, "kind": layer.kind, "kv_from": layer.kv_from, "head_dim": layer.head_dim}
            row |= {"num_key_value_heads": layer.num_key_value_heads, "intermediate_size": layer.intermediate_size}
            row |= {"total": sum(map(size_of, tensors)), "bytes": sum(map(nbytes_of, tensors))}
            row["parts"] = _by_part(tensors)
            rows.append(row)
        return rows

    @property
    def outside(self):
        """Parameters by part outside the layers: tables, the PLE context projection, the last norm, towers."""
        return _by_part(tensor for tensor in self.tensors if tensor.layer is None)

    @property
    def towers(self):
        """Parameters of vision and of audio by group, see GROUPS; {} for a text-only model."""
        sizes = {part: Counter() for part in NOT_TEXT_PARTS if part in self.parts}
        for tensor in self.tensors:
            if tensor.part in sizes:
                sizes[tensor.part][group_of(tensor.name)] += size_of(tensor)
        return {part: {group: sizes[part][group] for group in GROUPS if group in sizes[part]} for part in sizes}

    @property
    def text(self):
        """All parameters except those of vision and audio."""
        return sum(size for part, size in self.parts.items() if part not in NOT_TEXT_PARTS)

    @property
    def active(self):
        """Parameters that one token of text reads: the text model without the unused tensors, the experts that are not
        chosen, and all rows of the PLE table but one. The token table counts in full: it is also the output head."""
        idle = sum(size_of(tensor) - read_of(tensor, self.config) for tensor in self.tensors if tensor.part not in DISK)
        row = self.config.num_hidden_layers * self.config.hidden_size_per_layer_input
        return self.total - sum(self.parts.get(part, 0) for part in DISK) - idle + row

    @property
    def uses(self):
        """All parameters by what one token of text does with them -> {one of USES: {part: parameters}}.

        Global attention is a part of its own here. The token table is looked up, and multiplied as the output head.
        """
        found = {use: Counter() for use in USES}
        for tensor in self.tensors:
            wide = tensor.part == "attention" and self.config.layers[tensor.layer].window is None
            part, size = "global attention" if wide else tensor.part, size_of(tensor)
            use = {"PLE table": USES[1], "vision": USES[3], "audio": USES[3], "unused": USES[4]}.get(part, USES[0])
            read = read_of(tensor, self.config) if use == USES[0] else size
            found[use][part] += read
            found[USES[2]][part] += size - read
        return {use: dict(+sizes) for use, sizes in found.items() if +sizes}

    @property
    def effective(self):
        """Candidate definitions of "effective parameters", and whether each reproduces the published number."""
        ple, token = self.parts.get("PLE table", 0), self.parts["token table"]
        candidates = {
            "all - PLE table - token table": self.total - ple - token,
            "text - PLE table": self.text - ple,
            "all - PLE table": self.total - ple,
            "text - PLE table - token table": self.text - ple - token,
            "active": self.active,
        }
        rows = {
            name: {"parameters": count, "reproduces": _reproduces(count, self.effective_published)}
            for name, count in candidates.items()
        }
        return {"published": self.effective_published and f"{self.effective_published}B", "candidates": rows}

    def to_dict(self):
        """All of the account as a dict for JSON."""
        result = {
            "name": self.name,
            "tensors": len(self.tensors),
            "total": self.total,
            "bytes": self.nbytes,
            "text": self.text,
            "parts": self.parts,
            "part_bytes": _by_part(self.tensors, nbytes_of),
            "part_tensors": _by_part(self.tensors, lambda tensor: 1),
            "clip_bounds": sum(tensor.shape == () for tensor in self.tensors),
            "effective": self.effective,
            "active": self.active,
            "layers": self.layers,
            "outside_layers": self.outside,
            "towers": self.towers,
        }
        return result if self.differences is None else result | {"differences": list(self.differences)}

    def __str__(self):
        from .report import params_text

        return params_text(self.to_dict())


def count(what, unused=None):
    """The Account of a released model's name, a config.json, a checkpoint directory, or a Config.

    A name that is both a released model's and a directory's means the released model. A directory's file is compared
    with the table; a packed matrix counts the parameters that it stands for, and the bytes that it takes. unused:
    whether to count the K and V tensors of KV-sharing layers, which no pass reads. By default they are counted if the
    file holds them: Google's files and our tiny weights do, files saved by transformers or minigemma.save do not. A
    Config knows no file, so its Account counts what the pass reads. Raises Error for a name that is none of these, and
    for a config.json that cannot be counted.
    """
    if isinstance(what, Config):
        return Account("config", what, checkpoint_tensors(what, unused=bool(unused)))
    name, raw, directory = _find(what)
    where = str(directory or what)
    config, text, towers = Config.from_dict(raw, where), raw.get("text_config", raw), None
    if "text_config" in raw:
        towers = {f"{part}_config": vars(tower) for part in NOT_TEXT_PARTS if (tower := getattr(config, part))}
    stored = None if directory is None else _stored(directory)
    if unused is None:
        # Google's spelling nests the text model and has global_head_dim, which transformers drops when it saves again
        google = towers is not None and text.get("global_head_dim") is not None
        unused = google if stored is None else _holds_unused(config, towers, stored)
    dtype = raw.get("dtype") or raw.get("torch_dtype") or text.get("dtype") or "bfloat16"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Error(f"{where}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    tensors = [tensor._replace(dtype=DTYPES[dtype]) for tensor in checkpoint_tensors(config, towers, unused)]
    if stored is None:
        return Account(name, config, tensors, EFFECTIVE.get(name))
    held = {_name_in_table(name, towers): found for name, found in stored.items()}
    tensors = [_as_stored(tensor, held[tensor.name]) if tensor.name in held else tensor for tensor in tensors]
    return Account(name, config, tensors, None, tuple(_differences(tensors, towers, stored)))


def _find(what):
    """The model that `what` names -> a name, the parsed config.json, and the checkpoint directory or None."""
    if not str(what):
        raise Error("the model's name is empty; give a released model, a config.json, or a checkpoint directory")
    path = Path(os.path.expanduser(what))
    try:
        name = released_name(str(what))
    except Error as unknown:
        if os.path.isdir(path):
            raw = read_json(path / "config.json")
            check_quantization(raw, path)
            return path.resolve().name, raw, path
        if os.path.isfile(path) and is_gguf(path):
            return path.stem, config_of(path), path
        if os.path.exists(path):
            return path.stem, read_json(path), None
        raise Error(f"{unknown}, and there is no file or directory of that name") from None
    nested = {"model_type": "gemma4", "text_config": RELEASED[name]}
    return name, nested | TOWERS[name], None


def _stored(path):
    """Every tensor of a checkpoint directory or of a GGUF file by its whole name, a packed matrix as one tensor."""
    if is_gguf(path):
        return {f"model.{name}": found for name, found in find_tensors(path).items()}
    found = {name: stored for shard in shards(path) for name, stored in read_header(shard).items()}
    return fold(found, mlx_settings(path))


def _as_stored(tensor, found):
    """A tensor of the table with the layout of its packed matrix. A GGUF file also chooses each tensor's dtype."""
    if isinstance(found, Stored):
        return tensor
    return tensor._replace(dtype=found.dtype, packed=found.map().nbytes)


def _holds_unused(config, towers, stored):
    """Whether a file has any tensor that no pass reads."""
    names = {tensor.name for tensor in checkpoint_tensors(config, towers, unused=True) if tensor.part == "unused"}
    return any(_name_in_table(name, towers) in names for name in stored)


def _name_in_table(name, towers):
    """The table's name of a tensor in a file."""
    bare = bare_name(name)
    text = not bare.startswith((*VISION, *AUDIO))
    return ("model.language_model." if text and towers is not None else "model.") + bare


def _differences(tensors, towers, stored):
    """One line for each name, shape or dtype that differs between a checkpoint's file and the table."""
    table = {tensor.name: tensor for tensor in tensors}
    seen = set()
    for name, found in stored.items():
        tensor = table.get(_name_in_table(name, towers))
        if tensor is None or tensor.name in seen:
            yield f"{name}: in the file, not in the table ({found.dtype} {list(found.shape)})"
            continue
        seen.add(tensor.name)
        if found.shape != tensor.shape:
            yield f"{name}: {list(found.shape)} in the file, {list(tensor.shape)} in the table"
        if found.dtype != tensor.dtype:
            yield f"{name}: {found.dtype} in the file, {tensor.dtype} in the table"
    for name, tensor in table.items():
        if name not in seen:
            yield f"{name}: in the table, not in the file ({tensor.dtype} {list(tensor.shape)})"


def size_of(tensor):
    """Parameters of one tensor."""
    return math.prod(tensor.shape)


def nbytes_of(tensor):
    return size_of(tensor) * ITEMSIZE[tensor.dtype] if tensor.packed is None else tensor.packed


def read_of(tensor, config):
    """Parameters of a text tensor that one token reads: all, but of stacked experts only the chosen ones.

    Not for the PLE table, of which a token reads one row.
    """
    if tensor.part == "experts" and len(tensor.shape) == 3:
        return size_of(tensor) // config.num_experts * config.top_k_experts
    return size_of(tensor)


def _by_part(tensors, measure=size_of):
    sizes = Counter()
    for tensor in tensors:
        sizes[tensor.part] += measure(tensor)
    return {part: sizes[part] for part in PARTS if part in sizes}


def _reproduces(count, published):
    """How `count` becomes the published number of billions: "truncated", "rounded", both words, or None."""
    if published is None:
        return None
    tenths = round(10 * float(published))
    ways = [("truncated", count // 10**8), ("rounded", (count + 5 * 10**7) // 10**8)]
    return " and ".join(way for way, value in ways if value == tenths) or None
