"""Reading JSON with clear errors, and writing files so that a half-written one never bears the final name."""


import json
import math
import os
import stat
import sys
import tempfile
import time
from contextlib import contextmanager
from pathlib import Path

from .errors import Error

LARGEST_JSON = 16 * 2**20  # bytes; parsed JSON takes many times its size, and the largest real header is under 1 MB


def check_file(path, largest=None):
    """Raise Error unless `path` is a regular file, links followed, of at most `largest` bytes.

    A pipe would block whoever reads it, a device never end, and a file of JSON is read whole.
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
        raise Error(f"{path}: {found.st_size >> 20} MB are more than such a file has; the most is {largest >> 20}")


def read_json(path):
    """The object in a JSON file. Raises Error where there is none, and where an object has one name twice."""
    check_file(path, LARGEST_JSON)
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8"), object_pairs_hook=_without_repeats)
    except (OSError, ValueError, RecursionError) as error:
        raise Error(f"{path}: not a readable JSON file ({error})") from None
    if not isinstance(data, dict):
        raise Error(f"{path}: expected a JSON object, found {type(data).__name__}")
    return data


def read_safetensors_header(path):
    """The header of a whole safetensors file -> its JSON object, and where the data starts. Raises Error for others.

    The library checks lengths, offsets, dtypes and shapes; it lets a name be there twice, and the last one count.
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
            return json.loads(file.read(start - 8), object_pairs_hook=_without_repeats), start
    except (safetensors.SafetensorError, OSError, ValueError, RecursionError) as error:
        raise Error(f"{path}: not a whole safetensors file ({error}); download it again") from None


def _without_repeats(pairs):
    """A JSON object as a dict. A name given twice means two things, and which one counts depends on the reader."""
    data = dict(pairs)
    if len(data) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} is in it twice")
    return data


def json_number(value):
    """A number as JSON has it: null for what is not finite; None and integers as they are."""
    if value is None or isinstance(value, int):
        return value
    return float(value) if math.isfinite(value) else None


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
    """Give a temporary path beside `path` to write to; rename it to `path` if all went well, remove it if not.

    A link is followed. A device or a pipe is no place for a file, and the rename would put one there: an Error.
    """
    path = Path(os.path.realpath(path))
    if path.exists() and not path.is_file():
        raise Error(f"{path}: cannot write over what is no regular file; give another name")
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
