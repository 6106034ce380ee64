"""What a careless user does, and the one line that answers it."""

import os
import threading

import pytest
from family import small

import minigemma
from minigemma import Error
from minigemma.files import replacing

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
