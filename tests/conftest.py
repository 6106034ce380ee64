"""Fixtures shared by the default suite."""

import minigemma  # before NumPy, so that its BLAS gets one thread

# isort: split
import numpy as np
import pytest
from family import MEMBERS, small


@pytest.fixture(params=list(MEMBERS))
def member(request):
    """Each member of the family in turn."""
    return request.param


@pytest.fixture
def exact(member):
    """config, weights in float64, and 23 tokens: more than four times the window."""
    config, weights = small(member, np.float64)
    return config, weights, np.random.default_rng(7).integers(0, config.vocab_size, 23)


@pytest.fixture
def checkpoint(tmp_path):
    """A saved E2B in miniature, without a tokenizer."""
    config, weights = small("E2B")
    minigemma.save(tmp_path / "checkpoint", weights, config, "float32")
    return tmp_path / "checkpoint"


@pytest.fixture(scope="session")
def tiny():
    """The trained weights of this repository, mapped as a user gets them."""
    return minigemma.load(minigemma.TINY)
