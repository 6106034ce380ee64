"""The exercises of notebook 01."""

import course
import numpy as np

from minigemma import Trace
from minigemma.released import released_config

from . import Calls, Tap, Values


def layers(model):
    return model.config.num_hidden_layers


def per_layer_inputs(model):
    """PLE's vectors of ids, from the pass."""

    def made(ids, weights, config):
        trace = Trace("ple")
        model(ids, tap=trace)
        return trace["ple"]

    return made


def cases(model):
    return {
        text: (np.array(model.tokenizer.encode(text)), model.weights, model.config) for text in ("Anna", course.FACTS)
    }


def own_slice(model):
    """The last layer's lookup, [T, P]."""
    trace = Trace("ple.token")
    model(course.question(model), tap=trace)
    return trace["ple.token"][:, -1]


E2B = released_config("E2B")

TARGETS = {
    "01.1": lambda model: Tap("embed", course.question(model)),
    "01.2": lambda model: Values(own_slice(model), "T P"),
    "01.3": lambda model: Tap("ple.context", course.question(model)),
    "01.4": lambda model: Tap("ple", course.question(model)),
    "01.5": lambda model: Calls(per_layer_inputs(model), cases(model), "T L P"),
    "01.6": lambda model: Tap(f"layers.{layers(model) - 2}.ple_out", course.question(model)),
    "01.7": lambda model: Values([True, True, True, False]),
    "01.9": lambda model: Values(2 * E2B.num_hidden_layers * E2B.hidden_size_per_layer_input),
}
