"""The lecturer's bank of questions and plan: enough of every level, numbers of the accounts, and times that add up."""

import re
from pathlib import Path

from minigemma import count
from minigemma.account.compute import overview

FOLDER = Path(__file__).parents[1] / "notebooks" / "lectures"
TEXT = (FOLDER / "questions.md").read_text(encoding="utf-8")
QUESTION = re.compile(
    r"^\*\*(\d+)\.\*\* \(level ([1-4]), (\d+) minutes?, notebook (\d\d)\) (.+)\n((?:- .+\n?)+)", re.MULTILINE
)


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


def test_the_large_numbers_of_the_bank_are_those_of_the_accounts():
    e2b, models = count("E2B"), overview()["models"]
    table, config = e2b.parts["PLE table"], e2b.config
    known = {
        e2b.total, table, e2b.text - table, e2b.active, config.vocab_size_per_layer_input,
        config.max_position_embeddings, models["26B-A4B"]["stored"], models["26B-A4B"]["computed"], 1_000_000,
    }  # fmt: skip
    row = config.num_hidden_layers * config.hidden_size_per_layer_input
    stated = {int(number.replace(",", "")) for number in re.findall(r"\d{1,3}(?:,\d{3})+", TEXT)}
    assert {number for number in stated if number >= 100_000} <= known
    assert f"{row:,}" in TEXT and f"{2 * row:,} bytes" in TEXT


def test_each_session_of_the_plan_takes_90_minutes_and_opens_steps_that_the_page_has():
    plan = (FOLDER / "README.md").read_text(encoding="utf-8")
    sessions = re.split(r"^## \d\. ", plan, flags=re.MULTILINE)[1:]
    minutes = [sum(map(int, re.findall(r"^\| (\d+) \|", session, re.MULTILINE))) for session in sessions]
    assert minutes == [90] * 4
    page = (FOLDER.parent / "anna.html").read_text(encoding="utf-8")
    steps = re.findall(r"anna\.html#(\d+)/([\w.]+)\)", plan)
    assert steps and all(f'"name":"{name}"' in page and int(token) < 20 for token, name in steps)
    for link in re.findall(r"\]\(([^)#]+)", plan):
        assert (FOLDER / link).exists(), link
