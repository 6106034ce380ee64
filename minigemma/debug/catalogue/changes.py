"""Small functions that return a change: a function of a Port that puts a mistake into it.

An edit is a function(at, x): `at` says where the pass is (port.At), x is the array of the tap. It returns the array to
go on with.
"""

import numpy as np

from ...ops import softmax
from ...packed import narrow, widen


def edited(tap, edit):
    """The tap's array becomes edit(at, x). A layer's tap is named without its layer, and edited in every layer."""
    return lambda port: port.edit(tap, edit)


def passes(tap, of):
    """The tap passes on the array of an earlier tap: what stands between the two is left out."""
    return edited(tap, lambda at, x: at[of])


def scaled(tap, by):
    """The tap's array is multiplied by by(at)."""
    return edited(tap, lambda at, x: x * by(at))


def zeroed(tap):
    """The tap's array is all zeros."""
    return edited(tap, lambda at, x: np.zeros_like(x))


def rolled(tap, axis):
    """Everything along this axis of the tap's array moves on by one place, the last to the first."""
    return edited(tap, lambda at, x: np.roll(x, 1, axis))


def layer_facts(facts, kind=None, sharing=None):
    """Layers of this kind get other fields of their config: facts(layer) -> name: value. None: layers of any kind."""
    return lambda port: port.change_layers(facts, kind, sharing)


def layer_weights(weights, sharing=None):
    """Layers get other weights: weights(layer, w) -> name: array, where w holds the layer's weights."""

    def change(port):
        for layer, w in port.layers(sharing=sharing):
            vars(w).update(weights(layer, w))

    return change


def ones(name):
    """This weight is 1 in every layer, as if it were left out."""
    return layer_weights(lambda layer, w: {name: np.ones_like(getattr(w, name))})


def together(*changes):
    """One mistake that needs several changes."""

    def change(port):
        for one in changes:
            one(port)

    return change


def to_bfloat16(x):
    """Float32 numbers rounded to bfloat16, as float32."""
    return widen(narrow(np.asarray(x, np.float32)))


def half(x):
    """Numbers rounded to float16, in their own type."""
    return x.astype(np.float16).astype(x.dtype)


def masked_softmax(at, seen, scores=None):
    """The pattern of a layer whose queries see these keys, seen [T, S] -> [N, T, S]. scores: None, the layer's own."""
    return softmax(np.where(seen, at["attn.scores"] if scores is None else scores, -np.inf))
