"""What `check` says of an answer: typical wrong ones are recognised, and an open hole is never an error."""

import ast
import dis
import re
from functools import cache
from types import SimpleNamespace

import numpy as np
import pytest
from notebook_runs import FOLDER, HOLE, NOTEBOOKS, exercises, read

import minigemma
from minigemma.debug.catalogue import FAULTS
from minigemma.interventions import token_losses
from minigemma.ops import gelu, rms_norm, rope, rotation, softmax, visible


@pytest.fixture
def said(course, tiny, capsys, monkeypatch):
    """A function: the name of an exercise and an answer -> what check prints."""
    monkeypatch.setattr(course.exercises, "session", SimpleNamespace(model=tiny, file=None, solved=set()))

    def said(name, mine):
        course.check(name, mine)
        return capsys.readouterr().out.strip()

    return said


@pytest.fixture(scope="module")
def facts(course, tiny):
    """The trace of the running example."""
    trace = minigemma.Trace()
    tiny(tiny.tokenizer.encode(course.FACTS), tap=trace)
    return trace


def test_a_wrong_answer_is_described_as_by_diff(said, facts):
    v, raw = facts["layers.3.attn.v"], facts["layers.3.attn.v_raw"]  # [T, K, H] each
    assert said("03.1", v).startswith("all right")
    assert said("03.1", raw).endswith("it equals layers.3.attn.v_raw")
    assert "1/sqrt(head_dim)" in said("03.1", v * v.shape[-1] ** -0.5)
    assert said("03.1", np.roll(v, 1, 0)).endswith("its tokens are shifted by 1")
    assert said("03.1", v * np.linspace(1, 2, v.shape[-1])).endswith("a learned weight is missing or is another one")
    assert said("03.1", v[:, 0]) == "not yet: your shape is (17, 32), the answer's is (17, 1, 32)"


def test_an_answer_that_ignores_groups_is_wrong_where_there_are_two(said):
    right = said("03.3", lambda n, q, k: q[:, n] @ k[:, n * k.shape[1] // q.shape[1]].T)
    assert right.startswith("all right")
    assert "[two key heads, head 3]" in said("03.3", lambda n, q, k: q[:, n] @ k[:, 0].T)
    assert "IndexError" in said("03.3", lambda n, q, k: q[:, n] @ k[:, n].T)


@pytest.mark.parametrize("open_hole", [..., None])
def test_an_open_hole_is_not_an_error(said, open_hole):
    assert said("03.1", open_hole) == "not yet: the hole is still open"
    assert said("03.3", lambda n, q, k: open_hole).startswith("not yet: the hole is still open")


@pytest.fixture(scope="module")
def shell():
    """A notebook's kernel, which has imported course."""
    from IPython.core.interactiveshell import InteractiveShell

    shell = InteractiveShell.instance()
    shell.run_cell(f"import sys; sys.path.insert(0, {str(FOLDER)!r})")
    shell.run_cell("import importlib, course; importlib.reload(course)")
    return shell


@pytest.mark.parametrize(
    "cell",
    [
        "ple = ...\nprint(ple[:, 0] * 2)",
        "import numpy as np\nple = ...\nnp.sqrt(ple)",
        "def ple(x):\n    return ...  # [T]\n\nple(3) + 1",
        "import numpy as np\nple = ...\nnp.testing.assert_allclose(ple, [1.0])",
        "def of(x):\n    ...\n\nple = of(3)\nple[0]",
        "def ple(x):\n    'Doubles.'\n    ...\n\ndef twice(x):\n    return ple(x)[0]\n\ntwice(3)",
    ],
)
def test_a_cell_that_uses_an_open_hole_says_so_and_does_not_stop_run_all(shell, capsys, cell):
    assert shell.run_cell(cell).success
    assert capsys.readouterr().out.startswith("not yet: this cell uses ple, still with an open hole (")


def test_any_other_error_of_a_cell_stops_run_all_with_a_traceback(shell, capsys):
    assert not shell.run_cell("ple = ...\n1 + 'a'").success
    assert "Traceback" in capsys.readouterr().out


def names(code):
    """The names that a cell needs from cells before it, and those that it makes."""
    needs, makes, inner = set(), set(), []
    for step in dis.get_instructions(code):
        if step.opname == "STORE_NAME":
            makes.add(step.argval)
        elif step.opname in ("LOAD_NAME", "LOAD_GLOBAL") and step.argval not in makes:
            needs.add(step.argval)
        elif hasattr(step.argval, "co_code"):
            inner.append(step.argval)
    for function in inner:
        needs |= names(function)[0] - makes
    return needs, makes


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_no_cell_needs_what_an_exercise_leaves_open(path):
    holes, notebook = set(), read(path)
    exercised = {number for number, _ in exercises(notebook)}
    for number, cell in enumerate(notebook.cells):
        for statement in ast.parse(cell.source).body if cell.cell_type == "code" else ():
            needs, makes = names(compile(ast.Module([statement], []), path.name, "exec"))
            is_check = ast.unparse(statement).startswith("check(")
            assert is_check or not needs & holes, f"cell {number}"
            left_open = number in exercised and HOLE.search(ast.get_source_segment(cell.source, statement))
            holes = holes | makes if left_open else holes - makes
    assert holes or not exercised


def test_solved_exercises_are_counted_once(said, course, facts, capsys):
    for _ in range(2):
        assert "you have solved 1 of" in said("03.1", facts["layers.3.attn.v"])
    course.progress("03")
    assert re.match(r"you have solved 1 of \d+:  03.1 \+ 03.2 \.", capsys.readouterr().out)


@pytest.mark.parametrize("stored", [None, "[", "{}", '[1, ["03.1"], "99.9"]'])
def test_solved_exercises_are_kept_in_a_file_and_a_broken_one_counts_as_empty(said, course, facts, tmp_path, stored):
    file = tmp_path / "solved.json"
    if stored:
        file.write_text(stored)
    course.exercises.begin(course.exercises.session.model, file)
    assert said("03.1", facts["layers.3.attn.v"]).endswith("you have solved 1 of 7")
    course.exercises.session.solved = set()
    course.exercises.begin(course.exercises.session.model, file)
    assert "03.1" in course.exercises.session.solved


def test_a_name_that_no_exercise_has_is_refused(course):
    with pytest.raises(minigemma.Error, match=r"notebook 03 has 03\.1, 03\.2"):
        course.check("03.99", 1)


def test_a_function_cannot_change_what_the_next_case_gets(said):
    def spoils(n, q, k):
        result = q[:, n] @ k[:, n * k.shape[1] // q.shape[1]].T
        q[:] = k[:] = 0
        return result

    assert said("03.3", spoils).startswith("all right")


def test_a_count_that_is_off_is_not_given_away(course):
    said = course.exercises._compare
    hint = course.exercises._hint

    def words(mine, right):
        return said(np.asarray(mine), np.asarray(right), lambda a, b: hint(a, b, ""))[1]

    assert words(4, 3) == "it is 1 too large"
    assert words(17, 35) == "it is too small"
    assert words(70, 35) == "it is twice the answer"
    assert words([1, 2, 3], [2, 3, 4]) == "0 of 3 values are right; each is 1 too small"


@cache
def question(tiny):
    """The trace of the question that notebooks 00 and 01 follow."""
    import course

    trace = minigemma.Trace()
    tiny(course.question(tiny), tap=trace)
    return trace


def course_target(name, tiny):
    from exercises import targets_of

    return targets_of(name[:2])[name](tiny)


WRONG = [  # an exercise, a typical wrong answer, and what the reply must say
    ("00.1", lambda tiny: 5_123_178_979, "it is twice the answer"),
    ("00.2", lambda tiny: lambda x: np.exp(x) / np.exp(x).sum(-1, keepdims=True), "not finite [scores around 1,000]"),
    ("00.2", lambda tiny: lambda x: np.exp(x - x.max()) / np.exp(x - x.max()).sum(), "each row has a factor"),
    ("00.3", lambda tiny: lambda logits, ids: 2 * token_losses(logits, ids).mean(), "twice the answer"),
    ("00.5", lambda tiny: 15, "too large"),
    ("00.6", lambda tiny: (6, 8, 256), "2 of 3 values are right (66.7%); look at [2]"),
    ("00.7", lambda tiny: lambda logits: logits.argmax(), "too large"),
    ("01.1", lambda tiny: question(tiny)["embed"] * 128**-0.5, "it is 0.0883883 times what it should be: 1/sqrt(D)"),
    ("01.2", lambda tiny: question(tiny)["ple.token"].reshape(-1, 320)[:, 9::10], "values are right"),
    ("01.3", lambda tiny: question(tiny)["ple.context"] / tiny.weights.per_layer_projection_norm, "a learned weight"),
    ("01.4", lambda tiny: question(tiny)["ple"] * 2**0.5, "1.41421 times what it should be: sqrt(2)"),
    ("01.6", lambda tiny: question(tiny)["layers.8.ple.proj"], "it equals layers.8.ple.proj"),
    ("01.7", lambda tiny: [True] * 4, "look at [3]"),
    ("01.9", lambda tiny: 35 * 256, "it is half the answer"),
    ("02.1", lambda tiny: lambda x, g, eps: x * g, "each row has a factor of its own: a norm"),
    ("02.1", lambda tiny: lambda x, g, eps: rms_norm(x, None, eps), "a learned weight is missing"),
    ("02.1", lambda tiny: lambda x, g, eps: x / np.sqrt((x * x).mean() + eps) * g, "a norm over the last axis"),
    ("02.1", lambda tiny: lambda x, g, eps: rms_norm(x, g, 0), "[a tiny vector]"),
    ("02.2", lambda tiny: 10, "too large"),
    ("02.4", lambda tiny: lambda x, at, f: rope(x, *rotation(at, f, x.dtype))[:, ::-1], "heads are in reverse order"),
    ("02.4", lambda tiny: lambda x, at, f: np.roll(rope(x, *rotation(at, f, float)), 4, -1), "two halves of each head"),
    ("02.4", lambda tiny: lambda x, at, f: x, "values are right"),
    ("02.5", lambda tiny: lambda a: np.array([[np.cos(a), np.sin(a)], [-np.sin(a), np.cos(a)]]), "it is transposed"),
    ("02.6", lambda tiny: lambda H, theta, share: theta ** (-2 * np.arange(H // 2) / H), "[E2B, global]"),
    ("02.7", lambda tiny: 30, "too small"),
    ("03.2", lambda tiny: lambda layer: layer.head_dim**-0.5, "too small [layer 0]"),
    ("03.4", lambda tiny: lambda at, n, window: visible(at, n, window and window + 1, n), "[one more than the window]"),
    ("03.4", lambda tiny: lambda at, n, window: np.tri(len(at), n, dtype=bool), "[one more than the window]"),
    ("03.5", lambda tiny: (8192 * 8192, 8192 * 512), "0 of 2 values are right"),
    ("03.7", lambda tiny: 8 * 32, "too large"),
    ("05.1", lambda tiny: gelu(question(tiny)["layers.8.mlp.up"]) * question(tiny)["layers.8.mlp.gate"], "are right"),
    ("05.2", lambda tiny: lambda h, gate, up, down: (np.maximum(h @ gate.T, 0) * (h @ up.T)) @ down.T, "are right"),
    ("05.3", lambda tiny: lambda act, n: np.where(act >= np.sort(act)[:, -n, None], act, 0), "[n = 1]"),
    ("05.4", lambda tiny: np.cumprod([float(layer.layer_scalar[0]) for layer in tiny.weights.layers]), "are right"),
    ("05.5", lambda tiny: course_target("05.5", tiny).right * 2, "it is 2 times what it should be"),
    ("05.7", lambda tiny: lambda h, both, down, chosen, share: 0 * h, "[4 experts, 1 a token]"),
    ("06.1", lambda tiny: (8, 8), "look at [1]"),
    ("06.2", lambda tiny: lambda x, ple_i, kv, layer, w, config: (x * w.layer_scalar, kv), "layer 0"),
    ("06.3", lambda tiny: lambda ids, weights, config: 2 * tiny(ids)[0], "2 times what it should be"),
    ("06.6", lambda tiny: lambda scores, tau: softmax(scores) ** (1 / tau), "[temperature 0.5]"),
    ("06.7", lambda tiny: lambda ranked, p: int((np.cumsum(ranked) < p).sum()), "it is 1 too small"),
    ("06.8", lambda tiny: lambda scores, rng, temperature, top_k, top_p: int(scores.argmax()), "it draws"),
    ("06.9", lambda tiny: "layers.0.attn.q", "that is not the answer"),
    ("07.1", lambda tiny: lambda x: x.std() / len(x) ** 0.5, "too small"),
    ("07.3", lambda tiny: lambda x, table: (x @ table.T).argmax(-1), "values are right"),
    ("07.4", lambda tiny: lambda x, own, size: (own**2).sum() / (x**2).sum(), "too large"),
    ("08.5", lambda tiny: 5, "it is 1 too small"),
    ("08.6", lambda tiny: lambda layer, D, N, P: 3 * D * layer.intermediate_size, "too small [E2B, layer 0]"),
    ("09.2", lambda tiny: lambda theirs, ids: next(iter(theirs)), "that is not the answer [an early mistake]"),
    ("09.4", lambda tiny: lambda port: None, "or your mistake changes nothing"),
    ("09.4", lambda tiny: FAULTS["C1"].changes[0], "the verdict is fault: C1"),
    ("09.8", lambda tiny: np.ones((4, 3), bool), "8 of 12 values are right (66.7%); look at [1, 0]"),
    ("10.5", lambda tiny: lambda parts: (parts["token table"] / sum(parts.values()),) * 2, "[E2B]"),
    ("10.6", lambda tiny: lambda name, length: False, "[E2B, 1,024 tokens]"),
    ("11.1", lambda tiny: (22, 12), "0 of 2 values are right"),
    ("11.4", lambda tiny: course_target("11.4", tiny).right * 96**-0.5, "1/sqrt(D)"),
    ("12.1", lambda tiny: 62, "it is 1 too small"),
    ("12.3", lambda tiny: lambda kernels, strides: int(np.prod(kernels)), "too large"),
    ("12.3", lambda tiny: lambda kernels, strides: 1 + sum(kernels) - len(kernels), "too small [two that halve]"),
    ("12.4", lambda tiny: course_target("12.4", tiny).right.swapaxes(1, 2), "its axes are in another order"),
    ("12.5", lambda tiny: lambda q, k, v, rel_k, cap: 0 * q, "values are right"),
    ("13.2", lambda tiny: lambda stored: stored[::2] | stored[1::2] << 4, "values are right"),
]


@pytest.mark.filterwarnings("ignore:overflow", "ignore:invalid")
@pytest.mark.parametrize(("name", "answer", "phrase"), WRONG)
def test_a_typical_wrong_answer_gets_a_helpful_reply(said, tiny, name, answer, phrase):
    assert phrase in said(name, answer(tiny))


def test_typical_wrong_answers_of_notebook_04_are_described(said, course):
    from exercises import e04

    def keeps_a_window(q, k, v, past_k, past_v, window):
        z, *_ = e04.attend(q, k, v, past_k, past_v, window)
        return z, *e04.attend(q, k, v, past_k, past_v, window and window + 1)[1:]

    def cuts_first(q, k, v, past_k, past_v, window):
        _, keys, values = e04.attend(q, k, v, past_k, past_v, window)
        S = len(past_k) + len(q)
        mask = e04.visible(np.arange(S - len(q), S), len(keys), window, S)
        scores = np.where(mask, e04.attention_scores(q, keys), -1e9)
        return e04.attention_values(e04.softmax(scores), values), keys, values

    assert said("04.1", np.minimum(np.arange(1, 64), 32)).endswith("look at [31]")
    assert "kept keys: your shape" in said("04.2", keeps_a_window)
    assert "one token after a full cache" in said("04.2", cuts_first)
    assert "return three arrays" in said("04.2", lambda *given: e04.attend(*given)[0])
    assert "window 8" in said("04.5", lambda T, window: T * T // 2 + T - T // 2 if window is None else T * window)
    assert "not yet" in said("04.6", lambda kinds, first: [*range(first), *[first - 1] * (len(kinds) - first)])
    assert said("04.4", 3 * 512 * 2 * 2 * 2) == "not yet: it is twice the answer"


ODD = (
    1,
    1.5,
    "x",
    b"x",
    [1, [2]],
    {},
    [],
    np.nan,
    10**400,
    1j,
    np.zeros(0),
    lambda: 3,
    lambda *all: 1 / 0,
    lambda *all: {},
)


@pytest.mark.parametrize("notebook", [path.name[:2] for path in NOTEBOOKS])
def test_no_answer_is_an_error(course, tiny, monkeypatch, notebook):
    exercises = course.exercises
    monkeypatch.setattr(exercises, "session", SimpleNamespace(model=tiny, file=None, solved=set()))
    for name, target in exercises.targets_of(notebook).items():
        right = target(tiny)
        wrong = [odd for odd in ODD if not exercises.judge(right, odd)[0]]
        assert len(wrong) >= len(ODD) - 2, name  # a number may be right by chance: 1 is the answer of 02.2
