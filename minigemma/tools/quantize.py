"""A checkpoint of 16 bits -> one of 4 or 8 bits, as the compressed-tensors library writes it."""

import json
import math
import re
import shutil
from fnmatch import translate
from pathlib import Path

from ..checkpoint import find_text_tensors, read_header, shards, write_safetensors
from ..compressed import GROUP, LAYOUTS, Packed, pack, packs, rows_of
from ..config import Config
from ..errors import Error
from ..files import make_directory, progress, read_json, replacing
from ..packed import widen
from ..tensors import TABLES, bare_name, text_tensors


def write(directory, out, bits=4, layers="*", keep=()):
    """Quantise the matrices of the text model, and copy the rest as it is -> the names of the quantised matrices.

    Round to nearest, symmetric, in groups of 32 columns. layers: a pattern of layer numbers, such as "[0-4]"; other
    layers stay as they are. keep: patterns of names that stay, such as "*.down_proj.weight". The token table and the
    PLE table stay, so that transformers loads the result. Raises Error for a directory that holds packed matrices
    already, for a pattern that fits nothing, and for an output directory that holds a checkpoint.
    """
    directory, out = Path(directory), make_directory(out)
    if bits not in LAYOUTS:
        raise Error(f"{bits} bits: choose {' or '.join(map(str, LAYOUTS))}")
    if any(path.name == "config.json" or path.suffix == ".safetensors" for path in out.iterdir()):
        raise Error(f"{out}: holds a checkpoint already; give another directory")
    raw = read_json(directory / "config.json")
    config = Config.from_dict(raw, str(directory))
    held = find_text_tensors(directory)
    if any(isinstance(stored, Packed) for stored in held.values()):
        raise Error(f"{directory}: is quantised already; give the checkpoint of 16 bits")
    chosen = _chosen(config, layers, keep)
    rows, sources = [], []
    for path in shards(directory):
        for name, stored in read_header(path).items():
            packed = bare_name(name) in chosen
            rows += rows_of(name, stored.shape, bits, GROUP) if packed else [(name, stored.shape, stored.dtype)]
            sources.append((stored, packed))

    def arrays(advance):
        for stored, packed in sources:
            if packed:
                yield from pack(widen(stored.map()), bits, GROUP)
            else:
                yield stored.map()
            advance(math.prod(stored.shape))

    with progress("quantising", sum(math.prod(stored.shape) for stored, _ in sources)) as advance:
        write_safetensors(out / "model.safetensors", "BF16", rows, arrays(advance))
    with replacing(out / "config.json") as path:
        path.write_text(json.dumps(raw | about(bits, rows), indent=2) + "\n", encoding="utf-8")
    for path in directory.iterdir():
        if path.suffix in (".json", ".jinja") and path.name not in ("config.json", "model.safetensors.index.json"):
            shutil.copyfile(path, out / path.name)
    return sorted(row[0].removesuffix(".weight_packed") for row in rows if row[0].endswith(".weight_packed"))


def _chosen(config, layers, keep):
    """The names of the matrices to quantise, without their prefix."""
    layer, kept = re.compile(translate(layers)), [re.compile(translate(pattern)) for pattern in keep]
    matrices = [t for t in text_tensors(config) if t.part not in TABLES and packs(t)]
    fitting = [t for t in matrices if t.layer is None or layer.match(str(t.layer))]
    if all(t.layer is None for t in fitting):
        raise Error(f"--layers {layers!r} fits none of the layers 0 to {config.num_hidden_layers - 1}")
    for pattern, form in zip(keep, kept, strict=True):
        if not any(form.match(t.name) for t in matrices):
            raise Error(f"--keep {pattern!r} fits no matrix; names are such as {matrices[-1].name}")
    return {t.name for t in fitting if not any(form.match(t.name) for form in kept)}


def about(bits, rows):
    """What config.json must say of a file with these rows, so that transformers loads it."""
    names = [row[0] for row in rows if row[0].endswith(".weight") and len(row[1]) == 2]
    weights = {
        "num_bits": bits, "type": "int", "symmetric": True, "strategy": "group", "group_size": GROUP, "dynamic": False,
    }  # fmt: skip
    method = {
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": {"group_0": {"targets": ["Linear"], "weights": weights}},
        "ignore": ["lm_head", *sorted(name.removesuffix(".weight") for name in names)],
    }
    return {"quantization_config": method}
