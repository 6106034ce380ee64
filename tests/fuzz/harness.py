"""One input: it is tried under a time limit, a memory limit and a watch over files and sockets, and judged.

An input ends in a right answer or in one line of minigemma.Error. A traceback, a hang, memory beyond twice the file, a
file written elsewhere, a connection, and a contradiction that is accepted are all Broken.
"""

import os
import signal
import sys
import time
import zlib
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minigemma import Error

try:
    import resource
except ImportError:  # Windows
    resource = None

# What an input must come to. SAME: the base's own answer, or its Error where the kind says so.
REFUSED, SAME, SAME_OR_REFUSED, SOUND = "refused", "same", "same or refused", "sound or refused"
SECONDS = 10  # of this process's own time, or six times as many by the clock: another program's load is no hang
SLACK = 64 * 2**20  # bytes that reading even an empty file may take: libraries, buffers, the arrays of a short pass


class Case(NamedTuple):
    """A mutated input."""

    what: str  # the mutation, for the log
    act: object  # () -> the answer; raises Error where the input is refused
    expect: str  # one of the four above
    answer: object = None  # what SAME compares with
    size: int = 0  # bytes of the files that `act` reads


class Broken(AssertionError):
    """What must never come of any input."""


class Unavailable(Exception):
    """This system cannot make the input: it has no named pipes, or this user may not make links."""


class Hang(BaseException):
    """Raised by the alarm; no `except Exception` of a library may swallow it."""


def rng_of(seed, kind, number):
    """Each input has its own generator, so that one can be tried again alone."""
    return np.random.default_rng([seed, zlib.crc32(kind.encode()), number])


def pick(rng, items):
    """One of them."""
    items = list(items)
    return items[rng.integers(len(items))]


def attempt(case, scratch):
    """Try one input -> "accepted" or "refused". Raises Broken with the reason."""
    reset = _memory_now()
    try:
        with _alarm(SECONDS), _watch(scratch), np.errstate(all="ignore"):
            answer = case.act()
    except Error as error:
        check_message(str(error))
        outcome = "refused"
    except Hang:
        raise Broken(f"{case.what}: no end after {SECONDS} s of work") from None
    except (KeyboardInterrupt, Broken):
        raise
    except BaseException as error:  # a panic of a Rust library is no Exception
        raise Broken(f"{case.what}: {type(error).__name__}: {str(error)[:300]}") from error
    else:
        outcome = "accepted"
        _judge(case, answer)
    grown = _memory_peak() - reset
    if grown > 2 * case.size + SLACK:
        raise Broken(f"{case.what}: took {grown / 1e6:.0f} MB for files of {case.size / 1e6:.1f} MB")
    if case.expect == SAME and outcome == "refused":
        raise Broken(f"{case.what}: refused, and there is nothing wrong with it")
    return outcome


def check_message(message):
    """One line that a terminal can show: not long, and without control characters that a file brought along."""
    if not message or len(message) > 2000 or not message.isprintable():
        raise Broken(f"not one printable line of at most 2000 characters: {message[:300]!r} ({len(message)})")


def _judge(case, answer):
    if case.expect == REFUSED:
        raise Broken(f"{case.what}: accepted, and it is wrong")
    if case.expect in (SAME, SAME_OR_REFUSED) and not _equal(answer, case.answer):
        raise Broken(f"{case.what}: accepted, with another answer")
    for array in answer if isinstance(answer, list | tuple) else [answer]:
        if isinstance(array, np.ndarray) and not np.isfinite(array).all():
            raise Broken(f"{case.what}: accepted, and the answer is not finite")


def _equal(a, b):
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(_equal, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_equal(a[key], b[key]) for key in a)
    return np.array_equal(a, b) if isinstance(a, np.ndarray) else a == b


def make_pipe(path):
    """A named pipe. Raises Unavailable where there are none."""
    if not hasattr(os, "mkfifo"):
        raise Unavailable("no named pipes")
    os.mkfifo(path)


def make_link(path, target):
    """A symbolic link. Raises Unavailable where this user may not make one."""
    try:
        path.symlink_to(target)
    except OSError as error:
        raise Unavailable("no symbolic links") from error


@contextmanager
def _alarm(seconds):
    if not hasattr(signal, "setitimer"):  # Windows: nothing ends a hang
        yield
        return
    start, busy = time.monotonic(), time.process_time()

    def ring(*_):
        if time.process_time() - busy >= seconds or time.monotonic() - start >= 6 * seconds:
            raise Hang

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _memory_now():
    """Resident bytes, and the peak set back to them where the system can (Linux). 0 where nobody tells (Windows)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _memory_peak()
    return _status("VmRSS")


def _memory_peak():
    try:
        return _status("VmHWM")
    except OSError:
        if resource is None:
            return 0
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def _status(name):
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name + ":"))
    return int(line.split()[1]) * 1024


# An audit hook stays for the life of a process: it looks only while `_allowed` names the one place to write.
_allowed = None
PATHS = {"os.mkdir": 0, "os.rename": 1, "os.remove": 0, "os.rmdir": 0, "os.symlink": 1, "os.link": 1, "os.truncate": 0}
NEVER = ("socket.", "subprocess.", "os.system", "os.exec", "os.posix_spawn", "pickle.find_class", "ctypes.dlopen")


def _audit(event, arguments):
    if _allowed is None:
        return
    if event == "open":
        path, mode, flags = arguments
        writes = (flags or 0) & (os.O_WRONLY | os.O_RDWR | os.O_CREAT) or (mode and set(mode) & set("wax+"))
        if writes and isinstance(path, str | bytes | os.PathLike):
            _check_place(path)
    elif event in PATHS:
        _check_place(arguments[PATHS[event]])
    elif event.startswith(NEVER):
        raise Broken(f"{event} {arguments}")


def _check_place(path):
    place = os.path.realpath(os.fsdecode(path))
    if place != os.devnull and not place.startswith(_allowed) and "__pycache__" not in place:
        raise Broken(f"a write outside the place for it: {place}")


@contextmanager
def _watch(scratch):
    global _allowed  # noqa: PLW0603 (see above)
    _allowed = os.path.realpath(scratch)
    try:
        yield
    finally:
        _allowed = None


sys.addaudithook(_audit)
