"""Pictures against transformers: every intermediate between the pixels and the soft tokens."""

import numpy as np
import pytest
from family import IDS, MEMBERS, VISION, random_picture, random_vision, seeing
from PIL import Image

pytest.importorskip("torch")
pytest.importorskip("transformers")

from transformers.models.gemma4.image_processing_pil_gemma4 import (
    Gemma4ImageProcessorPil,
    get_aspect_ratio_preserving_size,
)

from minigemma import Config, forward, prefill
from minigemma.inputs import BUDGETS, as_patches, fit_image, grid_of, read_image
from minigemma.taps import vision_names

from .case import NOISE, TOLERANCE, Case, disagreements, distance
from .pictures import Sight, logits_behind, logits_of_12b, random_seeing

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


# The picture's way to patches, against transformers' image processor with Pillow


def processed(image, budget):
    processor = Gemma4ImageProcessorPil(max_soft_tokens=budget)
    found = processor(images=[image], return_tensors="np")
    count = found["num_soft_tokens_per_image"][0]
    return found["pixel_values"][0][: 9 * count], found["image_position_ids"][0][: 9 * count], count


def ours(source, budget):
    raw = seeing("E2B", VISION["E2B"] | {"patch_size": 16, "position_embedding_size": 3400})
    config = Config.from_dict(raw)
    image = fit_image(read_image(source), budget, config.vision.side)
    patches, column, row = as_patches(image, random_vision(config), config, "input_proj")
    return patches, np.stack([column, row], -1), len(patches) // 9


NOISY = Image.fromarray(random_picture(50, 70))
PICTURES = {
    "photo": Image.fromarray(random_picture(300, 400)), "thin": Image.fromarray(random_picture(3, 900)),
    "one pixel": Image.fromarray(random_picture(1, 1)), "line": Image.fromarray(random_picture(1, 5000)),
    "fits": Image.fromarray(random_picture(768, 768)), "grey": NOISY.convert("L"),
    "palette": NOISY.convert("P"), "CMYK": Image.new("CMYK", (50, 70), (9, 8, 200, 3)),
    "RGBA": Image.fromarray(np.random.default_rng(1).integers(0, 256, (60, 50, 4), np.uint8)),
    "LA": NOISY.convert("LA"), "1": NOISY.convert("1"),
}  # fmt: skip


@pytest.mark.parametrize("budget", BUDGETS)
@pytest.mark.parametrize("name", PICTURES)
def test_the_patches_of_a_picture_are_transformers_bit_for_bit(name, budget):
    for mine, theirs in zip(ours(PICTURES[name], budget), processed(PICTURES[name], budget), strict=True):
        assert np.array_equal(mine, theirs)
    assert ours(PICTURES[name], budget)[0].dtype == np.float32


def test_the_size_rule_is_transformers_in_5000_cases():
    rng = np.random.default_rng(6)
    for _ in range(5000):
        patch, pool = rng.choice([2, 4, 16]), rng.choice([1, 3])
        height, width = (int(n) for n in np.exp(rng.uniform(0, 10, 2)).astype(int) + 1)
        budget = int(rng.choice(BUDGETS))
        theirs = get_aspect_ratio_preserving_size(height, width, int(patch), budget * int(pool) ** 2, int(pool))
        side = int(patch * pool)
        rows, columns = grid_of(height, width, budget, side)
        assert (rows * side, columns * side) == theirs, (height, width, budget, patch, pool)


# Pictures in the text model


def prompt_with_pictures(seed):
    """Ids with one to three pictures, some longer than the window of five, and the positions of their soft tokens."""
    rng, ids = np.random.default_rng([3, seed]), [2]
    for _ in range(rng.integers(1, 4)):
        ids += [*rng.integers(1, 100, rng.integers(0, 4)), IDS["boi_token_id"]]
        ids += [IDS["image_token_id"]] * int(rng.integers(1, 9)) + [IDS["eoi_token_id"]]
    ids = np.array([*ids, *rng.integers(1, 100, rng.integers(1, 5))])
    return ids, np.flatnonzero(ids == IDS["image_token_id"])


def in_two_calls(ids, soft, weights, config, edge):
    """The logits [T, V] of a sequence that goes on behind its cache; each call has its own pictures."""
    where, rows = soft
    first, rest = where < edge, where >= edge  # [M] each
    head, cache = forward(ids[:edge], weights, config, soft_tokens=(where[first], rows[first]))
    tail, _ = forward(ids[edge:], weights, config, cache, soft_tokens=(where[rest] - edge, rows[rest]))
    return np.concatenate([head, tail])


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("member", MEMBERS)
def test_the_logits_behind_several_pictures_are_transformers(member, seed, monkeypatch):
    """In one call, behind a cache between two pictures or at their end, and in chunks; in double and in float32.

    Its Gemma4Model finds the placeholders, merges the rows and makes the masks itself. Of 12B the masks are those of
    its generate, which is what people run: its plain forward makes others.
    """
    raw = seeing(member)
    ids, where = prompt_with_pictures(seed)
    case = Case(raw["text_config"], ids, seed)
    config, logits_of = Config.from_dict(raw), logits_of_12b if member == "12B" else logits_behind
    rows = np.random.default_rng(seed).standard_normal((len(where), config.hidden_size)).astype(np.float32)
    theirs = {t: logits_of(raw, case.weights(t), ids, rows.astype(t), t) for t in (np.float32, np.float64)}
    monkeypatch.setattr("minigemma.sampling.CHUNK", 4)
    for dtype, right in theirs.items():
        weights, soft = case.weights(dtype), (where, rows.astype(dtype))
        allowed = TOLERANCE[dtype]
        if dtype == np.float32:
            allowed = max(allowed, NOISE * distance(theirs[np.float32], theirs[np.float64]))
        whole, _ = forward(ids, weights, config, soft_tokens=soft)
        edges = [np.flatnonzero(ids == IDS["eoi_token_id"])[0] + 1, where[-1] + 2]
        for ours in (whole, *(in_two_calls(ids, soft, weights, config, edge) for edge in edges)):
            assert distance(ours, right) < allowed
        last, _ = prefill(ids, weights, config, soft_tokens=soft)
        assert distance(last, right[-1]) < allowed
