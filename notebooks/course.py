"""What the notebooks share: the way to the package, loading a model, names for axes, and grading an exercise."""

import inspect
import re
import sys
import traceback
import warnings
from contextlib import suppress
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the notebooks run from a clone, not from an install

import minigemma  # before NumPy, so that its BLAS gets one thread

# isort: split
import exercises
import numpy as np
from exercises import check, progress  # noqa: F401 (for the notebooks)

from minigemma.debug.goldens import check_goldens
from minigemma.tools import figures
from minigemma.tools.grade import grade_file, grades_text

# NumPy 2.0 to 2.3 on Apple silicon warns of a division by zero in products that hold none (numpy#28687).
warnings.filterwarnings("ignore", message=".* encountered in matmul", category=RuntimeWarning)


def _open_names(shell, error):
    """The names that still have their hole, or hold what such a function returned, where an error comes of them."""
    used = {name for frame, _ in traceback.walk_tb(error.__traceback__) for name in frame.f_code.co_names}
    empty = any(map(_is_open, shell.user_ns.values()))  # then a name that holds None may come from an open function
    return sorted(name for name in used if _is_open(value := shell.user_ns.get(name, 0)) or (empty and value is None))


def _is_open(value):
    """Whether this is `...`, or a function of a notebook that has a line with nothing else."""
    if inspect.isfunction(value) and value.__module__ == "__main__":
        with suppress(OSError):  # of a function that no cell wrote
            return bool(re.search(r"^ +(?:return )?\.\.\.(?: *#.*)?$", inspect.getsource(value), re.MULTILINE))
    return value is ...


def _say_what_is_open(shell, kind, error, trace, tb_offset=None):
    """In place of a traceback, where an answer is made of another that is still `...`."""
    if names := _open_names(shell, error):
        why = str(error).strip().partition("\n")[0]
        print(f"not yet: this cell uses {', '.join(names)}, still with an open hole ({kind.__name__}: {why})")
    else:
        shell.showtraceback((kind, error, trace), tb_offset=tb_offset)


def _go_on(shell, result):
    """Such a cell counts as done, so that "Run All" goes on."""
    if result.error_in_exec and _open_names(shell, result.error_in_exec):
        result.error_in_exec = None


def _with_alt(figure, include=None, exclude=None):
    """What a notebook keeps of a figure: the picture, and its words for those who cannot see it."""
    from IPython.core.pylabtools import print_figure

    return {"image/png": print_figure(figure, base64=True)}, {"image/png": {"alt": figures.words(figure)}}


if shell := getattr(sys.modules.get("IPython"), "get_ipython", lambda: None)():
    shell.set_custom_exc((Exception,), _say_what_is_open)
    shell.events.register("post_run_cell", partial(_go_on, shell))
    shell.display_formatter.mimebundle_formatter.for_type_by_name("matplotlib.figure", "Figure", _with_alt)

FACTS = "Anna put the kite in the barn. Lily hid the doll in the tent."
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
    exercises.begin(model, Path("solved.json"))  # in the notebook's folder
    config, name = model.config, "weights/tiny" if is_tiny(model) else model.directory.name
    print(
        f"{name}: {config.num_hidden_layers} layers, hidden size {config.hidden_size}, "
        f"{config.vocab_size:,} tokens, {minigemma.count(config).total:,} parameters"
    )
    return model


def is_tiny(model):
    """Whether these are the weights of this repository, for which sentences about what was learned hold."""
    return model.directory == minigemma.TINY


def question(model, facts=FACTS, thing="kite", story=""):
    """The ids of a chat that gives facts, tells a story, and asks where a thing is, up to the word that answers."""
    asked = model.chat_ids([{"role": "user", "content": f"{facts}{story}\nWhere is the {thing}?"}])
    return asked + model.tokenizer.encode(f"The {thing} is in the", bos=False)


def two_kv_heads(vocab_size):
    """A config and random weights of a small model that has what weights/tiny has not: two key heads for four queries.

    They show how grouped queries work, and nothing that was learned.
    """
    config = minigemma.Config.from_dict({
        "vocab_size": vocab_size, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 4,
        "layer_types": ["sliding_attention"] * 3 + ["full_attention"], "sliding_window": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "global_head_dim": 16,
        "max_position_embeddings": 256, "hidden_size_per_layer_input": 0,
    })  # fmt: skip
    return config, minigemma.random_weights(config, seed=0)


def letters(config, other):
    """Print the letter of each axis, and its size in two configs."""
    wide, wide_other = (next(layer for layer in c.layers if layer.window is None) for c in (config, other))
    rows = [
        ("T", "tokens of this call", "", "any", "any"),
        ("S", "positions a query may see", "", "T + cache", "T + cache"),
        ("", "... on a global layer", "global_head_dim, per_layer_config", wide.head_dim, wide_other.head_dim),
    ]
    for letter, meaning, field in (
        ("D", "width of the residual stream", "hidden_size"),
        ("L", "layers", "num_hidden_layers"),
        ("N", "query heads", "num_attention_heads"),
        ("K", "key/value heads", "num_key_value_heads"),
        ("H", "width of a head", "head_dim"),
        ("F", "width of the MLP", "intermediate_size"),
        ("P", "width of PLE in a layer", "hidden_size_per_layer_input"),
        ("V", "vocabulary", "vocab_size"),
        ("W", "keys a sliding query sees", "sliding_window"),
    ):
        sizes = (getattr(c if hasattr(c, field) else c.layers[0], field) for c in (config, other))
        rows.insert(-1 if letter in "DLNKH" else len(rows), (letter, meaning, field, *sizes))
    print(f"   {'meaning':31}{'in config.json':35}{'here':>10}{'E2B':>10}")
    for letter, meaning, field, size, size_other in rows:
        print(f"{letter:2} {meaning:31}{field:35}{size!s:>10}{size_other!s:>10}")


def large_kind():
    """A config and random weights of a small model with what the large members of the family have: K = V and experts.

    It has no PLE and shares no K and V. The weights show how these parts work, and nothing that was learned.
    """
    config = minigemma.Config.from_dict({
        "vocab_size": 2560, "hidden_size": 48, "intermediate_size": 64, "num_hidden_layers": 6,
        "layer_types": ["sliding_attention", "sliding_attention", "full_attention"] * 2, "sliding_window": 8,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256,
        "num_global_key_value_heads": 1, "global_head_dim": 16, "attention_k_eq_v": True,
        "enable_moe_block": True, "num_experts": 8, "top_k_experts": 2, "moe_intermediate_size": 24,
        "hidden_size_per_layer_input": 0, "final_logit_softcapping": 30.0,
    })  # fmt: skip
    weights = minigemma.random_weights(config, seed=0)
    for layer in weights.layers:
        layer.router_proj *= 10  # random routers are nearly indifferent; this makes their choices visible
    return config, weights


def grade(text):
    """Print what `python -m minigemma grade` says of a file with this text."""
    with TemporaryDirectory() as folder:
        file = Path(folder, "student.py")
        file.write_text(text, encoding="utf-8")
        print(grades_text(grade_file(file)))


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
