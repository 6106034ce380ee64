"""Time a token and memory of a short and of a long prompt, in one process.

    python tests/speed/long_prompt.py weights/synthetic-e2b
"""

import sys
import time
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

import minigemma
from minigemma.tools.bench import PeakAnonymous, ple_table

LENGTHS = 1024, 8192, 1024  # the short one again at the end: a machine's speed drifts


def main(directory):
    model = minigemma.load(directory)
    rng = np.random.default_rng(0)
    minigemma.prefill(rng.integers(0, model.config.vocab_size, 64), model.weights, model.config)  # touches the file
    for length in LENGTHS:
        ids = rng.integers(0, model.config.vocab_size, length)
        with PeakAnonymous() as peak:
            start = time.perf_counter()
            _, cache = minigemma.prefill(ids, model.weights, model.config)
            seconds = time.perf_counter() - start
        memory = f"peak anonymous {(peak.bytes or 0) / 1e6:.0f} MB, KV cache {cache.nbytes / 1e6:.0f} MB"
        print(f"{length} tokens: {1000 * seconds / length:.2f} ms a token, {memory}")
    for name, size in ple_table(model).items():
        print(f"{name}: {size} bytes")


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main(sys.argv[1])
