"""The pool: the same bits with any number of threads, and a caller that can trust it."""

import math
import os
import threading
import time

import numpy as np
import processes
import pytest
from family import small

from minigemma import forward, ops, threads
from minigemma.packed import HalfMatrix, narrow, product, stacked_product
from minigemma.threads import blocks, count, cpu_quota, share_out

SIZES = [1, 2, 3, 4]  # threads of the pool


def python(code, **settings):
    """What a program prints in a fresh interpreter, without the settings of threads that this one may have."""
    unset = dict.fromkeys((*threads.BLAS_SETTINGS, "OMP_NUM_THREADS"))
    run = processes.python("-c", code, env=unset | settings)
    assert run.returncode == 0, run.stderr
    return run.stdout.strip()


@pytest.fixture
def pool_of(monkeypatch):
    """Sets the number of threads that share large work."""
    return lambda size: monkeypatch.setattr(threads, "count", lambda: size)


def same_for_all_sizes(compute, pool_of):
    results = []
    for size in SIZES:
        pool_of(size)
        results.append(compute())
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("shape", [(4099, 1536), (1029, 12288), (700, 640)])
def test_the_number_of_threads_changes_no_bit_of_a_product(shape, pool_of):
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((150, shape[1]), np.float32), rng.standard_normal(shape, np.float32)
    for matrix in (HalfMatrix(narrow(w)), HalfMatrix(w.astype(np.float16)), w, w.astype(np.float64)):
        for rows in (1, 2, 3, 9, 150):
            same_for_all_sizes(lambda x=x[:rows], matrix=matrix: product(x, matrix), pool_of)


@pytest.mark.parametrize("shapes", [((1, 1000, 64), (1, 64, 700)), ((4, 3, 256), (4, 256, 5000))])
def test_the_number_of_threads_changes_no_bit_of_a_stack_of_products(shapes, pool_of):
    rng = np.random.default_rng(5)
    a, b = (rng.standard_normal(shape, np.float32) for shape in shapes)
    same_for_all_sizes(lambda: stacked_product(a, b), pool_of)
    np.testing.assert_allclose(stacked_product(a, b), a @ b, atol=1e-5 * math.sqrt(a.shape[2]) * 4)


@pytest.mark.parametrize("name", ["gelu", "rms_norm", "softmax", "softcap"])
def test_rows_that_are_shared_out_are_the_rows_of_the_whole(name, pool_of):
    x = np.random.default_rng(5).standard_normal((300, 1500), np.float32)
    args = {"rms_norm": [x[0]], "softcap": [30.0]}.get(name, [])
    function = getattr(ops, name)
    same_for_all_sizes(lambda: function(x, *args), pool_of)
    np.testing.assert_array_equal(function(x, *args), function.__wrapped__(x, *args))


def test_the_number_of_threads_changes_no_bit_of_a_pass(pool_of, monkeypatch):
    for module in ("packed.WORK", "packed.LEAST", "threads.SMALL"):  # so that this small model is shared out too
        monkeypatch.setattr(f"minigemma.{module}", 8)
    config, weights = small("E2B")
    ids = np.random.default_rng(7).integers(0, config.vocab_size, 23)
    same_for_all_sizes(lambda: forward(ids, weights, config)[0], pool_of)


@pytest.mark.parametrize("rows, width, least", [(1, 1, 1), (7, 3, 9), (262144, 1536, 128), (3, 10**7, 1), (99, 0, 5)])
def test_blocks_cover_all_rows_once_and_in_order(rows, width, least):
    edges = [(block.start, block.stop) for block in blocks(rows, width, least)]
    assert [start for start, _ in edges] == [0, *(stop for _, stop in edges[:-1])]
    assert edges[-1][1] == rows
    assert all(stop == start + 1 or (stop - start) * width <= threads.BLOCK for start, stop in edges)


@pytest.mark.parametrize("size", SIZES)
def test_each_block_is_done_once(size, pool_of):
    pool_of(size)
    done = []
    share_out(done.append, range(1000))
    assert sorted(done) == list(range(1000))


def test_a_thread_that_comes_late_does_not_end_the_wait_for_another_one(pool_of, monkeypatch):
    pool_of(3)
    jobs, holding, late_is_done = [], threading.Event(), threading.Event()

    class Early:  # the pool: its first thread begins at once, its second one only when no block is left
        size = 2

        @property
        def jobs(self):
            return self

        def put(self, job):
            jobs.append(job)
            threading.Thread(target=job if len(jobs) == 1 else come_late).start()
            holding.wait(10)

    def work(block):
        if len(jobs) == 1 and not holding.is_set():
            holding.set()
            late_is_done.wait(10)
            time.sleep(0.1)
        done.append(block)

    def come_late():
        time.sleep(0.1)
        jobs[1]()
        late_is_done.set()

    done = []
    monkeypatch.setattr(threads, "POOL", Early())
    share_out(work, range(9))
    assert len(done) == 9


def test_a_busy_thread_takes_fewer_blocks(pool_of):
    pool_of(2)
    taken, slow = {}, threading.Event()

    def work(block):
        name = threading.current_thread().name
        taken.setdefault(name, []).append(block)
        if len(taken) == 1 and len(taken[name]) == 1:
            slow.wait(10)  # the first thread is held up until the other one has done the rest
        elif sum(map(len, taken.values())) == 20:
            slow.set()

    share_out(work, range(20))
    assert sorted(map(len, taken.values())) == [1, 19]


@pytest.mark.parametrize("size", SIZES)
def test_an_error_in_a_block_reaches_the_caller_and_the_pool_goes_on(size, pool_of):
    pool_of(size)

    def work(block):
        if block == 7:
            raise MemoryError("block 7")

    for _ in range(20):
        with pytest.raises(MemoryError, match="block 7"):
            share_out(work, range(30))
    done = []
    share_out(done.append, range(30))
    assert len(done) == 30


def test_no_block_runs_after_an_error_has_been_raised(pool_of):
    pool_of(4)
    running = []

    def work(block):
        if block == 0:
            raise ValueError
        running.append(block)
        time.sleep(0.01)
        running.remove(block)

    for _ in range(10):
        with pytest.raises(ValueError):
            share_out(work, range(50))
        assert not running


def test_the_callers_errstate_holds_in_every_thread(pool_of):
    pool_of(4)
    seen = set()
    with np.errstate(over="raise"):
        share_out(lambda _: (seen.add(np.geterr()["over"]), time.sleep(0.001)), range(40))
    assert seen == {"raise"}


def test_a_block_may_share_out_work(pool_of):
    pool_of(3)
    done = []
    share_out(lambda outer: share_out(lambda inner: done.append((outer, inner)), range(20)), range(20))
    assert len(set(done)) == len(done) == 400


def test_many_callers_at_once_get_their_own_results(pool_of):
    pool_of(2)
    rng = np.random.default_rng(5)
    w = rng.standard_normal((2048, 640), np.float32)
    inputs = [rng.standard_normal((1, 640), np.float32) for _ in range(8)]
    expected = [product(x, w) for x in inputs]
    found = [None] * 8

    def call(i):
        for _ in range(20):
            found[i] = product(inputs[i], w)

    callers = [threading.Thread(target=call, args=(i,)) for i in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join()
    np.testing.assert_array_equal(found, expected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_forked_child_computes_with_threads_of_its_own():
    code = """
import os
from minigemma import threads
from minigemma.packed import product
import numpy as np
threads.count = lambda: 2
x, w = np.ones((1, 2000), np.float32), np.ones((2000, 2000), np.float32)
assert (product(x, w) == 2000).all() and threads.POOL.size == 1
child = os.fork()
if not child:
    assert threads.POOL.size == 0
    os._exit(0 if (product(x, w) == 2000).all() and threads.POOL.size == 1 else 1)
print(os.waitpid(child, 0)[1])
"""
    assert python(code) == "0"
    assert python("import numpy\n" + code) == "0"


@pytest.mark.skipif(os.name != "posix", reason="this system has no signals to send")
def test_an_interrupt_ends_a_product_and_the_next_one_is_right():
    code = """
from minigemma import threads
from minigemma.ops import linear
import numpy as np, os, signal, threading, time
signal.signal(signal.SIGINT, signal.default_int_handler)
threads.count = lambda: 2
before = threads.BLAS.threads() if threads.BLAS.threads else None
x, w = np.ones((300, 2000), np.float32), np.ones((4000, 2000), np.float32)
linear(x, w)
interrupted = 0
for turn in range(12):
    try:
        threading.Timer(0.01 + 0.002 * turn, os.kill, (os.getpid(), signal.SIGINT)).start()
        while True:
            linear(x, w)
    except KeyboardInterrupt:
        interrupted += 1
assert (linear(x, w) == 2000).all()
assert before == (threads.BLAS.threads() if threads.BLAS.threads else None)
print(interrupted)
"""
    assert python(code) == "12"
    assert python("import numpy\n" + code) == "12"


def test_the_interpreter_ends_with_a_right_last_product_and_waits_for_no_thread():
    code = """
import atexit, threading
from minigemma import threads
from minigemma.packed import product
import numpy as np
threads.count = lambda: 3
x, w = np.ones((1, 2000), np.float32), np.ones((2000, 2000), np.float32)
product(x, w)
atexit.register(lambda: print((product(x, w) == 2000).all()))
started, never = threading.Event(), threading.Event()
def stuck(block):
    started.set()
    never.wait()
threading.Thread(target=threads.share_out, args=(stuck, range(2)), daemon=True).start()
started.wait()
"""
    assert python(code) == "True"


def test_a_caller_does_all_the_work_where_no_thread_can_be_started(pool_of, monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    pool_of(4)
    monkeypatch.setattr(threads, "POOL", threads.Pool())
    monkeypatch.setattr(threading.Thread, "start", refuse)
    done = []
    share_out(done.append, range(30))
    assert len(done) == 30


def test_importing_minigemma_changes_no_environment_and_no_threads_of_another_library():
    code = """
import os
before = dict(os.environ)
import minigemma
assert dict(os.environ) == before
try:
    import torch
except ImportError:
    torch = None
if torch:
    print(torch.get_num_threads())
"""
    alone = "import importlib.util as u\nif u.find_spec('torch'):\n import torch; print(torch.get_num_threads())"
    assert python(code) == python(alone)


OPENBLAS = pytest.mark.skipif(threads.BLAS.set_threads is None, reason="NumPy's BLAS here is not OpenBLAS")
ASK = "print(threads.BLAS.threads())"


@OPENBLAS
def test_the_blas_gets_one_thread_unless_the_user_chose_a_number():
    code = f"import minigemma; from minigemma import threads; {ASK}"
    assert python(code) == "1"
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"):
        assert python(code, **{name: "2"}) == python(f"import numpy; {code}", **{name: "2"})


@OPENBLAS
def test_a_blas_that_numpy_brought_first_uses_one_thread_during_our_products_only():
    code = """
import numpy as np
from minigemma import threads
blas, seen = threads.BLAS, []
before = blas.threads()
from minigemma import ops
function = threads.one_blas_thread(lambda: seen.append(blas.threads()))
function()
x = np.ones((2, 8), np.float32)
class Spy(np.ndarray):
    @property
    def T(self):
        seen.append(blas.threads())
        return super().T
ops.linear(x[:1], np.ones((3, 8), np.float32).view(Spy))
print(before, set(seen), blas.threads())
"""
    before, during, after = python(code, OPENBLAS_NUM_THREADS="2").split()
    assert (before, during, after) in {("2", "{1}", "2"), ("1", "{1}", "1")}  # 1 where there is one core


@OPENBLAS
def test_overlapping_users_of_one_blas_thread_set_it_back_at_the_last_end(monkeypatch):
    now = [4]
    blas = threads.Blas()
    monkeypatch.setattr(blas, "threads", lambda: now[0])
    monkeypatch.setattr(blas, "set_threads", lambda number: now.__setitem__(0, number))
    blas.begin("a")
    blas.begin("b")
    blas.end("a")
    assert now == [1]
    blas.end("b")
    blas.end("b")
    assert now == [4]


def test_another_blas_is_named_and_left_alone(monkeypatch):
    monkeypatch.setattr(threads.Blas, "FORMS", ("no_such_function_{}",))
    blas = threads.Blas()
    assert not blas.many
    assert "does not say its kernel" in str(blas)


@pytest.mark.parametrize("setting, expected", [("3", 3), ("5,2", 5), ("0", None), ("many", None), ("", None)])
def test_omp_num_threads_says_how_many_threads_share_large_work(setting, expected, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", setting)
    found = count.__wrapped__()
    monkeypatch.delenv("OMP_NUM_THREADS")
    assert found == expected or (expected is None and found == count.__wrapped__())


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system does not bind processes to cores")
def test_threads_are_no_more_than_the_cores_that_the_process_may_use():
    code = "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))])\nfrom minigemma.threads import count"
    assert python(code + "; print(count())") == "1"


GROUPS = {
    "version 2": ("0::/a/b\n", {"a/cpu.max": "150000 100000\n", "a/b/cpu.max": "max 100000\n"}, 1.5),
    "version 2, seen from inside": ("0::/\n", {"cpu.max": "50000 100000\n"}, 0.5),
    "version 2, no limit": ("0::/a\n", {"a/cpu.max": "max 100000\n"}, math.inf),
    "version 1": ("4:cpu,cpuacct:/a\n3:memory:/a\n", {
        "cpu/a/cpu.cfs_quota_us": "300000\n", "cpu/a/cpu.cfs_period_us": "100000\n"}, 3),
    "version 1, a host's path": ("4:cpu:/docker/1\n", {
        "cpu/cpu.cfs_quota_us": "200000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
    "version 1, no limit": ("4:cpu:/\n", {
        "cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, math.inf),
    "nonsense": ("0::/\n", {"cpu.max": "fast\n"}, math.inf),
}  # fmt: skip


@pytest.mark.parametrize("case", GROUPS)
def test_the_cpu_quota_of_a_container_is_read(case, tmp_path):
    groups, files, expected = GROUPS[case]
    (tmp_path / "proc/self").mkdir(parents=True)
    (tmp_path / "proc/self/cgroup").write_text(groups, encoding="ascii")
    for name, text in files.items():
        path = tmp_path / "sys/fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="ascii")
    assert cpu_quota(tmp_path) == expected


def test_a_system_without_control_groups_has_no_quota(tmp_path):
    assert cpu_quota(tmp_path) == math.inf
