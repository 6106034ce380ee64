"""What a careless user does, and the one line that answers it."""

import ast
import json
import os
import signal
import sys
import threading
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from family import small
from processes import command, interrupt_at, one_line, python

import minigemma
from minigemma import Error, prefill
from minigemma.__main__ import main
from minigemma.files import replacing
from minigemma.study.texts import read_texts

try:
    import pty
except ImportError:  # Windows
    pty = None

ROOT = Path(__file__).parents[1]
GENERATE = import_module("minigemma.sampling")  # as an attribute of the package, that name is the function
COMMAND = import_module("minigemma.__main__")
CONVERSATION = import_module("minigemma.conversation")
STORY = "Once upon a time"


# --- starting --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("program", ["minigemma", "minigemma/__main__.py", ROOT / "minigemma"])
def test_the_package_runs_by_its_path_as_by_its_name(program, run):
    words = ["generate", STORY, "-n", 5, "--seed", 1]
    by_path, by_name = python(program, *words), run(*words)
    assert by_path.stdout == by_name.stdout != ""
    assert (by_path.returncode, by_path.stderr) == (0, "")


@pytest.mark.parametrize("package", ["numpy", "tokenizers", "safetensors"])
def test_a_missing_requirement_is_one_line_that_says_what_to_install(package, tmp_path):
    text = f"raise ModuleNotFoundError(\"No module named '{package}'\", name='{package}')"
    (tmp_path / f"{package}.py").write_text(text)
    for program in (["-m", "minigemma"], ["minigemma"])[: 2 if package == "numpy" else 1]:
        result = python(*program, "generate", STORY, path=[tmp_path])
        one_line(result, f"No module named '{package}'", "python -m pip install -r requirements.txt")


def test_a_missing_matplotlib_is_one_line_and_no_figure(tmp_path):
    (tmp_path / "matplotlib.py").write_text("raise ModuleNotFoundError(\"No module named 'matplotlib'\")")
    trace, figure = tmp_path / "t.safetensors", tmp_path / "f.png"
    assert main(["trace", "Tom", "--out", str(trace), "--only", "layers.9.resid_post"]) == 0
    one_line(command("diff", trace, "--plot", figure, path=[tmp_path]), "'matplotlib'", "pip install")
    assert not figure.exists()


def test_a_failed_import_inside_the_package_is_not_reported_as_a_missing_requirement(monkeypatch):
    """An import of ours that fails is a bug, so it keeps its traceback."""

    def broken(*_):
        raise ImportError("no such name", name="minigemma.model")

    monkeypatch.setattr(COMMAND, "load", broken)
    with pytest.raises(ImportError):
        main(["generate", STORY])


def test_too_old_a_python_is_one_line():
    """The check must come before anything that an older Python cannot read or import."""
    for version in ((3, 7), (3, 10)):
        start = f"import sys; sys.version_info = {version}; sys.argv = ['-m']; import minigemma"
        one_line(python("-c", start), f"this is Python 3.{version[1]}; minigemma needs 3.11 or newer")
    in_a_notebook = python("-c", "import sys; sys.version_info = (3, 9); import minigemma")
    assert in_a_notebook.stderr.splitlines()[-1].startswith("ImportError: this is Python 3.9")
    for name, version in (("__init__.py", (3, 7)), ("__main__.py", (3, 8))):
        ast.parse((ROOT / "minigemma" / name).read_text(encoding="utf-8"), feature_version=version)


@pytest.mark.skipif(os.name == "nt", reason="raise_signal ends a Windows process otherwise")
def test_ctrl_c_during_the_imports_shows_no_traceback(tmp_path):
    (tmp_path / "numpy.py").write_text("import signal; signal.raise_signal(signal.SIGINT)")
    for program in (["-m", "minigemma"], ["minigemma"]):
        result = python(*program, "params", "E2B", path=[tmp_path])
        assert (result.returncode, result.stderr) == (-signal.SIGINT, "")


GONE = """
import os, runpy, sys, tempfile
place = tempfile.mkdtemp()
os.chdir(place)
os.rmdir(place)
runpy.run_module("minigemma", run_name="__main__", alter_sys=True)
"""


@pytest.mark.skipif(os.name == "nt", reason="Windows keeps a working directory")
def test_commands_run_where_the_working_directory_is_gone():
    for words in (["generate", STORY, "-n", 2], ["generate", "--help"], ["retention", "--help"]):
        result = python("-c", GONE, *words)
        assert (result.returncode, result.stderr) == (0, ""), words
    one_line(python("-c", GONE, "trace", "Tom", "--out", "x"), "x: cannot write")


def test_commands_run_where_the_working_directory_is_on_another_drive(monkeypatch, capsys):
    def other_drive(*_):
        raise ValueError("path is on mount 'C:', start on mount 'D:'")  # what ntpath says

    monkeypatch.setattr(os.path, "relpath", other_drive)
    assert main(["params", "E2B"]) == 0
    with pytest.raises(SystemExit):
        main(["retention", "--help"])
    assert "weights/texts.jsonl" in capsys.readouterr().out


def test_a_failure_without_any_output_is_one_line(monkeypatch, capsys):
    """pythonw on Windows, and `>&-`, leave no stdout."""

    def unreadable(*_):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(COMMAND, "load", unreadable)
    monkeypatch.setattr(sys, "stdout", None)
    assert main(["generate", STORY]) == 2
    assert capsys.readouterr().err == "minigemma: [Errno 5] Input/output error\n"


# --- weights ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", [3, b"weights/tiny", [], {}, True, 1.5])
def test_what_cannot_be_a_path_is_refused_by_load(path):
    with pytest.raises(Error, match=f"must be a str or a Path, not {type(path).__name__}"):
        minigemma.load(path)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working directory with weights/tiny, weights/gemma-4-E2B-it and weights/notes in it."""
    for name in ("tiny", "gemma-4-E2B-it"):
        (tmp_path / "weights" / name).mkdir(parents=True)
        (tmp_path / "weights" / name / "config.json").touch()
    (tmp_path / "weights" / "notes").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    return tmp_path


@pytest.mark.parametrize(
    ("path", "meant"),
    [
        ("weights/tyni", "weights/tiny"),
        ("weights/Tiny2", "weights/tiny"),
        ("weights/gemma4-E2B-it", "weights/gemma-4-E2B-it"),
        ("./weights/tinny", "weights/tiny"),
        ("weights", "weights/tiny"),
        ("weights/tiny/config.json", "weights/tiny"),
    ],
)
def test_a_misspelt_path_is_answered_with_the_one_that_was_meant(place, path, meant):
    with pytest.raises(Error, match=r"did you mean|give its directory") as caught:
        minigemma.load(path)
    assert str(Path(meant)) in str(caught.value)
    assert "hf download" not in str(caught.value)


def test_a_path_in_this_repository_is_found_from_elsewhere_by_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("weights/tiny", "tiny"):
        with pytest.raises(Error) as caught:
            minigemma.load(path)
        assert str(minigemma.TINY) in str(caught.value)


def test_a_name_of_the_hub_that_is_not_here_is_answered_with_the_download(place):
    with pytest.raises(Error, match="run: hf download google/gemma-4-E2B-it"):
        minigemma.load("google/gemma-4-E2B-it")


def test_a_directory_without_a_config_is_answered_with_what_it_holds(place):
    with pytest.raises(Error, match=r"has no config\.json; it holds nothing"):
        minigemma.load("weights/notes")
    for name in ("b.md", "a.txt"):
        (place / "weights" / "notes" / name).touch()
    with pytest.raises(Error, match=r"has no config\.json; it holds a\.txt, b\.md\."):
        minigemma.load(place / "weights" / "notes")


# --- prompts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [["generate"], ["trace", "--out", "x"]])
def test_an_unquoted_prompt_is_answered_with_quotes(command, capsys):
    with pytest.raises(SystemExit):
        main([*command, *STORY.split()])
    assert capsys.readouterr().err.splitlines()[-1].endswith('upon a time; put the whole prompt in "double quotes"')


@pytest.mark.parametrize("words", [["params", "E2B", "E4B"], ["generate", STORY, "--sed", "1"], ["diff", "a", "b"]])
def test_other_words_too_many_are_not_answered_with_quotes(words, capsys):
    with pytest.raises(SystemExit):
        main(words)
    assert "quotes" not in capsys.readouterr().err


def test_a_prompt_may_come_from_a_pipe(tmp_path, run):
    piped = run("generate", "-", "-n", 10, "--seed", 1, input=STORY + "\n")
    assert piped.stdout == run("generate", STORY, "-n", 10, "--seed", 1).stdout != ""
    assert run("trace", "-", "--out", tmp_path / "t", input=" a\n\nb\n").returncode == 0
    ids = minigemma.Trace.load(tmp_path / "t").metadata["tokens"]
    assert ids == minigemma.load().tokenizer.encode(" a\n\nb")
    one_line(run("generate", "-", input=""), "the prompt is empty")
    one_line(command("generate", "-", input="caf\udce9", errors="surrogateescape"), "UTF-8")


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_texts_as_windows_writes_them_are_read(encoding, tmp_path, capsys):
    path, said = tmp_path / "file.json", []
    for name in "utf-8", encoding:
        path.write_text('[{"role": "user", "content": "Où est le chat ?"}]', encoding=name)
        assert main(["turns", str(path)]) == 0
        said.append(capsys.readouterr().out)
        assert [text["text"] for text in read_texts(path)] == [path.read_text(encoding=name)]
    assert said[0] == said[1]


def test_settings_that_are_not_applied_are_one_note_for_a_whole_chat(tmp_path, run):
    for path in minigemma.TINY.glob("*.*"):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    config = json.loads((tmp_path / "generation_config.json").read_text()) | {"repetition_penalty": 1.1, "min_p": 0.1}
    (tmp_path / "generation_config.json").write_text(json.dumps(config))
    result = run("chat", "-n", 3, "--weights", tmp_path, input="Hello\nWho is Tom?\n")
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 2)
    (note,) = result.stderr.splitlines()
    assert note.startswith("minigemma: note: ") and note.endswith("does not apply min_p, repetition_penalty")


# --- conversations ---------------------------------------------------------------------------------------------------

PASTED = "Tom has a red kite.\n\nHe put the kite in the barn.\n\nWhere is the kite?"


def test_from_a_pipe_each_line_is_a_turn_and_blank_lines_are_none(run):
    lines = PASTED.splitlines()
    words = ["chat", "-n", 20, "--temperature", 0, "--stats"]
    spaced, dense = (run(*words, input=text) for text in ("\n \n".join(lines), "\n".join(filter(None, lines))))
    assert spaced.stdout == dense.stdout
    assert spaced.stderr.count("prompt  ") == 3


def test_a_paste_is_one_turn_on_windows_too(monkeypatch):
    """There `select` cannot watch a terminal, and `msvcrt` can."""
    lines = PASTED.splitlines()
    waiting = SimpleNamespace(kbhit=lambda: bool(lines))
    monkeypatch.setitem(sys.modules, "msvcrt", waiting)
    monkeypatch.setattr(COMMAND, "_at_terminal", lambda: True)
    monkeypatch.setattr("builtins.input", lambda prompt="": lines.pop(0))
    assert COMMAND._ask() == PASTED
    lines += ["", "Hello", " /exit "]
    waiting.kbhit = lambda: False
    assert [COMMAND._ask(), COMMAND._ask()] == ["Hello", ""]


def test_exit_ends_a_conversation(run):
    result = run("chat", "-n", 5, input="Hello\n/exit\nHello\n")
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 1)


@pytest.mark.parametrize(
    ("owner", "name", "call"),
    [(GENERATE, "forward", 1), (GENERATE, "forward", 4), (GENERATE, "sample", 1), (GENERATE, "sample", 5),
     (COMMAND, "print", 2), (COMMAND, "print", 4)],
)  # fmt: skip
def test_ctrl_c_stops_the_answer_and_the_conversation_goes_on(owner, name, call, monkeypatch, capsys, tiny):
    """The next answer comes from caches that hold the conversation, with the part of the answer that was given."""
    turns, given, conversations = iter([PASTED, "Who has a kite?", ""]), [], []
    draw = CONVERSATION.generate_ids

    class Watched(CONVERSATION.Conversation):
        def __init__(self, *arguments):
            super().__init__(*arguments)
            conversations.append(self)

    def watched(model, ids, count, cache, **options):
        given.append((list(ids), cache))
        return draw(model, ids, count, cache, **options)

    monkeypatch.setattr(CONVERSATION, "generate_ids", watched)
    monkeypatch.setattr(COMMAND, "Conversation", Watched)
    monkeypatch.setattr(COMMAND, "_ask", lambda prompt: next(turns))
    monkeypatch.setattr(COMMAND, "_at_terminal", lambda: True)
    interrupt_at(monkeypatch, owner, name, call)
    assert main(["chat", "-n", "20", "--temperature", "0"]) == 0
    _, said, _, again = conversations[0].messages
    stopped, answered = capsys.readouterr().out.splitlines()
    assert said["content"].startswith(stopped)
    assert again["content"].startswith(answered) and answered
    whole = tiny.chat_ids(conversations[0].messages[:3])
    assert conversations[0].prompt == whole
    ids, cache = given[-1]
    assert whole[cache.length :] == ids
    ours, _ = prefill(ids, tiny.weights, tiny.config, cache)
    expected, _ = prefill(whole, tiny.weights, tiny.config)
    np.testing.assert_allclose(ours, expected, rtol=0, atol=2e-4)  # float32, as in test_long_run


@pytest.mark.parametrize(
    ("text", "complaint"), [("caf\udce9", "bytes that are not UTF-8"), ("a b " * 99_999, "positions")]
)
def test_a_text_that_cannot_be_read_is_reported_and_asked_again(text, complaint, monkeypatch, capsys):
    turns, read, draw = iter([text, "Who is Tom?", ""]), [], CONVERSATION.generate_ids

    def watched(model, ids, count, cache, **options):
        read.append(cache.length + len(ids))
        return draw(model, ids, count, cache, **options)

    monkeypatch.setattr(CONVERSATION, "generate_ids", watched)
    monkeypatch.setattr(COMMAND, "_ask", lambda prompt: next(turns))
    monkeypatch.setattr(COMMAND, "_at_terminal", lambda: True)
    assert main(["chat", "-n", "5"]) == 0
    out, err = capsys.readouterr()
    assert complaint in err.splitlines()[1]
    assert out.strip()
    assert read == [len(minigemma.load().chat_ids([{"role": "user", "content": "Who is Tom?"}]))]


def test_a_setting_that_cannot_be_used_ends_a_chat_before_the_first_question(monkeypatch, run):
    monkeypatch.setattr(COMMAND, "_at_terminal", lambda: True)
    one_line(run("chat", "--temperature", -1), "temperature must be a number")


def test_from_a_pipe_ctrl_c_ends_the_command(monkeypatch, capfd):
    interrupt_at(monkeypatch, GENERATE, "forward", 3)
    monkeypatch.setattr(COMMAND, "_ask", lambda prompt: "Hello")
    monkeypatch.setattr(COMMAND, "_at_terminal", lambda: False)
    assert main(["chat", "-n", "20"]) == 130


@pytest.mark.skipif(pty is None, reason="no pseudo-terminals")
class TestTerminal:
    """A chat at a terminal, with readline and without it."""

    @pytest.fixture(params=["readline", "no readline"])
    def terminal(self, request, tmp_path):
        """Give a function that types and waits for a text; at its end the chat must end with status 0."""
        path = str(ROOT)
        if request.param == "no readline":
            (tmp_path / "readline.py").write_text("raise ImportError")
            path = f"{tmp_path}{os.pathsep}{path}"
        arguments = ["chat", "-n", "30", "--temperature", "0", "--stats"]
        process, handle = pty.fork()
        if process == 0:
            os.chdir(ROOT)
            environment = os.environ | {"PYTHONPATH": path, "LC_ALL": "C.UTF-8", "TERM": "dumb"}
            os.execve(sys.executable, [sys.executable, "-m", "minigemma", *arguments], environment)

        def typed(keys, until):
            os.write(handle, keys)
            shown = b""
            while until not in shown:
                shown += os.read(handle, 1000)  # OSError where the chat has ended
            return shown.decode(errors="replace")

        watchdog = threading.Timer(100, os.kill, (process, signal.SIGKILL))  # then `os.read` fails: no endless test
        watchdog.start()
        typed(b"", b"> ")
        yield typed
        os.write(handle, b"/exit\n")
        _, status = os.waitpid(process, 0)
        watchdog.cancel()
        os.close(handle)
        assert os.waitstatus_to_exitcode(status) == 0

    def test_a_pasted_text_with_blank_lines_is_one_turn(self, terminal, tiny):
        shown = terminal(PASTED.encode() + b"\n", b"\n> ")
        ids = tiny.chat_ids([{"role": "user", "content": PASTED}])
        assert f"prompt        {len(ids)} tokens" in shown
        assert "barn" in shown.partition("is the kite?")[2]

    def test_a_blank_line_asks_again(self, terminal):
        terminal(b"\n", b"> ")
        assert "tokens" in terminal(b"Who is Tom?\n", b"\n> ")

    def test_bytes_that_are_not_utf8_are_reported_and_asked_again(self, terminal, request):
        if request.node.callspec.params["terminal"] == "readline":
            pytest.skip("readline drops such a byte from the line that it shows")
        assert "not UTF-8" in terminal(b"caf\xe9 is it\n", b"\n> ")
        assert "tokens" in terminal(b"Who is Tom?\n", b"\n> ")


# --- files -----------------------------------------------------------------------------------------------------------


def test_a_checkpoint_that_windows_keeps_open_says_to_save_elsewhere(tmp_path, monkeypatch):
    config, loaded = small("E2B")
    minigemma.save(tmp_path, loaded, config)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}

    def denied(*_):
        raise PermissionError(13, "Access is denied")

    monkeypatch.setattr(os, "replace", denied)
    with pytest.raises(Error, match=r"Access is denied.*Save to another directory"):
        minigemma.save(tmp_path, loaded, config)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.skipif(os.name == "nt", reason="Windows has no umask for files")
@pytest.mark.parametrize("mask", [0o022, 0o077])
def test_a_written_file_gets_the_permissions_of_the_umask(tmp_path, mask, monkeypatch):
    before = os.umask(mask)
    monkeypatch.setattr(os, "umask", None)  # changing it, even for a moment, would change other threads' files
    try:
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text("x")
    finally:
        monkeypatch.undo()
        os.umask(before)
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o666 & ~mask


def test_two_threads_can_write_one_file(tmp_path):
    both = threading.Barrier(2)

    def write(text):
        with replacing(tmp_path / "file") as temporary:
            temporary.write_text(text)
            both.wait(timeout=60)

    threads = [threading.Thread(target=write, args=(text,)) for text in ("a" * 1000, "b" * 1000)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert (tmp_path / "file").read_text() in ("a" * 1000, "b" * 1000)


@pytest.mark.parametrize("path", ["a\0b", "", "x" * 5000])
def test_a_path_that_cannot_be_written_is_one_line(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Error, match="cannot write"):
        minigemma.Trace().save(path)
    assert list(tmp_path.iterdir()) == []


# --- Python ----------------------------------------------------------------------------------------------------------


NO_MESSAGES = {"this is text": "Hello", "this is an object": {"role": "user"}, "message 1 is text": ["Hello"], "int": 3}


@pytest.mark.parametrize(("found", "messages"), NO_MESSAGES.items())
def test_what_is_no_list_of_messages_is_refused_with_an_example(tiny, found, messages):
    for use in (tiny.chat, tiny.chat_ids):
        with pytest.raises(Error, match=r'a list such as \[\{"role": "user", "content": "Hello"\}\]; .*' + found):
            use(messages)


MISSPELT = {"temprature": "temperature", "max_tokens": "max_new_tokens", "topk": "top_k"}


@pytest.mark.parametrize(("name", "near"), MISSPELT.items())
def test_a_misspelt_option_is_answered_with_the_nearest(tiny, name, near):
    with pytest.raises(Error, match=f"no option {name}; did you mean {near}"):
        list(minigemma.generate(tiny, STORY, **{name: 1}))
    with pytest.raises(Error, match=f"no option {name}; did you mean {near}"):
        tiny.chat([{"role": "user", "content": "Hi"}], **{name: 1})


def test_an_empty_answer_is_said_on_stderr(monkeypatch, capsys):
    monkeypatch.setattr(GENERATE, "sample", lambda *_, **__: 1)  # <eos>
    for words in ([STORY], [STORY, "--system", "Be brief."]):
        assert main(["generate", *words]) == 0
        shown = capsys.readouterr()
        assert shown.out == "\n" and "note: the model wrote nothing" in shown.err
