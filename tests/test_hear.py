"""Sounds and videos from Python and from the command line, on the tiny weights with small random towers beside them."""

import json

import numpy as np
import pytest
from family import random_picture, random_sound, write_whole
from PIL import Image
from processes import one_line
from test_sounds import wav

import minigemma
from minigemma import Error, load
from minigemma.audio import embed_sound, encode_audio, log_mel
from minigemma.checkpoint import Stored
from minigemma.inputs import read_frames
from minigemma.media import place_files
from minigemma.sampling import read_prompt

DEAF = minigemma.TINY.with_name("tiny-no-ple")  # a text model
BOI, EOI, IMAGE, BOA, EOA, AUDIO = 2553, 2554, 2555, 2556, 2557, 2558  # of the tiny vocabulary
SOUND = random_sound(6000)
COUNT = 10  # its soft tokens


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    path = tmp_path_factory.mktemp("sounds") / "word.wav"
    path.write_bytes(wav(SOUND, "float"))
    return path


@pytest.fixture(scope="module")
def video(tmp_path_factory):
    """A GIF of five frames that stay 0.7 s each."""
    path = tmp_path_factory.mktemp("videos") / "walk.gif"
    frames = [Image.fromarray(random_picture(30, 40, i)) for i in range(5)]
    frames[0].save(path, save_all=True, append_images=frames[1:], duration=700)
    return path


def words(model, text):
    return model.tokenizer.encode(text, bos=False)


def test_hear_gives_the_soft_tokens_of_a_file_or_of_an_array(whole, sound, tmp_path):
    model = load(whole)
    soft = model.hear(sound)
    assert soft.shape == (COUNT, model.config.hidden_size)
    assert np.array_equal(soft, model.hear(SOUND)) and np.array_equal(soft, model.hear((SOUND, 16000)))
    assert np.array_equal(soft, encode_audio(log_mel(SOUND), model.audio, model.config))
    twelve = load(write_whole(tmp_path, "12B"))
    assert np.array_equal(twelve.hear(sound), embed_sound(SOUND, twelve.audio, twelve.config))
    assert len(twelve.hear(SOUND[:1])) == 1


def test_whoever_sends_text_touches_no_tensor_of_the_audio_tower(whole, monkeypatch):
    mapped, read = [], Stored.map
    monkeypatch.setattr(Stored, "map", lambda stored: mapped.append(stored.path.name) or read(stored))
    model = load(whole)
    model([2, 5, 6])
    model.see(random_picture(12, 12), 70)
    assert set(mapped) == {"text.safetensors", "vision.safetensors"}
    model.hear(SOUND)
    assert "audio.safetensors" in mapped


def test_a_sound_stands_behind_the_text_or_where_it_says_so(whole, sound):
    model, block = load(whole), [BOA, *[AUDIO] * COUNT, EOA]
    ids, (where, rows) = read_prompt(model, place_files("The hat was", {"audio": [sound]}))
    assert ids == [2, *words(model, "The hat was"), *block]
    assert set(np.array(ids)[where]) == {AUDIO} and np.array_equal(rows, model.hear(sound))
    assert read_prompt(model, place_files("a{audio}b", {"audio": [sound]}))[0] == [
        2, *words(model, "a"), *block, *words(model, "b"),
    ]  # fmt: skip


def test_pictures_lead_the_text_and_sound_follows_it_in_one_message(whole, sound):
    model, picture = load(whole), random_picture(30, 40)
    content = place_files("What?", {"audio": [sound], "image": [picture]})
    ids = model.chat_ids([{"role": "user", "content": content}], budget=70)
    order = [id for id in ids if id in (BOI, BOA) or id in words(model, "What?")]
    assert order == [BOI, *words(model, "What?"), BOA]
    answer = model.chat([{"role": "user", "content": content}], budget=70, max_new_tokens=3, temperature=0.0)
    assert len(answer.ids) <= 3


def test_a_sound_changes_what_is_said_and_python_says_the_same_as_the_command(whole, sound, run):
    model, options = load(whole), ["--temperature", "0", "-n", "5", "--weights", whole]
    prompt = place_files("The hat was {audio}.", {"audio": [sound]})
    said = "".join(minigemma.generate(model, prompt, max_new_tokens=5, temperature=0.0))
    assert run("generate", "The hat was {audio}.", "--audio", sound, *options).stdout.rstrip("\n") == said
    ids, (where, rows) = read_prompt(model, prompt)
    logits = [model(ids, soft_tokens=(where, x), logits="last")[0] for x in (rows, -rows)]
    assert not np.allclose(*logits)


def test_a_model_without_an_audio_tower_says_which_ones_hear(sound, run):
    for path in (sound, "no/such/file.wav"):
        for command in (["generate", "Hi"], ["chat"], ["trace", "Hi", "--out", "x"]):
            deaf = [*command, "--weights", DEAF, "--audio", path]
            one_line(run(*deaf), "no audio tower", "E2B, E4B and 12B hear")
    with pytest.raises(Error, match="E2B, E4B and 12B hear"):
        load(DEAF).hear(sound)


def test_a_chat_takes_sounds_and_videos_by_the_line(whole, sound, video, run):
    lines = f"/audio {sound}\n/video '{video}'\nHi\n"
    result = run("chat", "-n", "1", "--weights", whole, input=lines)
    assert f"word.wav: {COUNT} soft tokens" in result.stderr and "walk.gif: 315 soft tokens" in result.stderr
    one_line(run("chat", "--weights", whole, input="/audio no.wav\n"), "no.wav: no such file")


def test_trace_records_the_sound_and_the_text_around_it(whole, sound, tmp_path, run):
    out = tmp_path / "trace.safetensors"
    command = ["--audio", sound, "--only", "*.resid_post", "--out", out, "--weights", whole]
    assert run("trace", "What is it?", *command).returncode == 0
    trace = minigemma.Trace.load(out)
    assert {"audio.layers.1.resid_post", "layers.9.resid_post"} <= set(trace)


def test_a_sound_that_is_cut_is_said_once_in_a_note(whole, tmp_path, run):
    path = tmp_path / "long.wav"
    path.write_bytes(wav(np.zeros(31 * 8000), 8, rate=8000))
    result = run("generate", "Hi", "--audio", path, "-n", "1", "--weights", whole)
    assert result.stderr.count("31.0 s, and the model hears the first 30") == 1


# Videos


def test_a_video_is_pictures_with_their_times(whole, video):
    model = load(whole)
    ids, (_, rows) = read_prompt(model, place_files("What?", {"video": [video]}))
    mark = model.tokenizer.id("<|video|>")
    expected = [2]
    for i, time in enumerate(("00:00", "00:00", "00:01", "00:02", "00:02")):  # 0, 0.7, 1.4, 2.1, 2.8 s
        expected += [*words(model, " " * (i > 0) + time + " "), BOI, *[mark] * 63, EOI]
    assert ids == [*expected, *words(model, "What?")]
    with Image.open(video) as image:
        assert np.array_equal(rows[:63], model.see(image.convert("RGB"), 70))


def test_of_a_long_video_32_frames_are_taken_evenly(tmp_path):
    pictures = [np.full((4, 4, 3), i, np.uint8) for i in range(100)]
    frames = read_frames((pictures, 10), 12)
    assert len(frames) == 32
    assert [int(pixels[0, 0, 0]) for _, pixels in frames] == [i * 100 // 32 for i in range(32)]
    assert [seconds for seconds, _ in frames] == [i * 100 // 32 / 10 for i in range(32)]


def test_an_animation_says_how_long_each_frame_stays(tmp_path):
    colours = [Image.new("RGB", (8, 8), (60 * i, 0, 0)) for i in range(4)]
    for name, options in (("a.gif", {}), ("a.webp", {"lossless": True}), ("a.png", {})):
        path = tmp_path / name
        colours[0].save(path, save_all=True, append_images=colours[1:], duration=[500, 1000, 250, 500], **options)
        frames = read_frames(path, 12)
        assert [seconds for seconds, _ in frames] == [0, 0.5, 1.5, 1.75], name
        assert [int(pixels[0, 0, 0]) for _, pixels in frames] == [0, 60, 120, 180], name


def test_a_folder_is_a_video_in_the_order_of_its_names_at_24_frames_a_second(tmp_path):
    for i in (10, 9, 1):
        Image.new("RGB", (8, 8), (i, 0, 0)).save(tmp_path / f"frame{i}.png")
    (tmp_path / ".hidden").write_text("not a picture")
    with pytest.warns(UserWarning, match="1/24 s"):
        frames = read_frames(tmp_path, 12)
    assert [int(pixels[0, 0, 0]) for _, pixels in frames] == [1, 9, 10]
    assert [seconds for seconds, _ in frames] == [0, 1 / 24, 2 / 24]


@pytest.mark.parametrize("source", ["no.gif", __file__, [], [7], 7, ("x", 0), ([SOUND], "fast")], ids=str)
def test_what_is_not_a_video_is_refused_in_one_line(source, tmp_path):
    with pytest.raises(Error) as caught:
        read_frames(source, 12)
    assert "\n" not in str(caught.value)
    with pytest.raises(Error, match="no frames"):
        read_frames(tmp_path, 12)


def test_tokens_prints_what_sounds_and_videos_become_without_weights(sound, video, run, monkeypatch, tmp_path):
    monkeypatch.setenv("MINIGEMMA_WEIGHTS", str(tmp_path / "nothing"))
    lines = run("tokens", "--audio", sound, "--video", video).stdout.splitlines()
    assert lines[0].endswith("word.wav")
    assert [line.split()[-1] for line in lines[2:4]] == [str(COUNT), str(COUNT)]
    assert lines[4].endswith("walk.gif: 5 frames, 315 soft tokens")
    result = json.loads(run("tokens", "--json", "--audio", sound).stdout)
    assert result[0]["heard"][0] == {"models": "E2B, E4B", "seconds": 0.375, "soft_tokens": COUNT}
    one_line(run("tokens"), "--audio FILE")
    one_line(run("tokens", "--audio", __file__), "not a WAV file")
