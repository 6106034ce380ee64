"""The exercises of notebook 09."""

import course
import numpy as np

from minigemma import Trace
from minigemma.checkpoint import read_unused
from minigemma.debug.catalogue import FAULTS
from minigemma.debug.diagnosis import diagnose
from minigemma.debug.diff import compare_traces
from minigemma.debug.port import Port
from minigemma.debug.replay import compare
from minigemma.debug.runs import Run

from . import OPEN, Calls, Judged, Values


def taps(model):
    """Two arrays of one tap, [T, n] each."""
    trace = Trace("layers.*.resid_post")
    model(model.tokenizer.encode("Anna put the kite in the barn."), tap=trace)
    first, second, *_ = trace.values()
    return {"two layers": (first, second), "a layer and itself": (first, first)}


def errors(ours, theirs):
    return compare("layers.0.resid_post", ours, theirs).errors


def traced_port(model, ids, *changes):
    """The trace of a port with these changes."""
    port, trace = Port(model.config, model.weights, ids), Trace()
    for change in changes:
        change(port)
    port.run(trace)
    return dict(trace)


def first_wrong(model):
    """A function: the trace of a port and its ids -> its first op that is wrong on its own inputs."""
    return lambda theirs, ids: compare_traces(theirs, Run(model, ids, theirs), "float32").first_broken


def ports(model):
    """Ports with a mistake each: the trace, and its ids."""
    ids = model.tokenizer.encode(course.FACTS)
    made = {"an early mistake": "B3", "a late one": "E5", "one in every layer": "D2"}
    return {title: (traced_port(model, ids, FAULTS[id].changes[0]), ids) for title, id in made.items()}


def judge_unknown(model):
    """A function: a student's mistake, a function of a port -> why it is not a new one, or None."""
    ids = model.tokenizer.encode("Anna put the kite in the barn.")

    def wrong(mine):
        if not callable(mine):
            return "give a function of a port"
        theirs = traced_port(model, ids, mine)
        found = diagnose(theirs, Run(model, ids, theirs))
        if found.comparison.first_broken and found.comparison.first_broken.endswith("attn.z"):
            return "that is the notebook's own; take another op"
        if found.verdict == "healthy":
            return f"{OPEN}, or your mistake changes nothing"
        return None if found.verdict == "unknown" else f"the verdict is {found.verdict}: {found.sentence}"

    return wrong


def seen(model):
    """Which of four mistakes of the cache change the logits of which of three prompts, [4, 3]."""
    window, unused = model.config.sliding_window, read_unused(model.directory, model.config)
    ids = np.resize(model.tokenizer.encode(course.FACTS), window + 2)
    found = []
    for id in ("F1", "F3", "F5", "F11"):
        found.append([])
        for count, prefill in ((window // 2, None), (window + 2, None), (8, 4)):
            right = Port(model.config, model.weights, ids[:count]).run()
            port = Port(model.config, model.weights, ids[:count], unused=unused)
            FAULTS[id].changes[0](port)
            found[-1].append(compare("logits", right, port.run(prefill=prefill)).error > 1e-5)
    return np.array(found)


TARGETS = {
    "09.1": lambda model: Calls(errors, taps(model)),
    "09.2": lambda model: Calls(first_wrong(model), ports(model)),
    "09.3": lambda model: Values([f"layers.{n.index}.attn.v" for n in model.config.layers if not n.shares_kv]),
    "09.4": lambda model: Judged(judge_unknown(model)),
    "09.5": lambda model: Values(model.config.hidden_size_per_layer_input**-0.5, tolerance=1e-3),
    "09.6": lambda model: Values(np.zeros(5, bool)),
    "09.7": lambda model: Values([FAULTS[id].probe for id in ("A13", "E9", "G2b", "B9c")]),
    "09.8": lambda model: Values(seen(model)),
    "09.9": lambda model: Values("E2"),
}
