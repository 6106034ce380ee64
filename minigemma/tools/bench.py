"""Measuring: how fast and how large minigemma is on this machine, against what the machine itself can do."""

import json
import os
import platform
import statistics
import subprocess
import sys
import threading
import time
from contextlib import contextmanager

import numpy as np

from .. import load, prefill, threads
from ..account.compute import prefill_multiply_adds
from ..errors import Error
from ..model import forward
from ..packed import HalfMatrix, PackedMatrix

PROMPTS = (32, 512, 2048)  # tokens
DECODE = 16  # tokens
BUSY = "decode beside a busy process"
BUSY_SECONDS = 600  # a process that keeps a core busy ends by itself after this time
MEMORY_RUN = 512, 32  # prompt and new tokens


def measure_speed(weights, dtype, repeats):
    """Every figure as the list of its runs, the memory of one run, and the machine's ceilings -> a dict for JSON."""
    model = load(weights, dtype)
    rng, config = np.random.default_rng(0), model.config
    limit = config.max_position_embeddings
    prompts = [count for count in PROMPTS if count + DECODE <= limit]
    if not prompts:
        raise Error(f"{model.directory}: {limit} positions are too few to measure; {PROMPTS[0] + DECODE} are needed")
    names = ["load", "cold start", *(f"prefill {count}" for count in prompts), "decode", BUSY]
    runs = {name: [] for name in names}
    ceilings = {"read GB/s": [], "sgemm GFLOP/s": []}

    def tokens(count):
        return rng.integers(0, config.vocab_size, count)

    prefill(tokens(2), model.weights, config)  # the first touch of the file is the cold start's to measure
    for _ in range(repeats):
        cold = in_fresh_process(model.directory, dtype, tokens(6), 1)
        runs["load"].append(cold["load"])
        runs["cold start"].append(cold["cold start"])
        ceilings["read GB/s"].append(read_rate())
        ceilings["sgemm GFLOP/s"].append(sgemm_rate())
        for count in prompts:
            ids, start = tokens(count), time.perf_counter()
            _, cache = prefill(ids, model.weights, config)
            runs[f"prefill {count}"].append(time.perf_counter() - start)
        runs["decode"].append(decode_seconds(model, tokens(DECODE), cache))
        with busy_process():
            runs[BUSY].append(decode_seconds(model, tokens(DECODE), cache))
    new = min(MEMORY_RUN[1], limit // 2)
    prompt = min(MEMORY_RUN[0], limit - new)
    return {
        "weights": str(model.directory),
        "dtype": dtype,
        "machine": machine(),
        "BLAS": str(threads.BLAS),
        "seconds": runs,
        "ceilings": ceilings,
        "read per token": bytes_read(model),
        "products": {f"prefill {n}": 2 * sum(prefill_multiply_adds(config, n).values()) for n in prompts},
        "memory run": [prompt, new],
        "memory": in_fresh_process(model.directory, dtype, tokens(prompt), new)["memory"],
    }


def decode_seconds(model, ids, cache):
    """Seconds for each of the ids, one after the other behind the cache."""
    start = time.perf_counter()
    for id in ids:
        _, cache = forward([id], model.weights, model.config, cache, logits="last")
    return (time.perf_counter() - start) / len(ids)


@contextmanager
def busy_process():
    """Another process that keeps one core busy during the block."""
    code = f"import time; print(flush=True); end = time.time() + {BUSY_SECONDS}\nwhile time.time() < end: pass"
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE) as process:
        try:
            process.stdout.readline()
            yield process
        finally:
            process.kill()


def bytes_read(model):
    """Bytes of weights that decoding one token reads: all layers, the tied head, of a mixture the chosen experts."""
    total = model.weights.embed_tokens.nbytes + model.weights.norm.nbytes
    for layer in model.weights.layers:
        for name, array in vars(layer).items():
            chosen = model.config.top_k_experts / model.config.num_experts if name.startswith("experts_") else 1
            total += int(array.nbytes * chosen)
    return total + getattr(model.weights, "per_layer_model_projection", np.empty(0)).nbytes


def read_rate():
    """GB/s of reading memory with all threads, each with a matrix-vector product of its own."""
    matrix, x = np.ones((32_768, 4096), np.float32), np.ones(4096, np.float32)  # 0.5 GB, far beyond any cache
    parts = np.array_split(matrix, threads.count())
    return max(matrix.nbytes / _seconds(lambda: _share_out(lambda part: part @ x, parts)) / 1e9 for _ in range(3))


def sgemm_rate():
    """GFLOP/s of large float32 matrix products, one on each thread."""
    a, b = np.ones((512, 4096), np.float32), np.ones((4096, 4096), np.float32)
    turns = range(threads.count())
    products = len(turns) * 2 * 512 * 4096 * 4096
    return max(products / _seconds(lambda: _share_out(lambda _: a @ b, turns)) / 1e9 for _ in range(3))


_share_out = threads.one_blas_thread(threads.share_out)


def _seconds(work):
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def in_fresh_process(directory, dtype, ids, count):
    """Greedy decoding of `count` tokens after `ids` in a new interpreter -> what it measured of itself."""
    code = "import json, sys; from minigemma.tools import bench; print(json.dumps(bench.itself(*json.load(sys.stdin))))"
    start = time.time()
    run = subprocess.run(
        [sys.executable, "-c", code], input=json.dumps([str(directory), dtype, np.asarray(ids).tolist(), count]),
        text=True, stdout=subprocess.PIPE, check=False, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )  # fmt: skip
    if run.returncode:
        why = " (memory ran out)" if run.returncode == -9 else ""
        raise Error(f"the process that measures {directory} by itself ended with status {run.returncode}{why}")
    measured = json.loads(run.stdout)
    return measured | {"cold start": measured["first token at"] - start}


def itself(directory, dtype, ids, count):
    """What in_fresh_process runs there."""
    with PeakAnonymous() as peak:
        start = time.perf_counter()
        model = load(directory, dtype)
        loaded, after_load = time.perf_counter() - start, memory_of_process("RssAnon")
        logits, cache = prefill(ids, model.weights, model.config)
        first = time.time()
        for _ in range(count - 1):
            id = int(logits.argmax())
            (logits,), cache = forward([id], model.weights, model.config, cache, logits="last")
    memory = {
        "packed weights": packed_bytes(model),
        "anonymous after load": after_load,
        "peak anonymous": peak.bytes,
        "mapped and resident": memory_of_process("RssFile"),
        "peak of both": memory_of_process("VmHWM"),
        "KV cache": cache.nbytes,
    }
    return {"load": loaded, "first token at": first, "memory": memory | ple_table(model)}


class PeakAnonymous:
    """The most anonymous memory (what no file backs) seen inside the block, looked at every 20 ms; Linux only."""

    def __enter__(self):
        self.bytes, self.over = memory_of_process("RssAnon"), threading.Event()
        self.thread = threading.Thread(target=self._watch, daemon=True)
        self.thread.start()
        return self

    def _watch(self):
        while self.bytes is not None and not self.over.wait(0.02):
            self.bytes = max(self.bytes, memory_of_process("RssAnon"))

    def __exit__(self, *_):
        self.over.set()
        self.thread.join()


def memory_of_process(field):
    """Bytes of a field of Linux's /proc/self/status, such as RssAnon or RssFile; None elsewhere."""
    try:
        with open("/proc/self/status", encoding="ascii") as file:
            return next(int(line.split()[1]) * 1024 for line in file if line.startswith(f"{field}:"))
    except OSError:
        return None


def resident(array):
    """Bytes of the mapping that holds this mapped array which are in this process's memory; None if not told."""
    address, inside = array.ctypes.data, False
    try:
        with open("/proc/self/smaps", encoding="utf-8", errors="replace") as file:
            for line in file:
                words = line.split()
                if not words[0].endswith(":"):  # the head of a mapping: start-end permissions ...
                    start, end = (int(number, 16) for number in words[0].split("-"))
                    inside = start <= address < end
                elif inside and words[0] == "Rss:":
                    return int(words[1]) * 1024
    except OSError:
        pass
    return None


def packed_bytes(model):
    """Bytes of the weights that stay in 4 to 8 bits, in the mapped file."""
    owners = (model.weights, *model.weights.layers)
    values = [value for owner in owners for value in vars(owner).values()]
    return sum(value.nbytes for value in values if isinstance(value, PackedMatrix))


def ple_table(model):
    """The PLE table's bytes and how many of them are resident, where it is mapped."""
    table = getattr(model.weights, "embed_tokens_per_layer", None)
    parts = table.parts if isinstance(table, PackedMatrix) else [table.bits] if isinstance(table, HalfMatrix) else []
    if not parts:
        return {}
    held = [resident(part) for part in parts]
    return {"PLE table": table.nbytes, "PLE table, resident": None if None in held else sum(held)}


def machine():
    """What the numbers belong to, in words."""
    name = platform.processor() or platform.machine()
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            name = next((line.split(":", 1)[1].strip() for line in file if line.startswith("model name")), name)
    except OSError:
        pass
    versions = f"Python {platform.python_version()}, NumPy {np.__version__}"
    return f"{name}, {threads.count()} threads, {platform.system()}, {versions}"


def bench_text(result):
    """The table that people read."""
    read = statistics.median(result["ceilings"]["read GB/s"])
    sgemm = statistics.median(result["ceilings"]["sgemm GFLOP/s"])
    lines = [f"{result['weights']}, {result['dtype']}", result["machine"], f"BLAS: {result['BLAS']}", ""]
    lines.append(f"{'':30}{'median':>10}   min to max")
    for name, runs in result["seconds"].items():
        low, middle, high = min(runs), statistics.median(runs), max(runs)
        kind, _, count = name.partition(" ")
        note = ""
        if kind == "prefill":
            rate = result["products"][name] / middle / 1e9
            note = f"{int(count) / middle:.0f} tokens/s, {rate:.0f} GFLOP/s, {rate / sgemm:.0%} of the machine's"
        elif kind == "decode":
            rate = result["read per token"] / middle / 1e9
            note = f"{1 / middle:.2f} tokens/s, reads {rate:.1f} GB/s, {rate / read:.0%} of the machine's"
        lines.append(f"{name:30}{middle:>8.3f} s   {low:.3f} to {high:.3f}   {note}")
    lines += ["", f"{'reading memory':30}{read:>8.1f} GB/s", f"{'sgemm':30}{sgemm:>8.0f} GFLOP/s", ""]
    prompt, new = result["memory run"]
    lines.append(f"memory of {prompt} + {new} tokens")
    for name, size in result["memory"].items():
        lines.append(f"  {name:28}" + ("not available" if size is None else f"{size / 1e6:>8.1f} MB"))
    return "\n".join(lines)
