"""An mmproj file beside a GGUF file: the same soft tokens as from safetensors, and one line for what does not fit."""

import json
import os

import gguf_files
import numpy as np
import pytest
from family import HEARING, VISION, random_audio, random_picture, random_sound, random_vision, tower_arrays, tower_table
from test_sounds import wav

import minigemma
from minigemma import Config, Error
from minigemma.__main__ import main
from minigemma.checkpoint import read_audio, read_vision
from minigemma.packed import narrow, widen

PICTURE, SOUND = random_picture(60, 80), random_sound(6000)


@pytest.fixture(scope="module")
def text(tiny, tmp_path_factory):
    """The tiny text model as a GGUF file."""
    return gguf_files.write(tmp_path_factory.mktemp("text") / "text.gguf", *gguf_files.describe(tiny))


def config_with(vision=None, audio=None):
    raw = json.loads((minigemma.TINY / "config.json").read_text())
    return Config.from_dict(raw | {"vision_config": VISION.get(vision), "audio_config": HEARING.get(audio)})


def tables(config):
    return {part: tower_table(config, part) for part in ("vision", "audio") if vars(config)[part]}


def write(folder, text, config, change=None, **arrays):
    """text.gguf and mmproj-text.gguf in a folder, the tensors of the towers all 1 where they are not given."""
    if not (folder / "text.gguf").exists():
        os.link(text, folder / "text.gguf")
    ones = {t.name: np.ones(t.shape, np.float32) for table in tables(config).values() for t in table}
    keys, tensors = gguf_files.describe_towers(config, ones | arrays)
    if change:
        change(keys, tensors)
    gguf_files.write(folder / "mmproj-text.gguf", keys, tensors)
    return folder / "text.gguf"


def both(folder, text, vision=None, audio=None):
    """A model with random towers in bfloat16 -> its directory of safetensors, and the same as GGUF files beside it."""
    config, arrays = config_with(vision, audio), {}
    towers = {part: {"vision": random_vision, "audio": random_audio}[part](config) for part in tables(config)}
    for part, tower in towers.items():
        arrays |= {name: widen(narrow(array)) for name, array in tower_arrays(config, part, tower).items()}
    minigemma.save(folder / "whole", minigemma.load(dtype="float32").weights, config, **towers)
    return folder / "whole", write(folder, text, config, **arrays)


@pytest.mark.parametrize(("vision", "audio"), [("E2B", "E2B"), ("31B", None), ("12B", "12B"), (None, "E2B")])
def test_soft_tokens_are_those_of_the_safetensors_bit_for_bit(vision, audio, text, tmp_path):
    whole, split = map(minigemma.load, both(tmp_path, text, vision, audio))
    if vision:
        np.testing.assert_array_equal(split.see(PICTURE, 70), whole.see(PICTURE, 70))
    if audio:
        np.testing.assert_array_equal(split.hear(SOUND), whole.hear(SOUND))
    for part in tables(whole.config):
        for name, value in vars(getattr(whole.config, part)).items():
            np.testing.assert_array_equal(getattr(getattr(split.config, part), name), value, name)
    account = minigemma.count(split.directory)
    assert account.differences == ()
    assert set(account.towers) == set(tables(whole.config))


def test_scales_that_no_bfloat16_gives_are_right_to_the_last_bits(text, tmp_path):
    config, name = config_with(audio="E2B"), "audio_tower.layers.0.self_attn.per_dim_scale"
    values = np.float32([-3, -0.3, 0.01, 1 / 3, 0.7, 5])
    read = read_audio(write(tmp_path, text, config, **{name: values}), config).layers[0].self_attn.per_dim_scale
    # the file's number is rounded to float32 once, and so are our inverse and its softplus
    np.testing.assert_allclose(np.logaddexp(0, read), np.logaddexp(0, values), rtol=3 * 2**-24 * 5)


def test_a_sound_reaches_the_answer_from_two_gguf_files(text, tmp_path, capsys):
    directory, split = both(tmp_path, text, "E2B", "E2B")
    (directory / "tokenizer.json").write_bytes((minigemma.TINY / "tokenizer.json").read_bytes())
    (tmp_path / "a.wav").write_bytes(wav(SOUND, "float"))
    answers = []
    for where in (directory, split):
        words = ["generate", "What is this?", "--audio", str(tmp_path / "a.wav"), "-n", "5", "--weights", str(where)]
        assert main([*words, "--temperature", "0"]) == 0
        answers.append(capsys.readouterr().out)
    assert answers[0] == answers[1]


def test_a_gguf_file_alone_says_what_to_put_beside_it(text):
    with pytest.raises(Error, match=r"holds the text model; .* put the model's whole mmproj file .* beside it"):
        minigemma.load(text).see(PICTURE)


def test_of_two_files_that_fit_none_is_guessed_and_one_of_another_model_does_not_count(text, tmp_path):
    path = write(tmp_path, text, config_with("31B"))
    gguf_files.write(tmp_path / "mmproj-other.gguf", {"general.architecture": "clip"}, {"mm.0.weight": np.ones((4, 4))})
    model = minigemma.load(path)
    assert model.see(PICTURE, 70).shape[1] == model.config.hidden_size
    with pytest.raises(Error, match=r"mmproj-text.gguf holds the other tower alone"):
        model.hear(SOUND)
    (tmp_path / "mmproj-F16.gguf").write_bytes((tmp_path / "mmproj-text.gguf").read_bytes())
    model = minigemma.load(path)
    assert len(model([2, 5, 7])[0]) == 3
    with pytest.raises(Error, match=r"2 mmproj files beside it fit it \(mmproj-F16.gguf, mmproj-text.gguf\)"):
        model.see(PICTURE)


def test_an_mmproj_file_is_not_taken_for_a_model(text, tmp_path):
    write(tmp_path, text, config_with("31B"))
    with pytest.raises(Error, match=r"architecture 'clip'.* give the file of the text model"):
        minigemma.load(tmp_path / "mmproj-text.gguf")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda k, t: t.pop("v.blk.1.ffn_up.weight"), r"1 missing \(vision_tower.encoder.layers.1.mlp.up_proj.linear"),
        (lambda k, t: t.pop("v.patch_embd.weight"), "no v.patch_embd.weight of 4 dimensions"),
        (lambda k, t: t.update({"v.blk.0.attn_q.bias": np.ones(3)}), r"1 unknown \(vision_tower.*q_proj.*bias"),
        (lambda k, t: t.update({"v.blk.99.ln1.weight": np.ones(20)}), "missing"),
        (lambda k, t: t.update({"v.patch_embd.weight": np.ones((20, 3, 4, 5))}), "wrong shape"),
        (lambda k, t: k.update({"clip.vision.projector.scale_factor": "x"}), "pooling_kernel_size must be"),
        (lambda k, t: k.update({"clip.vision.attention.layer_norm_epsilon": [1.0]}), "rms_norm_eps must be"),
    ],
)
def test_an_mmproj_file_that_is_not_whole_is_refused(change, complaint, text, tmp_path):
    path = write(tmp_path, text, config_with("31B"), change)
    with pytest.raises(Error, match=complaint):
        read_vision(path, minigemma.load(path, dtype=None).config)
