"""Pictures against transformers: every intermediate between the pixels and the soft tokens."""

import numpy as np
import pytest
from family import VISION, random_picture, seeing

from minigemma import Config
from minigemma.taps import vision_names

from .case import disagreements
from .pictures import Sight, random_seeing

PRECISIONS = pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=["float32", "float64"])


def assert_every_tap_agrees(sight, dtype):
    ours = sight.ours(dtype)
    assert list(ours) == vision_names(sight.config.vision)
    assert set(ours) == set(sight.reference(dtype))
    assert disagreements(ours, sight, dtype) == {}


@PRECISIONS
@pytest.mark.parametrize("seed", range(120))
def test_every_intermediate_of_a_picture_is_transformers(seed, dtype):
    assert_every_tap_agrees(Sight(*random_seeing(seed), seed), dtype)


@PRECISIONS
@pytest.mark.parametrize("member", VISION)
@pytest.mark.parametrize("grid", [(1, 1), (1, 9), (9, 1), (4, 7)], ids=str)
def test_pictures_of_any_shape_agree_in_every_kind_of_model(member, grid, dtype):
    raw = seeing(member)
    side = Config.from_dict(raw).vision.side
    assert_every_tap_agrees(Sight(raw, random_picture(grid[0] * side, grid[1] * side)), dtype)


def test_the_random_clip_bounds_bite():
    """Otherwise the cases above could not tell a clipped linear from a plain one."""
    sight = Sight(seeing("E2B"), random_picture(24, 24))
    ours, w = sight.ours(np.float64), sight.weights(np.float64).layers[1]
    limits = w.q_proj.bounds[2:]
    assert np.isin(ours["vision.layers.1.attn.q_raw"], limits).mean() > 0.05
