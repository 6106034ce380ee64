"""Read text and JSON with clear errors. Write files so that a half-written file never has the final name."""

import codecs
import json
import math
import os
import secrets
import stat
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from .errors import Error

LARGEST_JSON = 16 * 2**20  # bytes; parsed JSON takes many times its size, and the largest real header is under 1 MB


def check_file(path, largest=None):
    """Raise Error unless `path` is a regular file of at most `largest` bytes. Links are followed.

    Reading a pipe would wait, reading a device might never end, and a JSON file is read whole.
    """
    try:
        found = os.stat(path)
    except FileNotFoundError:
        raise Error(f"{path}: no such file") from None
    except (OSError, ValueError) as error:  # ValueError: a path that holds a null character
        raise Error(f"{path}: cannot be read ({getattr(error, 'strerror', None) or error})") from None
    if not stat.S_ISREG(found.st_mode):
        raise Error(f"{path}: not a regular file")
    if largest is not None and found.st_size > largest:
        raise Error(f"{path}: {found.st_size >> 20} MB are more than such a file can have ({largest >> 20} MB)")


def is_utf16(path):
    """Whether a file says in its first bytes that it is UTF-16: Windows PowerShell 5 writes so what follows a >."""
    with open(path, "rb") as file:
        return file.read(2) in (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


def read_text(path):
    """The text of a file of UTF-8, or of UTF-16 that says so. Raises OSError, or ValueError for other bytes."""
    return Path(path).read_text(encoding="utf-16" if is_utf16(path) else "utf-8-sig")


def read_json(path, kind=dict):
    """The object (kind dict) or the list in a JSON file.

    Raises Error if the file holds anything else, or if an object has a name twice.
    """
    check_file(path, LARGEST_JSON)
    try:
        data = json.loads(read_text(path), object_pairs_hook=without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise Error(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(data, kind):
        expected = "object" if kind is dict else "list, in [ ]"
        raise Error(f"{path}: expected a JSON {expected}, found {type(data).__name__}")
    return data


def read_safetensors_header(path):
    """The header of a safetensors file -> its JSON object, and the byte where the data starts.

    The library checks lengths, offsets, dtypes and shapes. It accepts a name that is there twice; we do not.
    Raises Error if the file is not whole.
    """
    import safetensors

    check_file(path)
    try:
        with open(path, "rb") as file:
            start = 8 + int.from_bytes(file.read(8), "little")
            if start > LARGEST_JSON:
                raise ValueError(f"a header of {start} bytes")
            with safetensors.safe_open(path, framework="np"):
                pass
            return json.loads(file.read(start - 8), object_pairs_hook=without_repeats), start
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise Error(f"{path}: not a whole safetensors file ({error}); download it again") from None


def without_repeats(pairs):
    """A JSON object as a dict. Raises ValueError for a name that is there twice: readers do not agree on its value."""
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is in it twice")
    return data


def json_number(value):
    """A number as JSON can hold it: None for NaN and infinity; None and integers unchanged."""
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


def make_directory(path):
    """Make the directory if it is missing -> its Path. Raises Error if that fails."""
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Error(f"{path}: cannot make this directory ({error.strerror})") from None
    return Path(path)


@contextmanager
def progress(label, total):
    """Give a function that counts towards `total`. After one second, stderr shows the percentage."""
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
    """Give a temporary path beside `path` to write to. Rename it to `path` if all went well, else remove it.

    Links are followed. Raises Error if `path` is a directory, a device or a pipe, or if it cannot be written.
    """
    given = path
    try:
        path = Path(os.path.realpath(given))
        if path.exists() and not path.is_file():
            raise Error(f"{path}: cannot write here, this is not a regular file; choose another name")
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))  # the system applies the umask
    except Error:
        raise
    except (OSError, ValueError) as error:  # ValueError: a path that holds a null character, or no name at all
        raise Error(f"{given}: cannot write there ({getattr(error, 'strerror', None) or error})") from None
    try:
        yield temporary
        _rename(temporary, path)
    except OSError as error:
        raise Error(f"{path}: cannot write ({error.strerror or error})") from None
    finally:
        temporary.unlink(missing_ok=True)


def _rename(temporary, path):
    """Put the finished file in the place of `path`. Windows refuses this while a program has `path` open."""
    try:
        os.replace(temporary, path)
    except PermissionError as error:
        if not path.exists():
            raise
        raise Error(
            f"{path}: cannot be replaced ({error.strerror or error}). A program may have it open: a loaded model keeps "
            "its weights file open, and Windows then refuses. Save to another directory"
        ) from None


def table(heads, rows):
    """Columns as wide as their widest cell; numbers to the right, text to the left."""
    cells = [heads, *[[f"{cell:,}" if isinstance(cell, int) else str(cell) for cell in row] for row in rows]]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    numbers = [all(cell[:1] in "+-0123456789" for cell in column[1:]) for column in zip(*cells, strict=True)]
    aligns = [str.ljust, *(str.rjust if number else str.ljust for number in numbers[1:])]
    lines = []
    for row in cells:
        line = "  ".join(align(cell, width) for align, cell, width in zip(aligns, row, widths, strict=True))
        lines.append(line.rstrip())
    return "\n".join(lines)
