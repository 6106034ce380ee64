"""Write tests/goldens/pictures: what transformers computes, in double, of a picture and of the text behind it.

    PYTHONPATH=.:tests python -m parity.make_picture_goldens

The default test suite compares minigemma with these files and so needs no PyTorch. Weights and picture are not stored:
the seed makes them again, and a sum over each tensor tells whether they are the same.
"""

from pathlib import Path

import numpy as np
from family import VISION, picture_prompt, random_picture, random_vision, seeing, weight_sums

from minigemma import Config, random_weights

from .make_goldens import write_goldens
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


if __name__ == "__main__":
    write_goldens(DIRECTORY, {member: seeing(member) for member in VISION}, golden, seed=SEED, grid=GRID)
