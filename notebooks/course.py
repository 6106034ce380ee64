"""What the notebooks share: the way to the package, loading a model, names for axes, and grading an exercise."""

import sys
import warnings
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the notebooks run from a clone, not from an install

import minigemma  # before NumPy, so that its BLAS gets one thread

# isort: split
import numpy as np

from minigemma.debug.goldens import check_goldens

# NumPy 2.0 to 2.3 on Apple silicon warns of a division by zero in products that hold none (numpy#28687).
warnings.filterwarnings("ignore", message=".* encountered in matmul", category=RuntimeWarning)

ROOM = 2 * 2**30  # bytes that one step of a notebook may take


def check_machine():
    """Compare this machine's pass over weights/tiny with the stored results of transformers, and print that they agree.

    Raises Error, with what to upgrade, if they do not.
    """
    result = check_goldens(minigemma.load(minigemma.TINY))
    if not result["fits"]:
        raise minigemma.Error(
            f"This computer gets other results than it should. {result['verdict']} Probably NumPy {np.__version__} "
            "computes wrong matrix products here, as 2.5.0 does on some Macs (numpy#31776): run "
            "`python -m pip install --upgrade numpy` and start again. If that changes nothing, see with "
            "`git status weights/tiny` whether the weights are as they were."
        )
    print(f"This computer gets the right results: {len(result['goldens'])} of {len(result['goldens'])} stored ones.")


def load(dtype="bfloat16", needs_ple=False):
    """The model of MINIGEMMA_WEIGHTS, else of weights/tiny; prints which. dtype as in minigemma.load.

    Raises Error where the notebook looks at PLE and the model has none.
    """
    model = minigemma.load(dtype=dtype)
    if needs_ple and not model.config.hidden_size_per_layer_input:
        raise minigemma.Error(
            f"{model.directory}: this notebook looks at per-layer embeddings, and this model has none; set "
            "MINIGEMMA_WEIGHTS to a directory of E2B or E4B, or unset it for weights/tiny"
        )
    if model.tokenizer is None:
        print(f"{model.directory} has no tokenizer.json, so what reads text will fail; that of weights/tiny will do.")
    config, name = model.config, "weights/tiny" if is_tiny(model) else model.directory.name
    print(
        f"{name}: {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.vocab_size:,} tokens, {minigemma.count(config).total:,} parameters"
    )
    return model


def is_tiny(model):
    """Whether these are the weights of this repository, for which sentences about what was learned hold."""
    return model.directory == minigemma.TINY


def fits(size, what):
    """Whether `size` bytes are few enough for a notebook; prints a sentence where they are not."""
    if size > ROOM:
        print(f"Skipped: {what} would take {size / 1e9:.1f} GB.")
    return size <= ROOM


def labels(model, ids):
    """Each token's text, as the axes of figures show it: "_" is the space before a word."""
    if model.tokenizer is None:
        return [str(id) for id in ids]
    return [model.tokenizer.token(id).replace("▁", "_").replace("\n", "\\n") for id in ids]


def check(mine, expected, tolerance=1e-4):
    """Grade an answer: print what fraction of its values is right. A hole that is still `...` is "not yet".

    tolerance: of floating-point values, relative to their root mean square; counts and texts must be equal.
    """
    if mine is None or mine is ...:
        print("not yet: the hole is still open")
        return
    try:
        mine, expected = np.asarray(mine), np.asarray(expected)
    except ValueError:  # rows of different lengths
        print("not yet: your rows differ in length")
        return
    if mine.shape != expected.shape:
        print(f"not yet: your shape is {mine.shape}, the answer's is {expected.shape}")
        return
    if mine.dtype.kind == "O" or (mine.dtype.kind == "U") != (expected.dtype.kind == "U"):
        print("not yet: some of your values are of another type than the answer's")
        return
    right = mine == expected
    if expected.dtype.kind == "f":
        rms = np.sqrt(np.mean(np.square(expected, where=np.isfinite(expected), out=np.zeros_like(expected))))
        with np.errstate(invalid="ignore"):  # infinity minus infinity; those that are equal are right already
            right = right | (np.abs(mine - expected) <= tolerance * rms)
    count = int(right.sum())
    if count == right.size:
        print(f"all right: {count:,} of {right.size:,} values" if count > 1 else "all right")
    elif right.size == 1:
        print("not yet: that is not the answer")
    else:
        where = ", ".join(map(str, np.argwhere(~right)[0]))
        print(f"not yet: {count:,} of {right.size:,} values are right ({count / right.size:.1%}); look at [{where}]")
