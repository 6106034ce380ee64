"""What a careless user does, and the one line that answers it."""

import os
import subprocess
import sys
import threading
from importlib import import_module
from pathlib import Path

import pytest
from family import small

import minigemma
from minigemma import Error
from minigemma.files import replacing

try:
    import pty
except ImportError:  # Windows
    pty = None

ROOT = Path(__file__).parents[1]
GENERATE = import_module("minigemma.sampling")  # as an attribute of the package, that name is the function
COMMAND = import_module("minigemma.__main__")
STORY = "Once upon a time"


def python(*arguments, path=(), **options):
    """A finished Python process, with directories in front of those that it imports from."""
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(map(str, [*path, ROOT])), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], check=False, capture_output=True, encoding="utf-8", timeout=120,
        **{"cwd": ROOT, "env": environment} | options,
    )  # fmt: skip


def one_line(result, *words):
    """Status 2, nothing on stdout, one line on stderr that holds these words."""
    assert (result.returncode, result.stdout) == (2, ""), result.stderr
    (line,) = result.stderr.splitlines()
    for word in ("minigemma: ", *words):
        assert word in line


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
    for name in ("b.gguf", "a.txt"):
        (place / "weights" / "notes" / name).touch()
    with pytest.raises(Error, match=r"has no config\.json; it holds a\.txt, b\.gguf\."):
        minigemma.load(place / "weights" / "notes")


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
