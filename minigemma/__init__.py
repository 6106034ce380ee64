"""minigemma: Gemma 4 in plain NumPy, to be read, taught from and debugged with. Start at model.py."""

import os
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

# OpenBLAS's threads spin for 80 ms after each product, on the cores that this package's own threads need: with a short
# wait instead, E2B decodes half as fast again. OpenBLAS reads this once, so it helps only if NumPy is imported later.
os.environ.setdefault("OPENBLAS_THREAD_TIMEOUT", "4")

from .account.parameters import count
from .cache import EMPTY, Cache
from .checkpoint import random_weights, read_weights, save
from .config import Config
from .errors import Error
from .files import read_json
from .model import forward
from .sampling import generate, generate_ids, prefill
from .taps import Edit, Finite, Replay, Trace
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
    defaults = directory / "generation_config.json"
    if defaults.exists():
        generation_config = read_json(defaults)
    else:  # transformers then stops where config.json says
        both = config.source | read_json(directory / "config.json")
        generation_config = {"eos_token_id": both.get("eos_token_id")}
    return Model(directory, config, read_weights(directory, config, dtype), generation_config)


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
