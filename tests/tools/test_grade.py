"""`grade` finds a student's mistake where it is, gives it a name only if that name is right, and loses nothing."""

import json
import re

import pytest
from processes import one_line
from students.wrong_passes import RIGHT, WRONG, judged

from minigemma.tools.grade import grade_file, template
from minigemma.tools.student import NAMES

# Some of both kinds; python tests/students/wrong_passes.py tries all sixty.
IN_ONE_FILE = 3, 6, 9, 14, 46  # of functions that call no other wrong one
ALONE = 24

# What belongs into the holes of level 1, in their order.
ANSWERS = (
    "(x * x).mean(-1, keepdims=True)", "weight", "theta ** (-2 * j / exponent_dim)", "second * cos + first * sin", "0",
    "window", "group", "powers.sum(-1, keepdims=True)", "(x @ up.T)", "P**0.5", "D**-0.5", "2**-0.5",
    "rms_norm((inside @ weights.k_proj.T).reshape(T, K, H), weights.k_norm, eps)", "weights.post_feedforward_layernorm",
    "ple_i", "weights.layer_scalar", "config.hidden_size**0.5", "vectors[:, i]", "logits / cap",
)  # fmt: skip

CARELESS = """
import os, sys
def rms_norm(x, weight=None, eps=1e-6):
    print("here")
    raise ValueError("two\\nlines\\x1b")
def rope(*given):
    while True: pass
def visible(*given):
    sys.exit(3)
def attention(*given):
    os._exit(4)
def mlp(x, gate, up, down):
    gate *= 2
def ple(*given):
    return [1, 2]
def layer(*given):
    raise NotImplementedError
def forward(tokens, weights, config):
    return "no"
"""


def graded(tmp_path, text, **options):
    """The grades of a file with this text, by name."""
    path = tmp_path / "mygemma.py"
    path.write_text(text, encoding="utf-8")
    return {grade.name: grade for grade in grade_file(path, **options)}


def test_a_right_pass_in_another_style_is_right(tmp_path):
    assert {grade.verdict for grade in graded(tmp_path, RIGHT).values()} == {"right"}


def test_the_first_template_is_right_once_its_holes_are_filled(tmp_path):
    answers = iter(ANSWERS)
    code = template(1).partition('"""\n\n')[2]
    filled = re.sub(r"(?<!\[)\.\.\.", lambda hole: next(answers), code)  # x[..., j] is no hole
    assert list(answers) == []
    assert {grade.verdict for grade in graded(tmp_path, filled).values()} == {"right"}


@pytest.mark.parametrize("level", [1, 2, 3])
def test_what_a_student_has_not_written_is_open(tmp_path, level):
    grades = graded(tmp_path, template(level))
    assert [grade.verdict for grade in grades.values()] == ["open"] * len(NAMES)


def test_mistakes_in_several_functions_are_told_apart(tmp_path):
    text = RIGHT
    for number in IN_ONE_FILE:
        text = text.replace(WRONG[number].old, WRONG[number].new)
    grades = graded(tmp_path, text)
    for wrong in map(WRONG.__getitem__, IN_ONE_FILE):
        assert grades[wrong.function].verdict == "wrong"
        assert (grades[wrong.function].fault or "") == wrong.id
    assert grades["rms_norm"].verdict == "right"
    assert "mend" in grades["forward"].sentence


def test_a_mistake_between_functions_is_found_at_its_tap_and_named():
    first, located, named = judged(WRONG[ALONE])
    assert located, first
    assert named, first


def test_what_a_function_does_instead_is_said_and_the_others_are_still_graded(tmp_path):
    grades = graded(tmp_path, CARELESS, seconds=1)
    said = {
        "rms_norm": r"ValueError at line 5: two\nlines\x1b", "rope": "does not end within 1 seconds",
        "visible": "SystemExit", "attention": "ends the process, status 4", "mlp": "read-only", "ple": "the shape [2]",
        "forward": "not real numbers",
    }  # fmt: skip
    assert "here" in grades["rms_norm"].printed
    assert grades["layer"].verdict == "open"
    for name, words in said.items():
        assert grades[name].verdict == "wrong"
        assert words in grades[name].sentence


def test_a_file_that_cannot_be_imported_is_refused_in_one_line(tmp_path, run):
    path = tmp_path / "mygemma.py"
    path.write_text("def rope(x:\n", encoding="utf-8")
    one_line(run("grade", path), "mygemma.py", "SyntaxError", "line 1")
    one_line(run("grade"), "--template")
    path.write_text(template(3), encoding="utf-16")
    one_line(run("grade", path), "UTF-16", "save it as UTF-8")


def test_the_template_is_written_into_a_new_file_only(tmp_path, run):
    path = tmp_path / "mygemma.py"
    assert run("grade", path, "--template", "--level", "2").stdout == f"wrote {path}\n"
    assert path.read_text(encoding="utf-8") == template(2) + "\n"
    one_line(run("grade", path, "--template"), "exists already")
    assert path.read_text(encoding="utf-8") == template(2) + "\n"


def test_json_holds_every_function(tmp_path, run):
    path = tmp_path / "mygemma.py"
    path.write_text("def rope(*given): return 0\n", encoding="utf-8")
    result = run("grade", path, "--json")
    assert result.returncode == 1
    assert [grade["name"] for grade in json.loads(result.stdout)] == list(NAMES)
