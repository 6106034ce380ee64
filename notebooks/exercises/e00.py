"""The exercises of notebook 00."""

import course
import numpy as np

from minigemma import count
from minigemma.interventions import token_losses
from minigemma.ops import softmax
from minigemma.released import released_config

from . import Calls, Tap, Values


def greedy(model, ids, most, stops):
    """Without a cache: the whole text goes through the model for each token."""
    text, start = list(ids), len(ids)
    while len(text) < start + most:
        id = int(model(text)[0][-1].argmax())
        if id in stops:
            break
        text.append(id)
    return text[start:]


def greedy_cases(model):
    stops = np.ravel(model.generation_config["eos_token_id"]).tolist()
    beginning = model.tokenizer.encode("Anna put the")
    return {
        "an answer that ends": (model, course.question(model)[:-5], 12, stops),
        "a text that does not end": (model, beginning, 6, stops),
    }


def layer_19(config):
    return 6, config.num_attention_heads, config.layers[19].head_dim


def passes(model):
    """Logits and ids of two texts."""
    for text in (course.FACTS, "Anna put the kite in the"):
        ids = np.array(model.tokenizer.encode(text))
        yield text, (model(ids)[0], ids)


SCORES = np.random.default_rng(0).normal(size=(5, 7))

TARGETS = {
    "00.1": lambda model: Values(count("E2B").total / 2, tolerance=0.01),
    "00.2": lambda model: Calls(softmax, {"small scores": (SCORES,), "scores around 1,000": (SCORES + 1000,)}),
    "00.3": lambda model: Calls(lambda logits, ids: token_losses(logits, ids).mean(), dict(passes(model))),
    "00.4": lambda model: Tap("layers.0.resid_post", course.question(model)),
    "00.5": lambda model: Values(sum(n.window is None and not n.shares_kv for n in released_config("E2B").layers)),
    "00.6": lambda model: Values(layer_19(released_config("E2B"))),
    "00.7": lambda model: Calls(
        lambda logits: int(logits[-1].argmax()), {text: case[:1] for text, case in passes(model)}
    ),
    "00.8": lambda model: Calls(greedy, greedy_cases(model)),
}
