"""The command line as a user meets it: results on stdout, one clear line and status 2 for every mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import minigemma
from minigemma import Trace

ROOT = Path(__file__).parents[1]


def run(*arguments, input="", **environment):
    return subprocess.run(
        [sys.executable, "-m", "minigemma", *map(str, arguments)],
        check=False, capture_output=True, text=True, input=input, cwd=ROOT, env=os.environ | environment, timeout=120,
    )  # fmt: skip


def refused(result, *words):
    """One line on stderr that says these words, nothing on stdout, status 2, no traceback."""
    assert result.returncode == 2, result.stderr
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for word in words:
        assert word in result.stderr
    return result.stderr.strip().splitlines()


def test_generate_prints_a_story_and_the_same_one_for_the_same_seed():
    first = run("generate", "Once upon a time", "-n", 40, "--seed", 3)
    again = run("generate", "Once upon a time", "-n", 40, "--seed", 3)
    assert first.returncode == 0
    assert len(first.stdout.split()) > 15
    assert first.stdout == again.stdout
    assert first.stderr == ""


def test_stats_go_to_stderr():
    result = run("generate", "Once upon a time", "-n", 5, "--temperature", 0, "--stats")
    for word in ("prompt", "prefill", "decode", "tokens/s", "peak memory"):
        assert word in result.stderr
        assert word not in result.stdout


def test_chat_answers_each_line_and_ends_with_the_input():
    story = "Tom has a red kite. He put the kite in the barn. Where is the kite?"
    result = run("chat", "-n", 30, "--temperature", 0, input=f"{story}\nWho has a kite?\n")
    assert result.returncode == 0
    answers = result.stdout.strip().splitlines()
    assert len(answers) == 2
    assert all(answer.endswith(".") for answer in answers)


def test_chat_with_a_cache_says_what_a_chat_without_one_would(tiny):
    """The second answer, from the cached conversation, equals the one from the whole conversation's ids."""
    questions = ["Tom has a red kite. He put the kite in the barn. Where is the kite?", "Who has a kite?"]
    result = run("chat", "-n", 30, "--temperature", 0, input="\n".join(questions))
    messages = []
    for question, answer in zip(questions, result.stdout.strip().splitlines(), strict=True):
        messages.append({"role": "user", "content": question})
        ids = tiny.chat_ids(messages)
        whole = [id for id, _ in minigemma.generate_ids(tiny, ids, 30, temperature=0.0)]
        assert tiny.tokenizer.decode(whole).strip() == answer
        messages.append({"role": "model", "content": answer})


def test_trace_writes_every_tap_or_those_asked_for(tmp_path):
    result = run("trace", "Once upon", "--out", tmp_path / "all.safetensors")
    assert result.returncode == 0
    trace = Trace.load(tmp_path / "all.safetensors")
    assert "layers.9.resid_post" in trace
    assert trace.metadata["tokens"][0] == 2
    run("trace", "Once upon", "--out", tmp_path / "some.safetensors", "--only", "layers.3.*")
    assert all(name.startswith("layers.3.") for name in Trace.load(tmp_path / "some.safetensors"))


def test_mistakes_end_in_one_line_and_status_2(tmp_path, checkpoint):
    cases = [
        (["generate", "x", "--weights", tmp_path / "nowhere"], "no such directory"),
        (["generate", "x", "--weights", tmp_path], "config.json"),
        (["generate", "x", "--weights", checkpoint], "tokenizer.json"),
        (["generate", "x", "-n", 0], "max_new_tokens"),
        (["generate", "x", "-n", 10**6], "positions"),
        (["generate", "x", "--temperature", -1], "temperature"),
        (["generate", "x", "--top-p", 7], "top_p"),
        (["generate", "x", "--top-k", -1], "top_k"),
        (["trace", "x", "--out", tmp_path / "no" / "such" / "file"], "cannot write"),
        (["trace", "x", "--out", tmp_path / "f", "--only", "layer.3"], "fits no tap"),
        (["trace", "x", "--out", tmp_path], "cannot write"),
    ]
    for arguments, word in cases:
        assert len(refused(run(*arguments), word)) == 1, arguments
    (checkpoint / "model.safetensors").write_bytes(b"not a checkpoint")
    assert len(refused(run("generate", "x", "--weights", checkpoint), "safetensors")) == 1
    assert list(tmp_path.glob("*f*")) == []


@pytest.mark.parametrize("arguments", [[], ["generate"], ["generat", "x"], ["generate", "x", "-n", "two"]])
def test_a_wrong_flag_shows_the_usage_and_status_2(arguments):
    lines = refused(run(*arguments), "usage:")
    assert lines[-1].startswith("minigemma")


def test_a_misspelt_flag_is_answered_with_the_one_that_was_meant():
    lines = refused(run("generate", "x", "--temprature", 1), "usage: python -m minigemma generate")
    assert lines[-1].endswith("--temprature 1; did you mean --temperature?")


def test_a_wrong_flag_is_quoted_in_one_printable_line():
    result = run("params", "E2B", "--\x1b[31m\nx")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].endswith(r"unrecognized arguments: --\x1b[31m\nx")
    assert "\x1b" not in result.stderr


def test_an_empty_prompt_is_refused():
    assert len(refused(run("generate", ""), "prompt")) == 1


def test_weights_come_from_the_environment(tmp_path):
    refused(run("generate", "x", MINIGEMMA_WEIGHTS=str(tmp_path / "nowhere")), "nowhere")


def test_a_closed_pipe_is_silent():
    command = f"{sys.executable} -m minigemma generate 'Once upon a time' -n 400 | head -c 5"
    result = subprocess.run(["sh", "-c", command], check=False, capture_output=True, text=True, cwd=ROOT, timeout=120)
    assert len(result.stdout) == 5
    assert result.stderr == ""
