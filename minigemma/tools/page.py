"""A pass as one HTML file that a browser shows tap by tap: the architecture, the numbers, the line of the pass.

The file needs no network and no other file. `page.html` beside this module is its template. A model with PLE is shown
with it and without it. Every number of the file has three significant digits and takes 16 bits, see `encode`.
"""

import base64
import gzip
import hashlib
import html
import json
import linecache
import re
from pathlib import Path

import numpy as np

from ..errors import Error
from ..files import replacing
from ..model import __doc__ as MAP
from ..taps import Edit, Trace, axes_of, part_of, place_in_pass, tap_kind, tap_of, time_axis
from .palette import PALETTE
from .step import logits_of, most_probable

TEMPLATE = Path(__file__).with_suffix(".html")
MOST_TOKENS = 48
MOST_NUMBERS = 256  # of one tap at one token
LARGEST = 2_000_000  # numbers of a page; a number takes about 2 bytes of it
LENS = 5  # tokens that are shown
LENS_ROWS = 64  # states whose logits are in memory at a time
LOWEST = -22  # the smallest exponent of `encode`
NOT_FINITE = 64000  # the code of NaN; infinity and minus infinity follow
# One layer and what is around it, row by row. A row whose tap is missing in a layer is not drawn there.
DIAGRAM = (
    "embed", "ple.token ple.context", "ple",
    "resid_pre", "attn.in", "attn.q_raw attn.k_raw attn.v_raw", "attn.q attn.k attn.v", "attn.rot_q attn.rot_k",
    "attn.scores", "attn.pattern", "attn.z", "attn.o", "attn_out",
    "resid_mid", "mlp.in", "mlp.gate mlp.up", "mlp.act", "mlp.down",
    "router.probs", "router.weights router.experts", "mlp.dense_out mlp.moe_out", "mlp_out",
    "resid_ffn", "ple.gate", "ple.gated", "ple.proj", "ple_out", "resid_post",
    "final_norm", "logits",
)  # fmt: skip
# The part of the model that a tap belongs to, by the first word of its name.
PARTS = {
    "embed": "embedding", "ple": "PLE", "attn": "attention", "mlp": "MLP", "router": "experts", "resid": "norms",
    "final": "norms", "logits": "embedding",
}  # fmt: skip


class Recorder(Trace):
    """A Trace that also keeps the line of the pass that makes each tap, by the tap's kind."""

    def __init__(self):
        super().__init__()
        self.lines = {}

    def __call__(self, name, array):
        frame, place = place_in_pass()
        self.lines[tap_kind(name)] = [place, linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()]
        return super().__call__(name, array)


def write_page(path, model, ids, text):
    """Write the page of a text's pass to `path` -> its facts, as `page_facts` gives them.

    Raises Error for more tokens than a page shows, and where `path` cannot be written.
    """
    if len(ids) > MOST_TOKENS:
        raise Error(f"the text has {len(ids)} tokens, and a page shows at most {MOST_TOKENS}; shorten it")
    facts, codes = page_facts(model, ids, text)
    planes = codes.astype("<u2").view(np.uint8).reshape(-1, 2).T  # low bytes, then high bytes: they pack better
    template = TEMPLATE.read_text(encoding="utf-8")
    script = re.search(r"<script>(.*?)</script>", template, re.DOTALL)[1]
    blanks = {
        "title": html.escape(f"{facts['model']}: {text}"),
        "script": base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        "facts": json.dumps(facts, ensure_ascii=False, separators=(",", ":")).replace("<", "\\u003c"),
        "numbers": base64.b64encode(gzip.compress(planes.tobytes(), mtime=0)).decode(),
    }
    with replacing(path) as temporary:
        page = re.sub(r"\{\{(\w+)\}\}", lambda blank: blanks[blank[1]], template)
        temporary.write_text(page, encoding="utf-8", errors="replace")  # a folder's name may hold any bytes
    return facts


def page_facts(model, ids, text):
    """What a page shows: facts for JSON, and the codes of all its numbers, [n].

    A record is the rms, the least and the largest number of a tap at one token, and then its numbers: all, or of each
    row every n-th, as many as the page has room for. The records of a tap's tokens follow one another.
    """
    config, traces = model.config, [Recorder()]
    model(ids, tap=traces[0])
    if config.hidden_size_per_layer_input:
        traces.append(Recorder())
        silent = Edit({"layers.*.ple_out": np.zeros_like})
        model(ids, tap=lambda name, array: traces[1](name, silent(name, array)))
    most, spell = most_numbers(traces), model.tokenizer.token
    taps, codes, places, end = [], [], {}, 0
    for name in traces[0]:
        sides = [by_token(name, trace[name]) for trace in traces]  # [T, rows, width] each
        _, rows, width = sides[0].shape
        every = spacing(rows, width, most)
        tap = {"name": name, "shape": traces[0][name].shape, "rows": rows, "width": width, "every": every, "at": []}
        for side in sides:
            record = np.concatenate([statistics(side), side[..., ::every].reshape(len(ids), -1)], axis=1)
            place = places.setdefault(record.tobytes(), end)  # the same numbers are stored once
            tap["at"].append(place)
            if place == end:
                codes.append(encode(record).ravel())
                end += record.size
        tap["apart"] = [differences(*sides)] if len(sides) > 1 else []
        taps.append(tap)
    lenses = [lens(trace, model) for trace in traces]
    words = {id for table in lenses for rows in table.values() for row in rows for id, _ in row}
    facts = {
        "model": model.directory.name,
        "text": text,
        "tokens": [spell(id) for id in ids],
        "sides": ["with PLE", "without PLE: its write, ple_out, is 0"][: len(traces)] if len(traces) > 1 else [""],
        "layers": [
            {
                "kind": "global attention" if layer.window is None else f"sliding attention, window {layer.window:,}",
                "colour": "attention" if layer.window else "global attention",
                "kv_from": layer.kv_from,
                "scalar": float(f"{float(np.ravel(w.layer_scalar)[0]):.3g}"),
            }
            for layer, w in zip(config.layers, model.weights.layers, strict=True)
        ],
        "taps": taps,
        "kinds": {
            kind: {"axes": axes_of(kind), "made_by": tap_of(kind).made_by, "line": line}
            for kind, line in traces[0].lines.items()
        },
        "letters": letters(),
        "diagram": [row.split() for row in DIAGRAM],
        "parts": PARTS,
        "colours": PALETTE,
        "lenses": lenses,
        "words": {id: spell(id) for id in sorted(words)},
        "lowest": LOWEST,
        "not_finite": NOT_FINITE,
    }
    return facts, np.concatenate(codes)


def by_token(name, array):
    """A tap's array with its tokens first and all other axes but the last as one: [T, rows, width]."""
    array = np.moveaxis(array, time_axis(name), 0)
    return array.reshape(len(array), -1, array.shape[-1])


def most_numbers(traces):
    """How many numbers of one tap at one token fit into a page: MOST_NUMBERS, or a half of it, a quarter, ..."""
    shapes, most = [by_token(name, array).shape for name, array in traces[0].items()], MOST_NUMBERS
    while most > 1 and size_of(traces, shapes, most) > LARGEST:
        most //= 2
    return most


def size_of(traces, shapes, most):
    """How many numbers are kept where a tap has at most `most` at one token; shapes: (T, rows, width) of each tap."""
    return len(traces) * sum(T * rows * -(-width // spacing(rows, width, most)) for T, rows, width in shapes)


def spacing(rows, width, most):
    """Of each row every n-th number is kept -> n, so that all rows have at most `most`, but each at least one."""
    return -(-width // max(1, most // rows))


def statistics(array):
    """The rms, the least and the largest number at each token. array: [T, rows, width] -> [T, 3]."""
    rms = np.sqrt(np.mean(np.square(array, dtype=np.float64), axis=(1, 2)))  # [T]
    return np.stack([rms, array.min((1, 2)), array.max((1, 2))], axis=1)  # [T, 3]


def differences(array, other):
    """Relative difference of two arrays [T, rows, width] at each token, two digits; null where the first is 0."""
    apart, size = (np.linalg.norm(x.astype(np.float64), axis=(1, 2)) for x in (other - array, array))  # [T] each
    ratios = np.divide(apart, size, out=np.full(len(size), np.nan), where=size > 0)  # [T]
    return [float(f"{ratio:.2g}") if np.isfinite(ratio) else None for ratio in ratios]


def encode(x):
    """Numbers -> their three significant digits as codes of 16 bits, of the same shape.

    x = digits * 10**exponent has the code 2000 * (exponent - LOWEST) + digits + 1000, where digits is 100 to 999 or
    -999 to -100, or 0. Numbers that are too small for LOWEST are 0.
    """
    x = np.asarray(x, dtype=np.float64)
    size = np.where(np.isfinite(x), np.abs(x), 0)
    exponent = np.floor(np.log10(size, out=np.full(x.shape, LOWEST + 2.0), where=size > 0)) - 2
    power = 10.0 ** np.abs(exponent)  # a negative power of ten would not be exact
    digits = np.rint(np.where(exponent < 0, np.where(np.isfinite(x), x, 0) * power, np.nan_to_num(x) / power))
    carry = np.abs(digits) == 1000  # 9.996 has the digits 100 and one exponent more
    digits, exponent = np.where(carry, np.sign(digits) * 100, digits), exponent + carry - LOWEST
    digits = np.where(exponent < 0, 0, digits)
    codes = 2000 * np.clip(exponent, 0, NOT_FINITE // 2000 - 1) + digits + 1000
    codes = np.where(np.isnan(x), NOT_FINITE, codes)
    return np.where(np.isinf(x), NOT_FINITE + 1 + (x < 0), codes).astype(np.uint16)


def lens(trace, model):
    """What the states of the residual stream would predict: tap -> for each token its LENS best [id, percent]."""
    names = [name for name in trace if part_of(name) in ("embed", "resid_mid", "resid_ffn", "resid_post")]
    states = np.concatenate([trace[name] for name in names])  # [states * T, D]
    best = []
    for start in range(0, len(states), LENS_ROWS):
        ids, percents = most_probable(logits_of(states[start : start + LENS_ROWS], model), LENS)  # [rows, LENS] each
        best += [
            [[int(id), float(f"{percent:.3g}")] for id, percent in zip(*row, strict=True)]
            for row in zip(ids, percents, strict=True)
        ]
    tokens = len(trace["embed"])
    return {name: best[i * tokens : (i + 1) * tokens] for i, name in enumerate(names)}


def letters():
    """What each letter of an axis counts, as the head of model.py says it."""
    listed = MAP.partition("Letters: ")[2].partition(".")[0].replace("\n", " ").split(", ")
    return dict(entry.split(" ", 1) for entry in listed)
