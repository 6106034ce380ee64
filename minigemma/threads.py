"""One pool of threads for large work, and NumPy's BLAS held to one thread beside it.

A BLAS gives each of its threads an equal part and lets them spin while they wait. On a busy machine, or on cores of two
speeds, all of them then wait for the slowest. Here blocks wait in a queue, and a thread takes the next one when it is
free: a slow core takes fewer. The edges of the blocks depend on the array alone, so the results have the same bits
whatever the number of threads.
"""

import ctypes
import math
import os
import sys
import threading
from collections import deque
from contextvars import copy_context
from functools import cache, wraps
from itertools import pairwise
from pathlib import Path, PurePosixPath
from queue import SimpleQueue

BLAS_SETTINGS = "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS"


def load_numpy():
    """Import NumPy with a BLAS of one thread, unless the user chose a number; os.environ is then as it was before."""
    chosen = any(name in os.environ for name in (*BLAS_SETTINGS, "OMP_NUM_THREADS"))
    names = () if chosen or "numpy" in sys.modules else BLAS_SETTINGS
    os.environ.update(dict.fromkeys(names, "1"))
    try:
        import numpy

        numpy.ones((2, 2)) @ numpy.ones((2, 2))  # some libraries read the environment at their first product
    finally:
        for name in names:
            del os.environ[name]
    return numpy


np = load_numpy()

BLOCK = 1536 * 1024  # most numbers of one block: 6 MB in float32, which stay in a shared cache
PARTS = 8  # blocks of an array of up to PARTS x BLOCK numbers: more of them, and threads wait for each other too often
SMALL = 2**16  # least numbers of a block of element-wise work: 50 us or more, where sharing costs 10 to 20


@cache
def count():
    """How many threads share large work, the caller among them.

    OMP_NUM_THREADS, if it is set. Else the cores that this process may use, or its container's CPU quota if it is less.
    """
    asked = os.environ.get("OMP_NUM_THREADS", "").split(",")[0].strip()
    if asked.isdecimal() and int(asked) > 0:
        return int(asked)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, math.ceil(min(cpu_quota(), cores))))


def cpu_quota(root="/"):
    """The CPUs that Linux's control groups grant this process, as containers set them; infinity without a limit.

    Version 2 has one file, cpu.max, version 1 two. A group is also bound by the groups that it lies in.
    """
    try:
        groups = Path(root, "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return math.inf
    quotas = [math.inf]
    for group in groups:
        _, controllers, path = group.split(":", 2)
        inner = PurePosixPath(path.lstrip("/"))
        if not controllers:
            folder, files = "", ["cpu.max"]
        elif "cpu" in controllers.split(","):
            folder, files = "cpu", ["cpu.cfs_quota_us", "cpu.cfs_period_us"]
        else:
            continue
        for place in (inner, *inner.parents):
            try:
                texts = [Path(root, "sys/fs/cgroup", folder, place, name).read_text(encoding="ascii") for name in files]
                quota, period = map(int, " ".join(texts).split())
            except (OSError, ValueError):  # no such file, or the word "max"
                continue
            if quota > 0 and period > 0:
                quotas.append(quota / period)
    return min(quotas)


def blocks(rows, width, least=1, most=None):
    """Slices of range(rows), all about as long, for an array of this many rows of `width` numbers.

    PARTS of them, fewer where they would have less than `least` rows, more where they would pass `most` numbers
    (default BLOCK).
    """
    parts = max(1, min(PARTS, rows // max(1, least)), math.ceil(rows * width / (most or BLOCK)))
    edges = [rows * i // parts for i in range(parts + 1)]
    return [slice(*edge) for edge in pairwise(edges)]


class Pool:
    """Threads that wait for jobs. They are daemons: they never keep the interpreter from ending."""

    def __init__(self):
        self.jobs, self.size, self.growing = SimpleQueue(), 0, threading.Lock()

    def grow(self, size):
        """Have at least `size` threads, or as many as the system allows."""
        with self.growing:
            try:
                while self.size < size:
                    threading.Thread(target=self.serve, name=f"minigemma-{self.size + 1}", daemon=True).start()
                    self.size += 1
            except RuntimeError:  # no more threads, or the interpreter is ending: the caller does the work
                pass

    def serve(self):
        """What a thread of the pool does, for ever. No variable keeps a finished job's arrays."""
        jobs = self.jobs
        while True:
            jobs.get()()


POOL = Pool()


def share_out(work, waiting):
    """Call work(block) for each of the waiting blocks, on this thread and on the pool's; returns when all are done.

    Raises what a block raised, or KeyboardInterrupt; blocks that nobody has begun are then left out. The pool's threads
    see the caller's np.errstate. A block may share out work too, and many threads may call this at once: nobody waits
    for a thread that has not begun.
    """
    waiting = deque(waiting)
    helpers = min(count(), len(waiting)) - 1
    if helpers < 1:
        for block in waiting:
            work(block)
        return
    begun, errors, todo = [], [], [work]

    def help_out():
        busy = threading.Lock()
        busy.acquire()
        begun.append(busy)
        try:
            for one in todo[:1]:
                drain(one, waiting)
        except BaseException as error:  # the caller raises it
            errors.append(error)
            waiting.clear()
        finally:
            busy.release()

    if POOL.size < helpers:
        POOL.grow(helpers)
    for _ in range(helpers):
        context = copy_context()
        POOL.jobs.put(lambda context=context: context.run(help_out))
    try:
        drain(work, waiting)
    finally:
        waiting.clear()
        todo.clear()  # a job that no thread has begun must not keep arrays alive in the queue
        for busy in tuple(begun):  # a thread that begins after this finds nothing to do
            busy.acquire()
    for error in errors:
        raise error


def drain(work, waiting):
    """work(block) for blocks from the queue until it is empty."""
    while waiting:
        try:
            block = waiting.popleft()
        except IndexError:  # another thread took the last one
            return
        work(block)


def by_rows(function):
    """Share out function(x, ...) of a large x. A row of the result (the last axis) depends on that row of x alone."""

    @wraps(function)
    def shared(x, *args, **options):
        if x.size < 2 * SMALL:
            return function(x, *args, **options)
        out = options.pop("out", None)  # contiguous
        if out is None:
            out = np.empty(x.shape, np.result_type(x, *(arg for arg in args if isinstance(arg, np.ndarray))))
        flat, into = (array.reshape(-1, x.shape[-1]) for array in (x, out))

        def work(rows):
            into[rows] = function(flat[rows], *args, **options)

        share_out(work, blocks(*flat.shape, SMALL // x.shape[-1]))
        return out

    return shared


class Blas:
    """The BLAS that NumPy uses, asked through its own functions. OpenBLAS has them, and NumPy's wheels bring it."""

    FORMS = "scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}"

    def __init__(self):
        package = Path(np.__file__).parent
        self.libraries = [np._core._multiarray_umath.__file__, *package.parent.glob("numpy.libs/*openblas*")]
        self.users, self.before, self.changing = set(), None, threading.Lock()
        self.threads, self.set_threads = self.function("get_num_threads"), self.function("set_num_threads")
        self.many = self.threads is not None and self.set_threads is not None and self.threads() > 1

    def function(self, name, result=ctypes.c_int):
        """OpenBLAS's function of this name, under any of its names; None if this NumPy has another BLAS."""
        for library in self.libraries:
            for form in self.FORMS:
                try:
                    function = getattr(ctypes.CDLL(str(library)), form.format(name))
                except (AttributeError, OSError):
                    continue
                function.restype = result
                return function
        return None

    def begin(self, user):
        """One thread from now on, until the last user has ended."""
        with self.changing:
            self.users.add(user)
            if self.before is None:
                self.before = self.threads()
            self.set_threads(1)

    def end(self, user):
        """As many threads as before, if this was the last user. A second call changes nothing."""
        with self.changing:
            self.users.discard(user)
            if not self.users and self.before is not None:
                self.set_threads(self.before)
                self.before = None

    def __str__(self):
        found = np.show_config(mode="dicts")["Build Dependencies"]["blas"]
        name = f"{found.get('name', 'unknown')} {found.get('version', '')}".strip()
        kernel = self.function("get_corename", ctypes.c_char_p)
        if kernel is None or self.threads is None:
            return f"{name}, which does not say its kernel and threads; beside ours its threads may slow products down"
        held = ", held to 1 during products" if self.many else ""
        return f"{name}, kernel {kernel().decode()}, threads: {self.threads()}{held}"


BLAS = Blas()


def one_blas_thread(function):
    """The function, with a BLAS of one thread while it runs: needed only where NumPy was loaded with more."""
    if not BLAS.many:
        return function

    @wraps(function)
    def alone(*args, **options):
        user = object()
        try:
            BLAS.begin(user)
            return function(*args, **options)
        finally:
            BLAS.end(user)

    return alone


def after_fork():
    """A forked child has none of its parent's threads, and no product is under way."""
    POOL.__init__()
    if BLAS.many:
        BLAS.changing = threading.Lock()
        BLAS.users.clear()
        BLAS.end(None)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=after_fork)
