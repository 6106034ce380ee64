"""Sounds against numbers that transformers computed and that are stored here, so that no PyTorch is needed.

tests/parity/make_sound_goldens.py wrote them, in double precision behind the log mel.
"""

from pathlib import Path

import numpy as np
import pytest
from family import HEARING, random_audio, random_sound, tower_arrays
from test_goldens import TOLERANCE, distance

from minigemma import Config, Trace, embed_sound, encode_audio, log_mel

GOLDENS = sorted((Path(__file__).parent / "goldens" / "sounds").glob("*.safetensors"))


@pytest.fixture(params=GOLDENS, ids=lambda path: path.stem)
def golden(request):
    return Trace.load(request.param)


def test_there_is_a_golden_of_every_kind_of_hearing():
    assert {path.stem for path in GOLDENS} == set(HEARING)


def test_the_seed_still_makes_the_weights_of_the_sounds_goldens(golden):
    config = Config.from_dict(golden.metadata["config"])
    weights = random_audio(config, golden.metadata["seed"], np.float64)
    total = sum(float(np.sum(array)) for array in tower_arrays(config, "audio", weights).values())
    changed = "random weights changed: run tests/parity/make_sound_goldens.py again"
    np.testing.assert_allclose(total, golden["weight_sum"], rtol=0, atol=1e-9, err_msg=changed)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_kept_tap_of_a_sound_is_what_transformers_computed(golden, dtype):
    config, seed = Config.from_dict(golden.metadata["config"]), golden.metadata["seed"]
    sound, ours = random_sound(golden.metadata["samples"], seed), Trace()
    weights = random_audio(config, seed, dtype)
    if hasattr(config.audio, "bins"):
        np.testing.assert_allclose(log_mel(sound), golden["audio.mel"], rtol=2e-6)  # equal bits with the same BLAS
        encode_audio(golden["audio.mel"].astype(np.float32), weights, config, tap=ours)
    else:
        embed_sound(sound, weights, config, tap=ours)
    away = {name: distance(ours[name], golden[name]) for name in set(golden) - {"weight_sum"}}
    assert "audio.soft_tokens" in away
    assert {name: far for name, far in away.items() if not far < TOLERANCE[dtype]} == {}
