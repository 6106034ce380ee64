"""minigemma: Gemma 4 in plain NumPy, to be read, taught from and debugged with. Start at model.py."""

import os
import sys
from dataclasses import dataclass, field
from functools import cached_property
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace

# OpenBLAS's threads spin for 80 ms after each product, on the cores that this package's own threads need: with a short
# wait instead, E2B decodes half as fast again. OpenBLAS reads this once, so it helps only if NumPy is imported later.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

from .cache import EMPTY, Cache
from .checkpoint import random_weights, read_weights, save
from .config import Config
from .errors import Error
from .files import read_json
from .model import forward
from .sampling import generate, generate_ids, prefill
from .taps import Edit, Finite, Trace
from .tokenizer import BOS, Tokenizer

__all__ = [
    "EMPTY", "Cache", "Config", "Edit", "Error", "Finite", "Model", "Replay", "Tokenizer", "Trace", "count", "forward",
    "generate", "generate_ids", "load", "prefill", "random_weights", "read_weights", "save",
]  # fmt: skip

TINY = Path(__file__).resolve().parent.parent / "weights" / "tiny"


@dataclass(eq=False)
class Model:
    """What a checkpoint directory holds. Calling it runs `forward`."""

    directory: Path
    config: Config
    weights: object = field(repr=False)
    generation_config: dict = field(repr=False)
    generation_source: object = field(default="generation_config", repr=False)  # the file that it was read from

    def __call__(self, tokens, cache=EMPTY, **options):
        return forward(tokens, self.weights, self.config, cache, **options)

    @cached_property
    def tokenizer(self):
        """The directory's tokenizer, None where it has no tokenizer.json. A real one takes a second: read when used."""
        path = self.directory / "tokenizer.json"
        if not path.exists():
            return None
        tokenizer, bos = Tokenizer(path), self.config.source.get("bos_token_id")
        if bos not in (None, tokenizer.bos):
            raise Error(f"{path}: {BOS} has id {tokenizer.bos} and config.json says {bos!r}; it is another model's")
        return tokenizer


def load(path=None, dtype="bfloat16"):
    """A checkpoint directory, or a name such as "google/gemma-4-E2B-it" from the hub's local cache -> Model.

    Without a path: MINIGEMMA_WEIGHTS, else the tiny weights of this repository. dtype: "bfloat16" keeps the weights in
    the mapped file, "float32" converts all but the PLE table for the fastest decode, "float64" is for exact tests.
    """
    directory = _find((os.environ.get("MINIGEMMA_WEIGHTS") or TINY) if path is None else path)
    config = Config.from_json(directory)
    source = directory / "generation_config.json"
    if source.exists():
        generation_config = read_json(source)
    else:  # transformers then takes the stop ids of config.json
        source = directory / "config.json"
        both = config.source | read_json(source)
        generation_config = {"eos_token_id": both.get("eos_token_id")}
    return Model(directory, config, read_weights(directory, config, dtype), generation_config, source)


# Names from the rooms, loaded on first use: whoever only runs the model loads no room.
LAZY = {"count": "account.parameters", "Replay": "debug.replay"}
# Modules that had other names: old name -> the modules that hold its contents now.
MOVED = {
    "accounting": ("account.parameters", "account.memory", "account.compute"),
    "bench": ("tools.bench",),
    "bf16": ("packed",),
    "diagnosis": ("debug.diagnosis",),
    "diff": ("debug.diff",),
    "faults": ("debug.catalogue", "debug.port"),
    "foreign": ("debug.foreign",),
    "plots": ("tools.figures",),
    "reports": ("account.report", "debug.report"),
    "retention": ("study.retention", "study.texts", "study.states", "study.measures", "study.ple", "study.report"),
    "trace": ("taps", "debug.replay"),
    "verify": ("debug.goldens",),
    "weights": ("checkpoint", "tools.synth"),
}


def __getattr__(name):
    if name in LAZY:
        value = getattr(import_module(f"{__name__}.{LAZY[name]}"), name)
    elif name in MOVED:
        print(f"minigemma.{name} is now {' and '.join(f'minigemma.{new}' for new in MOVED[name])}", file=sys.stderr)
        modules = [import_module(f"{__name__}.{new}") for new in MOVED[name]]
        value = SimpleNamespace(**{key: item for module in modules for key, item in vars(module).items()})
    else:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    globals()[name] = value  # asked for once
    return value


def __dir__():
    return sorted({*globals(), *LAZY})


def _find(path):
    """A directory as it is; a hub name by its snapshot in the local cache. Never reaches the network."""
    if not str(path):
        raise Error("the path of the weights is empty; give a directory or a model's name, or leave it out")
    directory = Path(os.path.expanduser(path))
    if os.path.isdir(directory):  # false, where Path.is_dir raises, for a name that is too long
        return directory
    if isinstance(path, str) and path.count("/") == 1 and not path.startswith((".", "/", "~")):
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import HFValidationError

        try:
            config = try_to_load_from_cache(path, "config.json")
        except HFValidationError:
            config = None
        if isinstance(config, str):
            return Path(config).parent
        raise Error(f"{path}: neither a directory nor a model in the hub's local cache; run: hf download {path}")
    raise Error(f"{path}: no such directory; give the folder that holds config.json and model.safetensors")
