"""minigemma beside transformers: the same checkpoint, prompt and steps, in turn, each run in a fresh process.

    python -m pip install -r requirements.txt -r tests/speed/requirements.txt
    python -m minigemma synth E2B weights/synthetic-e2b
    python tests/speed/side_by_side.py weights/synthetic-e2b
    python tests/speed/side_by_side.py weights/tiny --engines "minigemma bfloat16" "llama.cpp" --gguf tiny.gguf

The engines take turns, so that a machine that is slow for a while is slow for all of them; medians and their ratios are
printed. Settings that force a kernel on the processor are left out, and the kernels that ran are printed. llama.cpp
takes part where its llama-bench is installed and --gguf names its file of the same weights. transformers in float32
needs about 24 GB of memory for E2B; leave it out with --engines where there is less.
"""

import argparse
import itertools
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from minigemma import threads  # before NumPy, so that its BLAS gets one thread

# isort: split
import numpy as np

from minigemma.tools.bench import PeakAnonymous, machine, memory_of_process, ple_table

SHORT, LONG, STEPS = 6, 512, 16  # tokens of the first prompt, of the long one, and decoded after it
ENGINES = (
    "transformers bfloat16", "transformers float32", "minigemma bfloat16", "minigemma float32",
    "minigemma-after-numpy bfloat16", "llama.cpp",
)  # fmt: skip
AFTER_NUMPY = "import numpy, runpy, sys; del sys.argv[0]; runpy.run_path(sys.argv[0], run_name='__main__')"
# Settings that force a kernel, or parts of one, on a processor that has better ones.
FORCING = (
    "OPENBLAS_CORETYPE", "OPENBLAS_L2_SIZE", "MKL_ENABLE_INSTRUCTIONS", "MKL_DEBUG_CPU_TYPE",
    "NVPL_BLAS_DEBUG_CPU_TYPE", "ATEN_CPU_CAPABILITY", "DNNL_MAX_CPU_ISA", "ONEDNN_MAX_CPU_ISA",
)  # fmt: skip


def transformers_engine(directory, dtype):
    """prefill(ids) and decode(id), as functions that give the last position's logits."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=dtype).eval()
    state = {}

    @torch.inference_mode()
    def call(ids, cache):
        out = model(torch.tensor(ids)[None], past_key_values=cache, use_cache=True, logits_to_keep=1)
        state["cache"] = out.past_key_values
        return out.logits[0, -1].float().numpy()

    kernel = f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    return lambda ids: call(ids, None), lambda id: call([id], state["cache"]), lambda: {}, kernel


def minigemma_engine(directory, dtype):
    import minigemma

    model = minigemma.load(directory, dtype)
    state = {}

    def prefill(ids):
        logits, state["cache"] = minigemma.prefill(ids, model.weights, model.config)
        return logits

    def decode(id):
        (logits,), state["cache"] = model([id], state["cache"], logits="last")
        return logits

    return prefill, decode, lambda: ple_table(model), f"{threads.count()} threads of its own; {threads.BLAS}"


def llama_cpp(gguf):
    """What llama.cpp's llama-bench measures, under our names of the figures."""
    command = ["llama-bench", "-m", gguf, "-p", str(LONG), "-n", str(STEPS), "-t", str(threads.count()), "-o", "json"]
    tests = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True).stdout)
    rate = {"prompt" if test["n_prompt"] else "new": test["avg_ts"] for test in tests}  # tokens a second
    kernel = f"llama.cpp {tests[0]['build_commit']}, {tests[0]['cpu_info']}"
    return {"prefill 512, s": LONG / rate["prompt"], "decode, s a token": 1 / rate["new"]}, kernel


def child(engine, directory, started, logits_file):
    """One engine's figures, measured in this process; its logits after the long prompt go to a file."""
    name, dtype = engine.split()
    vocabulary = json.loads(Path(directory, "config.json").read_text(encoding="utf-8"))
    vocabulary = vocabulary.get("text_config", vocabulary)["vocab_size"]
    ids = np.random.default_rng(0).integers(0, vocabulary, LONG).tolist()
    with PeakAnonymous() as peak:
        begin = time.perf_counter()
        make = transformers_engine if name == "transformers" else minigemma_engine
        prefill, decode, table, kernel = make(directory, dtype)
        ready, loaded = time.perf_counter(), memory_of_process("RssAnon")
        prefill(ids[:SHORT])
        first = time.time() - started
        figures = {"cold start to first token, s": first, "load (imports too), s": ready - begin}
        begin = time.perf_counter()
        logits = prefill(ids)
        figures["prefill 512, s"] = time.perf_counter() - begin
        np.save(logits_file, logits)
        steps = []
        for _ in range(STEPS):
            begin = time.perf_counter()
            logits = decode(int(logits.argmax()))
            steps.append(time.perf_counter() - begin)
    figures["decode, s a token"] = statistics.median(steps)
    figures["anonymous after load, GB"] = (loaded or 0) / 1e9
    figures["peak anonymous, GB"] = (peak.bytes or 0) / 1e9
    figures["peak resident, GB"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e9
    figures |= {f"{what}, GB": (size or 0) / 1e9 for what, size in table().items()}
    return figures, kernel


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("directory", help="a checkpoint directory, such as one that `minigemma synth` wrote")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each engine (default 3)")
    parser.add_argument("--engines", nargs="+", default=ENGINES[:4], choices=ENGINES, metavar="ENGINE")
    parser.add_argument("--gguf", help="the same weights for llama.cpp")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        engine, started, logits_file = args.child
        print(json.dumps(child(engine, args.directory, float(started), logits_file)))
        return
    if "llama.cpp" in args.engines and not (args.gguf and shutil.which("llama-bench")):
        print("llama.cpp is left out: it needs llama-bench on the PATH, and --gguf", file=sys.stderr)
        args.engines = [engine for engine in args.engines if engine != "llama.cpp"]
    with tempfile.TemporaryDirectory() as scratch:
        compare(args, Path(scratch))


def compare(args, scratch):
    for name in FORCING:
        os.environ.pop(name, None)
    kernels = {}
    files = {engine: scratch / f"{engine.replace(' ', '-')}.npy" for engine in args.engines}
    runs = {engine: [] for engine in args.engines}
    for turn in range(args.rounds):
        for engine in args.engines:
            print(f"round {turn + 1}: {engine}", file=sys.stderr)
            if engine == "llama.cpp":
                figures, kernels[engine] = llama_cpp(args.gguf)
                runs[engine].append(figures)
                continue
            cache_files(args.directory)
            first = ["-c", AFTER_NUMPY] if "after-numpy" in engine else []
            command = [sys.executable, *first, __file__, args.directory]
            command += ["--child", engine, str(time.time()), files[engine]]
            environment = os.environ | {"HF_HUB_OFFLINE": "1"}
            done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False, env=environment)
            if done.returncode:
                sys.exit(f"{engine} ended with status {done.returncode}; a status of -9 means that memory ran out")
            figures, kernels[engine] = json.loads(done.stdout.splitlines()[-1])
            runs[engine].append(figures)
    report(runs, kernels, args.rounds)
    print("\nrelative distance of the logits after the long prompt")
    logits = {engine: np.load(file) for engine, file in files.items() if file.exists()}
    for one, other in itertools.combinations(logits, 2):
        away = np.linalg.norm(logits[one] - logits[other]) / np.linalg.norm(logits[other])
        print(f"  {one} and {other}: {away:.1e}")


def cache_files(directory):
    """Read the checkpoint once, so that each run finds it in the system's cache, whatever the last one left there."""
    for path in Path(directory).glob("*.safetensors"):
        with open(path, "rb") as file:
            while file.read(2**24):
                pass


def report(runs, kernels, rounds):
    print(f"{machine()}; medians of {rounds} rounds, min to max in brackets\n")
    middle = {e: {k: statistics.median(run[k] for run in turns) for k in turns[0]} for e, turns in runs.items()}
    for engine, turns in runs.items():
        print(f"{engine} ({kernels[engine]})")
        for figure, value in middle[engine].items():
            values = [run[figure] for run in turns]
            print(f"  {figure:32}{value:8.3f}   [{min(values):.3f} to {max(values):.3f}]")
    print("\nratios of the medians")
    for engine, other in itertools.product(middle, middle):
        if engine.startswith("minigemma") and not other.startswith("minigemma"):
            both = [figure for figure in middle[engine] if middle[other].get(figure)]
            print(f"  {engine} / {other}")
            for figure in both:
                print(f"    {figure.split(',')[0]:30}{middle[engine][figure] / middle[other][figure]:8.2f}")


if __name__ == "__main__":
    main()
