"""The command line: one function a command. Results go to stdout, progress and errors to stderr."""

import os
import sys

if not __package__:  # `python minigemma` or `python minigemma/__main__.py`: go on as `python -m minigemma`
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.argv[0] = "-m"  # what __init__.py then finds
    import runpy

    sys.exit(runpy.run_module("minigemma", run_name="__main__", alter_sys=True))

import argparse
import json
import signal
import time
import warnings
from contextlib import suppress
from functools import partial

import numpy as np

from . import TINY, load
from .cache import EMPTY
from .checkpoint import fingerprint, read_header, read_unused
from .debug.foreign import read_array, read_trace
from .errors import Error
from .files import make_directory, replacing, table
from .inputs import BUDGETS, grid_of, read_image
from .model import no_tap
from .released import RELEASED
from .sampling import generate_ids, prompt_ids, see_prompt, settings, stop_ids
from .taps import PRECISIONS, Finite, Trace, names_of
from .tools.synth import synthesize

SIDE = 48  # pixels of a soft token's side in every released model
PAUSE = 0.05  # seconds without a new line after which a pasted text is complete


def generate(args):
    """Continue a prompt, streaming."""
    model, prompt, soft = load(args.weights, args.dtype), _prompt(args), None
    if args.image:
        ids, soft = see_prompt(model, prompt, args.image, args.budget, args.special)
    else:
        ids = prompt_ids(model, prompt, args.special)
    _stream(model, ids, args, soft=soft)


def chat(args):
    """Talk with the model. At a terminal a pasted text is one turn, with its blank lines; from a pipe each line is a
    turn, and blank lines are skipped. /exit or the end of the input ends the conversation. Ctrl-C during an answer
    stops the answer.
    """
    model = load(args.weights, args.dtype)
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise Error(f"{model.directory}: has no tokenizer.json, so it cannot chat; download the whole repository")
    source = model.generation_source
    settings(model.generation_config, args.temperature, args.top_k, args.top_p, source)  # a mistake there ends it now
    answer, end = tokenizer.open_turn("model"), tokenizer.close_turn()
    stop = stop_ids(model.generation_config, model.config.vocab_size, source) | {end[0]}  # even if no file names it
    model.generation_config = model.generation_config | {"eos_token_id": [*stop]}
    terminal = _at_terminal()
    if terminal:
        print("/exit ends the conversation, Ctrl-C stops an answer.", file=sys.stderr)
        with suppress(ImportError):  # Windows has no readline
            import readline  # noqa: F401 (importing it gives `input` arrow keys and a history)
    cache, ids = EMPTY, tokenizer.encode("")  # <bos> opens the conversation, once
    while text := _ask():
        try:
            turn = [*ids, *tokenizer.open_turn("user", text), *end, *answer]
            cache, last = _stream(model, turn, args, cache, stoppable=terminal)
        except Error as error:  # bytes that are not UTF-8, a text that is too long
            if not terminal:
                raise
            print(f"minigemma: {error}", file=sys.stderr)
        else:
            ids = [*last, *end]


def trace(args):
    """Record every intermediate of a prompt's pass."""
    model = load(args.weights, args.dtype)
    ids = prompt_ids(model, _prompt(args), args.special)
    record = Trace(args.only)
    model(ids, tap=Finite(record) if args.check else record)
    identity = {"model": str(model.directory), "fingerprint": fingerprint(model.weights)}
    record.save(args.out, tokens=ids, **identity)
    size = sum(array.nbytes for array in record.values())
    print(f"{args.out}: {len(record)} arrays of {len(ids)} tokens, {size / 1e6:.1f} MB")
    if odd := [name for name, array in record.items() if not np.isfinite(array).all()]:
        print(f"minigemma: {len(odd)} of them hold NaN or infinity, {odd[0]} first", file=sys.stderr)


def _prompt(args):
    """The prompt: the argument, or for "-" all of stdin, without its last line break."""
    if args.prompt != "-":
        return args.prompt
    return sys.stdin.read().removesuffix("\n") if sys.stdin else ""


def _at_terminal():
    """Whether a person types the input. stdin is None where the shell closed it (<&-)."""
    return sys.stdin is not None and sys.stdin.isatty()


def _ask():
    """The user's next turn, never blank; "" at /exit and at the end of the input."""
    terminal, text = _at_terminal(), ""
    while sys.stdin and not text:
        try:
            lines = [input("> " if terminal else "")]
        except EOFError:
            return ""
        with suppress(EOFError):
            while terminal and _pasting():
                lines.append(input())
        text = "\n".join(lines).strip()
    return "" if text == "/exit" else text


def _pasting():
    """Whether more of a pasted text waits at the terminal: it arrives at once, faster than anybody types."""
    try:
        import msvcrt  # Windows, where `select` cannot watch a terminal
    except ImportError:
        import select

        return bool(select.select([sys.stdin], [], [], PAUSE)[0])
    time.sleep(PAUSE)
    return msvcrt.kbhit()


def _stream(model, ids, args, cache=EMPTY, stoppable=False, soft=None):
    """Print what the model says -> the cache at the end, and the ids that this cache does not yet hold.

    soft: the soft tokens of pictures among the ids, as `forward` takes them. stoppable: Ctrl-C ends the text, not the
    command.
    """
    start, stamps = time.perf_counter(), []
    state = cache, list(ids)  # if not one token comes, the cache still lacks the prompt

    def draws():
        nonlocal state
        sampling = {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed}
        sampling["tap"] = Finite() if args.check else no_tap
        for id, behind in generate_ids(model, ids, args.n, cache, soft_tokens=soft, **sampling):
            state = behind, [id]  # in one step: Ctrl-C must not part them
            stamps.append(time.perf_counter())
            yield id

    try:
        for piece in model.tokenizer.stream(draws()):
            print(piece, end="", flush=True)
    except KeyboardInterrupt:
        if not stoppable:
            raise
    print()
    if args.stats:
        _print_stats(model, len(ids), start, stamps)
    return state


def tokens(args):
    """Print the size, the grid and the count of soft tokens of pictures at every budget. Needs no weights."""
    results = []
    for path in args.image:
        height, width = read_image(path).shape[:2]
        grids = {budget: grid_of(height, width, budget, SIDE) for budget in BUDGETS}
        results.append({"image": path, "width": width, "height": height, "grids": []})
        for budget, (rows, columns) in grids.items():
            grid = {"budget": budget, "width": columns * SIDE, "height": rows * SIDE, "columns": columns, "rows": rows}
            results[-1]["grids"].append(grid | {"soft_tokens": rows * columns})
    if args.json:
        print(json.dumps(results))
        return
    for result in results:
        print(f"{result['image']}: {result['width']} x {result['height']} pixels")
        heads = ["budget", "width", "height", "columns", "rows", "soft tokens"]
        print(table(heads, [list(grid.values()) for grid in result["grids"]]))


def synth(args):
    """Write a full-size checkpoint of random weights, for benchmarks and for people without the download."""
    size = synthesize(args.name, args.directory)
    print(f"{args.directory}: gemma-4-{args.name} with random values, {size / 1e9:.2f} GB")


def params(args):
    """Count a model's parameters by part and by layer; without a name, the released models side by side."""
    from .account import compute, parameters, report

    if args.what is None:
        result, text = compute.overview(), report.overview_text
    else:
        result, text = parameters.count(args.what).to_dict(), report.params_text
    print(json.dumps(result) if args.json else text(result))


def memory(args):
    """Bytes of the weights by number format, of the KV cache and of a prompt's activations."""
    from .account import memory, parameters, report

    account = parameters.count(args.what)
    context = account.config.max_position_embeddings if args.context is None else args.context
    result = memory.memory_account(account, context)
    print(json.dumps(result) if args.json else report.memory_text(result))


def compute(args):
    """Multiply-adds of a token and of a prompt by part, and what PLE costs against what it stores."""
    from .account import compute, parameters, report

    account = parameters.count(args.what)
    context = min(4096, account.config.max_position_embeddings) if args.context is None else args.context
    result = compute.compute_account(account, context)
    print(json.dumps(result) if args.json else report.compute_text(result))


def bench(args):
    """Measure load, cold start, prefill, decode and memory, beside this machine's ceilings."""
    from .tools import bench

    if args.repeats < 1:
        raise Error(f"--repeats must be at least 1, not {args.repeats}")
    result = bench.measure_speed(args.weights, args.dtype, args.repeats)
    print(json.dumps(result) if args.json else bench.bench_text(result))


def verify(args):
    """Compare this machine's numbers with goldens: the file beside the weights, else the published ones."""
    from .debug import goldens

    result = goldens.check_goldens(load(args.weights, args.dtype))
    print(json.dumps(result) if args.json else goldens.goldens_text(result))
    return 0 if result["fits"] else 1


def diff(args):
    """Compare somebody else's trace with this pass, op by op on their own inputs."""
    from .debug import diff, report

    model = load(args.weights, args.dtype)
    theirs, tokens = _their_trace(args, model)
    ours = _our_trace(args, model.config) if args.against else None
    weights = ours.metadata.get("fingerprint") if ours else fingerprint(model.weights)
    other = _other_run(theirs, tokens, weights)
    if ours and ours.tokens is not None and not np.array_equal(ours.tokens, tokens):
        raise Error(f"{args.against}: is of another prompt than {args.theirs}")
    if other:
        comparison = diff.Comparison([], "", other[1], None, identity=other[0])
    elif ours:
        precision = args.precision or "float32"
        comparison = diff.diff_captures(theirs.arrays, ours.arrays, model.config, precision)
        comparison.notes += [f"{args.against}: ignored {line}" for line in ours.ignored]
    else:
        run = diff.Run(model, tokens, theirs.arrays, _soft_rows(args.soft))
        comparison = diff.compare_traces(theirs.arrays, run, args.precision)
    comparison.notes += _notes(theirs)
    if args.plot and comparison.rows:
        from .tools import figures

        with replacing(args.plot) as temporary:
            figures.error_by_depth(comparison).savefig(temporary, format="png", dpi=150)
    print(json.dumps(comparison.to_dict()) if args.json else report.diff_text(comparison, args.all))
    return 1 if comparison.first_broken or comparison.identity or theirs.unread else 0


def diagnose(args):
    """Name the known mistake behind somebody else's trace."""
    from .debug import diagnosis, report
    from .debug.diff import Run

    model = load(args.weights, args.dtype)
    theirs, tokens = _their_trace(args, model)
    other = _other_run(theirs, tokens, fingerprint(model.weights))
    if other:
        result = diagnosis.Diagnosis(*other, None)
    else:
        unused = read_unused(model.directory, model.config)
        run = Run(model, tokens, theirs.arrays, _soft_rows(args.soft), unused)
        result = diagnosis.diagnose(theirs.arrays, run, args.precision, args.prefill)
    result.notes += _notes(theirs)
    print(json.dumps(result.to_dict()) if args.json else report.diagnosis_text(result))
    return 0 if result.verdict == "rounding" and not theirs.unread else 1


def faults(args):
    """List the catalogue of known mistakes."""
    from .debug import catalogue, report

    entries = list(catalogue.FAULTS.values())
    rows = [{**vars(entry), "changes": len(entry.changes)} for entry in entries]
    print(json.dumps(rows) if args.json else report.faults_text(entries, catalogue.PROBES))


def _their_trace(args, model):
    """Read args.theirs -> a foreign.Foreign, and the ids: the given ones, else the file's."""
    given = None
    if args.ids is not None:
        parts = args.ids.replace(",", " ").split()
        if not parts or not all(part.isdecimal() and len(part) < 10 for part in parts):
            raise Error(f"--ids must be whole numbers such as '2,818,5279', not {args.ids!r}")
        given = [int(part) for part in parts]
    elif args.prompt is not None:
        given = prompt_ids(model, _prompt(args), args.special)
    theirs = read_trace(args.theirs, model.config, args.mapping)
    if theirs.tokens is None:
        if given is None:
            raise Error(f"{args.theirs}: holds no ids; give the prompt with --ids 2,818,... or --prompt TEXT")
        # their ids may lack <bos> or hold it twice; a capture of the last position does not show the length
        other = {len(ids): ids for ids in _with_and_without_bos(given)} if theirs.length > 1 else {}
        theirs = read_trace(args.theirs, model.config, args.mapping, other.get(theirs.length, given))
    return theirs, theirs.tokens if given is None else np.asarray(given)


def _with_and_without_bos(ids):
    """The ids of a port that leaves out <bos>, and of one that puts it there twice."""
    return list(ids[1:]), [*ids[:1], *ids]


def _our_trace(args, config):
    """Read the second trace, --against. A mapping translates its names too, unless they are ours."""
    own = set(names_of(config)) & set(read_header(args.against))
    return read_trace(args.against, config, None if own else args.mapping)


def _notes(theirs):
    """Notes on what was recognised in a trace, what was ignored, and what could not be judged."""
    notes = [*theirs.notes, *(f"ignored {line}" for line in theirs.ignored)]
    if theirs.unread:
        count = len(theirs.unread) + len(theirs.arrays)
        notes.append(f"{len(theirs.unread)} of {count} arrays could not be read and are not judged")
    return notes


def _other_run(theirs, tokens, weights):
    """(verdict, sentence) if the file says that it was made with another prompt or with other weights, else None.

    weights: the fingerprint of ours, None if it is unknown.
    """
    stored, print_ = theirs.tokens, theirs.metadata.get("fingerprint")
    alike = (tokens, *_with_and_without_bos(tokens))  # the comparison reports a wrong <bos>
    if not any(np.array_equal(stored, ids) for ids in alike):
        places = np.flatnonzero(stored[: len(tokens)] != tokens[: len(stored)])
        place = int(places[0]) if len(places) else min(len(stored), len(tokens))
        return "other-input", f"another prompt: the file's ids are not the given ones, from position {place} on"
    if None not in (print_, weights) and print_ != weights:
        return (
            "other-weights",
            f"other weights: the trace was made with {theirs.metadata.get('model', 'another model')}",
        )
    return None


def _soft_rows(path):
    """Read soft tokens from a safetensors file -> positions [M], rows [M, D]; None without a file."""
    if path is None:
        return None
    header = read_header(path)
    if not {"positions", "rows"} <= set(header):
        raise Error(
            f"{path}: must hold `positions` [M] and `rows` [M, D]; it holds {', '.join(sorted(header)) or 'none'}"
        )
    return read_array(header["positions"]), read_array(header["rows"]).astype(np.float32)


def retention(args):
    """Measure how much of a token's identity each layer's hidden state keeps, and what PLE does to it."""
    from .study import report, retention
    from .study.texts import read_texts

    sizes = {"count": args.count, "length": args.length, "positions": args.positions, "tried": args.interventions}
    for name, least in (("count", 4), ("length", 4), ("positions", 1), ("tried", 0)):
        if sizes[name] < least:
            raise Error(f"--{'interventions' if name == 'tried' else name} must be at least {least}, not {sizes[name]}")
    texts, read = read_texts(args.texts), partial(load, dtype=args.dtype)
    results = retention.measure(args.weights or [None], texts, read, sentence=args.sentence, **sizes)
    if args.plots:
        from .tools import figures

        for name, figure in figures.retention_figures(results).items():
            with replacing(make_directory(args.plots) / f"{name}.png") as temporary:
                figure.savefig(temporary, format="png", dpi=150)
    print(json.dumps(results) if args.json else report.study_text(results))


def _print_stats(model, prompt, start, stamps):
    from .tools.bench import ple_table

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
    """The largest memory of this process so far, with the mapped pages of the checkpoint."""
    try:
        import resource
    except ImportError:
        return "not available on this system"
    unit = 1 if sys.platform == "darwin" else 1024
    return f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6:.0f} MB"


class Parser(argparse.ArgumentParser):
    """argparse, with its messages in one printable line."""

    def error(self, message):
        super().error(str(Error(message)))


def parser():
    """The argument parser of every command."""
    root = Parser(prog="minigemma", description="Gemma 4 in plain NumPy.")
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
        "default: MINIGEMMA_WEIGHTS, else weights/tiny of this repository",
    )
    dtype = flag("--dtype", default="bfloat16", choices=("bfloat16", "float32", "float64"), help="default: bfloat16")
    prompt = flag("prompt", help='the text to start from, in "double quotes"; - reads it from stdin')
    special = flag("--special", action="store_true", help="read <|turn> and the like in the prompt as special tokens")
    check = flag("--check", action="store_true", help="stop at the first NaN or infinity and name the array it is in")
    sampling = (
        flag("-n", type=int, default=200, metavar="N", help="at most this many new tokens (default 200)"),
        flag("--temperature", type=float, metavar="T", help="0 is greedy; default: the checkpoint's own"),
        flag("--top-k", type=int, metavar="K", help="draw from the K most probable tokens; 0 from all"),
        flag("--top-p", type=float, metavar="P", help="draw from the fewest tokens of this probability"),
        flag("--seed", type=int, metavar="S", help="makes a draw repeatable"),
        flag("--stats", action="store_true", help="print rates and memory to stderr at the end"),
    )
    image = flag("--image", metavar="FILE", action="append", help="a picture, before the text or where it says {image}")
    budget = flag("--budget", type=int, default=280, choices=BUDGETS, help="most soft tokens a picture (default 280)")
    command(generate, prompt, special, image, budget, where, dtype, *sampling, check)
    command(chat, where, dtype, *sampling, check)
    out = flag("--out", required=True, metavar="FILE", help="the safetensors file to write")
    only = flag("--only", metavar="PATTERN", help="record only the taps that fit, such as 'layers.3.*'")
    command(trace, prompt, special, where, dtype, out, only, check)
    as_json = flag("--json", action="store_true", help="print JSON, for programs")
    repeats = flag("--repeats", type=int, default=3, metavar="R", help="runs of each measurement (default 3)")
    name = flag("name", metavar="NAME", help=f"a released model: {', '.join(RELEASED)}")
    pictures = flag("--image", metavar="FILE", action="append", required=True, help="a picture; may be given again")
    command(tokens, pictures, as_json)
    command(synth, name, flag("directory", metavar="DIR", help="where to write"))
    command(bench, where, dtype, repeats, as_json)
    command(verify, where, dtype, as_json)
    theirs = flag("theirs", metavar="THEIRS", help="a safetensors file of their intermediates")
    foreign = (
        flag("--mapping", metavar="FILE", help="JSON that translates their names to ours"),
        flag("--ids", metavar="IDS", help="the prompt's ids, such as 2,818,5279, where the file does not hold them"),
        flag("--prompt", metavar="TEXT", help="the prompt, in place of --ids"),
        special,
        flag("--soft", metavar="FILE", help="safetensors with `positions` and `rows` of image or audio tokens"),
        flag("--precision", choices=PRECISIONS, help="their engine's number format; default: inferred"),
    )
    against = flag("--against", metavar="OURS", help="a second trace, of W too: where the two part")
    plot = flag("--plot", metavar="FILE", help="write a PNG of error against depth")
    everything = flag("--all", action="store_true", help="print every tap, those not captured too")
    first_call = flag("--prefill", type=int, metavar="N", help="tokens of their first call, where they then decoded")
    command(diff, theirs, where, dtype, *foreign, against, plot, everything, as_json)
    command(diagnose, theirs, where, dtype, *foreign, first_call, as_json)
    command(faults, as_json)
    several = flag("--weights", metavar="W", nargs="+", help="checkpoint directories, one or several to compare")
    texts = TINY.parent / "texts.jsonl"
    command(
        retention,
        several,
        dtype,
        flag("--texts", default=texts, metavar="FILE", help="text or .jsonl; default: weights/texts.jsonl"),
        flag("--count", type=int, default=400, metavar="N", help="at most this many texts (default 400)"),
        flag("--length", type=int, default=256, metavar="N", help="tokens of each text that are read (default 256)"),
        flag("--positions", type=int, default=8000, metavar="N", help="hidden states of all texts (default 8000)"),
        flag("--interventions", type=int, default=16, metavar="N", help="texts for them (default 16); 0: none"),
        flag("--sentence", default="Tom put the kite in the barn.", metavar="TEXT", help="shown token by token"),
        flag("--plots", metavar="DIR", help="write the figures there, as PNG"),
        as_json,
    )
    source = f"a released model ({', '.join(RELEASED)}), a config.json, or a checkpoint directory"
    what = flag("what", metavar="NAME_OR_DIR", help=source)
    context = flag("--context", type=int, metavar="N", help="tokens; default: all positions, for compute 4096")
    command(params, flag("what", metavar="NAME_OR_DIR", nargs="?", help=source), as_json)
    command(memory, what, context, as_json)
    command(compute, what, context, as_json)
    return root


def main(argv=None):
    """Run a command -> its exit status: 1 if a check fails, 2 for a mistake, 130 for Ctrl-C, 141 for a closed pipe."""
    for stream, errors in ((sys.stdin, "surrogateescape"), (sys.stdout, "backslashreplace")):
        if hasattr(stream, "reconfigure"):  # undecodable input is reported; characters the terminal lacks are printed
            stream.reconfigure(errors=errors)  # as escapes
    root = parser()
    args, unknown = root.parse_known_args(argv)
    if unknown:
        unquoted = getattr(args, "prompt", None) is not None and not unknown[0].startswith("-")
        advice = '; put the whole prompt in "double quotes"' if unquoted else ""
        root.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):  # Finite or the logits' check report NaN, once
            warnings.showwarning = _note
            status = args.run(args) or 0  # a command that checks something returns 1 if the check fails
        print(end="", flush=True)
    except Error as error:
        print(f"minigemma: {error}", file=sys.stderr)
        return 2
    except ImportError as error:
        if (error.name or "").startswith("minigemma"):
            raise
        print(f"minigemma: {Error(f'{error}; run: python -m pip install -r requirements.txt')}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    except BrokenPipeError:  # `| head` has read enough
        _drop_output()
        return 141
    except (OSError, MemoryError) as error:  # a full disk behind the output, a machine too small for --dtype float32
        print(f"minigemma: {Error(str(error) or 'not enough memory')}", file=sys.stderr)
        _drop_output()
        return 2
    return status


def _note(message, *_):
    """Show a warning as one line."""
    print(f"minigemma: note: {Error(str(message))}", file=sys.stderr)


def _drop_output():
    """Throw away what is left of the output: Python would try to write it at exit, and end in a traceback."""
    with suppress(OSError, AttributeError):  # an output that is not a file (a notebook, a test) or that is closed
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # as after Ctrl-C, half-written files are removed
    sys.exit(main())
