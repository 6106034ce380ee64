"""Write tests/goldens/sounds: what transformers computes, in double, of a sound.

    PYTHONPATH=.:tests python -m parity.make_sound_goldens

The default test suite compares minigemma with these files and so needs no PyTorch. Weights and sound are not stored:
the seed makes them again, and a sum over the weights tells whether they are the same.
"""

from pathlib import Path

import numpy as np
from family import HEARING, hearing, random_sound, tower_arrays
from transformers import Gemma4AudioFeatureExtractor

from .make_goldens import write_goldens
from .sounds import Hearing

DIRECTORY = Path(__file__).resolve().parent.parent / "goldens" / "sounds"
SEED, SAMPLES = 23, 8000
KEPT = ("audio.mel", "embed", "resid_post", "layers.1.attn.pattern", "encoded", "soft_tokens")


def golden(member):
    """The arrays of one golden: the sum of the weights, and the kept taps."""
    sound = random_sound(SAMPLES, SEED)
    if member != "12B":
        found = Gemma4AudioFeatureExtractor()([sound], return_tensors="np")
        sound = found["input_features"][0][found["input_features_mask"][0]]
    case = Hearing(hearing(member), sound, SEED)
    arrays = {name: array for name, array in case.reference(np.float64).items() if name.endswith(KEPT)}
    weights = tower_arrays(case.config, "audio", case.weights(np.float64))
    return arrays | {"weight_sum": np.array(sum(float(array.sum()) for array in weights.values()))}


if __name__ == "__main__":
    write_goldens(DIRECTORY, {member: hearing(member) for member in HEARING}, golden, seed=SEED, samples=SAMPLES)
