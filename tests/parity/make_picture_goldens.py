"""Write tests/goldens/pictures: what transformers computes, in double, of a picture and of the text behind it.

    PYTHONPATH=.:tests python -m parity.make_picture_goldens

The default test suite compares minigemma with these files and so needs no PyTorch. Weights and picture are not stored:
the seed makes them again, and a sum over each tensor tells whether they are the same.
"""

import platform
from pathlib import Path

import numpy as np
import torch
import transformers
from family import VISION, picture_prompt, random_picture, random_vision, seeing

from minigemma import Config, Trace, random_weights

from .pictures import Sight, logits_behind, logits_of_12b

DIRECTORY = Path(__file__).resolve().parent.parent / "goldens" / "pictures"
SEED, GRID = 21, (2, 3)
KEPT = ("vision.embed", "resid_post", "layers.1.attn.heads.1.pattern", "pooled", "standardized", "soft_tokens")


def golden(member):
    """The arrays of one golden: the sums of the weights, the kept taps, and the logits behind the picture."""
    raw = seeing(member)
    config = Config.from_dict(raw)
    image = random_picture(*(config.vision.side * n for n in GRID), SEED)
    taps = Sight(raw, image, SEED).reference(np.float64)
    arrays = {name: array for name, array in taps.items() if name.endswith(KEPT)}
    ids, weights = picture_prompt(len(taps["vision.soft_tokens"])), random_weights(config, SEED, np.float64)
    logits_of = logits_of_12b if member == "12B" else logits_behind
    arrays["logits"] = logits_of(raw, weights, ids, taps["vision.soft_tokens"])
    return arrays | {"weight_sums": weight_sums(random_vision(config, SEED, np.float64), weights)}


def weight_sums(*models):
    """One number an array, in the order of the attributes' names."""
    owners = [owner for weights in models for owner in (weights, *weights.layers)]
    values = [value for owner in owners for name, value in sorted(vars(owner).items()) if name != "layers"]
    return np.array([getattr(value, "weight", value).sum() for value in values])


def main():
    DIRECTORY.mkdir(exist_ok=True)
    made_with = {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__}
    made_with |= {"python": platform.python_version()}
    for member in VISION:
        trace, path = Trace(), DIRECTORY / f"{member}.safetensors"
        trace.arrays = {name: np.ascontiguousarray(array) for name, array in golden(member).items()}
        trace.save(path, config=seeing(member), seed=SEED, grid=GRID, made_with=made_with)
        print(f"{path.stat().st_size:7,} bytes  {path.name}")


if __name__ == "__main__":
    main()
