"""Mistakes with pictures, made in transformers by other code than the catalogue's: seen, located and named."""

from fnmatch import fnmatchcase
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

import torch
from family import IDS, VISION, random_picture, random_vision, seeing

from minigemma import Config, random_weights
from minigemma.debug.catalogue import FAULTS, applicable
from minigemma.debug.catalogue.vision import COUNTS, SHARED
from minigemma.debug.diagnosis import diagnose
from minigemma.debug.foreign import read_trace
from minigemma.debug.pictures import runs_of
from minigemma.debug.port import PicturePort
from minigemma.debug.runs import PictureRun, Run
from minigemma.inputs import fit_image
from minigemma.taps import vision_names

from . import picture_port as port
from .case import disagreements
from .pictures import Sight, dump_with_picture, random_seeing, taps_behind
from .port import readable

# Found from the ids (COUNTS), of another part (V1 is A2; V19 is B10 and B10b), or an assertion of the engine (V23).
ELSEWHERE = {"V23", "V28", *COUNTS}
LOCATED = {"V3", "V20", "V21"}  # padding, which we do not have, and an overflow inside an op
SOFT = ("vision.soft_tokens",)
GRID = 3, 4
IMAGE = IDS["image_token_id"]
PROMPT = np.array([2, 9, 101, *[IMAGE] * 8, 103, 8, 7, 101, *[IMAGE] * 4, 103, 11, 12])
WHERE = np.flatnonzero(PROMPT == IMAGE)


def label(fault):
    return f"{fault.id}-{fault.member}"


def test_the_port_makes_every_mistake_with_pictures():
    made = {fault.id for fault in (*port.TOWER, *port.MASKS, *port.ROWS)} | {"V14"}
    assert made | ELSEWHERE == {id for id in FAULTS if id.startswith("V")} | set(SHARED)


def sight_of(member, install=None):
    raw = seeing(member)
    side = Config.from_dict(raw).vision.side
    return Sight(raw, random_picture(GRID[0] * side, GRID[1] * side), 1, install)


def judged(sight, theirs, image=None, source=None):
    config = sight.config
    model = SimpleNamespace(config=config, weights=random_weights(config), vision=random_vision(config, 1))
    image = sight.image if image is None else image
    patches = image.shape[0] * image.shape[1] // config.vision.patches[0] ** 2
    theirs = {name: theirs[name] for name in vision_names(config.vision) if name in theirs}
    return diagnose(theirs, PictureRun(model, np.arange(patches), theirs, own_ids=True, image=image, source=source))


@cache
def taken(fault):
    return sight_of(fault.member, fault.install).reference(np.float32)


@pytest.mark.parametrize("member", ["E2B", "31B", "12B"])
def test_the_port_without_a_mistake_is_healthy(member):
    sight = sight_of(member)
    assert judged(sight, sight.reference(np.float32)).verdict == "healthy"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("seed", range(4))
def test_a_healthy_tower_in_16_bits_has_no_fault(seed, dtype):
    sight = Sight(*random_seeing(seed), 1, port.in_16_bits(dtype))
    with readable():
        theirs = sight.reference(np.float32)
    for only in ("*", "*resid_post", *SOFT):
        part = {name: array for name, array in theirs.items() if fnmatchcase(name, only)}
        assert not part or judged(sight, part).verdict == "healthy"


@pytest.mark.parametrize("fault", port.TOWER, ids=label)
def test_a_mistake_in_the_tower_is_seen_located_and_named(fault):
    sight, theirs = sight_of(fault.member), taken(fault)
    wrong = disagreements({name: theirs[name] for name in sight.ours(np.float32) if name in theirs}, sight, np.float32)
    assert fnmatchcase(next(iter(wrong)), fault.first)
    found = judged(sight, theirs)
    assert fnmatchcase(found.first_broken, fault.first)
    if fault.id not in LOCATED:
        assert [named.id for named in found.faults] == [fault.id]
        assert ("harmless" in found.sentence) == bool(FAULTS[fault.id].benign)


def test_mistakes_in_the_tower_are_named_from_the_soft_tokens_alone():
    missed = []
    for fault in port.TOWER:
        if fault.id in LOCATED or FAULTS[fault.id].benign:
            continue
        found = judged(sight_of(fault.member), {name: taken(fault)[name] for name in SOFT})
        missed += [] if [named.id for named in found.faults[:1]] == [fault.id] else [label(fault)]
    assert missed == []


def test_padding_and_overflow_leave_their_mark():
    found = {fault.id: judged(sight_of(fault.member), taken(fault)) for fault in port.TOWER if fault.id in LOCATED}
    assert found["V3"].comparison.hint.startswith("only position 0 is wrong")
    assert "not finite: an overflow" in found["V21"].comparison.hint


def test_bilinear_pixels_are_named():
    sight, colours = sight_of("E2B"), random_picture(50, 70)
    image = fit_image(colours, 70, sight.config.vision.side)
    theirs = Sight(sight.raw, port.bilinear(colours, *image.shape[:2]), 1).reference(np.float32)
    found = judged(sight, theirs, image, (colours, 70))
    assert [named.id for named in found.faults] == ["V14"]


@pytest.mark.parametrize("member", VISION)
def test_the_parity_comparison_fails_for_each_entry_of_the_catalogue(member):
    sight = sight_of(member)
    for fault in (fault for fault in FAULTS.values() if applicable(fault, sight.config, picture=True)):
        for change in fault.changes:
            made = PicturePort(sight.config, sight.weights(np.float64), sight.image)
            change(made)
            soft = {"vision.soft_tokens": made.run()}
            assert disagreements(soft, sight, np.float64), fault.id  # of what a norm takes back eps is left


@pytest.mark.parametrize("member", VISION)
def test_what_the_readmes_function_dumps_of_a_prompt_with_a_picture_is_read_and_healthy(member, tmp_path):
    sight = sight_of(member)
    count = len(sight.ours(np.float32)["vision.soft_tokens"])
    ids = np.array([2, 9, 101, *[IMAGE] * count, 103, 11])
    model = SimpleNamespace(config=sight.config, weights=random_weights(sight.config), vision=sight.weights(np.float32))
    dump_with_picture(sight, model.weights, ids, tmp_path / "dump")
    theirs = read_trace(tmp_path / "dump", sight.config)
    assert theirs.grid == GRID
    tower, text = runs_of(theirs, theirs.tokens, model)
    own = sight.reference(np.float32)
    assert all(np.allclose(array, own[name], rtol=1e-4, atol=1e-5) for name, array in tower.theirs.items())
    between_modules = "rot_q", "rot_k", "scores"
    assert [*tower.theirs] == [n for n in vision_names(sight.config.vision) if not n.endswith(between_modules)]
    for run in (tower, text):
        assert diagnose(run.theirs, run).verdict == "healthy"


# In the text model


@cache
def whole(member):
    raw = seeing(member)
    config = Config.from_dict(raw)
    rows = np.random.default_rng(2).standard_normal((len(WHERE), config.hidden_size)).astype(np.float32)
    return raw, config, random_weights(config, 5), rows


def behind(member, rule=None, rows=None):
    raw, config, weights, own = whole(member)
    if rule is None:
        rule = port.right if config.use_bidirectional_attention else lambda q, k, same, picture, W: (
            (k <= q) & (k > q - W), k <= q)  # fmt: skip
    masks = port.seen(PROMPT, IMAGE, config.sliding_window, rule)
    theirs = taps_behind(raw, weights, PROMPT, own if rows is None else rows, masks)
    run = Run(SimpleNamespace(config=config, weights=weights), PROMPT, theirs, (WHERE, own))
    return diagnose(theirs, run)


@pytest.mark.parametrize("member", ["E2B", "26B-A4B", "31B"])
def test_the_text_behind_pictures_without_a_mistake_is_healthy(member):
    assert behind(member).verdict == "healthy"


@pytest.mark.parametrize("fault", port.MASKS, ids=label)
def test_a_mistake_in_what_pictures_see_is_named(fault):
    found = behind(fault.member, fault.install)
    assert [named.id for named in found.faults] == [fault.id]
    assert fnmatchcase(found.first_broken, fault.first)


@pytest.mark.parametrize("fault", port.ROWS, ids=label)
def test_soft_tokens_of_another_picture_are_named(fault):
    rows = whole(fault.member)[3]
    found = behind(fault.member, rows=fault.install(rows, [range(8), range(8, 12)]))
    assert [named.id for named in found.faults] == [fault.id]
    assert found.first_broken == fault.first
