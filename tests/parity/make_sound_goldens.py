"""Write tests/goldens/sounds: what transformers computes, in double, of a sound.

    PYTHONPATH=.:tests python -m parity.make_sound_goldens

The default test suite compares minigemma with these files and so needs no PyTorch. Weights and sound are not stored:
the seed makes them again, and a sum over the weights tells whether they are the same.
"""

import platform
from pathlib import Path

import numpy as np
import torch
import transformers
from family import HEARING, hearing, random_sound
from transformers import Gemma4AudioFeatureExtractor

from minigemma import Trace

from .sounds import Hearing, audio_state

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
    weights = audio_state(case.config, case.weights(np.float64))
    return arrays | {"weight_sum": np.array(sum(float(tensor.sum()) for tensor in weights.values()))}


def main():
    DIRECTORY.mkdir(exist_ok=True)
    made_with = {"transformers": transformers.__version__, "torch": torch.__version__, "numpy": np.__version__}
    made_with |= {"python": platform.python_version()}
    for member in HEARING:
        trace, path = Trace(), DIRECTORY / f"{member}.safetensors"
        trace.arrays = {name: np.ascontiguousarray(array) for name, array in golden(member).items()}
        trace.save(path, config=hearing(member), seed=SEED, samples=SAMPLES, made_with=made_with)
        print(f"{path.stat().st_size:7,} bytes  {path.name}")


if __name__ == "__main__":
    main()
