"""A student's own pass, judged function by function in the words of diff and diagnose.

student.py runs the functions in a process of its own and writes arrays. Here they are compared as those of a port:
each tap on their inputs; then every mistake of the catalogue is tried, and one is named only if it leaves nothing but
rounding.
"""

import ast
import json
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from ..debug.diagnosis import Search, Trial
from ..debug.diff import compare_traces
from ..debug.replay import hidden_keys, wrong_masks
from ..debug.runs import Run
from ..errors import Error
from ..files import check_file, is_utf16, read_json, replacing
from ..taps import names_of, part_of, tap_of
from .student import CACHED, NAMES, cases

SECONDS = 60  # that a function may take
BLANK = Path(__file__).with_name("blank.py")
CHILD = """
import json, sys
sys.path[:] = json.loads(sys.argv[1])
from minigemma.tools.student import run
run(*sys.argv[2:4], sys.argv[4:])
"""
# What a function makes and no other can see: those taps are left out, and mistakes that show there first are tried.
INSIDE = {
    "rms_norm": (), "rope": (), "visible": (), "attention": ("attn.scores", "attn.pattern"),
    "mlp": ("mlp.gate", "mlp.up", "mlp.act"), "ple": ("ple.token", "ple.context"), "layer": None, "forward": None,
}  # fmt: skip
MAKES = {"rope": ("attn.rot_q", "attn.rot_k"), "visible": ("attn.pattern",), "attention": ("attn.z",)} | {
    "mlp": ("mlp.down",), "ple": ("ple",),
}  # fmt: skip


@dataclass
class Grade:
    """What a function of a student's file is worth."""

    name: str
    verdict: str  # right, wrong, open
    sentence: str = ""
    tap: str | None = None  # the first wrong one
    fault: str | None = None  # an id of the catalogue
    hint: str | None = None  # what the wrong array looks like
    remedy: str | None = None
    printed: str = ""  # the beginning of what it printed


def grade_file(path, seconds=SECONDS):
    """Run and judge every function of a student's file -> a list of Grade, in the order of NAMES.

    Raises Error for a file that cannot be imported.
    """
    check_file(path)
    if is_utf16(path):
        raise Error(f"{path}: Python reads UTF-8, and this file is UTF-16; save it as UTF-8")
    with tempfile.TemporaryDirectory() as folder:
        ended = _run(Path(path).resolve(), Path(folder), seconds)
        tried, grades = cases(), []
        for name in NAMES:
            result = ended.get(name) or read_json(Path(folder, f"{name}.json"))
            grades.append(_graded(name, result, Path(folder), tried, grades))
    return grades


def _run(path, folder, seconds):
    """Run all functions -> those that ended the process or did not end: name -> what happened, as `attempt` gives it.

    After such a function a new process goes on with the next one.
    """
    ended, names = {}, list(NAMES)
    search = [str(Path(__file__).parents[2]), *sys.path, str(path.parent)]
    while names:
        Path(folder, "file.json").unlink(missing_ok=True)
        command = [sys.executable, "-I", "-c", CHILD, json.dumps(search), str(path), str(folder), *names]
        nothing = subprocess.DEVNULL
        child = subprocess.Popen(command, stdin=nothing, stdout=nothing, stderr=nothing)
        try:
            status = _wait(child, folder, names, seconds)
        finally:
            child.kill()
            child.wait()
        how = f"does not end within {seconds:g} seconds" if status is None else f"ends the process, status {status}"
        if not Path(folder, "file.json").exists():
            raise Error(f"{path.name}: the import {how}")
        imported = read_json(Path(folder, "file.json"))
        if imported["state"] != "ran":
            raise Error(f"{path.name}: {imported['line'] or 'the file is empty'}")
        names = [name for name in names if not Path(folder, f"{name}.json").exists()]
        if names:
            ended[names[0]] = {"state": "raised", "line": f"{names[0]} {how}", "printed": 0, "shown": ""}
            names = names[1:]
    return ended


def _wait(child, folder, names, seconds):
    """Wait until the process ends, or until one function takes too long -> its status, None in the latter case."""
    done, end = 0, time.monotonic() + SECONDS  # for the imports
    while child.poll() is None and time.monotonic() < end:
        count = sum(Path(folder, f"{name}.json").exists() for name in ("file", *names))
        if count > len(names):
            break
        if count > done:
            done, end = count, time.monotonic() + seconds
        time.sleep(0.01)
    return child.poll()


def _graded(name, result, folder, tried, before):
    """The Grade of one function. before: those of the functions before it."""
    printed = f"prints {result['printed']} lines, first {result['shown'].strip()!r:.100}" if result["shown"] else ""
    if result["state"] != "ran":
        verdict = "open" if result["state"] == "open" else "wrong"
        return Grade(name, verdict, str(Error(result["line"])) if verdict == "wrong" else "", printed=printed)
    calls = {"ple": ("rms_norm",), "layer": NAMES, "forward": NAMES}.get(name, ())
    wrong = [grade for grade in before if grade.verdict == "wrong" and grade.name in calls]
    found, count = None, 0
    for number, case in enumerate(tried):
        path = Path(folder, f"{name}.{number}.npz")
        if path.exists() and found is None:
            found, judged = _judged(name, case, _arrays(path, case.config), wrong)
            count += judged
    if found is None:
        return Grade(name, "right", f"{count:,} arrays agree", printed=printed)
    if found.fault and (same := [grade.name for grade in wrong if grade.fault == found.fault]):
        found.sentence, found.hint, found.remedy = f"{found.fault} again, as in {same[0]}", None, None
    elif wrong:
        found.sentence += f"; mend {', '.join(grade.name for grade in wrong)} first"
    found.printed = printed
    return found


def _arrays(path, config):
    """The arrays of a student's process, of taps that the model has. Raises Error for a file that is not whole."""
    try:
        with np.load(path, allow_pickle=False) as stored:
            return {name: stored[name] for name in names_of(config) if name in stored}
    except (OSError, ValueError, EOFError) as error:
        raise Error(f"{path.name}: the results cannot be read ({error}); grade the file again") from None


def _judged(name, case, arrays, before):
    """The Grade of a function in one case, None if it is right there; and how many arrays were judged.

    before: the Grades of the wrong functions that it may call.
    """
    inside = INSIDE[name]
    if inside is None:  # the results decide; what the student's own functions did only tells where it goes wrong
        parts = ("embed", "ple", "resid_post", *CACHED) if name == "layer" else ("logits",)
        results = {tap: array for tap, array in arrays.items() if part_of(tap) in parts}
    else:
        results = arrays = {tap: array for tap, array in arrays.items() if part_of(tap) not in inside}
    model, found = SimpleNamespace(config=case.config, weights=case.weights), None
    for theirs in (results, arrays) if len(arrays) > len(results) else (results,):
        run = Run(model, case.tokens, theirs)
        comparison = compare_traces(theirs, run, "float32")
        if comparison.first_broken is None:
            break
        found = comparison, run
    return found and _named(name, case, *found, before), len(results)


def _named(name, case, comparison, run, before):
    """The Grade of a function whose taps are wrong: with the catalogue's mistake if one leaves only rounding.

    If a function that it may call is wrong, only that one's mistake is tried.
    """
    search, tap = Search(run, comparison, None), comparison.first_broken
    kinds = None if INSIDE[name] is None or name == "rms_norm" else {*INSIDE[name], *MAKES[name]}
    candidates = [c for c in search.candidates() if kinds is None or part_of(c.fault.first) in kinds]
    candidates = [c for c in candidates if not before or c.fault.id in {grade.fault for grade in before}]
    trials = sorted(map(search.trial, candidates), key=Trial.rank)
    whole = filter(search.mends_all, trials)
    best = next(whole, None) or next(filter(search.mends_all, map(search.trial, search.partial(trials))), None)
    where = f"{case.name}, {len(case.tokens)} tokens"
    hint = _mask_hint(tap, run) if name == "visible" else comparison.hint
    if best is None:
        row = next(row for row in comparison.rows if row.name == tap)
        size = f"is off by {row.own.error:.1e}, where rounding allows {row.allowed:.1e}" if row.own else "misshapen"
        sentence = f"your {tap} ({tap_of(tap).made_by}) {size} ({where}); no known mistake explains it"
        return Grade(name, "wrong", sentence, tap, None, hint)
    fault = best.fault
    title = search.finding(best.candidates[0], best.explained, best.errors).title
    harmless = f"; harmless, but not Gemma 4: {fault.benign}" if fault.benign else ""
    sentence = f"your {tap} equals {fault.id}: {title}{harmless} ({where})"
    return Grade(name, "wrong", sentence, tap, fault.id, hint or fault.symptom, fault.remedy)


def _mask_hint(tap, run):
    """Which key is wrongly seen or wrongly hidden, in words; from a pattern, whose hidden keys are 0."""
    pattern = run.theirs[tap]  # [N, T, S]
    hidden = hidden_keys(run.config, tap, pattern.shape, len(run.tokens))  # [T, S]
    says = "hides a key that it should show", "shows a key that it should hide"
    for wrong, words in zip(wrong_masks(pattern == 0, hidden), says, strict=True):
        if wrong.any():
            _, query, key = np.argwhere(wrong)[0]
            return f"it {words}: key {key} to query {query} ({wrong[0].sum()} such places)"
    return None


def grades_text(grades):
    """The grades as text: a line for each function; below it the hint, then the remedy."""
    lines = []
    for grade in grades:
        lines.append(f"{grade.name:<11}{grade.verdict:<7}{grade.sentence}".rstrip())
        below = {"hint": grade.hint, "remedy": grade.remedy, "note": grade.printed}
        lines += [f"{'':<11}{word:<7}{text}" for word, text in below.items() if text]
    count = {verdict: sum(grade.verdict == verdict for grade in grades) for verdict in ("right", "wrong", "open")}
    return "\n".join([*lines, ", ".join(f"{number} {verdict}" for verdict, number in count.items())])


def grades_dicts(grades):
    """The grades for JSON."""
    return [asdict(grade) for grade in grades]


def template(level):
    """A file to begin with. Level 1: holes to fill; 2: signatures and what each function does; 3: the names alone."""
    source = BLANK.read_text(encoding="utf-8")
    tree, lines = ast.parse(source), source.splitlines()
    if level == 1:
        return source.rstrip()
    head = "\n".join(lines[: tree.body[1].end_lineno])
    if level == 3:
        return f"{head}\n\n# Write {', '.join(NAMES)}."
    graded = [node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name in NAMES]
    blanks = ["\n".join([*lines[node.lineno - 1 : node.body[0].end_lineno], "    ..."]) for node in graded]
    return "\n\n\n".join([head, *blanks])


def write_template(path, level):
    """Write such a file. Raises Error if there is a file already."""
    if Path(path).exists():
        raise Error(f"{path} exists already, and may be your work; choose another name")
    with replacing(path) as temporary:
        temporary.write_text(template(level) + "\n", encoding="utf-8")
