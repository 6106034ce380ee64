"""A trace of a sound beside our own pass: diff names the first broken op of the audio tower."""

import numpy as np
import pytest
from family import random_sound, write_whole
from test_hear import SOUND
from test_sounds import wav

import minigemma
from minigemma import Edit, Trace
from minigemma.__main__ import main
from minigemma.debug.diagnosis import diagnose_file
from minigemma.debug.diff import diff_file
from minigemma.media import place_files
from minigemma.sampling import read_prompt


@pytest.fixture(scope="module")
def tower(whole):
    return minigemma.load(whole)


@pytest.fixture(scope="module", params=["E2B", "12B"])
def model(request, tower, tmp_path_factory):
    return tower if request.param == "E2B" else minigemma.load(write_whole(tmp_path_factory.mktemp("12B"), "12B"))


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds") / "word.wav"
    path.write_bytes(wav(SOUND, "float"))
    return path


def captured(path, model, change=None, only=None, text=True):
    """A trace of a prompt with the sound, with a change in its pass."""
    trace = Trace(only)

    def tap(name, array):
        return trace(name, change(name, array) if change else array)

    if text:
        ids, soft = read_prompt(model, place_files("The hat was", {"audio": [SOUND]}), tap=tap)
        model(ids, soft_tokens=soft, tap=tap)
        trace.save(path, tokens=ids)
    else:
        model.hear(SOUND, tap=tap)
        trace.save(path)
    return path


def test_a_right_trace_of_a_sound_and_of_its_text_is_clean(model, tmp_path):
    found = diff_file(captured(tmp_path / "t", model), model)
    assert found.clean and "the sound: all" in found.sentence and "the text: all" in found.sentence
    assert {row.verdict for row in found.rows} == {"OK"}


@pytest.mark.filterwarnings("ignore:invalid value")  # the first row of these scores is masked whole
def test_masked_scores_of_a_sound_are_not_judged_by_the_masks_of_the_text(tower, tmp_path):
    def masked(name, array):
        return np.where(np.arange(array.shape[-1]) < 2, -np.inf, 2 * array) if name.endswith("attn.scores") else array

    found = diff_file(captured(tmp_path / "t", tower, masked, text=False), tower)
    assert found.first_broken == "audio.layers.0.attn.scores" and "query" not in found.hint


def test_a_trace_of_a_sound_alone_needs_no_ids(model, tmp_path):
    path = captured(tmp_path / "t", model, text=False)
    assert diff_file(path, model).clean and diagnose_file(path, model).verdict == "healthy"


def test_two_traces_of_a_sound_are_compared_with_each_other(tower, tmp_path):
    first = captured(tmp_path / "a", tower, text=False)
    assert diff_file(first, tower, against=first).clean


@pytest.mark.parametrize("tap", ["audio.half", "audio.layers.1.attn.scores", "audio.layers.1.conv.gated"])
def test_a_broken_op_of_the_audio_tower_is_located_and_its_error_described(tower, tmp_path, tap):
    double = Edit({tap: lambda array: 2 * array})
    found = diff_file(captured(tmp_path / "t", tower, double, text=False), tower)
    assert found.first_broken == tap and "it is 2 times" in found.hint
    unknown = diagnose_file(tmp_path / "t", tower)
    assert unknown.verdict == "unknown" and unknown.first_broken == tap


def test_without_the_mel_the_sound_must_be_given(tower, tmp_path, sound, capsys):
    path = captured(tmp_path / "t", tower, only="audio.layers.*.resid_post", text=False)
    command = ["diff", str(path), "--weights", str(tower.directory)]
    assert main(command) == 2
    assert "--audio" in capsys.readouterr().err
    assert main([*command, "--audio", str(sound)]) == 0


def test_soft_tokens_are_ours_where_the_trace_holds_none(tower, tmp_path, sound):
    path = captured(tmp_path / "t", tower, only="layers.*.resid_post")
    with pytest.raises(minigemma.Error, match="--audio"):
        diff_file(path, tower)
    assert diff_file(path, tower, sounds=[sound]).clean


def test_of_another_sound_the_mel_is_wrong_and_nothing_behind_it(tower, tmp_path):
    other = tmp_path / "other.wav"
    other.write_bytes(wav(random_sound(len(SOUND), 5), "float"))
    found = diff_file(captured(tmp_path / "t", tower, text=False), tower, sounds=[other])
    assert [row.name for row in found.rows if row.verdict == "BROKEN"] == ["audio.mel"]
