"""Store what the gguf, compressed-tensors and mlx libraries make of random bytes, for the tests that run without them.

    PYTHONPATH=.:tests python -m parity.make_layout_goldens

tests/goldens/layouts/layouts.safetensors then holds for each layout the arrays of the file, and the weights as their
bits.
"""

from importlib.metadata import version
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from .layouts import affine, blocks_of_gguf, compressed

GOLDENS = Path(__file__).parents[1] / "goldens" / "layouts" / "layouts.safetensors"


def main():
    rng, arrays = np.random.default_rng(20), {}
    cases = [*blocks_of_gguf(rng, rows=3, blocks=2), *compressed(rng, rows=5, columns=256), *affine(rng, 5, 256)]
    for case, parts, weights in cases:
        arrays |= {f"{case}.{i}": part for i, part in enumerate(parts)}
        arrays[f"{case}.weights"] = weights.view(np.uint32)
    versions = {name: version(name) for name in ("gguf", "compressed-tensors", "mlx")}
    save_file({name: np.ascontiguousarray(array) for name, array in arrays.items()}, GOLDENS, versions)


if __name__ == "__main__":
    main()
