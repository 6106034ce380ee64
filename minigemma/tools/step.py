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
    state = array[-1:]  # [1, D], or [1, V]
    if name == "final_norm":
        state = head(state, model)  # [1, V]
    elif name != "logits":
        state = logits_of(state, model)  # [1, V]
    ids, percents = most_probable(state, LENS)  # [1, LENS] each
    spell = model.tokenizer.token if model.tokenizer else str
    return ", ".join(f"{spell(int(id))!r} {percent:.1f} %" for id, percent in zip(ids[0], percents[0], strict=True))


def logits_of(states, model):
    """The logit lens: the final norm and the head on states of any depth, [n, D] -> [n, V]."""
    return head(rms_norm(states, model.weights.norm, model.config.rms_norm_eps), model)


def head(normed, model):
    """The tied head and the softcap, [n, D] -> [n, V]."""
    return softcap(linear(normed, model.weights.embed_tokens), model.config.final_logit_softcapping)


def most_probable(logits, count):
    """The ids of the largest logits and their probabilities in percent: logits [n, V] -> [n, count] each."""
    logits = logits.astype(np.float64)  # [n, V]
    ids = np.argpartition(-logits, count - 1)[:, :count]  # [n, count]
    ids = np.take_along_axis(ids, np.argsort(-np.take_along_axis(logits, ids, -1)), -1)  # [n, count], largest first
    probs = np.exp(logits - logits.max(-1, keepdims=True))  # [n, V]
    return ids, 100 * np.take_along_axis(probs, ids, -1) / probs.sum(-1, keepdims=True)
