"""The editions of the notebooks for a class, and the badges for notebook hosts."""

import json
import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]*.ipynb"))


@pytest.fixture
def editions(monkeypatch):
    """The program, as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    import editions

    yield editions
    sys.modules.pop("editions")


def text_of(path, kind):
    """The cells of one kind of a notebook, as one text."""
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    return "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == kind)


def test_students_get_every_check_and_hint_and_no_solution(editions, tmp_path):
    assert editions.main(["student", str(tmp_path)]) == 0
    for path in NOTEBOOKS:
        whole, shown = text_of(path, "markdown"), text_of(tmp_path / path.name, "markdown")
        assert text_of(path, "code") == text_of(tmp_path / path.name, "code")
        assert "<summary>Solution</summary>" in whole and shown.count("Hint") == whole.count("Hint")
        folded = set(re.findall(r"<summary>(.*?)</summary>", shown))
        assert folded <= {"Hint 1", "Hint 2"}, path.name
        assert shown.count("<details>") == shown.count("</details>")


def test_instructors_see_all_that_is_folded(editions, tmp_path):
    assert editions.main(["instructor", str(tmp_path)]) == 0
    for path in NOTEBOOKS:
        whole, shown = text_of(path, "markdown"), text_of(tmp_path / path.name, "markdown")
        assert "<details>" not in shown and shown.count("<details open>") == whole.count("<details>")


def test_badges_lead_to_every_notebook_on_each_host(editions, capsys):
    assert editions.main(["badges", "someone/minigemma"]) == 0
    said = capsys.readouterr().out
    for path in NOTEBOOKS:
        assert said.count(path.name) == 3  # Colab, Kaggle, Binder
    assert "colab.research.google.com/github/someone/minigemma/blob/main/notebooks/00_start_here.ipynb" in said


@pytest.mark.parametrize(
    ("arguments", "said"),
    [(["badges", "minigemma"], "OWNER/REPO"), (["student", str(FOLDER)], "name another directory")],
)
def test_a_mistake_is_one_line_and_changes_nothing(editions, arguments, said, capsys):
    assert editions.main(arguments) == 2
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1
