"""Pictures from Python and from the command line, on the tiny weights with a small random tower beside them."""

import json
import shutil
import struct
from pathlib import Path

import numpy as np
import pytest
from family import random_picture
from PIL import Image
from processes import command, one_line

import minigemma
from minigemma import Error, load, media
from minigemma.checkpoint import Stored
from minigemma.media import place_files
from minigemma.sampling import read_prompt
from minigemma.vision import encode_image

ROOT = Path(__file__).parents[1]
BLIND = minigemma.TINY.with_name("tiny-no-ple")  # a text model
BOI, IMAGE, EOI = 2553, 2555, 2554  # of the tiny vocabulary


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


def test_the_budget_is_the_checkpoints_own_unless_one_is_asked_for(whole, picture, tmp_path):
    for path in whole.iterdir():
        shutil.copy(path, tmp_path)
    processor = tmp_path / "processor_config.json"
    for text, count in (("{}", 266), ('{"image_processor": {"max_soft_tokens": 140}}', 130)):
        processor.write_text(text)
        model, content = load(tmp_path), [{"type": "image", "image": picture}]
        assert len(model.see(picture)) == model.chat_ids([{"role": "user", "content": content}]).count(IMAGE) == count
    assert len(model.see(picture, 70)) == 63
    processor.write_text('{"image_processor": {"max_soft_tokens": 100}}')
    with pytest.raises(Error, match=r"processor_config.json: max_soft_tokens must be one of 70, .*, not 100"):
        load(tmp_path)


def test_whoever_sends_text_touches_no_tensor_of_the_tower(whole, picture, monkeypatch):
    mapped, read = [], Stored.map
    monkeypatch.setattr(Stored, "map", lambda stored: mapped.append(stored.path.name) or read(stored))
    model = load(whole)
    logits, _ = model([2, 5, 6])
    assert set(mapped) == {"text.safetensors"}
    assert np.array_equal(logits, load()([2, 5, 6])[0])
    model.see(picture)
    assert "vision.safetensors" in mapped and "audio.safetensors" not in mapped


def parts(text, *pictures):
    return place_files(text, {"image": pictures})


def test_pictures_stand_before_the_text_or_where_it_says_so(whole, picture):
    model = load(whole)
    block = [BOI, *[IMAGE] * 63, EOI]

    def words(text):
        return model.tokenizer.encode(text, bos=False)

    ids, (where, rows) = read_prompt(model, parts("What is it?", picture), 70)
    assert ids == [2, *block, *words("What is it?")]
    assert where.tolist() == list(range(2, 65)) and np.array_equal(rows, model.see(picture, 70))
    ids, (where, rows) = read_prompt(model, parts("a{image}b{image}", picture, picture), 70)
    assert ids == [2, *words("a"), *block, *words("b"), *block]
    assert set(np.array(ids)[where]) == {IMAGE} and len(where) == len(rows) == 126
    assert read_prompt(model, parts("Look", picture, picture), 70)[0] == [2, *block, *block, *words("Look")]
    typed = parts("<bos><|turn>{image}", picture)
    assert read_prompt(model, typed, 70, special=True)[0] == [2, model.tokenizer.id("<|turn>"), *block]
    assert read_prompt(model, "a{image}") == (model.tokenizer.encode("a{image}"), None)
    for places in (1, 3):
        with pytest.raises(Error, match=f"has {places} places .image., and 2 files"):
            parts("{image}" * places, picture, picture)


def test_a_picture_changes_what_is_said_and_python_says_the_same_as_the_command(whole, picture, run):
    model, options = load(whole), {"max_new_tokens": 5, "temperature": 0.0}
    said = "".join(minigemma.generate(model, parts("The hat is", picture), budget=70, **options))
    command = ["generate", "The hat is", "--image", picture, "--budget", "70", "--temperature", "0", "-n", "5"]
    assert run(*command, "--weights", whole).stdout.rstrip("\n") == said
    ids, soft = read_prompt(model, parts("The hat is", picture), 70)
    logits = [model(ids, soft_tokens=(soft[0], rows), logits="last")[0] for rows in (soft[1], -soft[1])]
    assert not np.allclose(*logits)


def test_a_text_model_says_that_it_cannot_see(picture, run):
    for image in (picture, "no/such/file.png"):
        for words in (["generate", "Hi"], ["generate", "Hi", "--think"], ["chat"], ["trace", "Hi", "--out", "x"]):
            one_line(run(*words, "--weights", BLIND, "--image", image), "no vision_config")


def test_a_picture_that_is_longer_than_the_context_is_refused_before_the_tower_runs(whole, picture, monkeypatch):
    model = load(whole)
    object.__setattr__(model.config, "max_position_embeddings", 64)
    monkeypatch.setattr(media, "encode_image", None)
    with pytest.raises(Error, match="63 soft tokens, and the model has 64 positions; ask for a smaller budget"):
        read_prompt(model, parts("Hi", picture), 70)
    with pytest.raises(Error, match="63 soft tokens"):
        model.chat([user("Hi", picture)], budget=70)


# Conversations


def user(text, *pictures):
    return {"role": "user", "content": parts(text, *pictures)}


def greedy(model, messages, **options):
    return model.chat(messages, budget=70, max_new_tokens=4, temperature=0.0, **options)


def test_a_picture_in_a_message_is_written_as_its_placeholders_between_two_marks(whole, picture):
    model = load(whole)
    once = [2, *model.chat_ids([user(" What? ", picture)], budget=70)[1:]]
    bare = model.chat_ids([{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "What?"}]}])
    at = bare.index(IMAGE)
    assert once == [*bare[:at], BOI, *[IMAGE] * 63, EOI, *bare[at + 1 :]]
    tool = {"role": "tool", "content": parts("09:00", random_picture(30, 40))}
    call = {"role": "assistant", "tool_calls": [{"function": {"name": "now"}}]}
    assert model.chat_ids([user("Now?"), call, tool], budget=70).count(IMAGE) == 63


@pytest.mark.parametrize("content", [[{"type": "image"}], [{"type": "image", "url": "x.png"}], [{"type": "audio"}]])
def test_a_placeholder_that_stands_for_nothing_is_refused_where_the_model_would_read_it(whole, content):
    with pytest.raises(Error, match="stands for nothing"):
        load(whole).chat([{"role": "user", "content": content}])


@pytest.mark.parametrize("image", ["no/such.png", 3, {"url": "x"}, np.zeros((2, 2))], ids=str)
def test_a_picture_that_cannot_be_used_is_one_line_of_chat(whole, image):
    for ask in (load(whole).chat, load(whole).chat_ids):
        with pytest.raises(Error) as caught:
            ask([user("What?", image)])
        assert "\n" not in str(caught.value)


def test_a_conversation_goes_on_behind_a_picture_that_is_encoded_once(whole, picture, monkeypatch):
    model, seen = load(whole), []
    other, encode = random_picture(30, 40, seed=1), media.encode_image
    monkeypatch.setattr(media, "encode_image", lambda *given, **options: seen.append(0) or encode(*given, **options))
    conversation = minigemma.Conversation(model, budget=70)
    for turn in (user("What is it?", picture), user("And now?"), user("And this?", other, picture)):
        said = [*conversation.messages, turn]
        for _ in conversation.read(conversation.draw([turn], 4, temperature=0.0)):
            pass
        count = len(seen)
        assert conversation.answer == greedy(model, said)
        seen[count:] = []
    assert len(seen) == 3


def test_another_picture_of_the_same_size_is_never_answered_from_the_firsts_cache(whole):
    model = load(whole)
    first, second = (user("What is it?", random_picture(30, 40, seed)) for seed in (1, 2))
    conversation = minigemma.Conversation(model, budget=70)
    next(conversation.draw([first], 4, temperature=0.0))  # nobody reads the answer: the turn is given again
    ids = [*conversation.draw([second], 4, temperature=0.0)]
    assert conversation.length_read > 63
    assert ids == greedy(model, [second]).ids


def test_the_taps_of_chat_see_the_pictures_pass_too(whole, picture):
    trace = minigemma.Trace(["vision.soft_tokens", "embed"])
    greedy(load(whole), [user("What is it?", picture)], tap=trace)
    assert trace["vision.soft_tokens"].shape == (63, 128)


def test_generate_answers_a_turn_with_a_picture_as_chat_does_in_python(whole, picture, run):
    model, options = load(whole), ["--budget", "70", "--temperature", "0", "-n", "4", "--weights", whole]
    messages = [{"role": "system", "content": "Be brief."}, user("What is it?", picture)]
    expected = greedy(model, messages).text + "\n"
    command = ["--system", "Be brief.", "--image", picture, *options]
    assert run("generate", "What is it?", *command).stdout == expected
    assert run("chat", *command, input="What is it?\n").stdout == expected
    assert run("chat", *command[:2], *options, input=f"/image {picture}\n\nWhat is it?\n").stdout == expected


def test_image_in_a_chat_says_how_many_soft_tokens_and_what_is_wrong(whole, picture, run):
    result = run("chat", "-n", "1", "--weights", whole, input=f"/image '{picture}'\nHi\n")
    assert "photo.png: 266 soft tokens" in result.stderr
    for line, problem in (("/image no.png", "no.png: no such file"), ("/image", "/image FILE")):
        one_line(run("chat", "--weights", whole, input=f"{line}\n"), problem)
    one_line(run("chat", "--weights", BLIND, input=f"/image {picture}\n"), "no vision_config")


def test_trace_records_the_picture_and_the_text_behind_it(whole, picture, tmp_path, run):
    out = tmp_path / "trace.safetensors"
    command = ["--image", picture, "--budget", "70", "--only", "*.resid_pre", "--out", out, "--weights", whole]
    assert run("trace", "What is it?", *command).returncode == 0
    trace = minigemma.Trace.load(out)
    assert {"vision.layers.1.resid_pre", "layers.9.resid_pre"} <= set(trace)
    assert trace.metadata["tokens"] == read_prompt(load(whole), parts("What is it?", picture), 70)[0]
    assert trace["layers.0.resid_pre"].shape[0] == len(trace.metadata["tokens"])


def test_turns_shows_the_pictures_of_a_file_and_a_run_of_placeholders_once(whole, picture, tmp_path, run):
    messages = [user("What is it?", str(picture))]
    (tmp_path / "file.json").write_text(json.dumps(messages))
    command = ["turns", tmp_path / "file.json", "--budget", "140", "--weights", whole]
    assert json.loads(run(*command, "--json").stdout) == load(whole).chat_ids(messages, budget=140)
    assert f"{BOI} <|image>  {IMAGE} <|image|> x 130  {EOI} <image|>" in run(*command).stdout


def test_a_broken_picture_is_refused_in_one_line_whatever_pillow_logs(tmp_path):
    tags = {256: 9, 257: 9, 262: 2, 273: 8, 277: 515}  # a TIFF of 515 colours
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    (tmp_path / "photo.tif").write_bytes(b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + bytes(4))
    one_line(command("tokens", "--image", tmp_path / "photo.tif"), "photo.tif")


def test_tokens_prints_size_grid_and_count_at_every_budget_without_weights(picture, tmp_path, run, monkeypatch):
    monkeypatch.setenv("MINIGEMMA_WEIGHTS", str(tmp_path / "nothing"))
    lines = run("tokens", "--image", picture).stdout.splitlines()
    assert lines[0].endswith("photo.png: 40 x 30 pixels")
    assert [line.split()[-1] for line in lines[2:]] == ["63", "130", "266", "540", "1,064"]
    result = json.loads(run("tokens", "--json", "--image", picture, "--image", picture).stdout)
    assert len(result) == 2
    expected = {"budget": 280, "width": 912, "height": 672, "columns": 19, "rows": 14, "soft_tokens": 266}
    assert result[1]["grids"][2] == expected
    one_line(run("tokens", "--image", __file__), "not a picture")
