"""The parity comparison fails for every known mistake. A test that cannot fail proves nothing."""

from functools import cache

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from family import fields

from .case import Case, disagreements, distance
from .mutations import MUTATIONS, SOFT, Run

REAL = [m for m in MUTATIONS if not m.benign]
BENIGN = [m for m in MUTATIONS if m.benign]
PLACES = sorted({(m.member, m.how) for m in MUTATIONS})
SIZES = {}  # how far each mistake moves the logits, for the report


@cache
def case_of(member, how):
    raw, rng = fields(member), np.random.default_rng(11)
    prompt, soft = rng.integers(0, raw["vocab_size"], 23), None
    if how == SOFT:
        where = np.array([4, 5, 6, 15])
        soft = where, rng.standard_normal((len(where), raw["hidden_size"])).astype(np.float32)
    return Case(raw, prompt, seed=5, soft_tokens=soft)


def logits_with(mutation, dtype, monkeypatch):
    run = Run(case_of(mutation.member, mutation.how), dtype, monkeypatch)
    mutation.apply(run)
    return {"logits": run.logits(mutation.how)}


@pytest.mark.parametrize("member, how", PLACES)
def test_without_a_mistake_our_logits_are_transformers(member, how, monkeypatch):
    case = case_of(member, how)
    for dtype in (np.float32, np.float64):
        assert disagreements({"logits": Run(case, dtype, monkeypatch).logits(how)}, case, dtype) == {}


@pytest.mark.parametrize("mutation", REAL, ids=lambda m: m.id)
def test_a_known_mistake_is_seen_in_the_float32_logits(mutation, monkeypatch):
    ours, case = logits_with(mutation, np.float32, monkeypatch), case_of(mutation.member, mutation.how)
    SIZES[mutation.id] = distance(ours["logits"], case.reference(np.float32)["logits"]), mutation.what
    assert disagreements(ours, case, np.float32), mutation.what


@pytest.mark.parametrize("mutation", BENIGN, ids=lambda m: m.id)
def test_what_a_norm_divides_away_shows_in_double_only(mutation, monkeypatch):
    case = case_of(mutation.member, mutation.how)
    assert disagreements(logits_with(mutation, np.float32, monkeypatch), case, np.float32) == {}
    assert disagreements(logits_with(mutation, np.float64, monkeypatch), case, np.float64), "not even eps saw it"


def test_every_mutation_has_a_name_of_its_own():
    assert len({m.id for m in MUTATIONS}) == len(MUTATIONS)


def test_report_of_how_far_each_mistake_moves_the_logits():
    """Not a test: with -s it prints the smallest first."""
    for name in sorted(SIZES, key=SIZES.get):
        print(f"\n  {SIZES[name][0]:.1e}  {name:5} {SIZES[name][1]}", end="")
