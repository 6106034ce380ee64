"""Another engine's ops judged without any weights: for people whose checkpoint does not fit into this machine.

Many ops of Gemma 4 have no weights: RoPE, softmax, GELU, residual sums. Where a trace holds what goes into such an op
and what comes out, the op is computed again from their inputs, and judged as `diff` judges it. A norm's weight and
layer_scalar are fitted to their own output: many rows share them, so they cannot hide a mistake in the norm itself.
"""

import numpy as np

from ..errors import Error
from ..inputs import check_memory
from ..ops import attention_scores, attention_values, gelu, rms_norm, rope, rotation, softmax, top_k, visible
from ..taps import PRECISIONS, part_of, tap_of, time_axis
from .diff import MARGIN, ROUNDING, Comparison, Noise, Row, stored_precision
from .foreign import part_that_has, read_trace
from .replay import compare, unmasked
from .runs import angles_in_float32, looking_ahead
from .samerun import notes_of

PEAK = 160  # bytes of memory for each number of the largest array, measured with tracemalloc: 80 to 140
ROWS = 8  # a weight is fitted to at least so many rows: one row could be fitted exactly


def check_ops(theirs, config, length, tokens=None, precision=None):
    """Judge every op of the text model that needs no weights -> diff.Comparison, with rows of the judged taps only.

    theirs: tap -> array; those of towers are left out. length: T, the number of tokens. tokens: their ids [T], which
    matter only if there are pictures. precision: as in `diff`. Raises Error where no op can be judged, where the arrays
    have more positions than the prompt, and where they need more memory than there is.
    """
    theirs = {name: array for name, array in theirs.items() if part_that_has(name) == "text"}
    longest = max((np.shape(array)[time_axis(name)] for name, array in theirs.items()), default=0)
    if longest > length:
        raise Error(f"the trace has {longest} positions and the prompt {length} ids; give the ids that their run had")
    largest = max((np.size(array) for array in theirs.values()), default=0)
    check_memory(PEAK * largest, f"to check {len(theirs)} taps", "capture a shorter prompt, or fewer taps")
    last = None if tokens is None else looking_ahead(tokens, config)  # [T]
    given = precision or stored_precision(theirs) or "float32"
    found = judged(theirs, config, length, last, given)
    if not found.rows:
        raise Error(
            "no op can be judged: record what goes into an op and what comes out of it, such as layers.0.attn.q and "
            "layers.0.attn.rot_q"
        )
    if found.first_broken and precision is None:
        for coarser in PRECISIONS[PRECISIONS.index(given) + 1 :]:
            if judged(theirs, config, length, last, coarser).first_broken is None:
                found.sentence += f"; {coarser} rounding would explain all: if they use it, give --precision {coarser}"
                break
    return found


def check_file(path, config, ids=None, mapping=None, precision=None, start=None):
    """`check_ops` of a file -> Comparison, with notes. Arguments as in diff.diff_file; the ids may be missing."""
    trace = read_trace(path, config, mapping, ids, start=start)
    found = check_ops(trace.arrays, config, trace.length, trace.tokens, precision)
    found.unread, rest = [*trace.unread], len(trace.arrays) - len(found.rows)
    more = f"{rest} other taps need weights, or what goes into them was not captured"
    found.notes += [*notes_of(trace), *([more] if rest else [])]
    return found


def judged(theirs, config, length, last, precision):
    """The Comparison at one number format."""
    rows, noise = [], Noise(ROUNDING[precision], 0)
    exact, usual = (operations(config, length, last, turn) for turn in (rotation, angles_in_float32))
    for name, (inputs, op) in exact.items():
        if not {name, *inputs} <= theirs.keys():
            continue
        y = np.asarray(theirs[name], np.float64)
        xs = [_rows(key, theirs[key], y.shape[time_axis(name)], length) for key in inputs]
        if any(x is None for x in xs):
            continue
        with np.errstate(all="ignore"):
            made = op(y, *xs)
            if made is None or made[0].shape != made[1].shape or not np.isfinite(made[0]).all():
                continue  # too few rows to fit a weight; arrays of several lengths; or what goes in is not finite
            ours, seen = made
            own = compare(name, ours, unmasked(name, seen, ours, config, length, last))
            healthy = compare(name, ours, noise(name, usual[name][1](y, *xs)[0])).error
        allowed = MARGIN * max(healthy, 1e-12)
        verdict = "OK" if own.error <= allowed else "BROKEN"
        rows.append(Row(name, tuple(np.shape(theirs[name])), verdict, None, own, allowed))
    bad = next((row for row in rows if row.verdict == "BROKEN"), None)
    sentence = f"all {len(rows)} ops that need no weights are right within {precision} rounding"
    if bad:
        wrong = sum(row.verdict == "BROKEN" for row in rows)
        sentence = (
            f"the first broken op is {bad.name} ({tap_of(bad.name).made_by}): on their own inputs it is off by "
            f"{bad.own.error:.1e}, where {precision} rounding allows {bad.allowed:.1e}; {wrong} of {len(rows)} ops "
            "that need no weights are broken"
        )
    return Comparison(rows, precision, sentence, bad and bad.name, allowed={row.name: row.allowed for row in rows})


def _rows(key, array, count, length):
    """What an op reads of an array: the last `count` positions, of keys and values all; None where some are missing."""
    count = length if part_of(key) in ("attn.rot_k", "attn.v") else count
    axis = time_axis(key)
    there = np.shape(array)[axis]
    if there < count:
        return None
    return np.take(np.asarray(array, np.float64), range(there - count, there), axis)


def operations(config, length, last, turn):
    """Every op without weights, in the order of execution: tap -> (the taps that it reads, the op).

    An op takes the array that the engine made and those that it reads, and gives a pair: what is right, and what of
    the engine's array is compared with it. None: it cannot be judged. turn: ops.rotation, or one that rounds.
    """
    ops = {}
    if config.hidden_size_per_layer_input:
        ops["ple"] = ("ple.context", "ple.token"), lambda y, context, token: ((context + token) * 2**-0.5, y)
    for layer in config.layers:
        ops |= _of_layer(config, layer, length, last, turn)
    end = f"layers.{config.num_hidden_layers - 1}.resid_post"
    ops["final_norm"] = (end,), _norm(config)

    def capped(y):  # without weights only the limit is known: compare the largest of each position, [T, 1]
        peak, cap = np.abs(y).max(-1, keepdims=True), config.final_logit_softcapping
        return (np.minimum(peak, cap), peak) if cap and (peak > cap).any() else None

    ops["logits"] = (), capped
    return ops


def _of_layer(config, layer, length, last, turn):
    """The ops of one layer, as in `operations`."""
    i, eps = layer.index, config.rms_norm_eps
    norm, add = _norm(config), lambda y, x, more: (x + more, y)

    def rotated(y, x):
        return rope(x, *turn(np.arange(length - len(x), length), layer.inv_freq, x.dtype)), y

    def attended(y, scores):
        T, S = scores.shape[1:]
        seen = visible(np.arange(length - T, length), S, layer.window, length, None if last is None else last[-T:])
        return softmax(np.where(seen, scores, -np.inf)), y

    def scaled(y, x, more=0):  # layer_scalar is fitted
        x = x + more
        known = np.isfinite(y)
        return x * ((x * y)[known].sum() / (x * x)[known].sum()), y

    def chosen(y, probs):  # the probability of their choice, [T, 1]: a tie may go either way
        best = top_k(probs, config.top_k_experts)
        return tuple(np.take_along_axis(probs, e.astype(int), -1).sum(-1, keepdims=True) for e in (best, y))

    donor = f"layers.{layer.kv_from}."
    ops = {
        "resid_pre": ((f"layers.{i - 1}.resid_post" if i else "embed",), lambda y, x: (x, y)),
        "attn.in": (("resid_pre",), norm),
        "attn.q": (("attn.q_raw",), norm),
        "attn.rot_q": (("attn.q",), rotated),
        "attn.v_raw": (("attn.k_raw",), lambda y, k: (k, y)),
        "attn.k": (("attn.k_raw",), norm),
        "attn.rot_k": (("attn.k",), rotated),
        "attn.v": (("attn.v_raw",), lambda y, x: (rms_norm(x, None, eps), y)),
        "attn.scores": (("attn.rot_q", f"{donor}attn.rot_k"), lambda y, q, k: (attention_scores(q, k), y)),
        "attn.pattern": (("attn.scores",), attended),
        "attn.z": (("attn.pattern", f"{donor}attn.v"), lambda y, pattern, v: (attention_values(pattern, v), y)),
        "attn_out": (("attn.o",), norm),
        "resid_mid": (("resid_pre", "attn_out"), add),
        "mlp.in": (("resid_mid",), norm),
        "mlp.act": (("mlp.gate", "mlp.up"), lambda y, gate, up: (gelu(gate) * up, y)),
        "router.experts": (("router.probs",), chosen),
        "mlp.dense_out": (("mlp.down",), norm),
        "mlp_out": (("mlp.down",), norm),
        "resid_ffn": (("resid_mid", "mlp_out"), add),
        "ple.gated": (("ple.gate", "ple"), lambda y, gate, ple: (gate * ple[:, i], y)),
        "ple_out": (("ple.proj",), norm),
        "resid_post": (("resid_ffn", "ple_out"), scaled),
    }
    if not layer.k_eq_v:
        del ops["attn.v_raw"]
    if config.enable_moe_block:
        del ops["mlp_out"]  # it also reads the experts' sum
    if not config.hidden_size_per_layer_input:
        ops["resid_post"] = ("resid_ffn",), scaled
    at, whole = f"layers.{i}.", ("embed", "ple")
    return {
        at + part: (tuple(x if x in whole or x.startswith("layers.") else at + x for x in inputs), op)
        for part, (inputs, op) in ops.items()
    }


def _norm(config):
    """The op of a norm whose weight, one number for each place of the last axis, is fitted to its output."""

    def op(y, x):
        if y[..., 0].size < ROWS:
            return None
        normed, known = rms_norm(x, None, config.rms_norm_eps), np.isfinite(y)
        axes = tuple(range(y.ndim - 1))
        weight = np.where(known, normed * y, 0).sum(axes) / np.where(known, normed * normed, 0).sum(axes)
        return normed * (weight if weight.any() else 1), y  # a norm whose output is 0 is not used

    return op
