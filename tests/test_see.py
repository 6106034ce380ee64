"""Pictures from Python and from the command line, on the tiny weights with a small random tower beside them."""

import json
import shutil

import numpy as np
import pytest
from family import VISION, random_picture, random_vision
from PIL import Image
from test_command_line import refused, run
from test_vision import write_vision

import minigemma
from minigemma import Config, Error, generate_ids, load
from minigemma.checkpoint import Stored, read_header
from minigemma.sampling import see_prompt
from minigemma.vision import encode_image

BOI, IMAGE, EOI = 2553, 2555, 2554  # of the tiny vocabulary


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A checkpoint that sees: two shards, the tiny weights and a random tower."""
    folder = tmp_path_factory.mktemp("whole")
    for name in ("tokenizer.json", "generation_config.json"):
        shutil.copy(minigemma.TINY / name, folder)
    raw = json.loads((minigemma.TINY / "config.json").read_text()) | {"vision_config": VISION["E2B"]}
    (folder / "config.json").write_text(json.dumps(raw))
    config = Config.from_dict(raw)
    write_vision(folder, config, random_vision(config))
    (folder / "model.safetensors").rename(folder / "vision.safetensors")
    shutil.copy(minigemma.TINY / "model.safetensors", folder / "text.safetensors")
    shards = {name: file for file in ("text", "vision") for name in read_header(folder / f"{file}.safetensors")}
    index = {"weight_map": {name: f"{file}.safetensors" for name, file in shards.items()}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("pictures") / "photo.png"
    Image.fromarray(random_picture(30, 40)).save(path)
    return path


def test_see_gives_the_soft_tokens_of_the_picture_at_the_budget_asked_for(whole, picture):
    model = load(whole)
    for budget, count in ((70, 63), (140, 130)):
        soft = model.see(picture, budget)
        assert soft.shape == (count, model.config.hidden_size)
        assert np.array_equal(soft, model.see(random_picture(30, 40), budget))
    image = random_picture(7 * 12, 9 * 12)  # fits the budget of 70
    assert np.array_equal(model.see(image, 70), encode_image(image, model.vision, model.config))


def test_whoever_sends_text_touches_no_tensor_of_the_tower(whole, picture, monkeypatch):
    mapped, read = [], Stored.map
    monkeypatch.setattr(Stored, "map", lambda stored: mapped.append(stored.path.name) or read(stored))
    model = load(whole)
    logits, _ = model([2, 5, 6])
    assert set(mapped) == {"text.safetensors"}
    assert np.array_equal(logits, load()([2, 5, 6])[0])
    model.see(picture)
    assert set(mapped) > {"vision.safetensors"}


def test_pictures_stand_before_the_text_or_where_it_says_so(whole, picture):
    model = load(whole)
    block = [BOI, *[IMAGE] * 63, EOI]

    def words(text):
        return model.tokenizer.encode(text, bos=False)

    ids, (where, rows) = see_prompt(model, "What is it?", [picture], 70)
    assert ids == [2, *block, *words("What is it?")]
    assert where.tolist() == list(range(2, 65)) and np.array_equal(rows, model.see(picture, 70))
    ids, (where, rows) = see_prompt(model, "a{image}b{image}", [picture, picture], 70)
    assert ids == [2, *words("a"), *block, *words("b"), *block]
    assert set(np.array(ids)[where]) == {IMAGE} and len(where) == len(rows) == 126
    ids, _ = see_prompt(model, "Look", [picture, picture], 70)
    assert ids == [2, *block, *block, *words("Look")]
    for places in (1, 3):
        with pytest.raises(Error, match=f"has {places} places .image., and 2 pictures"):
            see_prompt(model, "{image}" * places, [picture, picture])


def test_a_picture_changes_what_is_said_and_one_call_says_the_same_as_the_command(whole, picture):
    model = load(whole)
    ids, soft = see_prompt(model, "The hat is", [picture], 70)
    drawn = [id for id, _ in generate_ids(model, ids, 5, soft_tokens=soft, temperature=0.0)]
    command = ["generate", "The hat is", "--image", picture, "--budget", "70", "--temperature", "0", "-n", "5"]
    assert run(*command, "--weights", whole).stdout.rstrip("\n") == model.tokenizer.decode(drawn)
    logits = [model(ids, soft_tokens=(soft[0], rows), logits="last")[0] for rows in (soft[1], -soft[1])]
    assert not np.allclose(*logits)


def test_a_text_model_says_that_it_cannot_see(picture):
    for image in (picture, "no/such/file.png"):
        refused(run("generate", "Hi", "--image", image), "no vision_config")


def test_a_picture_that_is_longer_than_the_context_is_refused(whole, picture):
    model = load(whole)
    ids, soft = see_prompt(model, "Hi", [picture], 70)
    object.__setattr__(model.config, "max_position_embeddings", 60)
    with pytest.raises(Error, match="60 positions"):
        next(generate_ids(model, ids, 1, soft_tokens=soft))


def test_tokens_prints_size_grid_and_count_at_every_budget_without_weights(picture, tmp_path):
    lines = run("tokens", "--image", picture, MINIGEMMA_WEIGHTS=str(tmp_path / "nothing")).stdout.splitlines()
    assert lines[0].endswith("photo.png: 40 x 30 pixels")
    assert [line.split()[-1] for line in lines[2:]] == ["63", "130", "266", "540", "1,064"]
    result = json.loads(run("tokens", "--json", "--image", picture, "--image", picture).stdout)
    assert len(result) == 2
    expected = {"budget": 280, "width": 912, "height": 672, "columns": 19, "rows": 14, "soft_tokens": 266}
    assert result[1]["grids"][2] == expected
    refused(run("tokens", "--image", __file__), "not a picture")
