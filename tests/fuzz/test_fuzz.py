"""345 hostile and careless inputs, the same ones each time. Many more: python -m fuzz.run (see run.py)."""

import pytest

from .kinds import KINDS, Base
from .run import numbers, one

TOTAL, SEED = 345, 0


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return Base(tmp_path_factory.mktemp("fuzz"))


@pytest.mark.parametrize("kind", KINDS)
def test_every_input_ends_in_a_right_answer_or_in_one_line_that_refuses_it(base, kind):
    broken = []
    for number in range(numbers(TOTAL)[kind]):
        try:
            one(base, kind, number, SEED)
        except AssertionError as error:
            broken.append(str(error))
    assert not broken, "\n".join(broken)
