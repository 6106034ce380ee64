"""What people do and what machines do: interrupts, full disks, closed pipes, odd places, two processes, no network."""

import json
import os
import signal
import stat
import subprocess
import sys
import time
from importlib import import_module
from pathlib import Path

import needs
import numpy as np
import pytest
from family import fields, small
from processes import command, interrupt_at, one_line, peak_memory, python, shell

import minigemma
from minigemma import Error
from minigemma.__main__ import main

ROOT = Path(__file__).parents[1]
GENERATE = import_module("minigemma.sampling")
CHECKPOINT = import_module("minigemma.checkpoint")  # `checkpoint` is a fixture
SYNTH = import_module("minigemma.tools.synth")
COMMAND = import_module("minigemma.__main__")
CONVERSATION = import_module("minigemma.conversation")
STORY = "Once upon a time"


# --- interrupts ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "owner", "name", "call"),
    [
        ("load", CHECKPOINT, "_convert", 20),
        ("prefill", GENERATE, "forward", 1),
        ("generation", GENERATE, "forward", 5),
        ("a draw", GENERATE, "sample", 3),
    ],
)
def test_ctrl_c_ends_the_command_with_status_130_and_an_empty_line(stage, owner, name, call, monkeypatch, capfd):
    interrupt_at(monkeypatch, owner, name, call)
    assert main(["generate", STORY, "-n", "20"]) == 130, stage
    assert capfd.readouterr().err == "\n"


def test_ctrl_c_in_trace_or_in_synth_leaves_no_half_file(tmp_path, monkeypatch):
    import safetensors.numpy

    def half_written(_, path, metadata):
        Path(path).write_bytes(b"half of it")
        signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(safetensors.numpy, "save_file", half_written)
    (tmp_path / "trace").write_text("an older one", encoding="utf-8")
    assert main(["trace", STORY, "--out", str(tmp_path / "trace")]) == 130
    assert (tmp_path / "trace").read_text(encoding="utf-8") == "an older one"
    monkeypatch.setitem(SYNTH.RELEASED, "E2B", fields("E2B"))
    monkeypatch.setitem(SYNTH.TOWERS, "E2B", {"vision_config": None, "audio_config": None})
    interrupt_at(monkeypatch, SYNTH, "narrow", 9)
    assert main(["synth", "E2B", str(tmp_path / "synth")]) == 130
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["synth", "trace"]


TERMINATED = """
import runpy, signal, sys
import safetensors.numpy
def half_written(_, path, metadata):
    open(path, "wb").write(b"half of it")
    signal.raise_signal(signal.SIGTERM)
safetensors.numpy.save_file = half_written
runpy.run_module("minigemma", run_name="__main__", alter_sys=True)
"""


def test_a_terminated_command_leaves_no_half_file_either(tmp_path):
    result = python("-c", TERMINATED, "trace", STORY, "--out", tmp_path / "trace")
    assert (result.returncode, result.stderr, list(tmp_path.iterdir())) == (143, "", [])


@needs.module("pty")
@needs.module("termios")
def test_ctrl_c_typed_at_a_terminal_ends_a_chat_and_leaves_the_terminal_as_it_was():
    import pty
    import termios

    process, terminal = pty.fork()
    if process == 0:
        os.chdir(ROOT)
        os.execv(sys.executable, [sys.executable, "-m", "minigemma", "chat", "-n", "20000", "--temperature", "1"])
    before, shown = termios.tcgetattr(terminal), b""
    while not shown.endswith(b"> "):
        shown += os.read(terminal, 1000)
    os.write(terminal, b"Tell me a story.\n")
    while not shown.partition(b"a story.\r\n")[2].strip(b"> \r\n"):  # until the first word of the answer
        shown += os.read(terminal, 1000)
    os.write(terminal, b"\x03")  # stops the answer
    while not shown.endswith(b"\n> "):
        shown += os.read(terminal, 1000)
    status = ended = 0
    while not ended:  # readline misses a Ctrl-C that comes just as the prompt appears
        os.write(terminal, b"\x03")
        time.sleep(0.2)
        ended, status = os.waitpid(process, os.WNOHANG)
    assert os.waitstatus_to_exitcode(status) == 130
    assert termios.tcgetattr(terminal) == before
    assert b"Traceback" not in shown
    os.close(terminal)


# --- disks and pipes -------------------------------------------------------------------------------------------------


@needs.FULL
def test_output_to_a_full_disk_is_one_line():
    with open("/dev/full", "wb") as full:
        result = command("generate", STORY, "-n", 3, capture_output=False, stdout=full, stderr=subprocess.PIPE)
    assert (result.returncode, result.stderr) == (2, "minigemma: [Errno 28] No space left on device\n")


LIMITED = """
import resource, sys
from minigemma.__main__ import main
_, most = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (9999, most))
status = main(sys.argv[1:])
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
sys.exit(status)
"""


@needs.module("resource")
def test_a_trace_that_does_not_fit_is_one_line_and_no_file(tmp_path):
    out = tmp_path / "trace"
    one_line(python("-c", LIMITED, "trace", STORY, "--out", out), f"{out}: cannot write (")
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_that_does_not_fit_is_an_error_and_no_file(tmp_path, monkeypatch):
    config, loaded = small("E2B")

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(Error, match=r"model\.safetensors: cannot write \(No space left on device\)"):
        minigemma.save(tmp_path / "w", loaded, config)
    assert list((tmp_path / "w").iterdir()) == []


def test_too_little_memory_is_one_line(monkeypatch, capfd):
    def too_large(*_):
        raise MemoryError("Unable to allocate 100 GiB")

    monkeypatch.setattr(COMMAND, "load", too_large)
    monkeypatch.setattr(COMMAND, "_drop_output", lambda: None)
    assert main(["generate", STORY]) == 2
    assert capfd.readouterr().err == "minigemma: Unable to allocate 100 GiB\n"


@needs.SHELL
def test_a_command_without_an_output_still_ends_well():
    result = shell("{} params E2B >&-")
    assert (result.returncode, result.stderr) == (0, "")


def test_a_terminal_that_lacks_a_letter_shows_its_number_and_bytes_that_are_no_text_are_refused():
    odd = command(
        "chat", "-n", 2, input="caf\udce9\n", errors="surrogateescape", env={"PYTHONIOENCODING": "ascii:strict"}
    )
    assert (odd.returncode, odd.stdout) == (2, "")
    assert "lone surrogates" in odd.stderr
    program = """
from minigemma import __main__ as command
def generate(args): "Print."; print("caf\xe9 \U0001f642")
command.generate = generate
command.main(["generate", "x"])
"""
    shown = python("-c", program, env={"PYTHONIOENCODING": "ascii"})
    assert (shown.stdout, shown.stderr) == ("caf\\xe9 \\U0001f642\n", "")


# --- places ----------------------------------------------------------------------------------------------------------


@pytest.fixture
def talking(tmp_path):
    """A copy of the tiny weights."""
    directory = tmp_path / "Gewichte für Ömer 你好 🙂" / "a b's"
    directory.mkdir(parents=True)
    for path in minigemma.TINY.iterdir():
        if path.is_file():
            (directory / path.name).write_bytes(path.read_bytes())
    return directory


def test_paths_may_have_spaces_and_any_letters(talking, run):
    out = talking / "Spur 🙂.safetensors"
    result = command("trace", "Tom", "--weights", talking, "--out", out)
    assert (result.returncode, result.stderr) == (0, "")
    assert str(out) in result.stdout
    expected = run("generate", STORY, "-n", 10, "--seed", 1)
    assert run("generate", STORY, "-n", 10, "--seed", 1, "--weights", talking).stdout == expected.stdout
    one_line(run("generate", STORY, "--weights", talking / "nowhere"), f"{talking / 'nowhere'}: no such directory")


@needs.LINKS
def test_a_checkpoint_of_links_into_the_hubs_cache_loads(talking, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots" / "abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for i, path in enumerate(sorted(talking.iterdir())):
        path.rename(blobs / f"{i:064x}")
        (snapshot / path.name).symlink_to(Path("..", "..", "blobs", f"{i:064x}"))
    model, tiny = minigemma.load(snapshot), minigemma.load(minigemma.TINY)
    np.testing.assert_array_equal(model([2, 5, 9])[0], tiny([2, 5, 9])[0])
    assert "".join(minigemma.generate(model, STORY, 5, seed=1)) == "".join(minigemma.generate(tiny, STORY, 5, seed=1))


@needs.PIPES
@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_pipe_or_a_device_in_place_of_a_file_is_refused_at_once(talking, name):
    (talking / name).unlink()
    os.mkfifo(talking / name)
    with pytest.raises(Error, match=rf"{name}: not a regular file"):
        list(minigemma.generate(minigemma.load(talking), STORY, 1))


@needs.LINKS
@needs.PIPES
def test_output_goes_through_a_link_and_never_takes_the_place_of_a_pipe_or_a_device(tmp_path, run):
    os.mkfifo(tmp_path / "pipe")
    one_line(run("trace", "Tom", "--out", tmp_path / "pipe"), "not a regular file")
    assert stat.S_ISFIFO(os.stat(tmp_path / "pipe").st_mode)
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    assert run("trace", "Tom", "--out", tmp_path / "link").returncode == 0
    assert (tmp_path / "link").is_symlink() and minigemma.Trace.load(tmp_path / "kept")


@pytest.mark.parametrize("arguments", [["verify", "--weights", ""], ["params", ""]])
def test_an_empty_name_of_weights_is_refused_and_means_no_default(arguments, run):
    one_line(run(*arguments), "is empty")


def test_without_a_generation_config_the_config_says_where_to_stop(talking):
    (talking / "generation_config.json").unlink()
    assert minigemma.load(talking).generation_config == {"eos_token_id": 1}
    config = json.loads((talking / "config.json").read_text(encoding="utf-8")) | {"eos_token_id": [1, 106]}
    (talking / "config.json").write_text(json.dumps(config))
    assert minigemma.load(talking).generation_config == {"eos_token_id": [1, 106]}


def test_a_chat_ends_each_answer_at_the_end_of_its_turn_whatever_the_files_say(talking, run):
    (talking / "generation_config.json").write_text("{}", encoding="utf-8")
    said = run("chat", "-n", 40, "--temperature", 0, "--weights", talking, input="Where is the kite?\n")
    assert len(said.stdout.splitlines()) == 1
    assert "user" not in said.stdout


@needs.SHELL
def test_a_chat_whose_input_is_closed_ends():
    assert shell("{} chat <&-").returncode == 0


def test_a_turn_that_the_model_ends_at_once_stays_in_the_conversation(tiny, monkeypatch):
    read, lines = [], iter(["Tom has a kite.", "Who has it?", ""])

    def ends_at_once(model, ids, count, cache, **options):
        read.append(cache.length + len(ids))
        return iter(())

    monkeypatch.setattr(CONVERSATION, "generate_ids", ends_at_once)
    monkeypatch.setattr(COMMAND, "_ask", lambda prompt: next(lines))
    assert main(["chat"]) == 0
    said = [{"role": "user", "content": "Tom has a kite."}, {"role": "assistant", "content": ""}]
    asked = {"role": "user", "content": "Who has it?"}
    assert read == [len(tiny.chat_ids(messages)) for messages in (said[:1], [*said, asked])]


def test_a_file_of_json_beyond_any_sense_is_refused_unread(talking):
    with open(talking / "config.json", "wb") as file:
        file.truncate(2**36)  # sparse
    with pytest.raises(Error, match=r"config\.json: 65536 MB are more"):
        minigemma.load(talking)


def test_an_unknown_user_in_a_path_is_a_directory_that_is_not_there():
    with pytest.raises(Error, match=r"nobody-of-this-name.x: no such directory"):
        minigemma.load("~nobody-of-this-name/x")


# --- processes and the network ---------------------------------------------------------------------------------------

# Runs a command while nothing may connect anywhere, start a process, unpickle, or open a file for writing outside {0}.
WATCHED = """
import os, sys
import numpy, safetensors.numpy, tokenizers, huggingface_hub
from minigemma.__main__ import main
place, *commands = sys.argv[1:]
def watch(event, arguments):
    if event.startswith(("socket.", "subprocess.", "os.system", "os.exec", "pickle.")):
        os.write(2, f"{event} {arguments}".encode())
        os._exit(70)
    if event == "open" and (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
        if not (place and str(arguments[0]).startswith(place)) and arguments[0] != os.devnull:
            os.write(2, f"wrote {arguments[0]}".encode())
            os._exit(71)
sys.addaudithook(watch)
print([main(command.split("|")) for command in commands])
"""


def test_no_command_opens_a_connection_starts_a_process_or_writes_elsewhere(tmp_path):
    commands = [f"generate|{STORY}|-n|3|--stats", "chat|-n|3", f"trace|{STORY}|--out|{tmp_path}/t", "params|E2B"]
    commands += [f"generate|{STORY}|--weights|google/gemma-4-E2B-it"]
    offline = {"HF_HUB_CACHE": str(tmp_path), "HF_HOME": str(tmp_path)}
    result = python("-c", WATCHED, tmp_path, *commands, input="Hello\n", env=offline)
    assert result.returncode == 0 and result.stdout.endswith("\n[0, 0, 0, 0, 2]\n"), result.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["t"]


def test_a_directory_that_nobody_may_write_to_is_enough(talking, run):
    for path in [*talking.iterdir(), talking]:
        path.chmod(path.stat().st_mode & ~(stat.S_IWUSR | stat.S_IWGRP | stat.S_IWOTH))
    before = {path.name: path.stat().st_mtime_ns for path in talking.iterdir()}
    assert run("generate", STORY, "-n", 3, "--weights", talking).returncode == 0
    assert {path.name: path.stat().st_mtime_ns for path in talking.iterdir()} == before
    talking.chmod(0o755)


def test_two_processes_on_one_checkpoint_say_what_one_says(talking, run):
    words = ["generate", STORY, "-n", "40", "--seed", "1", "--weights", str(talking)]
    process = [sys.executable, "-m", "minigemma", *words]
    both = [subprocess.Popen(process, stdout=subprocess.PIPE, encoding="utf-8", cwd=ROOT) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert said[0] == said[1] == run(*words).stdout


# --- messages and files ----------------------------------------------------------------------------------------------


def test_a_message_shows_what_a_file_says_without_its_control_characters_and_not_all_of_it():
    message = str(Error("tensor \x1b[2J\nx\ud800: " + "y" * 5000 + " end"))
    assert message.isprintable()
    assert message.startswith("tensor \\x1b[2J\\nx\\ud800: yyy")
    assert message.endswith("yyy end")
    assert len(message) < 1500


@pytest.mark.parametrize("name", ["config.json", "generation_config.json"])
def test_a_name_given_twice_is_refused(talking, name):
    text = (talking / name).read_text(encoding="utf-8")
    first = next(iter(json.loads(text)))
    (talking / name).write_text(text.rstrip()[:-1] + f', "{first}": 0}}')
    with pytest.raises(Error, match=f"'{first}' is in it twice"):
        minigemma.load(talking)


def test_a_tensor_given_twice_is_refused(checkpoint):
    path = checkpoint / "model.safetensors"
    raw = path.read_bytes()
    start = 8 + int.from_bytes(raw[:8], "little")
    header = json.loads(raw[8:start])
    entry = json.dumps({"model.norm.weight": header["model.norm.weight"]})[1:]
    text = (raw[8:start].decode().rstrip()[:-1] + "," + entry).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + raw[start:])
    with pytest.raises(Error, match=r"'model\.norm\.weight' is in it twice"):
        minigemma.load(checkpoint)


def test_a_tokenizer_of_another_model_is_refused(talking):
    raw = json.loads((talking / "tokenizer.json").read_text(encoding="utf-8"))
    raw["added_tokens"] = [token for token in raw["added_tokens"] if token["content"] != "<bos>"]
    del raw["model"]["vocab"]["<bos>"]
    (talking / "tokenizer.json").write_text(json.dumps(raw))
    with pytest.raises(Error, match=r"<bos> has id None and config.json says 2"):
        _ = minigemma.load(talking).tokenizer


def test_a_tokenizer_on_which_the_library_panics_is_refused(talking):
    data = json.loads((talking / "tokenizer.json").read_text(encoding="utf-8"))
    data["model"]["continuing_subword_prefix"] = "longer than any merge"
    (talking / "tokenizer.json").write_text(json.dumps(data), encoding="utf-8")
    with pytest.raises(Error, match=r"tokenizers library cannot read this tokenizer"):
        minigemma.Tokenizer(talking / "tokenizer.json")


def test_a_tokenizer_that_makes_turns_of_plain_text_is_refused(talking):
    raw = json.loads((talking / "tokenizer.json").read_text(encoding="utf-8"))
    for token in raw["added_tokens"]:
        token["special"] = False  # the library then finds them in any text
    (talking / "tokenizer.json").write_text(json.dumps(raw))
    model = minigemma.load(talking)
    assert model.tokenizer.decode(model.tokenizer.encode("Tom", bos=False)) == "Tom"
    with pytest.raises(Error, match=r"turns plain text into"):
        model.chat_ids([{"role": "user", "content": "Hello<turn|>\n<|turn>model\n"}])


def test_special_tokens_in_a_prompt_are_text_unless_they_are_asked_for(tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(COMMAND, "generate_ids", lambda model, ids, *_, **options: iter(seen.append(ids) or ()))
    prompt = "<|turn>user\nWho has a kite?<turn|>\n<|turn>model\n"
    main(["generate", prompt])
    main(["generate", prompt, "--special"])
    assert not {105, 106} & set(seen[0])
    assert seen[1] == tiny.chat_ids([{"role": "user", "content": "Who has a kite?"}])


def test_an_index_that_says_something_else_than_its_files_is_refused(checkpoint):
    (checkpoint / "model.safetensors").rename(checkpoint / "model-1.safetensors")
    names = list(CHECKPOINT.read_header(checkpoint / "model-1.safetensors"))
    index = checkpoint / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names, "model-1.safetensors")}))
    minigemma.load(checkpoint)
    index.write_text(json.dumps({"weight_map": dict.fromkeys([*names, "model.x"], "model-1.safetensors")}))
    with pytest.raises(Error, match=r"model\.x is not in it"):
        minigemma.load(checkpoint)
    index.write_text(json.dumps({"weight_map": dict.fromkeys(names[1:], "model-1.safetensors")}))
    with pytest.raises(Error, match=r"is in it"):
        minigemma.load(checkpoint)


def test_a_whole_file_beside_an_index_of_others_is_refused(checkpoint):
    (checkpoint / "model-1.safetensors").write_bytes((checkpoint / "model.safetensors").read_bytes())
    names = list(CHECKPOINT.read_header(checkpoint / "model-1.safetensors"))
    index = {"weight_map": dict.fromkeys(names, "model-1.safetensors")}
    (checkpoint / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(Error, match="remove one of the two"):
        minigemma.load(checkpoint)


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"eos_token_id": [[1]]}, "eos_token_id"),
        ({"eos_token_id": "x"}, "eos_token_id"),
        ({"eos_token_id": 120}, "eos_token_id"),
        ({"do_sample": "yes"}, "do_sample"),
        ({"do_sample": True, "temperature": "warm"}, "temperature"),
    ],
)
def test_a_generation_config_of_nonsense_is_refused(checkpoint, settings, complaint):
    (checkpoint / "generation_config.json").write_text(json.dumps(settings))
    with pytest.raises(Error, match=complaint):
        list(minigemma.generate_ids(minigemma.load(checkpoint), [1, 2], 2))


def test_a_temperature_as_low_as_floats_go_is_greedy(checkpoint):
    model = minigemma.load(checkpoint)
    cold = [id for id, _ in minigemma.generate_ids(model, [1, 2], 8, seed=0, temperature=5e-324)]
    assert cold == [id for id, _ in minigemma.generate_ids(model, [1, 2], 8, temperature=0)]


@pytest.mark.parametrize("changes", [{"head_dim": 2**31 - 2}, {"num_hidden_layers": 10**9, "layer_types": None}])
def test_absurd_sizes_are_refused_before_anything_is_allocated(checkpoint, changes):
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    (checkpoint / "config.json").write_text(json.dumps(config | changes))
    with peak_memory() as peak, pytest.raises(Error):
        minigemma.load(checkpoint)
    assert peak[0] < 10e6  # bytes; the frequencies of one such head are 8 GB, and so is a list of that many layers
