"""Reading JSON with clear errors, and writing files so that a half-written one never bears the final name."""

import json
import os
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from .errors import Error


def read_json(path):
    """The object in a JSON file. Raises Error where there is none."""
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise Error(f"{path}: no such file") from None
    except (OSError, ValueError, RecursionError) as error:
        raise Error(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(data, dict):
        raise Error(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def make_directory(path):
    """The directory as a Path, made where it is missing."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{path}: cannot make this directory ({error.strerror})") from None
    return Path(path)


@contextmanager
def progress(label, total):
    """Give a function that counts towards `total`; from the second second on, stderr shows the share done."""
    start = shown = time.monotonic()
    done = 0

    def advance(count):
        nonlocal done, shown
        done, now = done + count, time.monotonic()
        if now - start > 1 and now - shown > 0.2:
            shown = now
            print(f"\r{label}: {100 * done // total} %", end="", file=sys.stderr, flush=True)

    yield advance
    if shown != start:
        print(f"\r{label}: done in {time.monotonic() - start:.0f} s", file=sys.stderr)


@contextmanager
def replacing(path):
    """Give a temporary path beside `path` to write to; rename it to `path` if all went well, remove it if not."""
    path = Path(path)
    try:
        handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    except OSError as error:
        raise Error(f"{path}: cannot write there ({error.strerror})") from None
    os.close(handle)
    try:
        yield Path(temporary)
        umask = os.umask(0)
        os.umask(umask)
        os.chmod(temporary, 0o666 & ~umask)  # mkstemp makes files that only their owner can read
        os.replace(temporary, path)
    except OSError as error:
        raise Error(f"{path}: cannot write ({error.strerror or error})") from None
    finally:
        Path(temporary).unlink(missing_ok=True)
