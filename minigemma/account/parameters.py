"""What a Gemma 4 stores, keeps in memory, reads and multiplies, exact to the unit, from config.json alone.

Everything is a sum over the table of tensors, or over the calls that the pass makes; the tests compare the sums with
the released files, with transformers, with the bytes of the real cache and with the products of a real run.
Units: parameters, bytes, and multiply-adds (one multiplication and one addition; double it for FLOPs).
"""

import math
import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .. import config as facts
from ..checkpoint import read_header, shards
from ..config import Config
from ..errors import Error
from ..files import read_json
from ..sampling import CHUNK, SCORE_BYTES
from ..tensors import NOT_TEXT, PREFIXES, TABLES, Tensor, checkpoint_tensors

PARTS = (
    *TABLES, "PLE projections and gates", "attention", "MLP", "experts", "norms and scalars", "vision", "audio",
    "unused",
)  # fmt: skip
NOT_TEXT_PARTS = ("vision", "audio")
DISK = ("PLE table", "vision", "audio", "unused")  # a token of text needs a row of the first and nothing of the others
DTYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32", "float64": "F64"}
ITEMSIZE = {"BF16": 2, "F16": 2, "F32": 4, "F64": 8}

PIECES = 10**8  # chunks of a prompt times layers, up to which a prompt is accounted for

# Bits a weight. Vectors (norms, scalars) keep 16 in all of them, and the scales of a real format are not counted.
# Google's mobile files mix 2 and 4 bits and do not say which is where: here the widest matrices get 2.
SCHEMES = {
    "bfloat16": dict.fromkeys(PARTS, 16),
    "int8": dict.fromkeys(PARTS, 8),
    "4-bit": dict.fromkeys(PARTS, 4),
    "mixed 2/4-bit": dict.fromkeys(PARTS, 4) | {"MLP": 2, "experts": 2},
}


@dataclass(frozen=True, eq=False)
class Account:
    """The parameters of one checkpoint, by part and by layer. `print` shows the table."""

    name: str
    config: Config
    tensors: list[Tensor]
    effective_published: str | None = None  # billions, as printed on the model card
    differences: tuple[str, ...] | None = None  # a checkpoint's file against the table; None where there is no file

    @property
    def total(self):
        return sum(_size(tensor) for tensor in self.tensors)

    @property
    def nbytes(self):
        return sum(_nbytes(tensor) for tensor in self.tensors)

    @property
    def parts(self):
        """part -> parameters, in the order of PARTS; parts that the model lacks are left out."""
        return _by_part(self.tensors)

    @property
    def layers(self):
        """Of each decoder layer, what is particular to it and its parameters by part."""
        rows = []
        for layer in self.config.layers:
            tensors = [tensor for tensor in self.tensors if tensor.layer == layer.index]
            row = {"index": layer.index, "kind": layer.kind, "kv_from": layer.kv_from, "head_dim": layer.head_dim}
            row |= {"num_key_value_heads": layer.num_key_value_heads, "intermediate_size": layer.intermediate_size}
            row |= {"total": sum(map(_size, tensors)), "bytes": sum(map(_nbytes, tensors)), "parts": _by_part(tensors)}
            rows.append(row)
        return rows

    @property
    def outside(self):
        """Parameters by part of what belongs to no layer: tables, the PLE context projection, last norm, towers."""
        return _by_part(tensor for tensor in self.tensors if tensor.layer is None)

    @property
    def text(self):
        """All parameters but those of vision and audio."""
        return sum(size for part, size in self.parts.items() if part not in NOT_TEXT_PARTS)

    @property
    def active(self):
        """Parameters that one token of text reads: all of the text model but unused tensors, the experts that were not
        chosen, and the PLE table apart from one row. The token table counts in full: it is also the output head."""
        idle = sum(_size(tensor) - _read(tensor, self.config) for tensor in self.tensors if tensor.part not in DISK)
        row = self.config.num_hidden_layers * self.config.hidden_size_per_layer_input
        return self.total - sum(self.parts.get(part, 0) for part in DISK) - idle + row

    @property
    def effective(self):
        """Candidate definitions of "effective parameters", and how each reproduces the published number, if it does."""
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
        result = {
            "name": self.name,
            "tensors": len(self.tensors),
            "total": self.total,
            "bytes": self.nbytes,
            "text": self.text,
            "parts": self.parts,
            "part_bytes": _by_part(self.tensors, _nbytes),
            "part_tensors": _by_part(self.tensors, lambda tensor: 1),
            "clip_bounds": sum(tensor.shape == () for tensor in self.tensors),
            "effective": self.effective,
            "active": self.active,
            "layers": self.layers,
            "outside_layers": self.outside,
        }
        return result if self.differences is None else result | {"differences": list(self.differences)}

    def __str__(self):
        from .report import params_text

        return params_text(self.to_dict())


def count(what, unused=None):
    """The Account of a released model's name, a config.json, a checkpoint directory, or a Config (text only).

    A released name goes before a directory of that name; a directory's file is compared with the table. unused: whether
    to count the K and V tensors of KV-sharing layers that nothing reads. By default as the file does: Google's hold
    them, files saved by transformers or minigemma do not. Raises Error for a name that is none of these.
    """
    if isinstance(what, Config):
        return Account("config", what, checkpoint_tensors(what, unused=bool(unused)))
    name, raw, directory = _resolve(what)
    where = str(directory or what)
    config, towers = Config.from_dict(raw, where), _towers(raw, where)
    text = raw.get("text_config", raw)
    stored = None if directory is None else {n: s for path in shards(directory) for n, s in read_header(path).items()}
    if unused is None:
        # Google's spelling nests the text model and describes global layers without per_layer_config
        google = towers is not None and text.get("per_layer_config") is None
        unused = google if stored is None else _holds_unused(config, towers, stored)
    dtype = raw.get("dtype") or raw.get("torch_dtype") or text.get("dtype") or "bfloat16"
    if not isinstance(dtype, str) or dtype not in DTYPES:
        raise Error(f"{where}: dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    tensors = [tensor._replace(dtype=DTYPES[dtype]) for tensor in checkpoint_tensors(config, towers, unused)]
    if stored is None:
        return Account(name, config, tensors, facts.EFFECTIVE.get(name))
    return Account(name, config, tensors, None, tuple(_differences(tensors, towers, stored)))


def _resolve(what):
    """-> a name, the parsed config.json, and the checkpoint directory or None."""
    if not str(what):
        raise Error("the model's name is empty; give a released one, a config.json, or a checkpoint directory")
    path = Path(os.path.expanduser(what))
    try:
        name = facts.released_name(str(what))
    except Error as unknown:
        if os.path.isdir(path):
            return path.resolve().name, read_json(path / "config.json"), path
        if os.path.exists(path):
            return path.stem, read_json(path), None
        raise Error(f"{unknown}, and there is no file or directory of that name") from None
    nested = {"model_type": "gemma4", "text_config": facts.RELEASED[name]}
    return name, nested | facts.TOWERS[name], None


def _towers(raw, where):
    """vision_config and audio_config of a config.json, checked; None where the file describes text alone."""
    if "text_config" not in raw:
        return None
    towers = {}
    for key in ("vision_config", "audio_config"):
        tower = raw.get(key)
        if tower is None:
            continue
        if not isinstance(tower, dict):
            raise Error(f"{where}: {key} must be an object or null, not {tower!r}")
        pattern = facts.TOWERS["12B" if {"mm_embed_dim", "audio_embed_dim"} & set(tower) else "E2B"][key]
        for name, example in pattern.items():
            value = tower.get(name)
            if not _alike(value, example) or (name == "num_hidden_layers" and value > facts.LAYERS):
                raise Error(f"{where}: {key}.{name} must be like {example!r}, not {value!r}")
        towers[key] = tower
    return towers


def _alike(value, example):
    """Whether a field is of its example's kind: true or false, a size of at least 1, or a list of as many sizes."""
    if isinstance(example, list):
        return isinstance(value, list) and len(value) == len(example) and all(map(_alike, value, example))
    return type(value) is type(example) and (isinstance(value, bool) or 1 <= value <= 2**31)


def _holds_unused(config, towers, stored):
    names = {tensor.name for tensor in checkpoint_tensors(config, towers, unused=True) if tensor.part == "unused"}
    return any(_full(name, towers) in names for name in stored)


def _full(name, towers):
    """The table's name of a tensor in a file, whatever prefix the file has."""
    if name.startswith(NOT_TEXT):
        return name
    short = next(name.removeprefix(prefix) for prefix in PREFIXES if name.startswith(prefix))
    return ("model." if towers is None else "model.language_model.") + short


def _differences(tensors, towers, stored):
    """One line for every name, shape or dtype in which a checkpoint's file departs from the table."""
    table = {tensor.name: tensor for tensor in tensors}
    seen = set()
    for name, found in stored.items():
        tensor = table.get(_full(name, towers))
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


def kv_cache(config, length, sharing=True, bounded=True, itemsize=2):
    """Bytes of K and V after `length` tokens, for each layer -> list.

    sharing: KV-sharing layers store nothing. bounded: a sliding layer keeps the window - 1 keys that its next query
    sees beside its own. With both, this is what minigemma.cache holds (itemsize 4: its arrays are float32).
    """
    sizes = []
    for layer in config.layers:
        rows = min(length, layer.window - 1) if bounded and layer.window is not None else length
        stores = not (sharing and layer.shares_kv)
        sizes.append(stores * 2 * rows * layer.num_key_value_heads * layer.head_dim * itemsize)
    return sizes


def weights_in_memory(account):
    """Bytes of the file under each of SCHEMES -> scheme: file, resident, disk (see DISK)."""
    result = {}
    for scheme, bits in SCHEMES.items():
        sizes = Counter()
        for tensor in account.tensors:
            width = bits[tensor.part] if len(tensor.shape) > 1 else 16
            sizes["disk" if tensor.part in DISK else "resident"] += _size(tensor) * width
        resident, disk = (math.ceil(sizes[place] / 8) for place in ("resident", "disk"))
        result[scheme] = {"file": resident + disk, "resident": resident, "disk": disk}
    return result


def activations(config, new, past=0, itemsize=4):
    """Bytes of the largest arrays when a prompt's last chunk, `new` tokens behind `past` cached ones, gives logits for
    its last position, the only one for which the KV-sharing layers run -> name of the tap: bytes.

    "peak" estimates what is alive together in the hungriest step: softmax, with three arrays of scores, the pattern of
    the layer before and two of the MLP's arrays; or the gated MLP, with four of its own and two of scores.
    """
    D, N, P, L = config.hidden_size, config.num_attention_heads, config.hidden_size_per_layer_input, len(config.layers)
    rows = [(new if layer.index < config.first_kv_shared_layer else 1, layer) for layer in config.layers]
    scores = [N * T * int(_keys(layer, new, past)) for T, layer in rows]
    sizes = {
        "resid_pre": new * D,
        "attn.rot_q": max(T * N * layer.head_dim for T, layer in rows),
        "attn.scores": max(scores),
        "mlp.act": max(T * layer.intermediate_size for T, layer in rows),
    }
    if P:
        sizes["ple"] = new * L * P
    sizes["logits"] = config.vocab_size
    sizes = {name: size * itemsize for name, size in sizes.items()}
    softmax = itemsize * max(3 * size + before for size, before in zip(scores, [0, *scores], strict=False))
    hungriest = max(softmax + 2 * sizes["mlp.act"], 2 * sizes["attn.scores"] + 4 * sizes["mlp.act"])
    small = 6 * sizes["resid_pre"] + 3 * sizes["attn.rot_q"] + 3 * sizes.get("ple", 0)
    return sizes | {"peak": small + hungriest}


def chunks(config, length):
    """How minigemma.prefill cuts a prompt: arrays of the new and the already cached tokens of each call."""
    chunk = max(1, min(CHUNK, SCORE_BYTES // (4 * config.num_attention_heads * length)))
    if length // chunk * len(config.layers) > PIECES:
        raise Error(f"{length} tokens would be prefilled {chunk} at a time; that is too long to account for")
    past = np.arange(0, length, chunk)
    return np.minimum(chunk, length - past), past


def multiply_adds(config, new, past=0, logits="all", shortcut=True):
    """Multiply-adds of the matrix products in one call of `forward`, by part -> dict.

    new tokens behind `past` cached ones; both may be arrays, for as many calls. "attention over keys" is the products
    with K and V: each query meets every key of its layer, masked or not, as in the pass. shortcut=False runs the
    KV-sharing layers for all positions even where the prompt needs only its last.
    """
    out = {"all": new, "last": np.ones_like(new), None: np.zeros_like(new)}[logits]
    rows = {None: new, "head": out}  # of a layer's number, how many positions it runs for
    for layer in config.layers:
        rows[layer.index] = out if shortcut and layer.index >= config.first_kv_shared_layer else new
    totals = Counter()
    for tensor in checkpoint_tensors(config):
        if len(tensor.shape) > 1 and tensor.part not in TABLES:
            totals[tensor.part] += int(np.sum(rows[tensor.layer])) * _read(tensor, config)
    for layer in config.layers:
        pairs = int(np.sum(rows[layer.index] * _keys(layer, new, past)))  # of a query and a key
        totals["attention over keys"] += 2 * pairs * config.num_attention_heads * layer.head_dim
    totals["logits"] = int(np.sum(rows["head"])) * config.vocab_size * config.hidden_size
    return dict(totals)


def prefill_multiply_adds(config, length, shortcut=True):
    """multiply_adds of a prompt as minigemma.prefill runs it: in chunks, with logits for the last position only."""
    new, past = chunks(config, length)
    totals = Counter(multiply_adds(config, new[-1], past[-1], "last", shortcut))
    totals.update(multiply_adds(config, new[:-1], past[:-1], None, shortcut))
    return dict(totals)


def memory(account, context):
    """Weights, KV cache and activations at `context` tokens -> a dict for JSON."""
    config = account.config
    _check_context(config, context)
    ways = {
        "shared, bounded": {}, "shared, unbounded": {"bounded": False}, "unshared, bounded": {"sharing": False},
        "unshared, unbounded": {"sharing": False, "bounded": False},
    }  # fmt: skip
    per_layer = {way: kv_cache(config, context, **options) for way, options in ways.items()}
    new, past = chunks(config, context)
    largest = int(np.argmax(new + past))
    return {
        "name": account.name,
        "context": context,
        "weights": weights_in_memory(account),
        "kv_cache": {way: sum(sizes) for way, sizes in per_layer.items()},
        "kv_cache_layers": per_layer,
        "activations": {"chunk": int(new[0])} | activations(config, int(new[largest]), int(past[largest])),
        "published": footprints(account),
    }


def footprints(account):
    """Published footprints of this model beside the nearest of our sums -> list of dicts; empty where none is known."""
    full = sum(kv_cache(account.config, account.config.max_position_embeddings))
    schemes, ple = weights_in_memory(account), account.parts.get("PLE table", 0)
    vision = account.parts.get("vision", 0)
    ours = {
        "text and vision, bfloat16": 2 * (account.text + vision),
        "whole file, bfloat16": schemes["bfloat16"]["file"],
        "whole file and full KV cache, bfloat16": schemes["bfloat16"]["file"] + full,
        "resident, 4-bit": schemes["4-bit"]["resident"],
        "resident, mixed 2/4-bit": schemes["mixed 2/4-bit"]["resident"],
        "whole file, 4-bit": schemes["4-bit"]["file"],
        "PLE table, 4-bit": ple // 2,
    }
    return [
        {"claim": claim, "published": size, "ours": name, "bytes": ours[name], "difference": ours[name] - size}
        | {"remark": remark}
        for claim, size, name, remark in facts.FOOTPRINTS.get(account.name, ())
    ]


def compute(account, context):
    """Multiply-adds per token at `context` tokens, and PLE's share -> a dict for JSON."""
    config = account.config
    _check_context(config, context)
    decode = multiply_adds(config, 1, context - 1)
    ple = "PLE projections and gates"
    matrices, row = account.parts.get(ple, 0), config.num_hidden_layers * config.hidden_size_per_layer_input
    stored = account.parts.get("PLE table", 0) + matrices
    return {
        "name": account.name,
        "context": context,
        "decode": decode,
        "prefill": {
            "with shortcut": prefill_multiply_adds(config, context),
            "without shortcut": prefill_multiply_adds(config, context, shortcut=False),
        },
        "ple": {
            "parameters stored": {"ple": stored, "of": account.text},
            "bytes stored, bfloat16": {"ple": 2 * stored, "of": 2 * account.text},
            "bytes read a token, bfloat16": {"ple": 2 * (row + matrices), "of": 2 * account.active},
            "multiply-adds a token, decode": {"ple": decode.get(ple, 0), "of": sum(decode.values())},
        },
    }


def overview():
    """The released models side by side -> `models`: by name, the parameters of the text model that are stored,
    resident, read for one token, and computed (multiplied) for it before attention over the context; `effective`: by
    name, of the models for which Google publishes such a number.
    """
    rows, effective = {}, {}
    for name in facts.RELEASED:
        account = count(name)
        config = account.config
        kind = "PLE" if config.hidden_size_per_layer_input else "mixture" if config.enable_moe_block else "plain"
        products = multiply_adds(config, 1)
        rows[name] = {
            "kind": kind,
            "stored": account.text,
            "resident": account.total - sum(account.parts.get(part, 0) for part in DISK),
            "read": account.active,
            "computed": sum(products.values()) - products["attention over keys"],
        }
        if name in facts.EFFECTIVE:
            effective[name] = account.effective
    return {"models": rows, "effective": effective}


def _check_context(config, context):
    if not 1 <= context <= config.max_position_embeddings:
        raise Error(f"context must be from 1 to the model's {config.max_position_embeddings} positions, not {context}")


def _keys(layer, new, past):
    """S: how many keys a call's queries meet; a sliding layer has kept window - 1 of the past."""
    return new + (past if layer.window is None else np.minimum(past, layer.window - 1))


def _size(tensor):
    return math.prod(tensor.shape)


def _nbytes(tensor):
    return _size(tensor) * ITEMSIZE[tensor.dtype]


def _read(tensor, config):
    """Elements that one token reads of a text tensor other than the PLE table: of stacked experts, the chosen ones'."""
    if tensor.part == "experts" and len(tensor.shape) == 3:
        return _size(tensor) // config.num_experts * config.top_k_experts
    return _size(tensor)


def _by_part(tensors, measure=_size):
    sizes = Counter()
    for tensor in tensors:
        sizes[tensor.part] += measure(tensor)
    return {part: sizes[part] for part in PARTS if part in sizes}


def _reproduces(count, published):
    """How `count` becomes the published number of billions: "truncated", "rounded", both, or None."""
    if published is None:
        return None
    tenths = round(10 * float(published))
    ways = [("truncated", count // 10**8), ("rounded", (count + 5 * 10**7) // 10**8)]
    return " and ".join(way for way, value in ways if value == tenths) or None
