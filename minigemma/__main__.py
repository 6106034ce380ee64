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
import re
import signal
import time
import warnings
from contextlib import closing, suppress
from difflib import get_close_matches
from functools import partial

import numpy as np

from . import TINY, load
from .checkpoint import fingerprint
from .config import AudioEmbedder, AudioTower
from .conversation import Conversation
from .errors import Error
from .files import make_directory, read_json, replacing, table
from .inputs import BUDGETS, grid_of, read_frames, read_image
from .media import KINDS, place_files
from .model import no_tap
from .released import RELEASED
from .sampling import generate_ids, read_prompt, settings, tokenizer_of
from .sounds import RATE, read_sound
from .taps import PRECISIONS, Finite, Trace
from .tools.synth import FORMATS, synthesize
from .turns import spelled

SIDE = 48  # pixels of a soft token's side in every released model
FRAME = 640  # samples of a soft token of 12B
FILE_LINE = re.compile(rf"/({'|'.join(KINDS)})\b(.*)\n?")  # in a chat: a file for the next text
QUANTIZED_TEXTS, QUANTIZED_TOKENS = 12, 128  # at most so many, for what the rounding costs
PAUSE = 0.05  # seconds without a new line after which a pasted text is complete


def generate(args):
    """Continue a prompt, streaming. With --system, --think or --tools, answer it as a user's turn.

    Where the model then calls a tool, the call is printed as JSON, and the next line of the input is the tool's reply.
    """
    model, prompt = load(args.weights, args.dtype), _prompt(args)
    content = place_files(prompt, _files(args, model))
    if args.system is None and args.tools is None and not args.think:
        return _stream(model, content, args)
    if args.special:
        raise Error("--special is for a prompt that has its own turns; leave out --system, --think and --tools")
    if not content:
        raise Error("the prompt is empty; give at least one character")
    conversation, messages = _conversation(model, args), [{"role": "user", "content": content}]
    while messages:
        calls = _answer(conversation, messages, args)
        messages = calls and _next(calls, conversation, {})


def chat(args):
    """Talk with the model.

    At a terminal a pasted text is one turn, with its blank lines; from a pipe each line is a turn, and blank lines are
    skipped. /exit or the end of the input ends the conversation. Ctrl-C during an answer stops the answer. Where the
    model calls a tool, the call is printed as JSON, and the next text is the tool's reply. A line /image FILE adds a
    picture to the next text, /audio FILE a sound, /video FILE a video.
    """
    model = load(args.weights, args.dtype)
    source = model.generation_source
    settings(model.generation_config, args.temperature, args.top_k, args.top_p, source)  # a mistake there ends it now
    conversation, calls, files, terminal = _conversation(model, args), [], _files(args, model), _at_terminal()
    if terminal:
        lines = [f"/{name} FILE" for name, kind in KINDS.items() if getattr(model.config, kind.sense)]
        adds = " or ".join(lines) + " adds a file to the next text, " if lines else ""
        print(f"{adds}/exit ends the conversation, Ctrl-C stops an answer.", file=sys.stderr)
        with suppress(ImportError):  # Windows has no readline
            import readline  # noqa: F401 (importing it gives `input` arrow keys and a history)
    messages = True
    while messages:
        try:
            if messages := _next(calls, conversation, files):
                calls = _answer(conversation, messages, args, stoppable=terminal)
        except Error as error:  # bytes that are not UTF-8, a text that is too long, a file that is not a picture
            if not terminal:
                raise
            print(f"minigemma: {error}", file=sys.stderr)


def turns(args):
    """Show a conversation as the model reads it: its ids and their tokens. FILE is a JSON list of messages."""
    model = load(args.weights, None)
    ids = model.chat_ids(read_json(args.file, list), _tools(args), args.think, args.budget)
    return ids, spelled(ids, tokenizer_of(model), coloured=_is_terminal(sys.stdout)), 0


def trace(args):
    """Record every intermediate of a prompt's pass, and of its pictures and sounds. Of several ones the last stays."""
    model = load(args.weights, args.dtype)
    files, record = _files(args, model), Trace(args.only)
    prompt = place_files(_prompt(args), files)
    tap = Finite(record) if args.check else record
    ids, soft_tokens = read_prompt(model, prompt, args.budget, args.special, tap)
    model(ids, tap=tap, soft_tokens=soft_tokens)
    identity = {"model": str(model.directory), "fingerprint": fingerprint(model.weights)}
    if files["image"]:  # rows and columns of the soft tokens of the picture that stays
        config, shape = model.config, files["image"][-1].shape[:2]
        identity["grid"] = grid_of(*shape, config.budget(args.budget), config.vision.side)
    record.save(args.out, tokens=ids, **identity)
    size = sum(array.nbytes for array in record.values())
    print(f"{args.out}: {len(record)} arrays of {len(ids)} tokens, {size / 1e6:.1f} MB")
    if odd := [name for name, array in record.items() if not np.isfinite(array).all()]:
        print(f"minigemma: {len(odd)} of them hold NaN or infinity, {odd[0]} first", file=sys.stderr)


def step(args):
    """Show a prompt's pass tap by tap: numbers, the line of the pass that made them, the logit lens's best tokens.

    At a terminal Enter goes on and q ends the pass; to a pipe or from one, every tap is printed.
    """
    from .debug.runs import numbers_of_pass
    from .inputs import check_memory
    from .tools.step import Quit, Step

    def wait():
        if _at_terminal() and _is_terminal(sys.stdout) and input().strip() == "q":
            raise Quit

    model = load(args.weights, args.dtype)
    tap, content = Step(model, args.at, wait), place_files(_prompt(args), _files(args, model))
    with suppress(Quit, EOFError):
        ids, soft_tokens = read_prompt(model, content, args.budget, args.special, tap)
        check_memory(4 * numbers_of_pass(model.config, len(ids)), f"to show {len(ids)} tokens", "give a shorter prompt")
        model(ids, tap=tap, soft_tokens=soft_tokens)


def page(args):
    """Write one HTML file that shows a text's pass in a browser, tap by tap: numbers, lines of model.py, logit lens.

    It needs no network. A model with PLE is shown with it and without it. Of long arrays it shows samples, and says so.
    """
    from .tools.page import write_page

    model, text = load(args.weights, args.dtype), _prompt(args)
    if not text:
        raise Error("the text is empty; give at least one character")
    facts = write_page(args.out, model, read_prompt(model, text, special=args.special)[0], text)
    taps, tokens, size = len(facts["taps"]), len(facts["tokens"]), os.path.getsize(args.out)
    print(f"{args.out}: {taps} taps of {tokens} tokens, {size / 1e6:.1f} MB; open it in a browser")


def _prompt(args):
    """The prompt: the argument, or for "-" all of stdin, without its last line break."""
    if args.prompt != "-":
        return args.prompt
    return sys.stdin.read().removesuffix("\n") if sys.stdin else ""


def _is_terminal(stream):
    """Whether a person is at the other end. A stream is None where the shell closed it (<&-)."""
    return stream is not None and stream.isatty()


def _at_terminal():
    """Whether a person types the input."""
    return _is_terminal(sys.stdin)


def _ask(prompt="> "):
    """The next text of the input, never blank; "" at /exit and at the end of the input."""
    terminal, text = _at_terminal(), ""
    while sys.stdin and not text:
        try:
            lines = [input(prompt if terminal else "")]
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


def _stream(model, prompt, args):
    """Print how a prompt, text or parts, goes on."""
    timer, sampling = Timer(model), _sampling(args)
    ids, soft_tokens = read_prompt(model, prompt, args.budget, args.special, sampling["tap"])
    timer.prompt = len(ids)
    drawn = (id for id, _ in generate_ids(model, ids, args.n, soft_tokens=soft_tokens, **sampling))
    for piece in model.tokenizer.stream(timer(drawn)):
        print(piece, end="", flush=True)
    print()
    _note_if_empty(timer)
    if args.stats:
        timer.print()


def _note_if_empty(timer):
    """Say that the model wrote nothing, so that an empty line looks like no mistake of the command."""
    if not timer.stamps:
        _note("the model wrote nothing: its first token ends the text; try another prompt")


def _sampling(args):
    """The options of a command for `generate_ids`."""
    tap = Finite() if args.check else no_tap
    return {"temperature": args.temperature, "top_k": args.top_k, "top_p": args.top_p, "seed": args.seed, "tap": tap}


def _tools(args):
    return None if args.tools is None else read_json(args.tools, list)


def _conversation(model, args):
    return Conversation(model, args.system, _tools(args), args.think, args.budget)


def _files(args, model):
    """The files of --image, --audio and --video, opened, by kind."""
    given = {kind: getattr(args, kind, None) or [] for kind in KINDS}
    return {kind: [KINDS[kind].open(path, model.config) for path in paths] for kind, paths in given.items()}


def _answer(conversation, messages, args, stoppable=False):
    """Print an answer, its text and calls to stdout, its thought and notes to stderr -> the calls, each with its id.

    stoppable: Ctrl-C ends the answer, not the command.
    """
    timer, last = Timer(conversation.model), None
    drawn = conversation.draw(messages, args.n, **_sampling(args))
    timer.prompt = conversation.length_read
    dim, plain = ("\x1b[2m", "\x1b[0m") if _is_terminal(sys.stderr) else ("", "")
    with closing(conversation.read(timer(drawn))) as pairs:
        try:
            for kind, piece in pairs:
                if last == "thought" and kind != "thought":
                    print(file=sys.stderr)
                if kind == "thought":
                    print(f"{dim}{piece}{plain}", end="", file=sys.stderr, flush=True)
                elif kind == "text":
                    print(piece, end="", flush=True)
                elif kind == "call":
                    print("\n" * (last == "text") + json.dumps(piece, ensure_ascii=False), flush=True)
                last = kind if kind != "note" else last
        except KeyboardInterrupt:
            if not stoppable:
                raise
    if last == "thought":
        print(file=sys.stderr)
    if last != "call":
        print()
    for note in conversation.answer.notes:
        _note(note)
    _note_if_empty(timer)
    if args.stats:
        timer.print()
    return conversation.messages[-1].get("tool_calls", [])


def _next(calls, conversation, files):
    """The next messages, from the input: the replies to the model's calls, else a user's turn. [] at its end.

    files: opened ones by kind, for the next text; lines such as /image FILE add to them.
    """
    messages = [{"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"]} for call in calls]
    messages = messages or [{"role": "user"}]
    for message in messages:
        prompt = f"reply to {message['name']}> " if calls else "> "
        text = _ask(prompt)
        while line := FILE_LINE.match(text):
            _add_file(line[1], line[2].strip(" '\""), conversation, files)
            text = text[line.end() :].strip() or _ask(prompt)
        if not text:
            return []
        message["content"] = place_files(text, files)
        files.clear()
    return messages


def _add_file(kind, path, conversation, files):
    """Open a file for the next text, and say how many soft tokens it becomes. Raises Error."""
    if not path:
        raise Error(f"name the file, as in /{kind} FILE")
    config = conversation.model.config
    array = KINDS[kind].open(os.path.expanduser(path), config)
    count = sum(count for _, _, count in KINDS[kind].fit(array, config, conversation.budget))
    files.setdefault(kind, []).append(array)
    print(f"{path}: {count} soft tokens, for the next text", file=sys.stderr)


def tokens(args):
    """Print how many soft tokens pictures (at every budget), sounds and videos become. Needs no weights."""
    found, paragraphs = [], []
    if not (args.image or args.audio or args.video):
        raise Error("name a file: --image FILE, --audio FILE or --video FILE")
    for path in args.image or []:
        height, width = read_image(path).shape[:2]
        grids = []
        for budget in BUDGETS:
            rows, columns = grid_of(height, width, budget, SIDE)
            size = {"budget": budget, "width": columns * SIDE, "height": rows * SIDE}
            grids.append(size | {"columns": columns, "rows": rows, "soft_tokens": rows * columns})
        found.append({"image": path, "width": width, "height": height, "grids": grids})
        heads = ["budget", "width", "height", "columns", "rows", "soft tokens"]
        paragraphs.append(f"{path}: {width} x {height} pixels\n{table(heads, [list(grid.values()) for grid in grids])}")
    for path in args.audio or []:
        rows = []
        for models, audio in (("E2B, E4B", AudioTower), ("12B", AudioEmbedder(FRAME, 0))):
            samples = len(read_sound(path, *audio.heard))
            rows.append({"models": models, "seconds": samples / RATE, "soft_tokens": audio.count(samples)})
        found.append({"audio": path, "heard": rows})
        heads = ["models", "seconds", "soft tokens"]
        paragraphs.append(f"{path}\n{table(heads, [list(row.values()) for row in rows])}")
    for path in args.video or []:
        counts = [pixels.size // (3 * SIDE**2) for _, pixels in read_frames(path, SIDE)]
        found.append({"video": path, "frames": len(counts), "soft_tokens": sum(counts)})
        paragraphs.append(f"{path}: {len(counts)} frames, {sum(counts)} soft tokens")
    return found, "\n".join(paragraphs), 0


def synth(args):
    """Write a full-size checkpoint of random weights, for benchmarks and for people without the download."""
    size = synthesize(args.name, args.directory, format=args.format)
    print(f"{args.directory}: gemma-4-{args.name} with random values, {size / 1e9:.2f} GB")


def quantize(args):
    """Write a checkpoint's matrices in 4 or 8 bits, as the compressed-tensors library does; its tables stay.

    Round to nearest, groups of 32 columns. transformers loads the result too. --texts measures what the rounding costs,
    by part of the model and by depth; both tables, which the written file keeps, are rounded there too.
    """
    from .study.rounding import costs, costs_text
    from .study.texts import documents, read_texts
    from .tools.quantize import write

    names = write(args.directory, args.out, args.bits, args.layers, args.keep)
    print(f"{args.out}: {len(names)} matrices in {args.bits} bits")
    if args.texts:
        model = load(args.directory)
        docs = documents(tokenizer_of(model), read_texts(args.texts), QUANTIZED_TOKENS)[:QUANTIZED_TEXTS]
        print(f"\n{costs_text(costs(model, docs, args.bits))}")


# Commands with --json return (data for JSON, text for people, exit status); `main` prints one of the two.


def params(args):
    """Count a model's parameters by part and by layer; without a name, the released models side by side."""
    from .account import compute, parameters, report

    if args.what is None:
        found = compute.overview()
        return found, report.overview_text(found), 0
    found = parameters.count(args.what).to_dict()
    return found, report.params_text(found), 0


def memory(args):
    """Bytes of the weights by number format, of the KV cache and of a prompt's activations."""
    from .account import memory, parameters, report

    account = parameters.count(args.what)
    limit = account.config.max_position_embeddings
    found = memory.memory_account(account, limit if args.context is None else args.context)
    return found, report.memory_text(found), 0


def compute(args):
    """Multiply-adds of a token and of a prompt by part, and what PLE costs against what it stores."""
    from .account import compute, parameters, report

    account = parameters.count(args.what)
    limit = account.config.max_position_embeddings
    found = compute.compute_account(account, min(4096, limit) if args.context is None else args.context)
    return found, report.compute_text(found), 0


def bench(args):
    """Measure load, cold start, prefill, decode and memory, beside this machine's ceilings."""
    from .tools import bench

    if args.repeats < 1:
        raise Error(f"--repeats must be at least 1, not {args.repeats}")
    result = bench.measure_speed(args.weights, args.dtype, args.repeats)
    return result, bench.bench_text(result), 0


def verify(args):
    """Compare this machine's numbers with goldens: the file beside the weights, else the published ones."""
    from .debug import goldens

    result = goldens.check_goldens(load(args.weights, args.dtype))
    return result, goldens.goldens_text(result), 0 if result["fits"] else 1


def diff(args):
    """Compare somebody else's trace with this pass, op by op on their own inputs."""
    from .debug import diff, report

    model = load(args.weights, args.dtype)
    ids = _given_ids(args, model)
    found = diff.diff_file(
        args.theirs, model, ids, args.mapping, args.soft, args.precision, args.against, args.image, args.budget,
        args.audio, args.start,
    )
    if args.plot and found.rows:
        from .tools import figures

        with replacing(args.plot) as temporary:
            figures.save(figures.error_by_depth(found), temporary)
    return found.to_dict(), report.diff_text(found, args.all), 0 if found.clean else 1


def diagnose(args):
    """Name the known mistake behind somebody else's trace. Without THEIRS, name those that the ids alone show."""
    from .debug import diagnosis, report

    model = load(args.weights, None if args.theirs is None else args.dtype)
    ids = _given_ids(args, model)
    if args.theirs is None and ids is None:
        raise Error("there is nothing to diagnose; give a trace, or a prompt with --ids 2,105,... or --prompt TEXT")
    if args.theirs is None:
        found = diagnosis.diagnose_ids(ids, model)
    else:
        found = diagnosis.diagnose_file(
            args.theirs, model, ids, args.mapping, args.soft, args.precision, args.prefill, args.image, args.budget,
            args.audio, args.start,
        )
    return found.to_dict(), report.diagnosis_text(found), 0 if found.clean else 1


def check_ops(args):
    """Judge the ops of somebody else's trace that need no weights: RoPE, softmax, GELU, residual sums and others.

    For the text model. A norm's weight is fitted. What the other ops do is not judged: `diff` does that, with weights.
    """
    from .account import parameters
    from .debug import checkops, report

    config = parameters.count(args.config).config
    found = checkops.check_file(args.theirs, config, _ids(args.ids), args.mapping, args.precision, args.start)
    return found.to_dict(), report.diff_text(found, args.all), 0 if found.clean else 1


def _given_ids(args, model):
    """The prompt's ids by --ids or --prompt; None where neither is given."""
    if args.ids is not None:
        return _ids(args.ids)
    if args.prompt is None:
        return None
    return read_prompt(model, place_files(_prompt(args), _files(args, model)), args.budget, args.special)[0]


def _ids(text):
    """The numbers of --ids; None where it was not given."""
    if text is None:
        return None
    parts = text.replace(",", " ").split()
    if not parts or not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise Error(f"--ids must be whole numbers such as '2,818,5279', not {text!r}")
    return [int(part) for part in parts]


def faults(args):
    """List the catalogue of known mistakes."""
    from .debug import catalogue, report

    entries = list(catalogue.FAULTS.values())
    rows = [{**vars(entry), "changes": len(entry.changes)} for entry in entries]
    return rows, report.faults_text(entries, catalogue.PROBES), 0


def retention(args):
    """Measure how much of a token's identity each layer's hidden state keeps, and what PLE does to it."""
    from .study import report, retention
    from .study.texts import read_texts

    for name, least in (("count", 4), ("length", 4), ("positions", 1), ("swaps", 0), ("interventions", 0)):
        if getattr(args, name) < least:
            raise Error(f"--{name} must be at least {least}, not {getattr(args, name)}")
    texts, read = read_texts(args.texts), partial(load, dtype=args.dtype)
    results = retention.measure(
        args.weights or [None], texts, read, count=args.count, length=args.length, positions=args.positions,
        swaps=args.swaps, intervention_texts=args.interventions, sentence=args.sentence,
    )  # fmt: skip
    if args.plots:
        from .tools import figures

        for name, figure in figures.retention_figures(results).items():
            with replacing(make_directory(args.plots) / f"{name}.png") as temporary:
                figures.save(figure, temporary)
    return results, report.study_text(results), 0


def figures(args):
    """Write the figures for a lecture as SVG and PNG, and an index with their texts."""
    from .tools import gallery

    for name in gallery.write_figures(args.directory):
        print(os.path.join(args.directory, name))


def grade(args):
    """Judge your own rms_norm, rope, visible, attention, mlp, ple, layer and forward, or any of them.

    FILE is run in a process of its own. What it does not define is open, not wrong. To begin, --template writes FILE.
    """
    from .tools import grade

    if args.template and args.file is None:
        print(grade.template(args.level))
        return None
    if args.file is None:
        raise Error("name your file; to begin one: python -m minigemma grade mygemma.py --template")
    if args.template:
        grade.write_template(args.file, args.level)
        print(f"wrote {args.file}")
        return None
    found = grade.grade_file(args.file)
    return grade.grades_dicts(found), grade.grades_text(found), int(any(one.verdict == "wrong" for one in found))


class Timer:
    """Notes when each id is drawn."""

    def __init__(self, model):
        self.model, self.start, self.stamps = model, time.perf_counter(), []
        self.prompt = 0  # its tokens that are read

    def __call__(self, ids):
        """The ids as they come."""
        for id in ids:
            self.stamps.append(time.perf_counter())
            yield id

    def print(self):
        """Rates and memory, to stderr."""
        from .tools.bench import ple_table

        print(f"prompt        {self.prompt} tokens", file=sys.stderr)
        if self.stamps:
            first = self.stamps[0] - self.start
            print(f"prefill       {first:.3f} s, {self.prompt / first:.0f} tokens/s", file=sys.stderr)
        if len(self.stamps) > 1:
            rate = (len(self.stamps) - 1) / (self.stamps[-1] - self.stamps[0])
            print(f"decode        {len(self.stamps)} tokens, {rate:.0f} tokens/s", file=sys.stderr)
        print(f"peak memory   {_peak_memory()}", file=sys.stderr)
        for name, size in ple_table(self.model).items():
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
        self.print_usage(sys.stderr)
        self.exit(2, f"minigemma: {Error(message)}\n")


def parser():
    """The argument parser of every command."""
    root = Parser(prog="python -m minigemma", description="Gemma 4 in plain NumPy.")
    commands = root.add_subparsers(dest="command", required=True)

    def command(run, *arguments):
        name, text = run.__name__.replace("_", "-"), run.__doc__
        sub = commands.add_parser(name, help=text.splitlines()[0], description=text)
        sub.set_defaults(run=run, parser=sub)
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
    think = flag("--think", action="store_true", help="ask the model to think first; thoughts go to stderr")
    tools = flag("--tools", metavar="FILE", help="a JSON list of the tools that the model may call")
    talk = (flag("--system", metavar="TEXT", help="a system message at the start of the conversation"), think, tools)
    image = flag("--image", metavar="FILE", action="append", help="a picture, before the text or where it says {image}")
    most = "most soft tokens of a picture; default: the checkpoint's own, else 280"
    budget = flag("--budget", type=int, choices=BUDGETS, help=most)
    audio = flag("--audio", metavar="FILE", action="append", help="a WAV file, after the text or where it says {audio}")
    video = flag(
        "--video", metavar="FILE", action="append",
        help="an animated GIF or WebP, or a folder of pictures, before the text or where it says {video}",
    )  # fmt: skip
    media = image, audio, video, budget
    command(generate, prompt, special, *media, where, dtype, *talk, *sampling, check)
    command(chat, *media, where, dtype, *talk, *sampling, check)
    out = flag("--out", required=True, metavar="FILE", help="the safetensors file to write")
    only = flag("--only", metavar="PATTERN", help="record only the taps that fit, such as 'layers.3.*'")
    command(trace, prompt, special, *media, where, dtype, out, only, check)
    at = flag("--at", default="*", metavar="PATTERN", help="show only the taps that fit, such as 'layers.3.*'")
    command(step, prompt, special, *media, where, dtype, at)
    html = flag("-o", "--out", required=True, metavar="FILE", help="the HTML file to write")
    command(page, prompt, special, where, dtype, html)
    as_json = flag("--json", action="store_true", help="print JSON, for programs")
    command(turns, flag("file", metavar="FILE", help="a JSON list of messages"), budget, where, think, tools, as_json)
    repeats = flag("--repeats", type=int, default=3, metavar="R", help="runs of each measurement (default 3)")
    name = flag("name", metavar="NAME", help=f"a released model: {', '.join(RELEASED)}")
    command(tokens, image, audio, video, as_json)
    form = flag("--format", default="bfloat16", choices=tuple(FORMATS), help="of the matrices; default: bfloat16")
    command(synth, name, flag("directory", metavar="DIR", help="where to write"), form)
    command(
        quantize,
        flag("directory", metavar="DIR", help="a checkpoint directory"),
        flag("out", metavar="OUT", help="where to write"),
        flag("--bits", type=int, default=4, choices=(4, 8), help="default: 4"),
        flag("--layers", default="*", metavar="PATTERN", help="only these layers, such as [0-4] or 7"),
        flag("--keep", action="append", default=[], metavar="PATTERN", help="names that stay, such as *.down_proj.*"),
        flag("--texts", metavar="FILE", help="measure on these texts what the rounding costs"),
    )
    command(bench, where, dtype, repeats, as_json)
    command(verify, where, dtype, as_json)
    theirs = flag("theirs", metavar="THEIRS", help="a safetensors file of their intermediates")
    start = flag("--start", type=int, metavar="N", help="position of their first row, where they hold a later chunk")
    foreign = (
        flag("--mapping", metavar="FILE", help="JSON that translates their names to ours"),
        flag("--ids", metavar="IDS", help="the prompt's ids, such as 2,818,5279, where the file does not hold them"),
        flag("--prompt", metavar="TEXT", help="the prompt, in place of --ids"),
        special,
        image,
        audio,
        budget,
        start,
        flag("--soft", metavar="FILE", help="safetensors with `positions` and `rows` of image or audio tokens"),
        flag("--precision", choices=PRECISIONS, help="their engine's number format; default: inferred"),
    )
    against = flag("--against", metavar="OURS", help="a second trace, of W too: where the two part")
    plot = flag("--plot", metavar="FILE", help="write a PNG of error against depth")
    everything = flag("--all", action="store_true", help="print every tap, those not captured too")
    first_call = flag("--prefill", type=int, metavar="N", help="tokens of their first call, where they then decoded")
    command(diff, theirs, where, dtype, *foreign, against, plot, everything, as_json)
    source = f"a released model ({', '.join(RELEASED)}), a config.json, or a checkpoint directory"
    config = flag("--config", required=True, metavar="C", help=source)
    mapping, ids, precision = foreign[0], foreign[1], foreign[-1]
    command(check_ops, theirs, config, mapping, ids, start, precision, everything, as_json)
    either = flag("theirs", metavar="THEIRS", nargs="?", help="a safetensors file of their intermediates")
    command(diagnose, either, where, dtype, *foreign, first_call, as_json)
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
        flag("--positions", type=int, default=16000, metavar="N", help="hidden states of all texts (default 16000)"),
        flag("--swaps", type=int, default=800, metavar="N", help="positions of the hand-over (default 800); 0: none"),
        flag("--interventions", type=int, default=16, metavar="N", help="texts for them (default 16); 0: none"),
        flag("--sentence", default="Tom put the kite in the barn.", metavar="TEXT", help="shown token by token"),
        flag("--plots", metavar="DIR", help="write the figures there, as PNG"),
        as_json,
    )
    command(figures, flag("directory", metavar="DIR", help="where to write"))
    command(
        grade,
        flag("file", metavar="FILE", nargs="?", help="Python with your functions"),
        flag("--template", action="store_true", help="write FILE to begin with; without FILE print it"),
        flag("--level", type=int, default=1, choices=(1, 2, 3), help="1: holes (default); 2: signatures; 3: names"),
        as_json,
    )
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
    args, unknown = parser().parse_known_args(argv)
    if unknown:
        unquoted = getattr(args, "prompt", None) is not None and not unknown[0].startswith("-")
        advice = '; put the whole prompt in "double quotes"' if unquoted else ""
        for near in get_close_matches(unknown[0], re.findall(r"--[\w-]+", args.parser.format_usage()), 1):
            advice = f"; did you mean {near}?"
        args.parser.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):  # Finite or the logits' check report NaN, once
            warnings.showwarning = _note
            data, text, status = args.run(args) or (None, None, 0)
        if text is not None:
            print(json.dumps(data) if args.json else text)
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
