"""minigemma: Gemma 4 in plain NumPy, to read, to teach from and to debug with. Start at model.py."""

import os
import signal
import sys

_COMMAND = sys.argv[:1] == ["-m"]  # `python -m minigemma` imports the package before it knows the program's path
if _COMMAND and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C during these imports shows no traceback


def _stop(problem):
    """End `python -m minigemma` with one line and status 2; anywhere else raise ImportError."""
    if _COMMAND:
        print(f"minigemma: {problem}", file=sys.stderr)
        raise SystemExit(2)
    raise ImportError(problem) from None


if sys.version_info < (3, 11):  # noqa: UP036 (older versions can read this file, so they say what is wrong)
    _stop("this is Python {}.{}; minigemma needs 3.11 or newer".format(*sys.version_info[:2]))

try:
    from dataclasses import dataclass, field
    from difflib import get_close_matches
    from functools import cached_property
    from importlib import import_module
    from pathlib import Path
    from types import SimpleNamespace

    from . import threads  # noqa: F401 (before NumPy is imported elsewhere: it holds NumPy's BLAS to one thread)

    # isort: split
    from .audio import embed_sound, encode_audio, log_mel
    from .cache import EMPTY, Cache
    from .checkpoint import random_weights, read_audio, read_vision, read_weights, save
    from .config import Config
    from .conversation import Conversation
    from .errors import Error
    from .files import read_json
    from .formats import check_quantization, explain
    from .gguf import chat_template, generation_config_of, is_gguf
    from .inputs import fit_image, no_tap, read_image
    from .media import encode_picture, encode_sound, lay_out, open_sound
    from .mmproj import config_of
    from .model import forward
    from .sampling import generate, generate_ids, prefill, tokenizer_of
    from .taps import Edit, Finite, Stop, Trace
    from .tokenizer import BOS, Tokenizer
    from .turns import read_template, render, small_cue, to_ids
    from .vision import embed_image, encode_image
except ModuleNotFoundError as error:
    if (error.name or "").startswith("minigemma"):
        raise  # a bug of ours
    _stop(f"{error}; run: python -m pip install -r requirements.txt")

if _COMMAND and signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
    signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = [
    "EMPTY", "Cache", "Config", "Conversation", "Edit", "Error", "Finite", "Model", "Replay", "Stop", "Tokenizer",
    "Trace", "count", "embed_image", "embed_sound", "encode_audio", "encode_image", "forward", "generate",
    "generate_ids", "load", "log_mel", "prefill", "random_weights", "read_audio", "read_vision", "read_weights", "save",
]  # fmt: skip

TINY = Path(__file__).resolve().parent.parent / "weights" / "tiny"
NAMES_SHOWN = 12  # of a directory's files, in a message


@dataclass(eq=False)
class Model:
    """What a checkpoint directory holds. Calling a Model runs `forward`."""

    directory: Path
    config: Config
    weights: object = field(repr=False)
    generation_config: dict = field(repr=False)
    generation_source: object = field(default="generation_config", repr=False)  # the file that it was read from
    dtype: str = field(default="bfloat16", repr=False)  # as `load` was asked; of the vision too

    def __call__(self, tokens, cache=EMPTY, **options):
        return forward(tokens, self.weights, self.config, cache, **options)

    @cached_property
    def vision(self):
        """What turns pictures into soft tokens. Read on first use: whoever sends text pays nothing for it."""
        return read_vision(self.directory, self.config, self.dtype)

    @cached_property
    def audio(self):
        """What turns sounds into soft tokens. Read on first use, as `vision`."""
        return read_audio(self.directory, self.config, self.dtype)

    def see(self, image, budget=None, tap=no_tap):
        """A picture (a path, a PIL image or an array of uint8) -> its soft tokens [M, D], for `forward`.

        budget: at most so many, 70, 140, 280, 560 or 1120; None: as many as the checkpoint says. Raises Error for what
        is not a picture, and for a model without vision.
        """
        _, config = self.vision, self.config  # first: a model that cannot see says so before it opens the picture
        return encode_picture(fit_image(read_image(image), config.budget(budget), config.vision.side), self, tap)

    def hear(self, sound, tap=no_tap):
        """A sound -> its soft tokens [M, D], for `forward`, 25 a second.

        sound: the path of a WAV file, an array of samples (16,000 a second), or a pair (array, rate). The towers of E2B
        and E4B hear 30 seconds; a warning says if there are more. Raises Error for what is not a sound, and for a model
        that does not hear.
        """
        _ = self.audio  # first: a model that does not hear says so before it opens the file
        return encode_sound(open_sound(sound, self.config), self, tap)

    @cached_property
    def tokenizer(self):
        """The directory's tokenizer, None if it has no tokenizer.json. Read on first use: a real one takes a second."""
        packed = is_gguf(self.directory)
        path = (self.directory.parent if packed else self.directory) / "tokenizer.json"
        if packed and not path.exists():
            path = self.directory
        if not path.exists():
            return None
        tokenizer, bos = Tokenizer(path), self.config.source.get("bos_token_id")
        if bos not in (None, tokenizer.bos):
            raise Error(f"{path}: {BOS} has id {tokenizer.bos} and config.json says {bos!r}; use this model's own file")
        return tokenizer

    @cached_property
    def small_cue(self):
        """Whether a prompt ends as for E2B and E4B, see `turns.small_cue`."""
        template = chat_template(self.directory) if is_gguf(self.directory) else read_template(self.directory)
        return small_cue(self.config, template)

    def chat(self, messages, tools=None, think=False, stream=False, max_new_tokens=200, budget=None, **options):
        """Answer a conversation -> turns.Answer; with stream, pairs of `turns.stream` as they come.

        messages and tools: as `turns.render` takes them. think: ask for a thought. budget: the most soft tokens of a
        picture. options: temperature, top_k, top_p, seed, tap, as for `generate_ids`. Raises Error for what cannot be
        used. Conversation keeps what this forgets.
        """
        conversation = Conversation(self, tools=tools, think=think, budget=budget)
        pairs = conversation.read(conversation.draw(messages, max_new_tokens, **options))
        if stream:
            return pairs
        for _ in pairs:
            pass
        return conversation.answer

    def chat_ids(self, messages, tools=None, think=False, budget=None):
        """The ids that `chat` lets the model read: the conversation, and the cue for the answer. No encoder runs."""
        pieces = lay_out(render(messages, tools, think, small=self.small_cue), self.config, budget)
        return to_ids(pieces, tokenizer_of(self))


def load(path=None, dtype="bfloat16"):
    """A checkpoint directory, a GGUF file, or a name such as "google/gemma-4-E2B-it" in the hub's local cache -> Model.

    Without a path: MINIGEMMA_WEIGHTS, else the tiny weights of this repository. dtype: "bfloat16" keeps the weights in
    the mapped file; "float32" converts all but the PLE table, for the fastest decoding; "float64" is for exact tests.
    None reads no weights, for ids and conversations alone: `.weights` is then None.
    Raises Error if there is no such checkpoint, or if it cannot be read.
    """
    directory = _find((os.environ.get("MINIGEMMA_WEIGHTS") or TINY) if path is None else path)
    if is_gguf(directory):
        config = Config.from_dict(config_of(directory), str(directory))
        weights = None if dtype is None else read_weights(directory, config, dtype)
        return Model(directory, config, weights, generation_config_of(directory), directory, dtype)
    check_quantization(read_json(directory / "config.json"), directory)
    config = Config.from_json(directory)
    weights = None if dtype is None else read_weights(directory, config, dtype)
    source = directory / "generation_config.json"
    if source.exists():
        generation_config = read_json(source)
    else:  # transformers then takes the stop ids of config.json
        source = directory / "config.json"
        both = config.source | read_json(source)
        generation_config = {"eos_token_id": both.get("eos_token_id")}
    return Model(directory, config, weights, generation_config, source, dtype)


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
    """The directory of a checkpoint, given as a path or as a hub name in the local cache. Never uses the network."""
    if not isinstance(path, str | os.PathLike):
        raise Error(f"the path of the weights must be a str or a Path, not {type(path).__name__}")
    if not str(path):
        raise Error("the path of the weights is empty; give a directory or a model's name, or leave it out")
    directory = Path(os.path.expanduser(path))
    if os.path.isdir(directory):  # not Path.is_dir, which raises for a name that is too long
        explain(directory)
        if not os.path.lexists(directory / "config.json"):
            raise Error(f"{path}: has no config.json{_held(directory)}")
        return directory
    if os.path.isfile(directory) and is_gguf(directory):
        return directory
    if os.path.isfile(directory):
        explain(directory)
        raise Error(f"{path}: is a file; give its directory, {directory.parent}")
    hub_name = isinstance(path, str) and path.count("/") == 1 and not path.startswith((".", "/", "~"))
    snapshot = _cached(path) if hub_name else None
    if snapshot:
        return snapshot
    near = _nearest(directory)
    if near:
        raise Error(f"{path}: no such directory; did you mean {near}?")
    if hub_name and not os.path.isdir(directory.parent):
        raise Error(f"{path}: neither a directory nor a model in the hub's local cache; run: hf download {path}")
    raise Error(f"{path}: no such directory; give the directory that holds config.json and model.safetensors")


def _cached(name):
    """The directory of a model in the hub's local cache, None if it is not there."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        config = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(config).parent if isinstance(config, str) else None


def _held(directory):
    """For a message: the checkpoints below a directory that is not one itself, else the names of what is in it."""
    try:
        below = sorted(str(path.parent) for path in directory.glob("*/config.json"))
        names = below or sorted(os.listdir(directory))
    except OSError as error:
        return f" ({error.strerror})"
    listed = ", ".join(names[:NAMES_SHOWN]) + ", ..." * (len(names) > NAMES_SHOWN)
    return f"; did you mean {listed}?" if below else f"; it holds {listed or 'nothing'}. Give a checkpoint's directory"


def _nearest(directory):
    """The checkpoint whose name is most like that of a directory that does not exist, None if there is none.

    It looks beside the missing directory; then in this repository, for people who stand elsewhere, for the same name.
    """
    for place, cutoff in ((directory.parent, 0.5), (TINY.parent, 1.0)):
        try:
            beside = [path.parent.name for path in place.glob("*/config.json")]
        except OSError:
            continue
        near = get_close_matches(directory.name, beside, 1, cutoff)
        if near:
            return place / near[0]
    return None
