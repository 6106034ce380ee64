"""The lecturer's kit: questions of every level, numbers of the accounts, slides with no network, times that add up."""

import re
import sys
import warnings
from pathlib import Path

import pytest
from nbformat.v4 import new_markdown_cell, new_notebook
from notebook_runs import read

from minigemma import Error, count
from minigemma.account.compute import overview
from minigemma.debug.catalogue import FAULTS

FOLDER = Path(__file__).parents[1] / "notebooks" / "lectures"
MISCONCEPTIONS = (FOLDER / "misconceptions.md").read_text(encoding="utf-8")
TEXT = (FOLDER / "questions.md").read_text(encoding="utf-8")
QUESTION = re.compile(
    r"^\*\*(\d+)\.\*\* \(level ([1-4]), (\d+) minutes?, notebook (\d\d)\) (.+)\n((?:- .+\n?)+)", re.MULTILINE
)
SESSIONS = sorted(FOLDER.glob("session_*.ipynb"))
PLAN = (FOLDER / "README.md").read_text(encoding="utf-8")
PLANNED = [  # minutes of each row of each session's table
    [int(minutes) for minutes in re.findall(r"^\| (\d+) \|", session, re.MULTILINE)]
    for session in re.split(r"^## \d\. ", PLAN, flags=re.MULTILINE)[1:]
]


@pytest.fixture
def slides(monkeypatch):
    """The program that makes the slides, as a module."""
    monkeypatch.syspath_prepend(str(FOLDER))
    with warnings.catch_warnings():  # the course changes the filters
        import slides

        yield slides
    sys.modules.pop("slides")


def test_there_are_sixty_questions_of_four_levels_each_with_its_points():
    questions = QUESTION.findall(TEXT)
    assert [int(number) for number, *_ in questions] == list(range(1, len(questions) + 1))
    assert len(questions) == TEXT.count("\n**") >= 60
    for level in "1234":
        assert sum(question[1] == level for question in questions) >= 6, level
    notebooks = {path.name[:2] for path in FOLDER.parent.glob("[0-9][0-9]*.ipynb")}
    assert {question[3] for question in questions} <= notebooks


def test_a_question_takes_a_minute_or_more_for_each_two_points():
    for number, _, minutes, _, _, points in QUESTION.findall(TEXT):
        assert int(minutes) * 2 >= points.count("\n- ") + 1, number


def test_the_large_numbers_of_bank_misconceptions_and_slides_are_those_of_the_accounts():
    e2b, models = count("E2B"), overview()["models"]
    table, config = e2b.parts["PLE table"], e2b.config
    known = {
        e2b.total, table, e2b.text - table, e2b.active, config.vocab_size_per_layer_input,
        config.max_position_embeddings, models["26B-A4B"]["stored"], models["26B-A4B"]["computed"], 1_000_000,
    }  # fmt: skip
    row = config.num_hidden_layers * config.hidden_size_per_layer_input
    slides = "".join(cell.source for path in SESSIONS for cell in read(path).cells if cell.cell_type == "markdown")
    texts = TEXT + MISCONCEPTIONS + slides
    stated = {int(number.replace(",", "")) for number in re.findall(r"\d{1,3}(?:,\d{3})+", texts)}
    assert {number for number in stated if number >= 100_000} <= known
    assert f"{row:,}" in TEXT and f"{2 * row:,} bytes" in TEXT


def test_each_session_of_the_plan_takes_90_minutes():
    assert [sum(minutes) for minutes in PLANNED] == [90] * 4


def test_plan_and_slides_open_steps_that_the_page_has():
    shown = [cell.source for path in SESSIONS for cell in read(path).cells if cell.cell_type == "markdown"]
    text = "\n".join([PLAN, *shown])
    page = (FOLDER.parent / "anna.html").read_text(encoding="utf-8")
    steps = re.findall(r"anna\.html#(\d+)/([\w.]+)\)", text)
    assert steps and all(f'"name":"{name}"' in page and int(token) < 20 for token, name in steps)
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert (FOLDER / link).exists(), link


@pytest.mark.parametrize("path", SESSIONS, ids=lambda path: path.stem)
def test_slides_take_the_minutes_of_the_plan_and_each_has_a_sentence_as_title_and_notes(path, slides):
    made, planned = slides.slides_of(read(path)), PLANNED[int(path.stem[-1]) - 1]
    assert 15 <= len(made) <= 25
    starts = {sum(slide["minutes"] for slide in made[:n]) for n in range(1, len(made) + 1)}
    assert {sum(planned[:n]) for n in range(1, len(planned) + 1)} <= starts and max(starts) == 90
    for slide in made:
        title = re.match(r'#+ (.+[.?]"?)(\n|$)', slide["cells"][0].source)[1]
        assert title[0].isupper() and len(title.split()) <= 14 and len(slide["notes"].split()) >= 10, title


@pytest.mark.parametrize("path", SESSIONS, ids=lambda path: path.stem)
def test_slides_are_one_page_that_asks_for_nothing_else(path, slides):
    notebook = read(path)
    assert not any(cell.get("outputs") for cell in notebook.cells)  # figures and numbers are drawn anew
    html = slides.page(notebook)
    assert html.count("<section>") == html.count("<aside") == len(slides.slides_of(notebook))
    assert "//" not in re.sub(r"<style>.*?</style>", "", html, flags=re.DOTALL)
    assert set(re.findall(r'(?:src|href)="([^"#]*)', html)) <= {slides.PAGE}


@pytest.mark.parametrize(("kind", "said"), [("notes", "before the first slide"), ("slide", "notes begin with minutes")])
def test_a_lecturer_who_edits_hears_which_cell_is_wrong(kind, said, slides):
    cells = [new_markdown_cell("Ask.", metadata={"slideshow": {"slide_type": kind}}) for kind in (kind, "notes")]
    with pytest.raises(Error, match=f"{said}.*Ask."):
        slides.slides_of(new_notebook(cells=cells))


@pytest.mark.parametrize("path", SESSIONS, ids=lambda path: path.stem)
def test_every_cell_of_the_slides_runs_and_a_figure_has_a_text_beside_it(path, slides, monkeypatch):
    shown, names = [], {}
    monkeypatch.delenv("MINIGEMMA_WEIGHTS", raising=False)  # titles are about weights/tiny
    monkeypatch.setattr(slides, "show", lambda figure, alt=None: shown.append((figure, alt)))  # pictures take long
    for cell in read(path).cells:
        if cell.cell_type == "code":
            exec(cell.source, names)
    assert len(shown) >= 3
    assert all(isinstance(figure, str) != isinstance(alt, str) for figure, alt in shown)  # the gallery's have one


def test_each_misconception_says_what_is_true_what_shows_it_and_where_it_comes_from():
    found = re.findall(
        r'^\*\*(\d+)\.\*\* ".+"\n- True: .+\n- Shown by: (.+)\n- Source: (.+)\n', MISCONCEPTIONS, re.MULTILINE
    )
    assert [int(number) for number, *_ in found] == list(range(1, MISCONCEPTIONS.count("\n**") + 1))
    claims = "".join(cell.source for cell in read(FOLDER.parent / "10_claims_checked.ipynb").cells)
    for _, shown, source in found:
        assert re.search(r"notebook \d\d|python -m minigemma", shown) and re.search(r"statement|entr|notebook", source)
        for notebook in re.findall(r"notebook (\d\d)", shown + source):
            assert list(FOLDER.parent.glob(f"{notebook}_*.ipynb")), notebook
        for statement in re.findall(r"statement (\d+)", shown + source):
            assert f"**{statement}.**" in claims, statement
        assert set(re.findall(r"\b[A-Z]\d+[a-z]?\b", source)) <= set(FAULTS), source
