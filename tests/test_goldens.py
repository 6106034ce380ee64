"""minigemma against numbers that transformers computed and that are stored here, so that no PyTorch is needed.

tests/parity/make_goldens.py wrote them, in double precision throughout; a file names the versions it was made with.
"""

from pathlib import Path

import numpy as np
import pytest
from family import weight_sums

from minigemma import Config, Trace, forward, random_weights

GOLDENS = sorted((Path(__file__).parent / "goldens").glob("*.safetensors"))
INPUTS = {"prompt", "soft_positions", "soft_rows", "weight_sums"}
TOLERANCE = {"float64": 1e-10, "float32": 2e-5}


def distance(ours, theirs):
    return np.linalg.norm(ours.astype(np.float64) - theirs) / np.linalg.norm(theirs)


@pytest.fixture(params=GOLDENS, ids=lambda path: path.stem)
def golden(request):
    return Trace.load(request.param)


def test_there_are_goldens_of_every_member_of_the_family():
    assert {path.stem.split("-")[0] for path in GOLDENS} == {"E2B", "E4B", "12B", "26B", "31B"}


def test_the_seed_still_makes_the_weights_that_the_goldens_were_computed_with(golden):
    weights = random_weights(Config.from_dict(golden.metadata["config"]), golden.metadata["seed"], np.float64)
    changed = "random_weights, or NumPy's random numbers, changed: run tests/parity/make_goldens.py again"
    np.testing.assert_allclose(weight_sums(weights), golden["weight_sums"], rtol=0, atol=1e-9, err_msg=changed)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_every_stored_tap_is_what_transformers_computed(golden, dtype):
    config = Config.from_dict(golden.metadata["config"])
    weights = random_weights(config, golden.metadata["seed"], dtype)
    soft = (golden["soft_positions"], golden["soft_rows"].astype(dtype)) if "soft_rows" in golden else None
    ours = Trace()
    forward(golden["prompt"], weights, config, tap=ours, soft_tokens=soft)
    away = {name: distance(ours[name], golden[name]) for name in set(golden) - INPUTS}
    assert "logits" in away
    assert {name: far for name, far in away.items() if not far < TOLERANCE[dtype]} == {}
