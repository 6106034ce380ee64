"""What a port with a mistake of the catalogue captures, if only a part of it makes the mistake."""

import numpy as np

from minigemma import Trace, forward
from minigemma.debug.catalogue import FAULTS
from minigemma.debug.port import Port
from minigemma.taps import axes_of, time_axis


def captured(model, tokens, id, only=None, layers=None, start=0):
    """The trace of a port with the first form of a mistake, tap: array. only: patterns of taps, as in Trace.

    layers: the numbers of those that make it; None: all. start: the port reads the prompt in two calls, and only the
    second one, from this position on, makes the mistake. Then taps with an axis S are left out, as calls differ in it.
    """
    port, first, trace = Port(model.config, model.weights, tokens), Trace(only), Trace(only)
    port.only, port.start = layers, start
    FAULTS[id].changes[0](port)
    if not start:
        port.run(trace)
        return dict(trace)
    _, port.cache = forward(tokens[:start], model.weights, model.config, tap=first)
    forward(tokens[start:], port.weights, port.config, port.cache, tap=port.watched(trace))
    whole = [name for name in trace if "S" not in axes_of(name)]
    return {name: np.concatenate([first[name], trace[name]], time_axis(name)) for name in whole}
