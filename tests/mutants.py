"""Faults put into the source of the passes, one at a time, and whether the default suite notices.

    python tests/mutants.py [--sample N] [--seed S] [--only NUMBER ...]

Each mutant is one change of the syntax tree: an operator, a comparison or a constant replaced, a branch taken the other
way, a statement or an argument left out. It is written into a copy of the package, and the tests that concern the pass
run there until one fails. Survivors are printed with their change; EQUIVALENT says of the known ones why they are none.
"""

import argparse
import ast
import copy
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import numpy  # noqa: F401 (loaded once, before the forks)
import pytest
import safetensors.numpy  # noqa: F401

ROOT = Path(__file__).resolve().parents[1]
FILES = ("model.py", "ops.py", "inputs.py", "vision.py", "audio.py")
TESTS = ["goldens", "pass", "ops", "taps", "finite", "generate", "cache"]
TESTS += ["picture_goldens", "pictures_in_text", "sound_goldens"]  # ops.py holds what the towers share, and the mel
TOWER_TESTS = {"vision.py": ["picture_goldens", "vision"], "audio.py": ["sound_goldens", "audio"]}
SECONDS = 600  # far above what the tests take on a busy machine

SWAPS = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.FloorDiv: ast.Mult, ast.Pow: ast.Mult,
    ast.MatMult: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.Mod: ast.Mult,
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In, ast.And: ast.Or, ast.Or: ast.And,
}  # fmt: skip

# Mutants that no test can notice: their line as it becomes, and why it is no fault.
LEFT = "to reshape, any negative length is the one that is left"
LAST = "the last axis is NumPy's default"
SECOND = "of two axes the last is 1"
CHECKED = "check_model has compared the lengths"
EQUIVALENT = {
    "return np.argsort(-probs, kind='stable')[:, :k]": LAST,
    "return np.argsort(-probs, axis=+1, kind='stable')[:, :k]": SECOND,
    "best = np.take_along_axis(probs, router_experts)": LAST,
    "best = np.take_along_axis(probs, router_experts, axis=+1)": SECOND,
    "router_weights = best / best.sum(+1, keepdims=True) * w.per_expert_scale[router_experts]": SECOND,
    "gate, up = np.split(linear(x[token], gate_up_proj[int(e)]), 2, axis=+1)": SECOND,
    "unit = np.maximum(np.abs(x).max(-1, keepdims=True), 2)": "any unit will do that is not far below the largest",
    "ids = np.empty((1, 0))": "any shape of two axes is refused alike",
    "ids = np.empty((0, 1))": "any shape of two axes is refused alike",
    "token = (weights.embed_tokens_per_layer[ids] * P ** 0.5).reshape(-2, L, P)": LEFT,
    "projected = (linear(embed, weights.per_layer_model_projection) * D ** (-0.5)).reshape(-2, L, P)": LEFT,
    "projected = (linear(embed, weights.per_layer_model_projection) * D ** -0.5).reshape(-2, L, P)": LEFT,
    "for layer, w in zip(config.layers, weights.layers):": CHECKED,
    "return clip(y, output_min, output_max)": "the same numbers, in another array",
    "return x.clip(low, high)": "the same numbers, in another array",
    "if np.count_nonzero(finite) <= finite.size:": "any unit gives the same norm; this takes longer",
    "squares = squares[::2, ::2].reshape(-2, 9 * A)": LEFT,
    "x = tap('audio.embed', linear(quarter.reshape(T, -2), first.input_proj_linear))": LEFT,
    "pooled = tap('vision.pooled', blocks.mean((1, 3)).reshape(-2, D) * D ** 0.5)": LEFT,
}


def mutants(path):
    """Every mutant of a source file -> (line number, the line as it becomes, the whole source)."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    before = ast.unparse(tree).splitlines()
    found = []
    for number, node in enumerate(ast.walk(tree)):
        for change in _changes(node):
            other = copy.deepcopy(tree)
            target = next(n for i, n in enumerate(ast.walk(other)) if i == number)
            change(target)
            text = ast.unparse(ast.fix_missing_locations(other))
            pairs = [(a, b) for a, b in zip(before, text.splitlines(), strict=False) if a != b]
            if pairs:
                found.append((getattr(node, "lineno", 0), pairs[0], text))
    return found


def _changes(node):
    """The functions that each put one fault into a copy of this node."""
    if isinstance(node, ast.BinOp | ast.AugAssign | ast.BoolOp) and type(node.op) in SWAPS:
        yield lambda n: setattr(n, "op", SWAPS[type(n.op)]())
    if isinstance(node, ast.Compare):
        for i in range(len(node.ops)):
            yield lambda n, i=i: n.ops.__setitem__(i, SWAPS[type(n.ops[i])]())
    if isinstance(node, ast.Constant) and isinstance(node.value, int | float) and not isinstance(node.value, bool):
        yield lambda n: setattr(n, "value", n.value + 1 if isinstance(n.value, int) else n.value * 1.01)
    if isinstance(node, ast.UnaryOp):
        yield lambda n: setattr(n, "op", ast.UAdd() if isinstance(n.op, ast.USub) else n.op)
    if isinstance(node, ast.If | ast.IfExp):
        yield lambda n: setattr(n, "test", ast.UnaryOp(ast.Not(), n.test))
    if isinstance(node, ast.Call) and node.keywords:
        for i in range(len(node.keywords)):
            yield lambda n, i=i: n.keywords.pop(i)
    for field in ("body", "orelse"):
        block = getattr(node, field, None)
        for i, statement in enumerate(block if isinstance(block, list) else ()):
            if isinstance(statement, ast.AugAssign | ast.Raise) or _sets_again(node, statement):
                yield lambda n, i=i, field=field: getattr(n, field).__setitem__(i, ast.Pass())


def _sets_again(owner, statement):
    """Whether a statement gives a new value to a name or a place that has one: without it, the old one goes on."""
    if isinstance(statement, ast.Expr):
        return not isinstance(statement.value, ast.Constant)  # no docstring
    if not isinstance(statement, ast.Assign) or isinstance(owner, ast.Module | ast.ClassDef):
        return False
    read = {node.id for node in ast.walk(statement.value) if isinstance(node, ast.Name)}
    target = statement.targets[0]
    return isinstance(target, ast.Subscript) or (isinstance(target, ast.Name) and target.id in read)


def killed(name, text):
    """Whether the tests fail with this source in place of a file of the package."""
    with tempfile.TemporaryDirectory() as place:
        shutil.copytree(ROOT / "minigemma", Path(place, "minigemma"), ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(
            ROOT / "tests", Path(place, "tests"), ignore=shutil.ignore_patterns("__pycache__", "parity", "fuzz")
        )
        Path(place, "weights").symlink_to(ROOT / "weights")
        Path(place, "minigemma", name).write_text(text, encoding="utf-8")
        tests = [f"tests/test_{test}.py" for test in TOWER_TESTS.get(name, TESTS)]
        child = os.fork()  # with NumPy and pytest already loaded; the package itself is not
        if child == 0:
            signal.alarm(SECONDS)  # an endless loop ends as killed
            os.chdir(place)
            sys.path[:0] = [place, str(Path(place, "tests"))]
            for stream in (1, 2):
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)
            os._exit(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *tests]))
        return os.waitpid(child, 0)[1] != 0


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--sample", type=int, help="try so many, drawn at random; default: all")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", type=int, nargs="*", help="the numbers of the mutants to try")
    args = parser.parse_args()
    for name in ("ops.py", *TOWER_TESTS):
        if killed(name, (ROOT / "minigemma" / name).read_text(encoding="utf-8")):
            sys.exit("the tests fail without any mutant")
    every = [(name, *mutant) for name in FILES for mutant in mutants(ROOT / "minigemma" / name)]
    numbers = args.only or list(range(len(every)))
    if args.sample:
        numbers = sorted(random.Random(args.seed).sample(numbers, args.sample))
    tried = equivalent = survived = 0
    start = time.monotonic()
    for number in numbers:
        name, line, (old, new), text = every[number]
        if new.strip() in EQUIVALENT:
            equivalent += 1
            continue
        tried += 1
        if not killed(name, text):
            survived += 1
            print(f"{number} SURVIVED {name}:{line}\n  - {old.strip()}\n  + {new.strip()}", flush=True)
    rate = 1 - survived / max(1, tried)
    print(
        f"{len(every)} mutants in all; tried {tried}, killed {tried - survived} ({rate:.1%}), equivalent {equivalent}"
    )
    print(f"{time.monotonic() - start:.0f} s")


if __name__ == "__main__":
    main()
