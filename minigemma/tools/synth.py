"""Full-size checkpoints of random weights, for benchmarks and for people without the download."""

import json
import math
import shutil

import numpy as np

from ..account.towers import TOWERS
from ..checkpoint import random_vector, write_safetensors
from ..errors import Error
from ..files import make_directory, progress, replacing
from ..packed import narrow
from ..released import RELEASED, released_config, released_name
from ..tensors import checkpoint_tensors

PIECE = 2**24  # values of a synthetic tensor written at a time


def synthesize(name, directory, seed=0):
    """Write a released model's checkpoint with random values, in Google's names, shapes and dtype -> bytes written.

    For benchmarks, and for people who cannot download the real one: the text it makes is nonsense, but time and memory
    are those of the real model. All values of a matrix share one exponent; sign and mantissa are random. This makes the
    generator as fast as the disk. Raises Error if the directory holds a checkpoint or the disk is too full.
    """
    name, directory = released_name(name), make_directory(directory)
    held = [p.name for p in directory.iterdir() if p.name == "config.json" or ".safetensors" in p.name]
    if held:
        raise Error(f"{directory}: holds {held[0]} already; give another directory, or delete it first")
    config, towers = released_config(name), TOWERS[name]
    table = checkpoint_tensors(config, towers, unused=True)
    size = 2 * sum(math.prod(tensor.shape) for tensor in table)
    free = shutil.disk_usage(directory).free
    if free < size + 2**20:
        raise Error(f"{directory}: gemma-4-{name} takes {size / 1e9:.1f} GB and {free / 1e9:.1f} GB are free there")
    rng = np.random.default_rng(seed)

    def pieces(advance):
        for tensor in table:
            count = math.prod(tensor.shape)
            advance(count)
            if tensor.shape == ():  # a clip bound, beyond nearly all values
                yield narrow(rng.uniform(4, 8) * (1 if tensor.name.endswith("max") else -1))
                continue
            if len(tensor.shape) < 2:
                yield narrow(random_vector(tensor, rng))
                continue
            exponent = 127 + round(math.log2(tensor.shape[-1] ** -0.5 / 1.53))  # 1.53 is the rms of numbers from 1 to 2
            for start in range(0, count, PIECE):
                bits = rng.integers(0, 2**16, min(PIECE, count - start), np.uint16)
                yield bits & np.uint16(0x807F) | np.uint16(exponent << 7)

    kind = "gemma4_unified" if name == "12B" else "gemma4"
    text = RELEASED[name] | {"model_type": f"{kind}_text"}
    parts = {part: tower and tower | {"model_type": f"{kind}_{part.split('_')[0]}"} for part, tower in towers.items()}
    architecture = "Gemma4UnifiedForConditionalGeneration" if name == "12B" else "Gemma4ForConditionalGeneration"
    with progress(f"writing {size / 1e9:.1f} GB", size // 2) as advance:
        rows = [(tensor.name, tensor.shape) for tensor in table]
        write_safetensors(directory / "model.safetensors", "BF16", rows, pieces(advance))
    with replacing(directory / "config.json") as path:
        about = {"architectures": [architecture], "model_type": kind, "dtype": "bfloat16", "text_config": text}
        path.write_text(json.dumps(about | parts, indent=2) + "\n", encoding="utf-8")
    return size
