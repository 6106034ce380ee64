"""Our pass with mistakes put into it."""

from collections import defaultdict
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from types import SimpleNamespace

import numpy as np

from ..cache import EMPTY
from ..model import forward, no_tap
from ..ops import rms_norm, rotation
from ..taps import layer_of

KEPT = ("attn.rot_k", "attn.v", "resid_post")


class Port:
    """Our pass with mistakes put into it.

    tokens [T]; soft_tokens as in `forward`; suspect: the layer at which a deviation begins, for mistakes that sit in
    one layer or from one layer on; unused: the K and V tensors of KV-sharing layers that only Google's files hold.
    """

    def __init__(self, config, weights, tokens, soft_tokens=None, suspect=None, unused=None):
        self.config, self.tokens, self.soft_tokens = config, np.asarray(tokens), soft_tokens
        self.suspect, self.unused = suspect, unused or {}
        layers = [SimpleNamespace(**vars(layer)) for layer in weights.layers]
        self.weights = SimpleNamespace(**{**vars(weights), "layers": layers})
        self.edits = defaultdict(list)  # name of a tap, a layer's without its number -> [function(at, array) -> array]
        self.seen = defaultdict(dict)  # the taps of the current call, by layer
        self.after_call = lambda cache: cache
        self.start = 0  # position of the current call's first token
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
        self.edits[name].append(function)

    def layers(self, kind=None, sharing=None):
        """Pairs of a layer's facts and its weights, for some of the layers."""
        for layer in self.config.layers:
            if kind in (None, layer.kind) and sharing in (None, layer.shares_kv):
                yield layer, self.weights.layers[layer.index]

    def change_layers(self, change, kind=None, sharing=None):
        """Other facts for some of the layers: change(layer) -> the fields to replace."""
        chosen = {layer.index: replace(layer, **change(layer)) for layer, _ in self.layers(kind, sharing)}
        layers = tuple(chosen.get(layer.index, layer) for layer in self.config.layers)
        self.config = replace(self.config, layers=layers)

    def run(self, tap=no_tap, prefill=None):
        """The pass -> logits [T, V]. prefill: the number of tokens in the first call; the others follow one by one."""

        def watched(name, array):
            i = layer_of(name)
            short = name if i is None else name.split(".", 2)[2]
            for function in self.edits[short]:
                array = function(At(self, i), array)
            array = tap(name, array)
            if i not in self.seen and i:  # of layers behind us only what a later one may read
                self.seen[i - 1] = {key: self.seen[i - 1][key] for key in KEPT if key in self.seen[i - 1]}
            self.seen[i][short] = array
            return array

        bounds = [0, len(self.tokens)] if prefill is None else [0, *range(prefill, len(self.tokens) + 1)]
        rows, cache = [], EMPTY
        for self.start, end in pairwise(bounds):
            self.seen.clear()
            # one call gets all of them, so that a position outside the prompt is refused
            soft = self.soft_tokens if prefill is None else self._soft_between(self.start, end)
            call = self.tokens[self.start : end]
            with self.named_errors():
                out, cache = forward(call, self.weights, self.config, cache, tap=watched, soft_tokens=soft)
                cache = self.after_call(cache)
            rows.append(out)
        return np.concatenate(rows)  # [T, V]

    def _soft_between(self, start, end):
        """The soft tokens of a call, their positions counted from its first token."""
        if self.soft_tokens is None:
            return None
        where, rows = map(np.asarray, self.soft_tokens)  # [M], [M, D]
        here = (where >= start) & (where < end)  # [M]
        return where[here] - start, rows[here]


class At:
    """The place of an edit: at["mlp.gate"] is an earlier tap of this layer, or of the part before the layers."""

    def __init__(self, port, i):
        self.port, self.config, self.i = port, port.config, i
        self.layer, self.w = (None, port.weights) if i is None else (port.config.layers[i], port.weights.layers[i])

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

    def from_donor(self, name):
        """A tap of the layer whose K and V this layer reads, this one included."""
        return self.port.seen[self.layer.kv_from][name]

    def rotation(self, x):
        """Cosines and sines of RoPE for x [T, heads, H], the last T positions of this call: two of [T, 1, H/2]."""
        return rotation(self.positions[-len(x) :], self.layer.inv_freq, x.dtype)

    def norm(self, x, weight=None):
        return rms_norm(x, weight, self.config.rms_norm_eps)
