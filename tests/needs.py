"""What tests need of the operating system. A test is skipped, with the reason, where that is missing."""

import os
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest


def module(name):
    """A mark for tests that need a module of the standard library which Windows lacks."""
    try:
        found = find_spec(name)
    except ValueError:  # blocked, see without_unix
        found = None
    return pytest.mark.skipif(found is None, reason=f"this system has no module {name}")


def can_link():
    """Whether this user may make symbolic links: on Windows that is a right of its own."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            os.symlink("target", Path(folder, "link"))
        except OSError:
            return False
    return True


def environment(folder, **settings):
    """os.environ for a child process that finds modules in the folder, and writes no bytecode there."""
    path = os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"} | settings


PIPES = pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
LINKS = pytest.mark.skipif(not can_link(), reason="this user may not make symbolic links")
SHELL = pytest.mark.skipif(os.name != "posix", reason="this system has no POSIX shell")
FULL = pytest.mark.skipif(not os.path.exists("/dev/full"), reason="there is no device that is always full")
PROC = pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="only Linux tells what memory backs a process")
