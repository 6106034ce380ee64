"""`diff` and `diagnose` with pictures: captures of the tower, and of the text model behind soft tokens.

That mistakes made by other code than ours are named is tested in parity/test_picture_mistakes.py.
"""

import json
import math
from fnmatch import fnmatch
from types import SimpleNamespace

import numpy as np
import pytest
from family import IDS, VISION, random_picture, random_vision, seeing
from PIL import Image
from safetensors.numpy import save_file

import minigemma
from minigemma import Config, Error, Trace, forward, load, random_weights
from minigemma.__main__ import main
from minigemma.debug.catalogue import FAULTS, applicable
from minigemma.debug.diagnosis import diagnose, diagnose_file
from minigemma.debug.diff import compare_traces, diff_file
from minigemma.debug.foreign import TABLES, read_trace
from minigemma.debug.port import PicturePort, Port, encoder
from minigemma.debug.runs import PictureRun, Run
from minigemma.ops import horizon, visible
from minigemma.taps import VISION_TAPS, part_of, tap_kind, vision_names

IMAGE = IDS["image_token_id"]
# a picture of eight soft tokens, longer than the window of five, and one of three
PROMPT = np.array([2, 9, 101, *[IMAGE] * 8, 103, 8, 7, 101, *[IMAGE] * 3, 103, 11, 12, 13])
WHERE = np.flatnonzero(PROMPT == IMAGE)
GRID = 2, 3


def model_of(member):
    config = Config.from_dict(seeing(member))
    return SimpleNamespace(config=config, weights=random_weights(config, 1), vision=random_vision(config))


def everything(config):
    return ["*", "*heads*"] if hasattr(config.vision, "head_dim") else None


def picture_of(model, grid=GRID):
    return random_picture(*(model.config.vision.side * n for n in grid))


def picture_run(model, theirs, image=None):
    image = picture_of(model) if image is None else image
    patches = math.prod(image.shape[:2]) // model.config.vision.patches[0] ** 2
    return PictureRun(model, np.arange(patches), theirs, own_ids=True, image=image)


def soft_rows(model):
    return np.random.default_rng(2).standard_normal((len(WHERE), model.config.hidden_size)).astype(np.float32)


# The text model behind pictures


@pytest.mark.parametrize("member", ["E2B", "31B"])
def test_scores_masked_by_the_horizon_of_pictures_are_healthy_and_by_the_causal_mask_are_not(member):
    model, rows = model_of(member), soft_rows(model_of(member))
    config, positions = model.config, np.arange(len(PROMPT))
    for last in (horizon(PROMPT, positions, config), positions):
        trace = Trace()

        def masking(name, x, trace=trace, last=last):
            masked = x
            if name.endswith("attn.scores"):
                window = config.layers[int(name.split(".")[1])].window
                masked = np.where(visible(positions, len(PROMPT), window, len(PROMPT), last), x, -np.inf)
            trace(name, masked)
            return x

        forward(PROMPT, model.weights, config, tap=masking, soft_tokens=(WHERE, rows))
        found = compare_traces(dict(trace), Run(model, PROMPT, dict(trace), (WHERE, rows)))
        if member == "E2B" or last is not positions:
            assert found.first_broken is None
        else:
            assert found.first_broken == "layers.0.attn.scores"
            assert found.hint.startswith("it masks key 4 for query 3, which may see it")


@pytest.mark.parametrize(("id", "only"), [("V9", "*resid_post"), ("V12", "*")])
def test_a_mistake_with_pictures_in_the_text_model_is_named(id, only):
    model = model_of("31B")
    soft = WHERE, soft_rows(model)
    port, trace = Port(model.config, model.weights, PROMPT, soft), Trace(only)
    FAULTS[id].changes[0](port)
    port.run(trace)
    found = diagnose(dict(trace), Run(model, PROMPT, dict(trace), soft))
    assert [fault.id for fault in found.faults] == [id]


# The tower

TOWERS = {"E2B": ("A8", "D2", "V4", "V11", "V17b", "V25b", "V27"), "31B": ("V18", "V25"), "12B": ("V16b", "V22")}


@pytest.mark.parametrize(("member", "id"), [(member, id) for member, ids in TOWERS.items() for id in ids])
def test_a_mistake_in_the_tower_is_named_and_located(member, id):
    model, fault = model_of(member), FAULTS[id]
    port, trace = PicturePort(model.config, model.vision, picture_of(model)), Trace(everything(model.config))
    fault.changes[0](port)
    port.run(trace)
    found = diagnose(dict(trace), picture_run(model, dict(trace)))
    assert [named.id for named in found.faults] == [id]
    assert part_of(tap_kind(found.first_broken)) == part_of(fault.first)
    assert ("harmless" in found.sentence) == bool(fault.benign)


def test_each_mistake_first_changes_the_tap_that_the_catalogue_names():
    for member in VISION:
        model = model_of(member)

        def made(change, model=model):
            port, trace = PicturePort(model.config, model.vision, picture_of(model)), Trace(everything(model.config))
            change(port)
            port.run(trace)
            return trace

        right = made(lambda port: None)
        for fault in (fault for fault in FAULTS.values() if applicable(fault, model.config, picture=True)):
            for wrong in map(made, fault.changes):
                first = next(name for name in right if not np.array_equal(wrong[name], right[name]))
                assert part_of(tap_kind(first)) == part_of(fault.first), fault.id


@pytest.mark.parametrize("member", VISION)
def test_a_healthy_tower_has_no_fault_in_any_number_format(member):
    model = model_of(member)
    for rounded in (np.float32, np.float16):
        trace = Trace(everything(model.config))
        port = PicturePort(model.config, model.vision, picture_of(model))
        port.run(lambda name, x, trace=trace, to=rounded: trace(name, x.astype(to).astype(np.float32)))
        for only in (None, "vision.soft_tokens", "vision.layers.1.resid_post"):
            theirs = {name: array for name, array in trace.items() if only in (None, name)}
            if theirs:
                assert diagnose(theirs, picture_run(model, theirs)).verdict == "healthy"


def test_bilinear_pixels_are_named_where_the_picture_is_known():
    model, colours, trace = model_of("E2B"), random_picture(50, 70), Trace()
    port = PicturePort(model.config, model.vision, minigemma.fit_image(colours, 70, 12), (colours, 70))
    FAULTS["V14"].changes[0](port)
    port.run(trace)
    run = picture_run(model, dict(trace), minigemma.fit_image(colours, 70, 12))
    run.source = colours, 70
    assert [fault.id for fault in diagnose(dict(trace), run).faults] == ["V14"]


@pytest.mark.parametrize("kept", ["*", "vision.soft_tokens"])
def test_pixels_of_another_bicubic_filter_are_harmless(folder, kept):
    model, trace, colours = load(folder), Trace(kept), minigemma.read_image(folder / "photo.png")
    image = minigemma.fit_image(colours, 70, model.config.vision.side)
    steps = np.random.default_rng(0).choice([-2, -1, 0, 1, 2], image.shape, p=[0.002, 0.002, 0.992, 0.002, 0.002])
    other = image.astype(int) + steps
    encoder(model.config)(other.clip(0, 255).astype(np.uint8), model.vision, model.config, tap=trace)
    save_file(dict(trace), folder / "theirs")
    found = diagnose_file(folder / "theirs", model, images=[folder / "photo.png"], budget=70)
    assert found.clean
    assert any("up to 2 of 255, which is harmless" in note for note in found.notes) == (kept == "*")


# Files


@pytest.fixture
def folder(tmp_path):
    """A checkpoint that sees, without a tokenizer, and a picture beside it."""
    config = Config.from_dict(seeing("31B", max_position_embeddings=512))
    minigemma.save(tmp_path, random_weights(config, 1), config, "float32", random_vision(config))
    Image.fromarray(random_picture(30, 40)).save(tmp_path / "photo.png")
    return tmp_path


def recorded(folder, *ids, change=None, budget=70):
    """A trace of a prompt with the picture, of a port with these mistakes -> its ids and arrays by our names."""
    model, trace = load(folder), Trace()
    colours = minigemma.read_image(folder / "photo.png")
    image = minigemma.fit_image(colours, budget, model.config.vision.side)
    tower = PicturePort(model.config, model.vision, image, (colours, budget))
    for id in ids:
        if applicable(FAULTS[id], model.config, picture=True):
            FAULTS[id].changes[0](tower)
    soft = tower.run(trace)
    tokens = [2, 9, 101, *[IMAGE] * len(soft), 103, 8]
    text = Port(model.config, model.weights, tokens, (np.flatnonzero(np.array(tokens) == IMAGE), soft))
    for id in ids:
        if applicable(FAULTS[id], model.config, soft=True):
            FAULTS[id].changes[0](text)
    text.run(trace)
    return tokens, dict(trace), model


@pytest.mark.parametrize(("ids", "kept", "first"), [
    ((), "*", None), ((), "[!v]*", None), (("V18", "V6"), "*", "vision.standardized"),
    (("V18",), "[!v]*", "vision.soft_tokens"),
])  # fmt: skip
def test_a_trace_of_a_prompt_with_its_picture_is_judged_whole(folder, ids, kept, first, capsys):
    """Also where the tower's result shows only in the embeddings of the text model."""
    tokens, arrays, model = recorded(folder, *ids)
    arrays = {name: array for name, array in arrays.items() if fnmatch(name, kept)}
    save_file(arrays, folder / "theirs", {"tokens": str(tokens)})
    options = {"images": [folder / "photo.png"], "budget": 70}
    assert diff_file(folder / "theirs", model, **options).first_broken == first
    command = ["diagnose", str(folder / "theirs"), "--weights", str(folder), "--image", str(folder / "photo.png")]
    assert main([*command, "--budget", "70", "--json"]) == bool(ids)
    found = json.loads(capsys.readouterr().out)
    assert [fault["id"] for fault in found["faults"]] == [*ids]


def test_the_picture_is_taken_from_the_patches_of_a_trace_that_tells_its_grid(folder):
    tokens, arrays, model = recorded(folder, "V18")
    for metadata in ({"grid": "[7, 9]"}, {}):
        save_file(arrays, folder / "theirs", {"tokens": str(tokens)} | metadata)
        if metadata:
            assert diagnose_file(folder / "theirs", model).faults[0].id == "V18"
            continue
        found = diff_file(folder / "theirs", model)
        assert not found.clean and "give the picture with --image" in found.notes[-1]
        assert found.sentence.startswith("all") and found.rows[0].name == "embed"


def test_soft_tokens_that_no_array_shows_are_asked_for(folder):
    tokens, arrays, model = recorded(folder)
    save_file({"logits": arrays["logits"]}, folder / "theirs", {"tokens": str(tokens)})
    with pytest.raises(Error, match=r"63 soft tokens, and the trace holds none; give the picture with --image"):
        diff_file(folder / "theirs", model)
    assert diff_file(folder / "theirs", model, images=[folder / "photo.png"], budget=70).clean
    with pytest.raises(Error, match="1 pictures, and 2 are given"):
        diff_file(folder / "theirs", model, images=[folder / "photo.png"] * 2, budget=70)


def test_of_several_pictures_the_tower_is_judged_on_the_one_that_a_trace_keeps(folder):
    Image.fromarray(random_picture(3, 200, 7)).save(folder / "first.png")
    model, trace = load(folder), Trace()
    first, last = (model.see(folder / name, 70, tap=trace) for name in ("first.png", "photo.png"))
    tokens = np.array([2, 101, *[IMAGE] * len(first), 103, 101, *[IMAGE] * len(last), 103, 7])
    soft = np.flatnonzero(tokens == IMAGE), np.concatenate([first, last])
    model(tokens, tap=trace, soft_tokens=soft)
    save_file(dict(trace), folder / "theirs", {"tokens": str(tokens.tolist()), "grid": "[7, 9]"})
    found = diff_file(folder / "theirs", model, images=[folder / "first.png", folder / "photo.png"], budget=70)
    assert found.clean and found.rows[0].name == "vision.patches" and found.rows[0].verdict == "OK"


@pytest.mark.parametrize(("size", "count", "ids"), [
    ((30, 40), 280, ["V10"]), ((30, 40), 256, ["V10"]), ((30, 40), 6, ["V13"]), ((3, 900), 289, ["V15"]),
    ((30, 40), 130, []),
])  # fmt: skip
def test_a_wrong_number_of_soft_tokens_is_named_from_the_ids(folder, size, count, ids):
    model = load(folder)
    Image.fromarray(random_picture(*size)).save(folder / "photo.png")
    tokens = [2, 101, *[IMAGE] * count, 103]
    save_file({"logits": np.zeros((len(tokens), 120), np.float32)}, folder / "theirs", {"tokens": str(tokens)})
    found = diagnose_file(folder / "theirs", model, images=[folder / "photo.png"])
    assert [fault.id for fault in found.faults] == ids
    assert ("--budget 140" in found.sentence) == (not ids)


def padded(array, rows, axes):
    """A copy with other numbers behind the picture's rows, up to so many on each axis of patches or soft tokens."""
    widths = [(0, rows[letter] - array.shape[i] if letter in rows else 0) for i, letter in enumerate(axes)]
    return np.pad(array, widths, constant_values=7)[None]


def test_names_and_padding_of_transformers_and_mlx_vlm_are_read(tmp_path):
    model = model_of("31B")
    trace = Trace(everything(model.config))
    encoder(model.config)(picture_of(model), model.vision, model.config, tap=trace)
    rows, arrays, tower = {"T": 99, "M": 11}, {}, "model.vision_tower.encoder.layers.*."
    for name, array in trace.items():
        tap = VISION_TAPS[tap_kind(name)]
        out, _, given = tap.module.partition(">")
        for side, modules in ("output", out.split()), ("input", given.split()):
            for module in modules:
                layer = name.split(".")[2] if "layers" in name else ""
                path = tower.replace("*", layer) + module if layer else f"model.{module}"
                key = path.rstrip(".")
                arrays[f"{key}.{side}.0"] = padded(array, rows, tap.axes.split())
    for i in range(2):
        heads = [trace[f"vision.layers.{i}.attn.heads.{n}.pattern"] for n in range(4)]
        arrays[f"{tower}self_attn.output.1".replace("*", str(i))] = padded(np.stack(heads), rows, "NTT")
        key = f"{tower}self_attn.v_norm.output.0".replace("*", str(i))
        arrays[key.replace("v_norm", "_v_norm")] = arrays.pop(key)
    column, row = (grid.ravel() for grid in np.meshgrid(np.arange(9), np.arange(6)))
    places = np.concatenate([np.stack([column, row], -1), np.full((45, 2), -1)])
    arrays["model.vision_tower.patch_embedder.input.1"] = places[None]
    save_file(arrays, tmp_path / "theirs")
    foreign = read_trace(tmp_path / "theirs", model.config)
    unseen = ("rot_q", "rot_k", "scores", "standardized")
    assert set(foreign.arrays) == {name for name in vision_names(model.config.vision) if not name.endswith(unseen)}
    for name, array in foreign.arrays.items():
        np.testing.assert_array_equal(array, trace[name], err_msg=name)
    assert foreign.grid == GRID and not foreign.unread


def test_names_of_llama_cpps_picture_graph_are_read(tmp_path):
    model = model_of("31B")
    trace, arrays = Trace(), {}
    encoder(model.config)(picture_of(model), model.vision, model.config, tap=trace)
    (names,) = (table["names"] for table in json.loads(TABLES.read_text()) if table["of"].endswith("of a picture"))
    for theirs, ours in names.items():
        for i in range(2 if "{i}" in theirs else 1):
            arrays[theirs.format(i=i)] = trace[ours.format(i=i)]
    save_file(arrays, tmp_path / "theirs")
    foreign = read_trace(tmp_path / "theirs", model.config, grid=GRID)
    assert len(foreign.arrays) == len(arrays) and not foreign.ignored
    assert all(np.array_equal(array, trace[name]) for name, array in foreign.arrays.items())
    found = diagnose(foreign.arrays, picture_run(model, foreign.arrays))
    assert found.verdict == "healthy"


def test_the_pad_tokens_row_under_a_soft_token_is_no_embedding(folder):
    tokens, arrays, model = recorded(folder)
    arrays["model.embed_tokens.output.0"] = np.zeros_like(arrays.pop("embed"))
    save_file(arrays, folder / "theirs", {"tokens": str(tokens), "grid": "[7, 9]"})
    found = diff_file(folder / "theirs", model)
    assert found.clean and found.first_broken is None
