"""Python processes of their own, as a user starts them; one line for a mistake; memory; Ctrl-C at a call."""

import os
import signal
import subprocess
import sys
import tracemalloc
from contextlib import contextmanager
from pathlib import Path

import needs

ROOT = Path(__file__).parents[1]


def python(*arguments, path=(), env=None, **options):
    """A finished Python process. path: directories in front of those that it imports from.

    env: added to os.environ; what is None there is taken from it.
    """
    environment = needs.environment(os.pathsep.join(map(str, [*path, ROOT])), **env or {})
    environment = {name: value for name, value in environment.items() if value is not None}
    return subprocess.run(
        [sys.executable, *map(str, arguments)], check=False, env=environment, timeout=120,
        **{"cwd": ROOT, "capture_output": True, "encoding": "utf-8"} | options,
    )  # fmt: skip


def command(*arguments, **options):
    """A finished `python -m minigemma`; options as of `python`."""
    return python("-m", "minigemma", *arguments, **options)


def shell(line):
    """A finished command of a POSIX shell, in which {} stands for `python -m minigemma`."""
    line = line.format(f"{sys.executable} -m minigemma")
    return subprocess.run(["sh", "-c", line], check=False, capture_output=True, cwd=ROOT, text=True, timeout=120)


def one_line(result, *words):
    """Assert that a command ended with status 2, nothing on stdout, and one line on stderr that holds these words."""
    assert (result.returncode, result.stdout or "") == (2, ""), result.stderr
    (line,) = result.stderr.splitlines()
    for word in ("minigemma: ", *words):
        assert word in line


@contextmanager
def peak_memory():
    """Trace what Python allocates inside -> a list that then holds the peak in bytes."""
    peak = []
    tracemalloc.start()
    try:
        yield peak
        peak.append(tracemalloc.get_traced_memory()[1])
    finally:
        tracemalloc.stop()


def interrupt_at(monkeypatch, owner, name, call):
    """Ctrl-C arrives just before the given call of a function; of a built-in one, as the module `owner` calls it."""
    function, calls = getattr(owner, name, print), []

    def interrupted(*arguments, **options):
        calls.append(name)
        if len(calls) == call:
            signal.raise_signal(signal.SIGINT)
        return function(*arguments, **options)

    monkeypatch.setattr(owner, name, interrupted, raising=False)
