"""The exercises of notebook 06."""

import course
import numpy as np

from minigemma import Trace
from minigemma.model import forward
from minigemma.ops import linear, rms_norm, softcap, softmax
from minigemma.sampling import sample

from . import Calls, Judged, Values, judge, traced


def layer_cases(model):
    """Arguments of a layer -> what it returns, on the question, at once and behind a cache of 20 positions."""
    trace = traced(model, tuple(course.question(model)))
    config, first = model.config, model.config.first_kv_shared_layer
    cases = {}
    for i in (0, first - 1, first, config.num_hidden_layers - 1):
        layer, donor = config.layers[i], config.layers[i].kv_from
        kv = trace[f"layers.{donor}.attn.rot_k"], trace[f"layers.{donor}.attn.v"]  # [T, K, H] each
        kind = f"layer {i}, {'sliding' if layer.window else 'global'}, {'reads' if layer.shares_kv else 'writes'}"
        for start in (0, 20):
            given = kv if layer.shares_kv else tuple(part[:start] for part in kv)
            x, out = (trace[f"layers.{i}.{name}"][start:] for name in ("resid_pre", "resid_post"))
            where = f"{kind}, behind {start} positions" if start else kind
            arguments = x, trace["ple"][start:, i], given, layer, model.weights.layers[i], config
            cases[where] = arguments, (out, *kv)
    return cases


def wrong_layer(model):
    """A function: a student's layer -> what is wrong with it, or None."""

    def wrong(mine):
        cases = layer_cases(model)
        for place, name in enumerate(("x", "the keys", "the values")):
            answers = {id(arguments[0]): right[place] for arguments, right in cases.values()}
            given = {where: arguments for where, (arguments, _) in cases.items()}

            def theirs(*arguments, place=place):
                answer = mine(*arguments)
                if answer is None or answer is ...:
                    return None
                x, kv = answer
                return (x, *kv)[place]

            for where, arguments in given.items():
                right = answers[id(arguments[0])]
                target = Calls(lambda *_, right=right: right, {where: arguments}, "T D" if not place else "")
                verdict, words = judge(target, theirs)
                if not verdict:
                    return f"{name}: {words}" if place else words
        return None

    return wrong


def lens(model):
    def right(x):
        final = rms_norm(x[None], model.weights.norm, model.config.rms_norm_eps)
        return softmax(softcap(linear(final, model.weights.embed_tokens), model.config.final_logit_softcapping))[0]

    return right


def states(model):
    trace = traced(model, tuple(course.question(model)))
    return {f"after layer {i}": (trace[f"layers.{i}.resid_post"][-1],) for i in (0, model.config.num_hidden_layers - 1)}


def scores(model):
    """The logits behind the beginning of a story, [V]."""
    logits, _ = model(model.tokenizer.encode("Anna put the kite in the"), logits="last")
    return logits[0].astype(float)


def kept(ranked, top_p):
    n, total = 0, 0.0
    while total < top_p and n < len(ranked):
        total, n = total + ranked[n], n + 1
    return n


def wrong_sample(model):
    """A function: a student's sampler -> what is wrong with it, or None."""

    def wrong(mine):
        given = scores(model)
        for settings in ((1.5, 20, 0.9), (0.7, 5, 1.0), (1.0, 40, 0.5)):
            for seed in range(60):
                right = sample(given, np.random.default_rng(seed), *settings)
                answer = mine(given.copy(), np.random.default_rng(seed), *settings)
                if answer is None or answer is ...:
                    return "the hole is still open, or your function returns nothing"
                if answer != right:
                    shown = "temperature {}, top_k {}, top_p {}".format(*settings)
                    return f"with {shown} and seed {seed} it draws {answer}, not {right}"
        return None

    return wrong


def culprit(model):
    """The tap that the notebook makes 1% too large."""
    ids = np.array(course.question(model))
    trace = Trace()
    model(ids, tap=trace)
    rng = np.random.default_rng(int(ids.sum()))
    return str(rng.choice([name for name in list(trace)[: len(trace) // 2] if name.startswith("layers.")]))


TARGETS = {
    "06.1": lambda model: Values([8, 6]),
    "06.2": lambda model: Judged(wrong_layer(model)),
    "06.3": lambda model: Calls(
        lambda ids, weights, config: forward(ids, weights, config)[0],
        {
            text[:20]: (np.array(model.tokenizer.encode(text)), model.weights, model.config)
            for text in (course.FACTS, "The stars came out one by one, and Tom fell asleep. " * 4)
        },
        "T V",
    ),
    "06.5": lambda model: Calls(lens(model), states(model)),
    "06.6": lambda model: Calls(
        lambda scores, tau: softmax(scores / tau), {f"temperature {tau}": (scores(model), tau) for tau in (0.5, 2.0)}
    ),
    "06.7": lambda model: Calls(
        kept, {f"p = {p}": (np.sort(softmax(scores(model)))[::-1], p) for p in (0.1, 0.5, 0.9)}
    ),
    "06.8": lambda model: Judged(wrong_sample(model)),
    "06.9": lambda model: Values(culprit(model)),
}
