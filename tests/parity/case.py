"""A config, its random weights and a prompt; what transformers computes from them; and when two passes agree."""

from functools import cache
from types import SimpleNamespace

import numpy as np

from minigemma import Config, Trace, forward, random_weights

from .reference import build, record

# float32: the order of additions alone moves numbers by this much. float64, against the double reference: rounding is
# 2e-16 there, and the most sensitive of the random models makes 5e-14 of it.
TOLERANCE = {np.float32: 2e-5, np.float64: 1e-12}
NOISE = 5  # or so many times the distance between transformers' own float32 and double runs, where that is larger


class Case:
    """The weights are float32 numbers in both precisions, so that both runs of the reference are of one model."""

    def __init__(self, raw, prompt, seed=0, soft_tokens=None):
        self.raw, self.prompt, self.config = raw, prompt, Config.from_dict(raw)
        self.soft_tokens = soft_tokens  # (positions, rows)
        self.weights32 = random_weights(self.config, seed)
        self.reference = cache(self._reference)

    def weights(self, dtype):
        return self.weights32 if dtype == np.float32 else widened(self.weights32)

    def soft(self, dtype):
        return self.soft_tokens and (self.soft_tokens[0], self.soft_tokens[1].astype(dtype))

    def model(self, dtype):
        return build(self.raw, self.config, self.weights(dtype), dtype)

    def _reference(self, dtype):
        """transformers' taps; computed once."""
        return record(self.model(dtype), self.prompt, dtype, self.soft(dtype))

    def ours(self, dtype):
        """minigemma's taps."""
        trace = Trace()
        forward(self.prompt, self.weights(dtype), self.config, tap=trace, soft_tokens=self.soft(dtype))
        return trace


def widened(weights):
    """The same numbers as float64."""

    def wide(owner):
        return {name: value.astype(np.float64) for name, value in vars(owner).items() if name != "layers"}

    return SimpleNamespace(**wide(weights), layers=[SimpleNamespace(**wide(layer)) for layer in weights.layers])


def distance(ours, theirs):
    """||ours - theirs|| / ||theirs||, in float64."""
    ours, theirs = np.asarray(ours, np.float64), np.asarray(theirs, np.float64)
    return np.linalg.norm(ours - theirs) / (np.linalg.norm(theirs) or 1.0)


def disagreements(ours, case, dtype):
    """The taps of `ours` (name -> array) that are not transformers', with their distances. Empty where all agree."""
    theirs, found = case.reference(dtype), {}
    for name, array in ours.items():
        if array.shape != theirs[name].shape:
            found[name] = f"shape {array.shape}, transformers {theirs[name].shape}"
            continue
        away, allowed = distance(array, theirs[name]), TOLERANCE[dtype]
        if dtype == np.float32:
            allowed = max(allowed, NOISE * distance(theirs[name], case.reference(np.float64)[name]))
        if not away <= allowed:  # NaN is a disagreement
            found[name] = f"{away:.1e} away, {allowed:.1e} allowed"
    return found
