"""Pictures against numbers that transformers computed and that are stored here, so that no PyTorch is needed.

tests/parity/make_picture_goldens.py wrote them, in double precision throughout.
"""

from pathlib import Path

import numpy as np
import pytest
from family import IDS, VISION, picture_prompt, random_picture, random_vision, weight_sums
from test_goldens import TOLERANCE, distance

from minigemma import Config, Trace, embed_image, encode_image, forward, random_weights
from minigemma.config import VisionEmbedder

GOLDENS = sorted((Path(__file__).parent / "goldens" / "pictures").glob("*.safetensors"))


@pytest.fixture(params=GOLDENS, ids=lambda path: path.stem)
def golden(request):
    return Trace.load(request.param)


def test_there_is_a_golden_of_every_kind_of_vision():
    assert {path.stem for path in GOLDENS} == set(VISION)


def test_the_seed_still_makes_the_weights_of_the_pictures_goldens(golden):
    config, seed = Config.from_dict(golden.metadata["config"]), golden.metadata["seed"]
    models = random_vision(config, seed, np.float64), random_weights(config, seed, np.float64)
    changed = "random weights changed: run tests/parity/make_picture_goldens.py again"
    np.testing.assert_allclose(weight_sums(*models), golden["weight_sums"], rtol=0, atol=1e-9, err_msg=changed)


@pytest.mark.parametrize("dtype", TOLERANCE)
def test_soft_tokens_and_the_logits_behind_them_are_what_transformers_computed(golden, dtype):
    config, seed = Config.from_dict(golden.metadata["config"]), golden.metadata["seed"]
    ours = Trace(list(set(golden) - {"weight_sums"}))
    image = random_picture(*(config.vision.side * n for n in golden.metadata["grid"]), seed)
    encode = embed_image if isinstance(config.vision, VisionEmbedder) else encode_image
    soft = encode(image, random_vision(config, seed, dtype), config, tap=ours)
    ids = picture_prompt(len(soft))
    where = np.flatnonzero(ids == IDS["image_token_id"])
    forward(ids, random_weights(config, seed, dtype), config, soft_tokens=(where, soft), tap=ours)
    away = {name: distance(ours[name], golden[name]) for name in set(golden) - {"weight_sums"}}
    assert {"vision.soft_tokens", "logits"} <= set(away)
    assert {name: far for name, far in away.items() if not far < TOLERANCE[dtype]} == {}
