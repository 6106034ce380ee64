"""This machine's numbers against goldens: ids, top logits, greedy tokens and hidden states that a reference computed.

For a user with real weights this is the first command to run. Goldens come from `goldens.json` beside the weights
(weights/training/make_goldens.py makes one with transformers) or, without it, from `published_goldens.json` here: what
others published from Google's weights. minigemma's authors have no released weights, so the published goldens have
never been run; their tolerances are estimates, and each says where it comes from.

Released weights are bfloat16 numbers. minigemma and a reference "in float32" both compute with them in float32 and
differ by the order of their sums alone, with one exception: transformers multiplies the embeddings by sqrt(D) in the
dtype in which the model was loaded (Gemma4TextScaledWordEmbedding). Loaded in float32 that is sqrt(D), as here; loaded
in bfloat16 and converted afterwards it stays rounded, 39.25 for 39.1918 in E2B. Where a golden does not fit, it is
therefore tried with rounded scales as well. Goldens computed in bfloat16 have a tolerance of their own: there, logits
from 16 to 32 are multiples of 0.125, and others have measured how far bfloat16 moves them.

In the real weights that were seen (E2B, 12B, 31B), q_norm and k_norm are one number each in a layer, and their product
times head_dim is near 32: a score is 32 times the cosine of q and k. Weights for which it is not so are no error; the
result says so.
"""

import math
import re
from dataclasses import dataclass, fields
from itertools import chain, cycle, islice
from operator import index
from pathlib import Path
from textwrap import fill

import numpy as np

from ..config import MEDIA_IDS
from ..errors import Error
from ..files import json_number, progress, read_json, table
from ..model import no_tap
from ..packed import narrow, widen
from ..released import RELEASED, released_config, released_name
from ..sampling import prefill
from ..taps import TAPS, Edit, Trace, axes_of, tap_kind

PUBLISHED = Path(__file__).with_name("published_goldens.json")
FITS, TIE, DIFFERS, UNCHECKED = "fits", "tie within rounding", "differs", "not checked"
SCALE = 32  # q_norm x k_norm x head_dim of the real weights that were seen: 31.9 to 32.4
LONGEST = 2**20  # tokens of a golden whose ids are given by a rule


@dataclass(frozen=True)
class Golden:
    """What a reference computed for one prompt, last position."""

    name: str
    model: str  # such as "google/gemma-4-E2B-it"
    source: str
    compute: str  # what the source says of its precision
    ids: list[int]
    top_logits: dict[int, float]  # id -> logit at the last position, after the softcap
    top_logprobs: dict[int, float]  # id -> log-probability there; only their differences are compared
    greedy_tokens: list[int]
    hidden: list[dict]  # {"taps": [names], "l2_norm": ..., "first_8": [...], "largest_4": ...} of the last position
    weights: dict[str, float]  # "layers.0.q_norm" -> its value, the same in all places
    within: dict  # {"logits": absolute, "hidden": relative, "why": ...}
    prompt: str | None = None  # the text of the ids, <bos> left out
    messages: list[dict] | None = None  # or the chat


def read_goldens(path):
    """A goldens file -> [Golden]. Raises Error if it is not one."""
    data = read_json(path)
    entries = data.get("goldens")
    if not isinstance(entries, list) or not entries:
        raise Error(f"{path}: has no list of goldens; weights/training/make_goldens.py writes one")
    return [_golden(data, entry, f"{path}: golden {number}") for number, entry in enumerate(entries)]


FORM = {  # an entry of a goldens file, but for its ids
    "name": str, "model": str, "source": str, "compute": str, "prompt": str,
    "messages": [{"role": str, "content": str}],
    "top_logits": {"indices": [int], "values": [float]},
    "greedy_tokens": [int],
    "top_logprobs": {"indices": [int], "values": [float]},
    "hidden": [
        {"taps": [str], "l2_norm": float, "first_8": [float], "largest_4": {"indices": [int], "values": [float]}}
    ],
}  # fmt: skip
NONE = {"indices": [], "values": []}
LEFT_OUT = {
    "prompt": None, "messages": None, "top_logits": NONE, "top_logprobs": NONE, "greedy_tokens": [], "hidden": [],
}  # fmt: skip
WITHIN = {"logits": float, "hidden": float, "why": str}


def _golden(data, entry, where):
    try:
        whole = LEFT_OUT | {key: value for key, value in entry.items() if value is not None}
        whole["hidden"] = [{"largest_4": NONE} | state for state in whole["hidden"]]
        found = {key: _expect(form, whole[key]) for key, form in FORM.items() if whole[key] is not None}
        for state in found["hidden"]:
            if not state["taps"] or state["l2_norm"] <= 0:
                raise ValueError("a hidden state needs a tap and an l2_norm above 0")
        pairs = [found["top_logits"], found["top_logprobs"], *(state["largest_4"] for state in found["hidden"])]
        found["top_logits"], found["top_logprobs"], *largest = [
            dict(zip(pair["indices"], pair["values"], strict=True)) for pair in pairs
        ]
        for state, values in zip(found["hidden"], largest, strict=True):
            state["largest_4"] = values
        found["weights"] = {str(name): _expect(float, value) for name, value in entry.get("weights", {}).items()}
        return Golden(ids=_ids(entry["ids"]), within=_expect(WITHIN, data["tolerances"][entry["tolerance"]]), **found)
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        example = "weights/tiny/goldens.json shows the form"
        raise Error(f"{where} cannot be read ({type(error).__name__}: {error}); {example}") from None


def _expect(form, value):
    """A JSON value as str, float, int, [form] or {key: form}. Raises TypeError, ValueError or KeyError."""
    if isinstance(form, dict):
        return {key: _expect(part, value[key]) for key, part in form.items()}
    if isinstance(form, list):
        return [_expect(form[0], item) for item in value]
    if form is int:
        return index(value)
    if isinstance(value, str) != (form is str) or (form is float and not math.isfinite(value)):
        raise ValueError(f"{value!r} should be {'text' if form is str else 'a finite number'}")
    return form(value)


def _ids(ids):
    """A list of ids, or the rule {"start": [...], "repeat": [...], "length": N}."""
    if isinstance(ids, dict):
        if index(ids["length"]) > LONGEST:
            raise ValueError(f"length {ids['length']} is more than {LONGEST}")
        ids = islice(chain(ids["start"], cycle(ids["repeat"])), ids["length"])
    return [index(id) for id in ids]


def goldens_for(config, directory):
    """The goldens beside the weights; else the published ones of the released model that has this config's geometry.

    Geometry does not tell a base model from its -it sibling. Where a name in the path does (the hub's cache, a folder
    called gemma-4-E2B-it), the goldens of the other kind are left out; where none does, both kinds are returned. Raises
    Error where no goldens are known.
    """
    beside = Path(directory) / "goldens.json"
    if beside.exists():
        return read_goldens(beside)
    size = _released(config)
    of_size = [golden for golden in read_goldens(PUBLISHED) if released_name(golden.model) == size]
    tuned = _named_tuned(directory)
    fitting = [golden for golden in of_size if tuned in (None, golden.model.endswith("-it"))]
    if not fitting:
        what = "a model of this config.json" if size is None else f"gemma-4-{size}{'-it' if tuned else ''}"
        known = f" (there are some of {of_size[0].model})" if of_size else ""
        make = f"make {beside} with transformers: python weights/training/make_goldens.py --weights {directory}"
        raise Error(f"{directory}: no goldens are known for {what}{known}; {make}")
    return fitting


def _released(config):
    """The name of the released model that has this config's geometry; None if there is none."""
    own = _geometry(config)
    return next((name for name in RELEASED if _geometry(released_config(name)) == own), None)


def _geometry(config):
    """Every fact that decides what the pass computes for text, in a form that `==` compares."""
    aside = {"layers", "source", "max_position_embeddings", "pad_token_id", "use_bidirectional_attention"}
    aside |= {"beside", "vision", "audio", "image_budget", *MEDIA_IDS}
    facts = [getattr(config, field.name) for field in fields(config) if field.name not in aside]
    return facts, [vars(layer) | {"inv_freq": layer.inv_freq.tolist()} for layer in config.layers]


def _named_tuned(directory):
    """True or False where the path names an -it or a base model, None where it does not say."""
    for part in reversed(Path(directory).absolute().parts):
        match = re.fullmatch(r"(models--google--)?gemma-4-.+?(-it)?", part, re.IGNORECASE)
        if match and any(match.groups()):  # a folder called gemma-4-E2B may well hold the -it model
            return match[2] is not None
    return None


def check_goldens(model):
    """Check a model's numbers against its goldens -> a dict for JSON; `report` makes text of it.

    "fits" is True where all goldens of one model fit: a directory whose name does not say whether it holds the base or
    the -it model needs to be only one of them.
    """
    goldens, checks = goldens_for(model.config, model.directory), []
    with progress("verifying", sum(len(golden.ids) for golden in goldens)) as advance:
        for golden in goldens:
            about = {"model": golden.model, "golden": golden.name}
            checks += [about | check for check in _check(model, golden)]
            advance(len(golden.ids))
    models = {}
    for name in dict.fromkeys(golden.model for golden in goldens):
        verdicts = {check["verdict"] for check in checks if check["model"] == name}
        models[name] = DIFFERS not in verdicts and verdicts != {UNCHECKED}
    about = [
        {name: getattr(golden, name) for name in ("name", "model", "source", "compute", "within")} for golden in goldens
    ]
    unusual = list(_unusual(model)) if _released(model.config) else []
    result = {"weights": str(model.directory), "goldens": about, "checks": checks, "models": models, "unusual": unusual}
    return result | {"fits": any(models.values()), "verdict": _verdict(checks, models)}


def _check(model, golden):
    """One golden's checks, in the order in which a prompt runs: ids, hidden states, logits, greedy tokens."""
    _refuse_foreign(golden, model.config)
    checks = [_check_ids(model, golden)] if golden.prompt is not None or golden.messages else []
    checks += [_check_weight(model.weights, name, value) for name, value in golden.weights.items()]
    if not (golden.hidden or golden.top_logits or golden.top_logprobs or golden.greedy_tokens):
        return checks
    numbers = _check_numbers(model, golden, no_tap)
    if DIFFERS in (check["verdict"] for check in numbers):
        rounded = _check_numbers(model, golden, _rounded_scales(model.config))
        if DIFFERS not in (check["verdict"] for check in rounded):
            numbers = [check | {"reading": "embedding scales in bfloat16"} for check in rounded]
    return checks + numbers


def _refuse_foreign(golden, config):
    """Raise Error for ids, taps and sizes that the model does not have."""
    for id in chain(golden.ids, golden.top_logits, golden.top_logprobs, golden.greedy_tokens):
        if not 0 <= id < config.vocab_size:
            raise Error(
                f"golden {golden.name!r}: id {id} is outside this model's vocabulary, 0 to {config.vocab_size - 1}"
            )
    for state in golden.hidden:
        if any(tap_kind(tap) not in TAPS or axes_of(tap)[0] != "T" for tap in state["taps"]):
            raise Error(f"golden {golden.name!r}: {state['taps']} have no row for each token; see minigemma/taps.py")


def _check_weight(weights, name, value):
    """Whether a weight is this number in all places; the place that is farthest off."""
    try:
        *path, last = name.split(".")
        owner = weights.layers[int(path[1])] if path else weights
        array = np.ravel(np.asarray(getattr(owner, last), np.float64))
    except (AttributeError, IndexError, TypeError, ValueError):
        raise Error(f"{name!r} is no weight of this model; names are like layers.0.q_norm") from None
    found = array[np.abs(array - value).argmax()]
    return _row(name, value, found, abs(found - value), 0)


def _unusual(model):
    """Sentences about q_norm and k_norm that are not as in the real weights that were seen."""
    scales, spreads = {}, {}
    for layer, w in zip(model.config.layers, model.weights.layers, strict=True):
        q, k = (np.asarray(x, np.float64) for x in (w.q_norm, model.weights.layers[layer.kv_from].k_norm))  # [H] each
        scales[layer.index] = q.mean() * k.mean() * layer.head_dim
        spreads[layer.index] = max(np.ptp(x) / np.abs(x).max() if x.any() else 0.0 for x in (q, k))
    far, wide = max(scales, key=lambda i: abs(scales[i] - SCALE)), max(spreads, key=spreads.get)
    if not spreads[wide] <= 0.01:
        spread = f"its values differ by {spreads[wide]:.2g} of the largest"
        yield f"q_norm or k_norm of layer {wide} is not one number: {spread}"
    elif not abs(scales[far] - SCALE) <= 1:
        yield f"q_norm x k_norm x head_dim is {scales[far]:.4g} in layer {far}; in the real weights it is near {SCALE}"


def _rounded_scales(config):
    """A tap that makes of the embeddings' exact scales those of a model that was once in bfloat16."""

    def rescale(size):
        exact = size**0.5
        rounded = float(widen(narrow(np.array([exact], np.float32)))[0])
        return lambda array: array * (rounded / exact)

    taps = {"embed": config.hidden_size, "ple.token": config.hidden_size_per_layer_input}
    return Edit({tap: rescale(size) for tap, size in taps.items() if size})


def _check_ids(model, golden):
    tokenizer, found, difference, verdict = model.tokenizer, None, None, UNCHECKED
    if tokenizer is not None:
        if golden.messages:
            found = model.chat_ids(golden.messages)
        else:
            found = tokenizer.encode(golden.prompt, bos=golden.ids[:1] == [tokenizer.bos])
        difference = _places(golden.ids, found)
        verdict = DIFFERS if difference else FITS
    return _row("ids", golden.ids, found, difference, 0, verdict)


def _check_numbers(model, golden, edit):
    """Hidden states, top logits and greedy tokens, the pass changed by the tap `edit`."""
    taps = [tap for state in golden.hidden for tap in state["taps"]]
    trace = Trace(taps)
    if taps or edit is not no_tap:
        logits, cache = model(golden.ids, tap=lambda name, array: trace(name, edit(name, array)), logits="last")
        logits = logits[0]  # [V]
    else:  # in chunks, as a long prompt wants
        logits, cache = prefill(golden.ids, model.weights, model.config)  # [V]
    for tap in taps:
        if tap not in trace:
            raise Error(f"golden {golden.name!r}: {tap!r} is not a tap of this model; names are in minigemma/taps.py")
    checks = [_check_hidden(golden.name, state, trace, golden.within["hidden"]) for state in golden.hidden]
    if golden.top_logits:
        checks.append(_check_logits(logits, golden.top_logits, golden.within["logits"], "logit"))
    if top := golden.top_logprobs:
        first = max(top, key=top.get)
        less = {id: value - top[first] for id, value in top.items()}
        within = 2 * golden.within["logits"]  # of two logits that may each be off
        checks.append(_check_logits(logits - logits[first], less, within, f"logit, less that of {first},"))
    if golden.greedy_tokens:
        rows = logits[None]  # [1, V]
        if forced := golden.greedy_tokens[:-1]:  # each token is judged after theirs, so that one slip is one slip
            more, _ = model(forced, cache, tap=edit)  # [T, V]
            rows = np.concatenate([rows, more])  # [T + 1, V]
        checks.append(_check_greedy(rows, golden))
    return checks


def _check_hidden(name, state, trace, within):
    """The norm or one of the values, whichever is farther off; of several taps it may be, the nearest."""
    values = dict(enumerate(state["first_8"])) | state["largest_4"]
    readings = []
    for tap in state["taps"]:
        vector = trace[tap][-1].astype(np.float64).ravel()  # [D], or all heads
        if not all(0 <= j < len(vector) for j in values):
            raise Error(f"golden {name!r}: {tap} has more values than this model's {len(vector)}")
        norm, rms = np.linalg.norm(vector), state["l2_norm"] / len(vector) ** 0.5
        pairs = [(f"{tap}, norm", state["l2_norm"], norm, state["l2_norm"])]
        pairs += [(f"{tap}, value {j}", value, vector[j], rms) for j, value in values.items()]
        readings.append(_worst([(abs(found - value) / unit, what, value, found) for what, value, found, unit in pairs]))
    difference, what, expected, found = min(readings, key=_size)
    return _row(what, expected, found, difference, within)


def _check_logits(logits, top, within, what):
    """The logit that is farthest off; a token that should not be among the first counts by how far it is."""
    off = [(abs(logits[id] - value), f"{what} of {id}", value, logits[id]) for id, value in top.items()]
    others, lowest = logits.copy(), min(top.values())
    others[list(top)] = -np.inf
    highest = int(others.argmax())
    if not others[highest] <= lowest:
        known = f"{what} of {highest}, not in their first {len(top)}"
        off.append((others[highest] - lowest, known, lowest, others[highest]))
    difference, what, expected, found = _worst(off)
    return _row(what, expected, found, difference, within)


def _check_greedy(rows, golden):
    """rows [T, V], each after their tokens before it. Logits that may each be off by `within` tie within twice that."""
    chosen, theirs = rows.argmax(-1), golden.greedy_tokens  # [T] each
    there = np.arange(len(theirs))
    behind = float((rows[there, chosen] - rows[there, theirs]).max())
    within, same = 2 * golden.within["logits"], chosen.tolist() == theirs
    verdict = DIFFERS if not behind <= within else FITS if same else TIE
    return _row("greedy tokens", theirs, chosen.tolist(), behind, within, verdict)


def _row(what, expected, found, difference, within, verdict=None):
    """A check as JSON has it: a number that is not finite is null, and never fits."""
    verdict = verdict or (FITS if difference <= within else DIFFERS)
    found, difference = (value if isinstance(value, list) else json_number(value) for value in (found, difference))
    row = {"what": what, "expected": expected, "found": found, "difference": difference, "within": within}
    return row | {"verdict": verdict}


def _size(reading):
    return math.inf if math.isnan(reading[0]) else reading[0]


def _worst(readings):
    return max(readings, key=_size)


def _places(expected, found):
    """In how many places two lists of ids differ."""
    return sum(a != b for a, b in zip(expected, found, strict=False)) + abs(len(expected) - len(found))


def _verdict(checks, models):
    """One sentence."""
    for name in (name for name, fits in models.items() if fits):
        own = [check for check in checks if check["model"] == name]
        verdicts = {check["verdict"] for check in own}
        readings = {check["reading"] for check in own if "reading" in check}
        notes = [f", some with {reading}" for reading in readings]
        notes += [", with a greedy token that ties within rounding"] * (TIE in verdicts)
        notes += [", but ids were not checked: there is no tokenizer.json"] * (UNCHECKED in verdicts)
        count = _count(own)
        fit = f"All {count} goldens of {name} fit" if count > 1 else f"The golden of {name} fits"
        return f"{fit}{''.join(notes)}."
    wrong = [check for check in checks if check["verdict"] == DIFFERS]
    if not wrong:
        return "Nothing was checked: these goldens hold ids alone, and there is no tokenizer.json."
    first = f"{_count(wrong)} of {_count(checks)} goldens differ, first in {wrong[0]['golden']}: {wrong[0]['what']}"
    if all(check["what"] == "ids" for check in wrong):
        return f"{first}; the numbers fit, so it is tokenizer.json, or how it is read, that is wrong."
    return f"{first}; either the weights are not those of {' or '.join(models)}, or the pass is wrong."


def _count(checks):
    return len({(check["model"], check["golden"]) for check in checks})


def goldens_text(result):
    """verify's dict as text: the sources, one table, the tolerances, the verdict."""
    heads = ["golden", "what", "expected", "found", "difference", "verdict"]
    rows = []
    for check in result["checks"]:
        verdict = check["verdict"] + (f", {check['reading']}" if "reading" in check else "")
        rows.append((check["golden"], check["what"], *_pair(check), _difference(check), verdict))
    sources = dict.fromkeys((golden["model"], golden["source"], golden["compute"]) for golden in result["goldens"])
    tolerances = dict.fromkeys(tuple(golden["within"].values()) for golden in result["goldens"])
    reasons = [
        f"Logits within {logits:g}, hidden states within {hidden:g} of their size: {why}."
        for logits, hidden, why in tolerances
    ]
    paragraphs = [
        "\n".join([result["weights"], *(f"{model}: {source} ({compute})" for model, source, compute in sources)])
    ]
    unusual = [f"Unusual: {sentence}." for sentence in result["unusual"]]
    paragraphs += [table(heads, rows), *(fill(reason, 118) for reason in reasons), *unusual, result["verdict"]]
    return "\n\n".join(paragraphs)


def _pair(check):
    """expected and found as cells: numbers, or the number of ids, or the first ids that differ."""
    expected, found = check["expected"], check["found"]
    if not isinstance(expected, list):
        return f"{expected:.6g}", "not finite" if found is None else f"{found:.6g}"
    if found is None:
        return f"{len(expected)} ids", ""
    if expected == found:
        return f"{len(expected)} ids", f"{len(found)} ids"
    place = next(i for i in range(len(expected) + 1) if expected[i : i + 1] != found[i : i + 1])
    return tuple(f"{ids[place]} at {place}" if place < len(ids) else f"{place} ids" for ids in (expected, found))


def _difference(check):
    """A number of ids is whole; 0.0 is what greedy tokens that are all ours differ by."""
    difference = check["difference"]
    if difference is None:
        return "" if check["verdict"] == UNCHECKED else "not finite"
    return f"{difference:.0f}" if difference == 0 or isinstance(difference, int) else f"{difference:.1e}"
