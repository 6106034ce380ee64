"""Our side of a comparison: the pass of a prompt or of a picture, run as often as a comparison needs it."""

from dataclasses import dataclass, replace

import numpy as np

from ..config import AudioTower, VisionEmbedder, VisionTower
from ..errors import Error
from ..inputs import as_patches, check_memory
from ..model import forward
from ..ops import horizon, rope, rope_2d
from ..taps import Finite, Trace, axes_of, layer_of
from .port import PicturePort, Port, SoundPort, encoder, listener
from .replay import Replay


@dataclass(eq=False)
class Run:
    """Our side of a comparison: a model, a prompt, and the names of the captured taps.

    soft_tokens: as in `forward`. unused: the K and V tensors of KV-sharing layers that only Google's files hold.
    own_ids: whether the trace itself says that it is of these ids. start: the position of their first rows. Raises
    Error where our own pass is not finite, and, before it runs, where the comparison needs more memory than there is.
    """

    model: object
    tokens: np.ndarray  # [T]
    theirs: dict  # tap -> array
    soft_tokens: tuple | None = None
    unused: dict | None = None
    own_ids: bool = False
    start: int = 0

    def __post_init__(self):
        self.config, self.weights, self.tokens = self.model.config, self.own_weights(), np.asarray(self.tokens)
        self.last = None if self.soft_tokens is None else looking_ahead(self.tokens, self.config)  # [T]
        what = f"to compare {len(self.tokens)} tokens and {len(self.theirs)} taps"
        check_memory(self.needs(), what, "capture a shorter prompt that still shows the fault, or fewer taps")
        self.ours = Trace(list(self.theirs))
        self.shapes = {}  # of every tap, in the order of execution
        self.healthy = {}  # size of rounding -> what `healthy` found

        def first(name, array):
            self.shapes[name] = array.shape
            return self.ours(name, array)

        try:
            self.through(Finite(first))
        except Error as error:
            raise Error(f"our own pass cannot judge theirs: {error}") from None

    def prefix(self, length):
        """The Run of the first positions of a trace in which every array has all."""

        def cut(name, array):
            return array[tuple(slice(length) if letter in "TS" else slice(None) for letter in axes_of(name))]

        theirs = {name: cut(name, array) for name, array in self.theirs.items()}
        return replace(self, tokens=self.tokens[:length], theirs=theirs)

    def own_weights(self):
        """The weights that this pass reads."""
        return self.model.weights

    def needs(self):
        """Bytes of memory that a comparison takes at its peak, measured with tracemalloc: at most this, at least half.

        Four arrays for each of theirs (ours, with rounding, in two searches), three of the largest in float64 to
        compare it; and what our pass itself takes.
        """
        sizes = [np.asarray(array).nbytes for array in self.theirs.values()]
        return 4 * sum(sizes) + 6 * max(sizes, default=0) + 4 * self.numbers()

    def numbers(self):
        """How many numbers our pass holds at its peak."""
        return numbers_of_pass(self.config, len(self.tokens))

    def through(self, tap):
        """Run our pass with this tap."""
        forward(self.tokens, self.weights, self.config, tap=tap, soft_tokens=self.soft_tokens)

    def replay(self, config=None, known=None, start=0):
        """A Replay of their arrays. config: of a port; known, start: as in Replay."""
        return Replay(self.theirs, config or self.config, known, self.last, len(self.tokens), start)

    def replayed(self, theirs):
        """Run our pass, each op on their input -> the Replay."""
        replay = Replay(theirs, self.config, last=self.last, count=len(self.tokens))
        self.through(replay)
        return replay

    def port(self, suspect=None, wrong=()):
        """Our pass, ready for mistakes to be put into it. suspect, wrong: as in Port."""
        return Port(self.config, self.weights, self.tokens, self.soft_tokens, suspect, self.unused, wrong)

    def facts(self, prefill):
        """What the run has that a mistake of the catalogue may need."""
        soft = self.soft_tokens is not None
        several = soft and len(np.unique(np.diff(np.sort(self.soft_tokens[0])))) > 1
        sounds = bool((self.tokens == self.config.audio_token_id).any())
        facts = {"cached": prefill is not None, "soft": soft, "unused": bool(self.unused)}
        packed = bool((self.tokens[2:] == self.config.source.get("bos_token_id")).any())
        return facts | {"pictures": several, "sounds": sounds, "packed": packed}

    def varied(self, name, array, rng):
        """The array as a healthy engine may have it before it rounds."""
        return array

    def turned_in_float32(self, name, x):
        """RoPE on x [T, N, H] of the tap's layer, with its angles in float32, as in most engines."""
        return rope(x, *angles_in_float32(np.arange(len(x)), self.config.layers[layer_of(name)].inv_freq, x.dtype))

    def sizes(self, name):
        """Sizes of the model by which an array of this tap may be wrong: name -> number."""
        config, i = self.config, layer_of(name)
        sizes = {"D": config.hidden_size, "L": config.num_hidden_layers, "P": config.hidden_size_per_layer_input}
        return sizes if i is None else sizes | {"head_dim": config.layers[i].head_dim}


@dataclass(eq=False)
class PictureRun(Run):
    """Our side of a comparison of a picture: tokens are its patches, 0 to T - 1.

    image: [h, w, 3] of uint8, as fit_image returns it. source: the picture's colours before they were resized and the
    budget; None where only its patches are known.
    """

    image: np.ndarray = None
    source: tuple | None = None

    def own_weights(self):
        return self.model.vision

    def numbers(self):
        """Three arrays of one head's scores [T, T], and twelve of the MLP [T, F], or of patches [T, X]."""
        vision, T = self.config.vision, len(self.tokens)
        size, width, _ = vision.patches
        return 3 * T * T + 12 * T * max(3 * size**2, width, getattr(vision, "intermediate_size", 0))

    def through(self, tap):
        encoder(self.config)(self.image, self.weights, self.config, tap=tap)

    def port(self, suspect=None, wrong=()):
        return PicturePort(self.config, self.weights, self.image, self.source, suspect)

    def facts(self, prefill):
        return {"picture": True, "source": self.source is not None}

    def varied(self, name, array, rng):
        """Other bicubic filters give other pixels, by a level, in one of fifty values; unless theirs were captured."""
        if name != "vision.patches" or self.source is None or name in self.theirs:
            return array
        level = (1 if isinstance(self.config.vision, VisionEmbedder) else 2) / 255
        return array + (level * rng.choice([-1, 0, 1], array.shape, p=[0.01, 0.98, 0.01])).astype(array.dtype)

    def turned_in_float32(self, name, x):
        _, *places = as_patches(self.image, self.weights, self.config, "input_proj")
        return rope_2d(x, *(angles_in_float32(place, self.config.vision.inv_freq, x.dtype) for place in places))

    def sizes(self, name):
        vision = self.config.vision
        sizes = {"D": vision.patches[1], "Y": self.config.hidden_size}
        return sizes | {"head_dim": vision.head_dim} if isinstance(vision, VisionTower) else sizes


@dataclass(eq=False)
class SoundRun(Run):
    """Our side of a comparison of a sound: tokens are its frames, 0 to T - 1.

    heard: its log mel, or 12B's samples. samples: those that the log mel is of; None: not known.
    """

    heard: np.ndarray = None
    samples: np.ndarray | None = None

    def own_weights(self):
        return self.model.audio

    def numbers(self):
        """Eleven squares of each place of the second convolution."""
        return 11 * len(self.tokens) * getattr(self.config.audio, "bins", 0) ** 2 // 4

    def through(self, tap):
        listener(self.config)(self.heard, self.weights, self.config, tap=tap)

    def port(self, suspect=None, wrong=()):
        return SoundPort(self.config, self.weights, self.heard, self.samples, suspect)

    def facts(self, prefill):
        return {"sound": True, "samples": self.samples is not None}

    def sizes(self, name):
        audio = self.config.audio
        if not isinstance(audio, AudioTower):
            return {"D": audio.audio_embed_dim}
        return {"D": audio.hidden_size, "head_dim": audio.hidden_size // audio.num_attention_heads}


def angles_in_float32(positions, inv_freq, dtype):
    """RoPE's cos and sin, each [T, 1, H/2], from angles in float32."""
    angles = positions.astype(np.float32)[:, None, None] * inv_freq.astype(np.float32)  # [T, 1, H/2]
    return np.cos(angles).astype(dtype), np.sin(angles).astype(dtype)  # [T, 1, H/2] each


def looking_ahead(tokens, config):
    """The last position that each token may see on sliding layers, its picture's end or its own: [T]."""
    return horizon(np.asarray(tokens), np.arange(len(tokens)), config)


def numbers_of_pass(config, T):
    """How many numbers a watched pass of T tokens holds at its peak: eight arrays [N, T, T] and three [T, V]."""
    return 8 * config.num_attention_heads * T * T + 3 * T * config.vocab_size
