"""The exercises: what each one asks for, and what `check` says of an answer.

e03.py holds TARGETS for notebook 03: an exercise's name -> a function of the model that gives its target. A target is
computed from the model's own pass when it is asked for. It is one of the classes below.
"""

import json
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import cache, partial
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from minigemma import TINY, Error, Trace, load
from minigemma.debug.diff import compare_traces, known_factors, resemblance, scaled
from minigemma.debug.runs import Run
from minigemma.files import read_json, replacing

FOLDER = Path(__file__).parent
TOLERANCE = 1e-4  # of floating-point values, relative to their root mean square
OPEN = "the hole is still open"
session = SimpleNamespace(model=None, file=None, solved=set())  # see begin


@dataclass
class Tap:
    """The array of a tap in the pass of these ids. Wrong answers are described as by `python -m minigemma diff`."""

    name: str
    ids: list  # [T]


@dataclass
class Values:
    """A number, a text or an array; counts and texts must be equal. axes: a letter for each axis, such as "T H"."""

    right: object
    axes: str = ""
    tolerance: float = TOLERANCE


@dataclass
class Calls:
    """A function: for each case, what it returns must be what `right` returns.

    cases: what the case is -> the arguments; "" where there is nothing to say of it.
    """

    right: Callable
    cases: dict
    axes: str = ""


@dataclass
class Judged:
    """Any answer for which `wrong` returns None; else it returns what is wrong with it, in a few words."""

    wrong: Callable


def begin(model, file):
    """Take the targets from this model's pass, and keep the names of solved exercises in `file`, a JSON list.

    A file that holds anything else counts as empty. Where it cannot be written, the kernel remembers alone.
    """
    session.model, session.file = model, file
    with suppress(Error):
        session.solved.update(name for name in read_json(file, list) if isinstance(name, str))


def check(name, mine):
    """Print whether `mine` is the answer of an exercise, and if not, how the two are related.

    name: such as "03.2". A hole that is still `...` is "not yet". Raises Error for a name that no exercise has.
    """
    targets = targets_of(name[:2])
    if name not in targets:
        raise Error(f"there is no exercise {name!r}; notebook {name[:2]} has {', '.join(targets) or 'none'}")
    session.model = session.model or load(TINY)
    right, words = judge(targets[name](session.model), mine)
    print(f"all right{words}" if right else f"not yet: {words}")
    if right:
        session.solved.add(name)
        if session.file:
            with suppress(Error), replacing(session.file) as temporary:
                temporary.write_text(json.dumps(sorted(session.solved)), encoding="utf-8")
        print(_count(name[:2]))


def progress(notebook):
    """Print which exercises of a notebook, such as "03", are solved."""
    marks = " ".join(name + (" +" if name in session.solved else " .") for name in targets_of(notebook))
    print(f"{_count(notebook)}:  {marks}")


def _count(notebook):
    targets = targets_of(notebook)
    return f"you have solved {len(session.solved & set(targets))} of {len(targets)}"


def targets_of(notebook):
    """The targets of a notebook, such as "03" -> {name: function of the model}."""
    if not (FOLDER / f"e{notebook}.py").is_file():
        return {}
    return import_module(f"exercises.e{notebook}").TARGETS


def judge(target, mine):
    """(whether the answer is right, what to say of it)."""
    if mine is None or mine is ...:
        return False, OPEN
    if isinstance(target, Judged):
        try:
            wrong = target.wrong(mine)
        except Exception as error:  # the student's own
            wrong = f"with your answer: {type(error).__name__}: {error}"
        return not wrong, wrong or ""
    if isinstance(target, Calls):
        return _judge_calls(target, mine)
    if isinstance(target, Tap):
        return _judge_tap(target, mine)
    return _compare(mine, target.right, partial(_hint, axes=target.axes), target.tolerance)


def _judge_calls(target, mine):
    """A function, on all cases."""
    if not callable(mine):
        return False, "give the function itself, not what it returns"
    for title, arguments in target.cases.items():
        where = f" [{title}]" if title else ""
        right = target.right(*map(_copy, arguments))
        try:
            answer = mine(*map(_copy, arguments))
        except Exception as error:  # the student's own
            return False, f"your function raises {type(error).__name__}: {error}{where}"
        if answer is None or answer is ...:
            return False, f"{OPEN}, or your function returns nothing"
        verdict, words = _compare(answer, right, partial(_hint, axes=target.axes))
        if not verdict:
            return False, words + where
    return True, f" in {len(target.cases)} cases" if len(target.cases) > 1 else ""


def _copy(argument):
    return argument.copy() if isinstance(argument, np.ndarray) else argument


def _judge_tap(target, mine):
    """An array that a tap of the pass holds; a wrong one goes through `diff`."""

    def hint(mine, right):
        theirs = {target.name: np.asarray(mine, right.dtype)}
        return compare_traces(theirs, Run(session.model, target.ids, theirs, own_ids=True), "float32").hint

    return _compare(mine, traced(session.model, tuple(map(int, target.ids)))[target.name], hint)


@cache
def traced(model, ids):
    """The Trace of these ids."""
    trace = Trace()
    model(list(ids), tap=trace)
    return trace


def _compare(mine, right, hint, tolerance=TOLERANCE):
    """Two values -> (whether they agree, what to say). hint: both -> how they are related, or None."""
    try:
        mine, right = np.asarray(mine), np.asarray(right)
    except ValueError:  # rows of different lengths
        return False, "your rows differ in length"
    if mine.dtype.kind not in "fiubcU" or (mine.dtype.kind == "U") != (right.dtype.kind == "U"):
        return False, "some of your values are of another type than the answer's"
    if mine.shape != right.shape:
        turned = "; its axes are in another order" if sorted(mine.shape) == sorted(right.shape) else ""
        return False, f"your shape is {mine.shape}, the answer's is {right.shape}{turned}"
    fits = mine == right
    if right.dtype.kind == "f":
        finite = np.isfinite(right)
        rms = np.sqrt(np.mean(np.square(right, where=finite, out=np.zeros_like(right))))
        with np.errstate(invalid="ignore"):  # infinity minus infinity; those that are equal are right already
            fits = fits | (np.abs(mine - right) <= tolerance * rms)
    count = int(fits.sum())
    if count == fits.size:
        return True, f": {count:,} of {fits.size:,} values" if count > 1 else ""
    found = hint(mine, right) if {mine.dtype.kind, right.dtype.kind} <= set("fiu") else None
    if fits.size == 1:
        return False, found or "that is not the answer"
    words = f"{count:,} of {fits.size:,} values are right"
    if count:
        words += f" ({count / fits.size:.1%}); look at [{', '.join(map(str, np.argwhere(~fits)[0]))}]"
    return False, f"{words}; {found}" if found else words


def _hint(mine, right, axes):
    """How wrong numbers are related to the right ones, in a phrase, or None."""
    if wrong := int((~np.isfinite(mine) & np.isfinite(right)).sum()):
        return f"{wrong} of its {mine.size} numbers are not finite"
    known = np.isfinite(right) & np.isfinite(mine)
    off = np.unique(np.asarray(mine, float) - right)
    if mine.size == 1:
        return _single(float(mine.item()), float(right.item()))
    if right.dtype.kind in "iu" and len(off) == 1:
        return f"each is {abs(off[0]):g} too {'large' if off[0] > 0 else 'small'}"
    ours, theirs = np.where(known, right, 0).astype(float), np.where(known, mine, 0).astype(float)
    size = np.sqrt(np.square(theirs).mean()) or 1.0

    def left(candidate):
        return float(np.sqrt(np.square(candidate - theirs).mean()) / size)

    letters = tuple(axes.split()) or ("-",) * max(1, ours.ndim)  # of no axis that the engine knows
    sizes = dict(zip(letters, ours.shape, strict=False))
    factors = known_factors({letter: size for letter, size in sizes.items() if letter in "DPHLF"})
    return resemblance(letters, ours, theirs, factors, TOLERANCE, left) or scaled(ours, theirs, TOLERANCE, left)


def _single(mine, right):
    """How one number is related to the right one, which is not given away."""
    if mine in (2 * right, right / 2):
        return f"it is {'twice' if mine == 2 * right else 'half'} the answer"
    return f"it is {'1 ' * (abs(mine - right) == 1)}too {'large' if mine > right else 'small'}"
