"""Write tests/goldens: what transformers computes, in double, for small members of the family and a fixed prompt.

    PYTHONPATH=.:tests python -m parity.make_goldens

The default test suite compares minigemma with these files and so needs no PyTorch. The weights are not stored:
random_weights makes them again from the seed, and a sum over each tensor tells whether they are the same.
"""

import platform
from fnmatch import fnmatchcase
from pathlib import Path

import numpy as np
import torch
import transformers
from family import fields, weight_sums

from minigemma import Config, Trace, random_weights

from .configs import googles, transformers_own
from .reference import build, record

DIRECTORY = Path(__file__).resolve().parent.parent / "goldens"
SEED, LENGTH, VOCAB = 20, 10, 60
KEPT = ["ple", "layers.*.resid_post", "layers.{last}.attn.pattern", "layers.*.router.*s", "final_norm", "logits"]


def small(member, **changes):
    table = {"vocab_size_per_layer_input": VOCAB} if "E" in member else {}
    return fields(member, vocab_size=VOCAB, **table, **changes)


SOFT = "E2B-soft-tokens"
GOLDENS = {
    "E2B": googles(small("E2B")),
    "E4B": transformers_own(small("E4B")),
    "12B": transformers_own(small("12B")),
    "26B-A4B": googles(small("26B-A4B")),
    "31B": small("31B"),
    "E2B-without-sharing": small("E2B", num_kv_shared_layers=0),
    "E4B-window-of-one-no-softcap": small("E4B", sliding_window=1, final_logit_softcapping=None),
    SOFT: small("E2B", pad_token_id=3),
}


def golden(name):
    """The arrays of one golden: the inputs, the sums of the weights and the kept taps."""
    raw, rng = GOLDENS[name], np.random.default_rng(SEED)
    config = Config.from_dict(raw)
    weights = random_weights(config, SEED, np.float64)
    arrays, soft = {"prompt": rng.integers(0, VOCAB, LENGTH), "weight_sums": weight_sums(weights)}, None
    if name == SOFT:
        soft = np.array([2, 3, 4, 9]), rng.standard_normal((4, config.hidden_size))
        arrays |= {"soft_positions": soft[0], "soft_rows": soft[1]}
    taps = record(build(raw, config, weights, np.float64), arrays["prompt"], np.float64, soft)
    kept = [pattern.format(last=config.num_hidden_layers - 1) for pattern in KEPT]
    return arrays | {name: taps[name] for name in taps if any(fnmatchcase(name, pattern) for pattern in kept)}


def write_goldens(directory, configs, golden, **metadata):
    """Write the arrays of golden(name) for each name; configs: name -> its config.json, which is stored with them."""
    directory.mkdir(exist_ok=True)
    made_with = {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__}
    metadata["made_with"] = made_with | {"python": platform.python_version()}
    for name, raw in configs.items():
        trace, path = Trace(), directory / f"{name}.safetensors"
        trace.arrays = {tap: np.ascontiguousarray(array) for tap, array in golden(name).items()}
        trace.save(path, config=raw, **metadata)
        print(f"{path.stat().st_size:7,} bytes  {path.name}")


if __name__ == "__main__":
    write_goldens(DIRECTORY, GOLDENS, golden, seed=SEED)
