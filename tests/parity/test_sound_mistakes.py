"""Mistakes with sounds, made in transformers by other code than the catalogue's: seen, located and named."""

from fnmatch import fnmatchcase
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from family import IDS, SOUND_IDS, hearing, random_sound

from minigemma import Config, random_weights
from minigemma.audio import log_mel
from minigemma.debug.catalogue import FAULTS, applicable
from minigemma.debug.diagnosis import diagnose
from minigemma.debug.port import SoundPort
from minigemma.debug.runs import Run, SoundRun

from . import picture_port
from . import sound_port as port
from .case import disagreements
from .pictures import taps_behind
from .sounds import Hearing

SOUND = random_sound(9000, 3)
AUDIO = IDS["audio_token_id"]


def label(fault):
    return fault.id


def case_of(mel=None, install=lambda tower: None):
    return Hearing(hearing("E2B"), log_mel(SOUND) if mel is None else mel, 1, install, padding=0)


@cache
def taken(fault):
    if fault in port.MELS:
        return case_of(fault.install(SOUND)).reference(np.float32)
    return case_of(install=fault.install).reference(np.float32)


def judged(theirs):
    case = case_of()
    model = SimpleNamespace(config=case.config, weights=random_weights(case.config), audio=case.weights(np.float32))
    frames = np.arange(-(-len(case.sound) // 4))
    return diagnose(theirs, SoundRun(model, frames, theirs, own_ids=True, heard=case.sound, samples=SOUND))


def test_the_port_makes_every_mistake_with_sounds_that_activations_show():
    made = {fault.id for fault in (*port.TOWER, *port.MELS)} | {"S12"}
    assert made == {id for id, entry in FAULTS.items() if id.startswith("S") and entry.changes}


def test_the_port_of_a_sound_without_a_mistake_is_healthy():
    assert judged(case_of().reference(np.float32)).verdict == "healthy"


@pytest.mark.parametrize("fault", [*port.TOWER, *port.MELS], ids=label)
def test_a_mistake_with_a_sound_is_seen_located_and_named(fault):
    case, theirs = case_of(), taken(fault)
    wrong = disagreements({name: theirs[name] for name in case.ours(np.float32)}, case, np.float32)
    assert fnmatchcase(next(iter(wrong)), fault.first)
    found = judged(theirs)
    assert fnmatchcase(found.first_broken, fault.first)
    assert [named.id for named in found.faults] == [fault.id]
    assert ("harmless" in found.sentence) == bool(FAULTS[fault.id].benign)


def test_mistakes_with_a_sound_are_named_from_the_soft_tokens_alone():
    missed = []
    for fault in (*port.TOWER, *port.MELS):
        if not FAULTS[fault.id].benign:
            found = judged({"audio.soft_tokens": taken(fault)["audio.soft_tokens"]})
            missed += [] if [named.id for named in found.faults[:1]] == [fault.id] else [fault.id]
    assert missed == []


def test_the_parity_comparison_fails_for_each_mistake_with_sounds():
    case = case_of()
    for fault in FAULTS.values():
        if applicable(fault, case.config, sound=True, samples=True):
            for change in fault.changes:
                made = SoundPort(case.config, case.weights(np.float64), case.sound, SOUND)
                change(made)
                assert disagreements({"audio.soft_tokens": made.run()}, case, np.float64), fault.id


@pytest.mark.parametrize("member", ["E2B", "31B"])
@pytest.mark.parametrize("both", [False, True], ids=["sliding layers", "all layers"])
def test_sounds_that_look_ahead_in_the_text_model_are_named(member, both):
    raw = hearing(member) | SOUND_IDS
    config = Config.from_dict(raw)
    prompt = np.array([2, 9, 106, *[AUDIO] * 4, 107, 8, 7])
    where = np.flatnonzero(prompt == AUDIO)
    rows = np.random.default_rng(2).standard_normal((len(where), config.hidden_size)).astype(np.float32)
    weights, W = random_weights(config, 5), config.sliding_window

    def rule(q, k, same, *_):
        return ((k <= q) | same) & (k > q - W), (k <= q) | (same & both)

    masks = picture_port.seen(prompt, AUDIO, W, rule)
    as_image = np.where(prompt == AUDIO, IDS["image_token_id"], prompt)  # rows are put in there; the masks are given
    theirs = taps_behind(raw, weights, as_image, rows, masks)
    found = diagnose(theirs, Run(SimpleNamespace(config=config, weights=weights), prompt, theirs, (where, rows)))
    assert [named.id for named in found.faults] == ["S12"]
