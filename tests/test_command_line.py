"""The command line as a user meets it: results on stdout, one clear line and status 2 for every mistake."""

from pathlib import Path

import pytest
from processes import command, one_line, shell

import minigemma
from minigemma import Trace
from minigemma.__main__ import main


def test_generate_prints_a_story_and_the_same_one_for_the_same_seed(run):
    first = command("generate", "Once upon a time", "-n", 40, "--seed", 3)
    again = run("generate", "Once upon a time", "-n", 40, "--seed", 3)
    assert first.returncode == 0
    assert len(first.stdout.split()) > 15
    assert first.stdout == again.stdout
    assert first.stderr == ""


def test_stats_go_to_stderr(run):
    result = run("generate", "Once upon a time", "-n", 5, "--temperature", 0, "--stats")
    for word in ("prompt", "prefill", "decode", "tokens/s", "peak memory"):
        assert word in result.stderr
        assert word not in result.stdout


def test_chat_answers_each_line_as_it_would_without_a_cache_and_ends_with_the_input(tiny):
    """The second answer, from the cached conversation, equals the one from the whole conversation's ids."""
    questions = ["Tom has a red kite. He put the kite in the barn. Where is the kite?", "Who has a kite?"]
    result = command("chat", "-n", 30, "--temperature", 0, input="\n".join(questions))
    assert result.returncode == 0
    messages = []
    for question, answer in zip(questions, result.stdout.strip().splitlines(), strict=True):
        assert answer.endswith(".")
        messages.append({"role": "user", "content": question})
        ids = tiny.chat_ids(messages)
        whole = [id for id, _ in minigemma.generate_ids(tiny, ids, 30, temperature=0.0)]
        assert tiny.tokenizer.decode(whole).strip() == answer
        messages.append({"role": "model", "content": answer})


def test_trace_writes_every_tap_or_those_asked_for(tmp_path, run):
    assert run("trace", "Once upon", "--out", tmp_path / "all.safetensors").returncode == 0
    trace = Trace.load(tmp_path / "all.safetensors")
    assert "layers.9.resid_post" in trace
    assert trace.metadata["tokens"][0] == 2
    run("trace", "Once upon", "--out", tmp_path / "some.safetensors", "--only", "layers.3.*")
    assert all(name.startswith("layers.3.") for name in Trace.load(tmp_path / "some.safetensors"))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["generate", "x", "--weights", "nowhere"], "no such directory"),
        (["generate", "x", "--weights", "."], "config.json"),
        (["generate", "x", "--weights", "random"], "tokenizer.json"),
        (["generate", "x", "--weights", "broken"], "safetensors"),
        (["generate", "x", "-n", 0], "max_new_tokens"),
        (["generate", "x", "-n", 10**6], "positions"),
        (["generate", "x", "--temperature", -1], "temperature"),
        (["generate", "x", "--top-p", 7], "top_p"),
        (["generate", "x", "--top-k", -1], "top_k"),
        (["generate", ""], "prompt"),
        (["trace", "x", "--out", Path("no", "such", "file")], "cannot write"),
        (["trace", "x", "--out", "f", "--only", "layer.3"], "fits no tap"),
        (["trace", "x", "--out", "."], "cannot write"),
    ],
)
def test_a_mistake_ends_in_one_line_and_status_2(arguments, words, checkpoint, tmp_path, monkeypatch, run):
    checkpoint.rename(tmp_path / "random")
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_bytes((tmp_path / "random" / "config.json").read_bytes())
    (tmp_path / "broken" / "model.safetensors").write_bytes(b"not a checkpoint")
    monkeypatch.chdir(tmp_path)
    one_line(run(*arguments), words)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "random"]


@pytest.mark.parametrize(
    ("arguments", "end"),
    [
        ([], ""),
        (["generate"], ""),
        (["generat", "x"], ""),
        (["generate", "x", "-n", "two"], ""),
        (["generate", "x", "--temprature", "1"], "--temprature 1; did you mean --temperature?"),
        (["params", "E2B", "--\x1b[31m\nx"], r"unrecognized arguments: --\x1b[31m\nx"),
    ],
)
def test_a_wrong_flag_shows_the_usage_and_one_printable_line(arguments, end, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(arguments)
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("usage: python -m minigemma")
    last = err.splitlines()[-1]
    assert last.startswith("minigemma") and last.endswith(end) and last.isprintable()


def test_weights_come_from_the_environment(tmp_path):
    one_line(command("generate", "x", env={"MINIGEMMA_WEIGHTS": str(tmp_path / "nowhere")}), "nowhere")


def test_a_closed_pipe_is_silent():
    result = shell("{} generate 'Once upon a time' -n 400 | head -c 5")
    assert (len(result.stdout), result.stderr) == (5, "")
