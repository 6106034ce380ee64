"""The files in tests/goldens are what the transformers of requirements.txt computes today."""

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

from minigemma import Trace

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
