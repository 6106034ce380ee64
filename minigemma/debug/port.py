"""Our pass with mistakes put into it."""

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from ..audio import embed_sound, encode_audio
from ..cache import EMPTY
from ..config import AudioEmbedder, VisionEmbedder
from ..model import forward, no_tap
from ..ops import horizon, rms_norm, rotation
from ..taps import layer_of, part_of, tap_kind
from ..vision import embed_image, encode_image

KEPT = ("attn.rot_k", "attn.v", "resid_post")


class Port:
    """Our pass with mistakes put into it.

    tokens [T]; soft_tokens as in `forward`; suspect: the layer at which a deviation begins, for mistakes that sit in
    one layer or from one layer on; unused: the K and V tensors of KV-sharing layers that only Google's files hold;
    wrong: the positions that are wrong where a deviation begins.
    """

    def __init__(self, config, weights, tokens, soft_tokens=None, suspect=None, unused=None, wrong=()):
        self.config, self.tokens, self.soft_tokens = config, np.asarray(tokens), soft_tokens
        self.suspect, self.unused, self.wrong = suspect, unused or {}, wrong
        layers = [SimpleNamespace(**vars(layer)) for layer in weights.layers]
        self.weights = SimpleNamespace(**{**vars(weights), "layers": layers})
        self.edits = defaultdict(list)  # a tap's name without its layer -> [(only, function(at, array) -> array)]
        self.seen = defaultdict(dict)  # the taps of the current call, by layer
        self.after_call = lambda cache: cache
        self.start = 0  # position of the current call's first token
        self.only = None  # the numbers of the layers that a change may touch; None: all
        self.cache = EMPTY  # what the current call continues
        self.mistakes = []  # ids of the catalogue's entries that were put in

    def copy(self):
        """The same model and prompt, without this port's edits."""
        return Port(self.config, self.weights, self.tokens, self.soft_tokens, self.suspect, self.unused)

    @contextmanager
    def named_errors(self):
        """An exception inside names the mistakes in this port, so that its traceback leads to the catalogue's entry."""
        try:
            yield
        except Exception as error:
            if self.mistakes:
                error.add_note(f"in a port with these mistakes of the catalogue: {', '.join(self.mistakes)}")
            raise

    def edit(self, name, function):
        self.edits[name].append((self.only, function))

    def layers(self, kind=None, sharing=None):
        """Pairs of a layer's facts and its weights, for some of the layers."""
        for layer in self.config.layers:
            chosen = self.only is None or layer.index in self.only
            if chosen and kind in (None, layer.kind) and sharing in (None, layer.shares_kv):
                yield layer, self.weights.layers[layer.index]

    def change_layers(self, change, kind=None, sharing=None):
        """Other facts for some of the layers: change(layer) -> the fields to replace."""
        chosen = {layer.index: replace(layer, **change(layer)) for layer, _ in self.layers(kind, sharing)}
        layers = tuple(chosen.get(layer.index, layer) for layer in self.config.layers)
        self.config = replace(self.config, layers=layers)

    def layer(self, i):
        """Layer i's facts and its weights."""
        return self.config.layers[i], self.weights.layers[i]

    @property
    def eps(self):
        return self.config.rms_norm_eps

    def watched(self, tap):
        """A tap that makes the edits, calls another tap, and keeps what later edits may read."""

        def watch(name, array):
            i, short = layer_of(name), part_of(tap_kind(name))
            for only, function in self.edits[short]:
                if only is None or i in only:
                    array = function(At(self, i), array)
            array = tap(name, array)
            if i not in self.seen and i:  # of layers behind us only what a later one may read
                self.seen[i - 1] = {key: self.seen[i - 1][key] for key in KEPT if key in self.seen[i - 1]}
            self.seen[i][short] = array
            return array

        return watch

    def run(self, tap=no_tap, prefill=None, step=1, cache=EMPTY):
        """The pass of the tokens behind `cache` -> logits [T, V].

        prefill: the number of tokens in the first call; `step` in each later one.
        """
        watched, T, start = self.watched(tap), len(self.tokens), cache.length
        bounds = [start, T] if prefill is None else [start, *range(prefill, T, step), T]
        rows, self.cache = [], cache
        for self.start, end in pairwise(bounds):
            self.seen.clear()
            # one call gets all of them, so that a position outside the prompt is refused
            soft = self.soft_tokens if len(bounds) == 2 and not start else self._soft_between(self.start, end)
            call = self.tokens[self.start : end]
            with self.named_errors():
                out, after = forward(call, self.weights, self.config, self.cache, tap=watched, soft_tokens=soft)
                self.cache = self.after_call(after)
            rows.append(out)
        return np.concatenate(rows)  # [T, V]

    def _soft_between(self, start, end):
        """The soft tokens of a call, their positions counted from its first token."""
        if self.soft_tokens is None:
            return None
        where, rows = map(np.asarray, self.soft_tokens)  # [M], [M, D]
        here = (where >= start) & (where < end)  # [M]
        return where[here] - start, rows[here]


class PicturePort(Port):
    """Our pass of a picture with mistakes put into it. A tap is edited under its name without `vision.`.

    image: as fit_image returns it. source: the picture's colours before that and the budget; None: not known.
    """

    def __init__(self, config, weights, image, source=None, suspect=None):
        super().__init__(config, weights, (), suspect=suspect)
        self.image, self.source = image, source

    def layers(self, kind=None, sharing=None):
        """Pairs of the tower's facts, which all layers share, and a layer's weights."""
        return [self.layer(i) for i in range(len(self.weights.layers))]

    def layer(self, i):
        return self.tower, self.weights.layers[i]

    @property
    def tower(self):
        return self.config.vision

    @property
    def eps(self):
        return self.tower.rms_norm_eps

    def encoded(self, tap):
        return encoder(self.config)(self.image, self.weights, self.config, tap=tap)

    def run(self, tap=no_tap):
        """The pass -> soft tokens [M, Y]."""
        self.seen.clear()
        with self.named_errors():
            return self.encoded(self.watched(tap))


class SoundPort(PicturePort):
    """Our pass of a sound with mistakes put into it. A tap is edited under its name without `audio.`.

    heard: the log mel, or in 12B the samples. samples: those that the log mel is of; None: not known.
    """

    def __init__(self, config, weights, heard, samples=None, suspect=None):
        super().__init__(config, weights, None, suspect=suspect)
        self.heard, self.samples = heard, samples

    @property
    def tower(self):
        return self.config.audio

    def encoded(self, tap):
        return listener(self.config)(self.heard, self.weights, self.config, tap=tap)


def listener(config):
    """What turns a sound into soft tokens in this model: encode_audio of a log mel, or for 12B embed_sound."""
    return embed_sound if isinstance(config.audio, AudioEmbedder) else encode_audio


def encoder(config):
    """What turns a picture into soft tokens in this model: encode_image, or for 12B embed_image."""
    return embed_image if isinstance(config.vision, VisionEmbedder) else encode_image


class At:
    """The place of an edit: at["mlp.gate"] is an earlier tap of this layer, or of the part before the layers."""

    def __init__(self, port, i):
        self.port, self.config, self.i = port, port.config, i
        self.layer, self.w = (None, port.weights) if i is None else port.layer(i)

    def __getitem__(self, name):
        here = self.port.seen[self.i]
        return here[name] if name in here else self.port.seen[None][name]

    @property
    def decoding(self):
        return self.port.start > 0

    @property
    def positions(self):
        """Absolute positions of this call's tokens, [T]."""
        return self.port.start + np.arange(len(self.port.seen[None]["embed"]))

    @property
    def last(self):
        """The last position that each of this call's tokens may see on sliding layers, [T]: see ops.horizon."""
        if self.port.soft_tokens is None:
            return self.positions
        return horizon(self.ids, self.positions, self.config)

    @property
    def ids(self):
        """This call's ids, placeholders among them, [T]."""
        return self.port.tokens[self.positions]

    def from_donor(self, name):
        """K (attn.rot_k) or V (attn.v) of the layer whose keys this layer reads, this one included: [S, K, H]."""
        new, cached = self.port.seen[self.layer.kv_from][name], self.port.cache.entries.get(self.layer.kv_from)
        return np.concatenate([cached.k if name == "attn.rot_k" else cached.v, new]) if cached else new

    def rotation(self, x):
        """Cosines and sines of RoPE for x [T, heads, H], the last T positions of this call: two of [T, 1, H/2]."""
        return rotation(self.positions[-len(x) :], self.layer.inv_freq, x.dtype)

    def norm(self, x, weight=None):
        return rms_norm(x, weight, self.port.eps)
