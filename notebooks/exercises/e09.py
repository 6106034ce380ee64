"""The exercises of notebook 09."""

import numpy as np

from minigemma import Trace
from minigemma.debug.catalogue import FAULTS
from minigemma.debug.replay import compare

from . import Calls, Values


def taps(model):
    """Two arrays of one tap, [T, n] each."""
    trace = Trace("layers.*.resid_post")
    model(model.tokenizer.encode("Anna put the kite in the barn."), tap=trace)
    first, second, *_ = trace.values()
    return {"two layers": (first, second), "a layer and itself": (first, first)}


def errors(ours, theirs):
    return compare("layers.0.resid_post", ours, theirs).errors


TARGETS = {
    "09.1": lambda model: Calls(errors, taps(model)),
    "09.2": lambda model: Values([f"layers.{n.index}.attn.v" for n in model.config.layers if not n.shares_kv]),
    "09.3": lambda model: Values(model.config.hidden_size_per_layer_input**-0.5, tolerance=1e-3),
    "09.4": lambda model: Values(np.zeros(5, bool)),
    "09.5": lambda model: Values([FAULTS[id].probe for id in ("A13", "E9", "G2b", "B9c")]),
    "09.6": lambda model: Values("E2"),
}
