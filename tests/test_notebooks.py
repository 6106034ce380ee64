"""The course is true: every notebook runs top to bottom and shows what is stored, and every solution is right."""

import math
import re
import socket

import numpy as np
import pytest
from notebook_runs import NOTEBOOKS, exercises, pictures, read, texts

import minigemma
from minigemma import Error

NUMBER = re.compile(r"[-+]?(?:\d[\d,]*\.?\d*|\.\d+)(?:e[-+]?\d+)?")
LONGEST = 16  # lines of a code cell
SAME = 0.01  # how far thumbnails may differ, of black to white
LARGEST = 600_000  # bytes of a notebook with its outputs


@pytest.fixture(params=NOTEBOOKS, ids=lambda path: path.stem)
def path(request):
    return request.param


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def alike(stored, fresh):
    """Whether two lines say the same: equal words and counts, and numbers as equal as another CPU's rounding leaves
    them: decimals within 2% or 0.02, whole percentages within 1.
    """
    ours, theirs = (NUMBER.findall(text) for text in (stored, fresh))
    if NUMBER.sub("#", stored).split() != NUMBER.sub("#", fresh).split() or len(ours) != len(theirs):
        return False
    for one, other in zip(ours, theirs, strict=True):
        a, b = (float(text.replace(",", "")) for text in (one, other))
        rounded = "." in one or "e" in one
        if not math.isclose(a, b, rel_tol=0.02 * rounded, abs_tol=0.02 if rounded else float("%" in stored)):
            return False
    return True


def test_a_notebook_runs_top_to_bottom_shows_what_is_stored_and_its_solutions_are_right(path, runs):
    """One run for all three: each exercise's solution runs as a cell of its own behind the open exercise."""
    notebook = read(path)
    solutions = dict(exercises(notebook))
    done = {cell["id"]: cell for cell in runs[path].result().cells}
    for number, stored in enumerate(notebook.cells):
        if stored.cell_type != "code":
            continue
        cell, text, shown = done[stored["id"]], texts(stored), pictures(stored)
        assert len(pictures(cell)) == len(shown), f"cell {number}: {len(pictures(cell))} pictures, {len(shown)} stored"
        for fresh, image in zip(pictures(cell), shown, strict=True):
            assert np.abs(fresh - image).mean() < SAME, f"cell {number} shows another picture than the stored one"
        if "course.progress(" in cell.source:  # here all solutions have run; when it was stored, none had
            assert texts(cell)[0].startswith("you have solved {0} of {0}:".format(len(solutions)))
            continue
        assert len(texts(cell)) == len(text), f"cell {number}: {texts(cell)}, stored {text}"
        for fresh, line in zip(texts(cell), text, strict=True):
            assert alike(line, fresh), f"cell {number} shows {fresh!r}, stored is {line!r}"
        if number in solutions:
            assert [line for line in texts(cell) if line.startswith("not yet: the hole is still open")], texts(cell)
            answer = texts(done[f"solution-{number}"])
            assert any(line.startswith("all right") for line in answer), f"cell {number}: {answer}"
            assert not any(line.startswith("not yet") for line in answer), f"cell {number}: {answer}"


def test_a_notebook_is_stored_as_one_run_from_top_to_bottom_left_it(path):
    cells = code_cells(read(path))
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    for cell in cells:
        assert not any(output.output_type == "error" or output.get("name") == "stderr" for output in cell.outputs)
    assert any(pictures(cell) for cell in cells)


def test_a_stored_figure_has_a_text_that_begins_with_a_sentence(path):
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            if "image/png" in output.get("data", {}):
                sentence, *_ = output.metadata["image/png"]["alt"].split("; ")
                assert re.match(r"['\w]", sentence) and len(sentence.split()) >= 4, sentence


def test_a_notebook_says_at_its_start_what_one_will_know_and_how_long_it_takes(path):
    start = read(path).cells[0].source
    assert re.match(rf"# {path.name[:2]}\. ", start)
    assert "At the end you " in start and re.search(r"\d+ minutes", start)


def test_a_notebook_has_exercises_a_questionnaire_and_short_cells(path):
    notebook = read(path)
    assert 3 <= len(exercises(notebook)) <= 9
    for cell in code_cells(notebook):
        assert cell.source.count("\n") < LONGEST, cell.source
        assert ("check(" in cell.source) <= bool(exercises(type(notebook)(cells=[cell, *after(notebook, cell)])))
    questionnaire = notebook.cells[-1].source
    assert "## Questionnaire" in questionnaire and len(re.findall(r"^\d+\. ", questionnaire, re.MULTILINE)) >= 5


def test_an_exercise_has_a_head_two_hints_and_a_target_of_its_own(path, course):
    cells = read(path).cells
    targets = course.exercises.targets_of(path.name[:2])
    asked = []
    for number, cell in enumerate(cells):
        if cell.cell_type == "code" and (name := re.search(r'^check\("(\d\d\.\d)"', cell.source, re.MULTILINE)):
            asked.append(name[1])
            head = rf"\*\*Exercise {re.escape(name[1])}\*\* \(level [1-4], \d+ minutes, trains: "
            assert re.search(head, cells[number - 1].source), name[1]
            folds = re.findall(r"<summary>(.*?)</summary>", cells[number + 1].source)
            assert folds == ["Hint 1", "Hint 2", "Solution"], name[1]
    assert asked == list(targets)
    assert not targets or any(f'course.progress("{path.name[:2]}")' in cell.source for cell in cells)


def test_the_course_has_exercises_of_every_level():
    text = "".join(path.read_text(encoding="utf-8") for path in NOTEBOOKS)
    heads = re.findall(r"\*\*Exercise \d\d\.\d\*\* \(level (\d), \d+ minutes(, open)?", text)
    levels = [level for level, _ in heads]
    assert len(heads) >= 70
    assert min(levels.count(level) for level in "123") >= 12
    assert sum(bool(free) for _, free in heads) >= 5


def after(notebook, cell):
    """The cell behind `cell`."""
    where = notebook.cells.index(cell) + 1
    return notebook.cells[where : where + 1]


def test_a_stored_notebook_is_small_and_names_no_machine(path):
    text = path.read_text(encoding="utf-8")
    assert len(text) < LARGEST
    for cell in code_cells(read(path)):
        for output in cell.outputs:
            shown = str({kind: value for kind, value in output.get("data", {}).items() if kind != "image/png"})
            shown += output.get("text", "")
            assert not re.search(r"(?<![\w.])/(?:home|root|tmp|Users|work|opt|usr|var|mnt)\b|[A-Z]:\\", shown), shown
            assert socket.gethostname() not in shown
            assert not re.search(r" at 0x[0-9a-f]+", shown), f"an address of this run: {shown}"


def test_a_machine_with_wrong_products_is_told_what_to_upgrade(course, capsys, monkeypatch):
    course.check_machine()
    assert capsys.readouterr().out == "This computer gets the right results: 6 of 6 stored ones.\n"
    right = minigemma.model.linear
    monkeypatch.setattr(minigemma.model, "linear", lambda x, w: right(x, w) * np.float32(1.001))
    with pytest.raises(Error, match="pip install --upgrade numpy"):
        course.check_machine()


def test_check_says_which_fraction_is_right(course):
    def said(mine, expected):
        right, words = course.exercises.judge(course.exercises.Values(expected), mine)
        return f"all right{words}" if right else f"not yet: {words}"

    assert said(..., [1.0]) == said(None, 3) == "not yet: the hole is still open"
    assert said([1.0, 2.0], [1.0, 2.00001]) == "all right: 2 of 2 values"
    assert said([1.0, 2.0], [1.0, 2.01]) == "not yet: 1 of 2 values are right (50.0%); look at [1]"
    assert said([[0.0, float("-inf")]], [[0.0, float("-inf")]]) == "all right: 2 of 2 values"
    assert said([float("nan")] * 2, [1.0, 2.0]).startswith("not yet: 0 of 2 values are right")
    assert said([1.0], 1.0) == "not yet: your shape is (1,), the answer's is ()"
    assert said([[1], [1, 2]], [1.0]) == "not yet: your rows differ in length"
    assert said(["a", "b"], ["a", "b"]) == "all right: 2 of 2 values"
    assert said("one", 1) == said([..., 2], [1, 2])
    assert said("one", 1) == "not yet: some of your values are of another type than the answer's"
    assert said(3, 3) == "all right" and said(4.5, 3.1) == "not yet: it is too large"
