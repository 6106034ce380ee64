"""The command line: one function a command. Results go to stdout, progress and errors to stderr."""

import argparse
import json
import os
import sys
import time

from . import TINY, load
from .cache import EMPTY
from .config import RELEASED
from .errors import Error
from .generate import generate_ids, prompt_ids
from .trace import Trace
from .weights import synthesize


def generate(args):
    """Continue a prompt, streaming."""
    model = load(args.weights, args.dtype)
    _stream(model, prompt_ids(model, args.prompt), args)


def chat(args):
    """Talk with the model; an empty line or end of file ends."""
    model = load(args.weights, args.dtype)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise Error(f"{model.directory}: has no tokenizer.json, so it cannot chat; download the whole repository")
    cache, ids = EMPTY, tokenizer.encode("")  # <bos> opens the conversation, once
    print("An empty line ends.", file=sys.stderr)
    while text := _ask():
        ids = [*ids, *tokenizer.open_turn("user", text), *tokenizer.close_turn(), *tokenizer.open_turn("model")]
        cache, last = _stream(model, ids, args, cache)
        ids = [*last, *tokenizer.close_turn()]


def trace(args):
    """Record every intermediate of a prompt's pass."""
    model = load(args.weights, args.dtype)
    ids = prompt_ids(model, args.prompt)
    record = Trace(args.only)
    model(ids, tap=record)
    if not record:
        raise Error(f"--only {args.only!r} fits no tap; names look like layers.3.attn.pattern, see minigemma/trace.py")
    record.save(args.out, tokens=ids, model=str(model.directory))
    size = sum(array.nbytes for array in record.values())
    print(f"{args.out}: {len(record)} arrays of {len(ids)} tokens, {size / 1e6:.1f} MB")


def _ask():
    try:
        return input("> " if sys.stdin.isatty() else "").strip()
    except EOFError:
        return ""


def _stream(model, ids, args, cache=EMPTY):
    """Print what the model says -> the cache it ends with, and the ids drawn that this cache does not yet hold."""
    drawn, start, stamps = [], time.perf_counter(), []

    def draws():
        nonlocal cache
        sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
        for id, behind in generate_ids(model, ids, args.n, cache, **sampling):
            cache = behind
            stamps.append(time.perf_counter())
            drawn.append(id)
            yield id

    for piece in model.tokenizer.stream(draws()):
        print(piece, end="", flush=True)
    print()
    if args.stats:
        _print_stats(model, len(ids), start, stamps)
    return cache, drawn[-1:]


def synth(args):
    """Write a full-size checkpoint of random weights, for benchmarks and for people without the download."""
    size = synthesize(args.name, args.directory)
    print(f"{args.directory}: gemma-4-{args.name} with random values, {size / 1e9:.2f} GB")


def params(args):
    """Count a model's parameters by part and by layer; without a name, the released models side by side."""
    from . import accounting, reports

    if args.what is None:
        result, text = accounting.overview(), reports.overview_text
    else:
        result, text = accounting.count(args.what).to_dict(), reports.params_text
    print(json.dumps(result) if args.json else text(result))


def memory(args):
    """Bytes of the weights by number format, of the KV cache and of a prompt's activations."""
    from . import accounting, reports

    account = accounting.count(args.what)
    context = account.config.max_position_embeddings if args.context is None else args.context
    result = accounting.memory(account, context)
    print(json.dumps(result) if args.json else reports.memory_text(result))


def compute(args):
    """Multiply-adds of a token and of a prompt by part, and what PLE costs against what it stores."""
    from . import accounting, reports

    account = accounting.count(args.what)
    context = min(4096, account.config.max_position_embeddings) if args.context is None else args.context
    result = accounting.compute(account, context)
    print(json.dumps(result) if args.json else reports.compute_text(result))


def bench(args):
    """Measure load, cold start, prefill, decode and memory, beside this machine's ceilings."""
    from . import bench

    if args.repeats < 1:
        raise Error(f"--repeats must be at least 1, not {args.repeats}")
    result = bench.bench(args.weights, args.dtype, args.repeats)
    print(json.dumps(result) if args.json else bench.report(result))


def _print_stats(model, prompt, start, stamps):
    from .bench import ple_table

    print(f"prompt        {prompt} tokens", file=sys.stderr)
    if stamps:
        first = stamps[0] - start
        print(f"prefill       {first:.3f} s, {prompt / first:.0f} tokens/s", file=sys.stderr)
    if len(stamps) > 1:
        rate = (len(stamps) - 1) / (stamps[-1] - stamps[0])
        print(f"decode        {len(stamps)} tokens, {rate:.0f} tokens/s", file=sys.stderr)
    print(f"peak memory   {_peak_memory()}", file=sys.stderr)
    for name, size in ple_table(model).items():
        print(f"{name:<13} {'not available' if size is None else f'{size / 1e6:.1f} MB'}", file=sys.stderr)


def _peak_memory():
    """The most memory the process has had, mapped pages of the checkpoint included."""
    try:
        import resource
    except ImportError:
        return "not available on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:.0f} MB"


def parser():
    """The argument parser of every command."""
    root = argparse.ArgumentParser(prog="minigemma", description="Gemma 4 in plain NumPy.")
    commands = root.add_subparsers(dest="command", required=True)

    def command(run, *arguments):
        sub = commands.add_parser(run.__name__, help=run.__doc__.splitlines()[0], description=run.__doc__)
        sub.set_defaults(run=run)
        for names, options in arguments:
            sub.add_argument(*names, **options)

    def flag(*names, **options):
        return names, options

    where = flag(
        "--weights",
        metavar="W",
        help="a checkpoint directory, or a model name in the hub's local cache; "
        f"default: MINIGEMMA_WEIGHTS, else {os.path.relpath(TINY)}",
    )
    dtype = flag("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float64"), help="default: bfloat16")
    prompt = flag("prompt", help="the text to start from")
    sampling = (
        flag("-n", type=int, default=200, metavar="N", help="at most this many new tokens (default 200)"),
        flag("--temperature", type=float, metavar="T", help="0 is greedy; default: the checkpoint's own"),
        flag("--top-k", type=int, metavar="K", help="draw from the K most probable tokens; 0 from all"),
        flag("--top-p", type=float, metavar="P", help="draw from the fewest tokens of this probability"),
        flag("--seed", type=int, metavar="S", help="makes a draw repeatable"),
        flag("--stats", action="store_true", help="print rates and memory to stderr at the end"),
    )
    command(generate, prompt, where, dtype, *sampling)
    command(chat, where, dtype, *sampling)
    out = flag("--out", required=True, metavar="FILE", help="the safetensors file to write")
    only = flag("--only", metavar="PATTERN", help="record only the taps that fit, such as 'layers.3.*'")
    command(trace, prompt, where, dtype, out, only)
    as_json = flag("--json", action="store_true", help="print JSON, for programs")
    repeats = flag("--repeats", type=int, default=3, metavar="R", help="runs of each measurement (default 3)")
    name = flag("name", metavar="NAME", help=f"a released model: {', '.join(RELEASED)}")
    command(synth, name, flag("directory", metavar="DIR", help="where to write"))
    command(bench, where, dtype, repeats, as_json)
    source = f"a released model ({', '.join(RELEASED)}), a config.json, or a checkpoint directory"
    what = flag("what", metavar="NAME_OR_DIR", help=source)
    context = flag("--context", type=int, metavar="N", help="tokens; default: all positions, for compute 4096")
    command(params, flag("what", metavar="NAME_OR_DIR", nargs="?", help=source), as_json)
    command(memory, what, context, as_json)
    command(compute, what, context, as_json)
    return root


def main(argv=None):
    args = parser().parse_args(argv)
    try:
        args.run(args)
        sys.stdout.flush()
    except Error as error:
        print(f"minigemma: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    return 0


if __name__ == "__main__":
    sys.exit(main())
