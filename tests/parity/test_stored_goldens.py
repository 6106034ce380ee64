"""The files in tests/goldens are what the transformers of requirements.txt computes today."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from family import HEARING, VISION, hearing, seeing

from minigemma import Trace

from . import make_picture_goldens, make_sound_goldens
from .case import distance
from .make_goldens import DIRECTORY, GOLDENS, golden


@pytest.mark.parametrize("name", GOLDENS)
def test_a_stored_golden_is_what_transformers_computes(name):
    stored, computed = Trace.load(DIRECTORY / f"{name}.safetensors"), golden(name)
    assert stored.metadata["config"] == GOLDENS[name]
    assert set(stored) == set(computed)
    assert max(distance(computed[tap], stored[tap]) for tap in stored) < 1e-12


def test_no_golden_is_left_over():
    stored = list(DIRECTORY.glob("*.safetensors"))
    assert {path.stem for path in stored} == set(GOLDENS)
    assert sum(path.stat().st_size for path in stored) < 300_000
    assert np.dtype("float64") == Trace.load(DIRECTORY / "E2B.safetensors")["logits"].dtype


@pytest.mark.parametrize("member", HEARING)
def test_a_stored_golden_of_a_sound_is_what_transformers_computes(member):
    stored = Trace.load(make_sound_goldens.DIRECTORY / f"{member}.safetensors")
    computed = make_sound_goldens.golden(member)
    assert stored.metadata["config"] == hearing(member)
    assert set(stored) == set(computed)
    assert max(distance(computed[tap], stored[tap]) for tap in stored) < 1e-12


@pytest.mark.parametrize("member", VISION)
def test_a_stored_golden_of_a_picture_is_what_transformers_computes(member):
    stored = Trace.load(make_picture_goldens.DIRECTORY / f"{member}.safetensors")
    computed = make_picture_goldens.golden(member)
    assert stored.metadata["config"] == seeing(member)
    assert set(stored) == set(computed)
    assert max(distance(computed[tap], stored[tap]) for tap in stored) < 1e-12
