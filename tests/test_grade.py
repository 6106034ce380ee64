"""`grade` finds a student's mistake where it is, gives it a name only if that name is right, and loses nothing."""

from pathlib import Path

from minigemma.tools.grade import grade_file, template
from minigemma.tools.student import NAMES

ROOT = Path(__file__).parents[1]
RIGHT = (ROOT / "tests" / "students" / "right.py").read_text(encoding="utf-8")


def graded(tmp_path, text, **options):
    """The grades of a file with this text, by name."""
    path = tmp_path / "mygemma.py"
    path.write_text(text, encoding="utf-8")
    return {grade.name: grade for grade in grade_file(path, **options)}


def test_a_right_pass_in_another_style_is_right(tmp_path):
    assert {grade.verdict for grade in graded(tmp_path, RIGHT).values()} == {"right"}


def test_what_a_student_has_not_written_is_open(tmp_path):
    for level in (1, 2, 3):
        grades = graded(tmp_path, template(level))
        assert [grade.verdict for grade in grades.values()] == ["open"] * len(NAMES), level
