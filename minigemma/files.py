"""Reading JSON with clear errors, and writing files so that a half-written one never bears the final name."""

import json
import os
import tempfile
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
