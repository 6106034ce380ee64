"""Fixtures shared by the default suite, and the runs of the notebooks beside it."""

import io
import os
import sys
import warnings
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import SimpleNamespace

import minigemma  # before NumPy, so that its BLAS gets one thread

# isort: split
import numpy as np
import pytest
from family import MEMBERS, small, write_whole

from minigemma.__main__ import main


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


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """A checkpoint that sees and hears."""
    return write_whole(tmp_path_factory.mktemp("whole"))


@pytest.fixture(scope="session")
def course():
    """The module that the notebooks share."""
    folder = str(Path(__file__).parents[1] / "notebooks")
    sys.path.insert(0, folder)
    with warnings.catch_warnings():  # it changes the filters
        import course
    yield course
    sys.path.remove(folder)


@pytest.fixture
def run(capsys, monkeypatch):
    """Run a command in this process, as processes.command does in one of its own -> its status, stdout and stderr."""

    def command(*words, input=""):
        monkeypatch.setattr("sys.stdin", io.StringIO(input))
        capsys.readouterr()  # what was printed before is no result of this command
        status = main([str(word) for word in words])
        return SimpleNamespace(returncode=status, **dict(zip(("stdout", "stderr"), capsys.readouterr(), strict=True)))

    return command


RUNS = pytest.StashKey()


def pytest_collection_finish(session):
    """Start the runs of the notebooks that tests ask for, on all cores but the one on which the other tests go on."""
    paths = [item.callspec.params["path"] for item in session.items if "runs" in item.fixturenames]
    if paths and not session.config.option.collectonly:
        from notebook_runs import run_with_solutions

        pool = ProcessPoolExecutor(max(1, (os.cpu_count() or 2) - 1), get_context("spawn"))
        session.stash[RUNS] = {path: pool.submit(run_with_solutions, path) for path in paths}
        session.config.add_cleanup(lambda: pool.shutdown(cancel_futures=True))


@pytest.fixture
def runs(request):
    """The future of each notebook's run, by its path."""
    return request.session.stash[RUNS]
