"""A pass step by step: each tap with its numbers, the line of the pass that made it, and what the logit lens reads."""

import linecache

import numpy as np

from ..ops import linear, rms_norm, softcap
from ..taps import Selection, axes_of, part_of, place_in_pass, tap_of

LENS = 3  # tokens that are shown
STATES = ("resid_pre", "resid_mid", "resid_ffn", "resid_post", "final_norm", "logits")  # what the lens reads


class Quit(Exception):
    """The reader has seen enough: ends the pass."""


class Step(Selection):
    """A tap that prints every tap that fits a pattern, and then waits.

    wait: a function that is called after each one; it raises Quit to end the pass.
    """

    def __init__(self, model, pattern, wait):
        super().__init__([pattern])
        self.model, self.wait = model, wait

    def __call__(self, name, array):
        if self.fitting(name) is not None:
            frame, place = place_in_pass()
            print(f"{name}  {list(array.shape)} = [{', '.join(axes_of(name))}]  {tap_of(name).made_by}")
            print(f"    {numbers(array)}")
            print(f"    {place}  {linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()}")
            if part_of(name) in STATES and not name.startswith(("vision.", "audio.")):
                print(f"    logit lens, last position: {best_tokens(name, array, self.model)}")
            self.wait()
        return array


def numbers(array):
    """The rms, the extremes, and how many values are not finite, in one line; the first three of finite values."""
    finite = array[np.isfinite(array)].astype(np.float64)  # [n]
    bad = f"{array.size - finite.size} not finite"
    if not finite.size:
        return bad
    return f"rms {np.sqrt(np.mean(finite**2)):.4g}, from {finite.min():.4g} to {finite.max():.4g}, {bad}"


def best_tokens(name, array, model):
    """The tokens that the last position would predict if this state were the last one, with probabilities."""
    weights, config, state = model.weights, model.config, array[-1:]  # [1, D], or [1, V]
    if name != "logits":
        normed = state if name == "final_norm" else rms_norm(state, weights.norm, config.rms_norm_eps)  # [1, D]
        state = softcap(linear(normed, weights.embed_tokens), config.final_logit_softcapping)  # [1, V]
    logits = state[0].astype(np.float64)  # [V]
    probs = np.exp(logits - logits.max())  # [V]
    best = np.argsort(-logits, kind="stable")[:LENS]  # [LENS]
    spell = model.tokenizer.token if model.tokenizer else str
    return ", ".join(f"{spell(int(id))!r} {100 * probs[id] / probs.sum():.1f} %" for id in best)
