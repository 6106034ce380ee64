"""Another engine's trace against our pass: which taps agree, which only drift, and which op is the first broken one.

Each verdict rests on two numbers. *Away* is the difference between their array and ours when each engine ran its own
pass. *Own* is the difference when our op gets their inputs (replay.Replay): the error of the op itself. How large both
are in a healthy port is measured: our pass runs once more with the rounding of their number format in it.
"""

from dataclasses import dataclass, field, replace

import numpy as np

from ..checkpoint import fingerprint
from ..errors import Error
from ..files import json_number
from ..packed import narrow, widen
from ..taps import PRECISIONS, Trace, audio_names, axes_of, layer_of, names_of, part_of, tap_kind, tap_of, vision_names
from .foreign import SCALES, part_that_has, read_soft
from .pictures import frames_of, given_pictures, given_sounds, miscounted, runs_of
from .replay import MASKED, Replay, by_position, compare, differences, ending, hidden_keys, in_words, wrong_masks
from .runs import looking_ahead
from .samerun import LINEAR, broken_ops, few_bits, identify, lengths_of, notes_of, read_second, read_theirs, stated

# Relative size of the noise that imitates rounding: one unit in the last place, and more for 32 and 64 bits, where the
# order of a sum of thousands of terms matters more than the rounding of each term.
ROUNDING = dict(zip(PRECISIONS, (2.0**-44, 2.0**-22, 2.0**-11, 2.0**-8), strict=True))
MARGIN = 8  # times the measured error is still healthy: transformers reaches 5.4, at experts, which round often
LARGEST_FLOAT16 = 65504.0
BLIND = 0.5  # above this error rounding alone could explain the difference, so the op cannot be judged
# Ops that round several times before their tap; an expert: norm, product, activation, product, weight, norm.
STEPS = {"layers.*.mlp.moe_out": 4, "layers.*.router.probs": 3, "layers.*.ple.gate": 2, "ple.context": 2}


@dataclass
class Row:
    """One tap of the comparison."""

    name: str
    shape: tuple | None  # theirs; None where they did not capture it
    # OK, DRIFT, BROKEN, SHAPE, MISSING; POISONED: not finite, after another; ELSEWHERE: captured at another point
    verdict: str
    away: object = None  # Difference of the two runs
    own: object = None  # Difference when the op is given their inputs
    allowed: float = 0.0  # the largest own error that rounding explains


@dataclass
class Comparison:
    """The result of comparing two traces."""

    rows: list
    precision: str
    sentence: str  # the finding in one sentence
    first_broken: str | None
    hint: str | None = None
    identity: str | None = None  # "other-input" or "other-weights": not of this run; "overflow": of float16, no more
    notes: list = field(default_factory=list)
    allowed: dict = field(default_factory=dict)  # tap -> the largest own error that rounding explains
    unread: list = field(default_factory=list)  # the arrays of a file that were not understood, so were not judged

    @property
    def clean(self):
        """Whether everything in the trace was judged and nothing in it is broken."""
        return not (self.first_broken or self.identity or self.unread)

    def to_dict(self):
        def one(row):
            return {
                "tap": row.name,
                "shape": row.shape and list(row.shape),
                "verdict": row.verdict,
                "error": row.away and json_number(row.away.error),
                "own_error": row.own and json_number(row.own.error),
                "allowed": json_number(row.allowed),
                "cosine": row.away and json_number(row.away.cosine),
                "ratio": row.away and json_number(row.away.ratio),
            }

        return {
            "precision": self.precision, "sentence": self.sentence, "first_broken": self.first_broken,
            "hint": self.hint, "identity": self.identity, "notes": self.notes, "unread": self.unread,
            "rows": [one(row) for row in self.rows],
        }  # fmt: skip


class Noise:
    """A tap that imitates rounding: it multiplies each number by 1 plus a random part of at most `size`."""

    def __init__(self, size, seed):
        self.size, self.rng = size, np.random.default_rng(seed)

    def __call__(self, name, array):
        if array.dtype.kind != "f":
            return array
        size = self.size * STEPS.get(tap_kind(name), 1)
        return (array * (1 + size * self.rng.uniform(-1, 1, array.shape))).astype(array.dtype)


def healthy(run, size):
    """The errors of a port that only rounds -> two dicts, tap: error of the whole pass, and of the op alone.

    Its RoPE angles are float32, as in most engines: off by 6e-5 at position 1,000. In 16 bits rounding can change a
    choice of experts or a close softmax, so the largest error of several draws counts.
    """
    if size in run.healthy:
        return run.healthy[size]
    away, own = {}, {}
    for seed in range(1 if size < ROUNDING["float16"] else 3):
        rounded = Trace(list(run.theirs))
        run.through(_rounding(run, Noise(size, seed), rounded))
        replay = Replay(rounded)
        run.through(replay)
        for found, worst in ((differences(run.ours, rounded, run.config, run.last), away), (replay.found, own)):
            for name, difference in found.items():
                worst[name] = max(worst.get(name, 0.0), difference.error)
    run.healthy[size] = _at_least_typical(away), _at_least_typical(own)
    return run.healthy[size]


def _rounding(run, noise, tap):
    """A tap that adds noise, computes RoPE's angles in float32, and then calls another tap."""
    before = {}  # q and k of the current layer, before RoPE

    def rounding(name, x):
        part = name.rpartition(".")[2]
        if part in ("rot_q", "rot_k"):
            x = run.turned_in_float32(name, before[part[-1]])
        x = run.varied(name, x, noise.rng)
        x = tap(name, noise(name, x))
        if part in ("q", "k"):
            before[part] = x
        return x

    return rounding


def _at_least_typical(errors):
    """One random draw says little about one tap: take at least the median of that tap over the layers."""
    kinds = {}
    for name, error in errors.items():
        kinds.setdefault(tap_kind(name), []).append(error)
    typical = {kind: float(np.median(values)) for kind, values in kinds.items()}
    result = {name: max(error, typical[tap_kind(name)], 1e-12) for name, error in errors.items()}
    for name, error in result.items():
        if name.endswith("router.experts"):  # compared by probability, so as exact as the probabilities
            result[name] = max(error, result.get(name.replace("experts", "probs"), 0))
    return result


def stored_precision(theirs):
    """Their engine's number format, if 16 bits hold most of their values exactly, else None."""
    numbers = [x[np.isfinite(x)] for x in theirs.values() if x.dtype in (np.float16, np.float32)]
    for precision, rounded in (("bfloat16", lambda x: widen(narrow(x))), ("float16", lambda x: x.astype(np.float16))):
        with np.errstate(over="ignore"):
            short = [all(np.array_equal(rounded(part), part) for part in (x[:4096], x)) for x in numbers if x.size]
        if short and np.mean(short) > 0.5:
            return precision
    return None


def infer_precision(theirs, own, run):
    """Their engine's number format: from the values, else from the errors of its products."""
    if precision := stored_precision(theirs):
        return precision
    expected = healthy(run, ROUNDING["float32"])[1]
    ratios = [own[n].error / expected[n] for n in own if n in expected and part_of(n) in LINEAR]
    ratios = [ratio for ratio in ratios if np.isfinite(ratio)]
    if len(ratios) >= 4:
        factor = float(np.median(ratios)) * ROUNDING["float32"]
        return next(
            (name for name, size in ROUNDING.items() if factor <= MARGIN * size and name != "float64"), "float32"
        )
    return "float32"


def compare_traces(theirs, run, precision=None):
    """Their arrays (tap name -> array, our axes) against our pass -> Comparison.

    Rows of the token tables before their scale are scaled, in run.theirs too. Any other array that was captured at
    another point is not judged, and is taken out of run.theirs.
    """
    found, raw, moved = _compare(theirs, run, precision), [], {}
    while _captured_elsewhere(found, run):
        name = found.first_broken
        if name in SCALES and name not in raw:
            raw.append(name)
            run.theirs = run.theirs | {name: run.theirs[name] * np.float32(getattr(run.config, SCALES[name]) ** 0.5)}
        else:
            moved[name] = replace(next(row for row in found.rows if row.name == name), verdict="ELSEWHERE")
            run.theirs = {other: array for other, array in run.theirs.items() if other != name}
        run.healthy.clear()
        found = _compare(run.theirs, run, precision)
    found.rows, found.unread = [moved.get(row.name, row) for row in found.rows], [*moved]
    for name in dict.fromkeys([*raw, *moved]):
        where = "was captured at another point: all that reads it is right"
        found.sentence += f"; {name} {where if name in moved else 'holds the rows of its table before their scale'}"
    return found


def _captured_elsewhere(found, run):
    """Whether more taps are right, and no other is wrong, if our pass does not go on with the first broken array.

    Then the engine itself did not go on with that array. What reads an array with a mistake in it would become wrong.
    """
    before = {row.name for row in found.rows if row.verdict == "BROKEN"}
    if found.identity or found.first_broken not in before or len(before) == 1:
        return False
    name = found.first_broken
    replay = run.replayed({other: array for other, array in run.theirs.items() if other != name})
    return {n for n, d in replay.found.items() if not d.error <= found.allowed[n]} < before - {name}


def _compare(theirs, run, precision):
    """The Comparison of all their arrays."""
    replay = run.replayed(theirs)
    own, away = replay.found, differences(run.ours, theirs, run.config, run.last)
    precision = precision or infer_precision(theirs, own, run)
    may_away, may_own = ({n: MARGIN * e for n, e in errors.items()} for errors in healthy(run, ROUNDING[precision]))
    judged, poisoned = {}, False
    for name, found in own.items():
        wrong, infinite = ~(found.errors <= may_own[name]), np.isinf(found.errors)  # [T] each
        drifted = name in away and not away[name].error <= may_away[name]
        verdict = "BROKEN" if wrong.any() else "DRIFT" if drifted else "OK"
        if poisoned and wrong.any() and not (wrong & ~infinite).any():
            verdict = "POISONED"
        poisoned |= infinite.any()
        judged[name] = verdict, away.get(name), found, may_own[name]
    rows = [_row(name, theirs, judged) for name in run.shapes]
    wrong = [row for row in rows if row.verdict in ("BROKEN", "SHAPE")]
    bad = wrong[0] if wrong else None
    found = Comparison(rows, precision, "", bad and bad.name, allowed=may_own)
    if other := identify(rows, theirs, run):
        found.identity, found.sentence = other
    elif bad is None:
        found.sentence = _no_break(rows, precision)
    else:
        overflow = _overflow(bad, rows, precision, run)
        found.identity = "overflow" if overflow and len(wrong) == 1 else None
        found.sentence = overflow or _broken(bad, rows, precision, replay.misshapen)
        found.hint = None if bad.verdict == "SHAPE" else find_hint(bad, run)
        whole = lengths_of(theirs, run) == {len(run.tokens)}  # of a part, later ops are not judged alone
        found.notes += filter(None, [whole and broken_ops(rows, run.config)])
    return found


def rounded_matrices(comparison, run):
    """The verdict if hidden states are off as after products with rounded weights, and nothing else is; else None.

    All layers and positions are then off alike: by as much as our own layers with noise on their products.
    """
    states = {row.name: row.own.errors for row in comparison.rows if row.own and layer_of(row.name) is not None}
    others = [row for row in comparison.rows if row.own and row.name not in states]
    if len(states) < 3 or any(part_of(n) != "resid_post" for n in states) or any(r.verdict == "BROKEN" for r in others):
        return None
    rng, size, noisy = np.random.default_rng(0), 0.1, Trace(list(run.theirs))

    def noise(name, x):
        if part_of(name) in LINEAR:
            rms = np.sqrt((x * x).mean(-1, keepdims=True))
            x = (x + size * rms * rng.standard_normal(x.shape)).astype(x.dtype)
        return noisy(name, x)

    run.through(noise)
    expected = run.replayed(dict(noisy)).found
    ratios = np.array([np.median(errors) / np.median(expected[n].errors) for n, errors in states.items()])
    spread = np.median([errors.max() / max(errors.min(), 1e-30) for errors in states.values()])  # over positions
    return few_bits({"the matrices": size * ratios}) if ratios.max() < 2 * ratios.min() and spread < 4 else None


def diff_captures(theirs, ours, config, precision, last=None):
    """Two captured traces, without weights -> Comparison. It shows where they part; no op can be judged by itself.

    last: as in replay.hidden_keys.
    """
    judged, allowed = {}, 64 * ROUNDING[precision]
    both = {name: array for name, array in theirs.items() if name in ours}
    for name, array in both.items():
        if array.shape == ours[name].shape:
            away = compare(name, *_comparable(name, ours[name], array, config, last))
            judged[name] = "OK" if away.error <= allowed else "DRIFT", away, away, allowed
    names = [*vision_names(config.vision), *audio_names(config.audio), *names_of(config)]
    rows = [_row(name, both, judged) for name in names]
    first = next((row.name for row in rows if row.verdict in ("DRIFT", "SHAPE")), None)
    sentence = f"all {len(both)} taps that both hold agree within {precision} rounding"
    if first:
        sentence = f"the two part at {first}; give --weights in place of --against to judge each op by itself"
    return Comparison(rows, precision, sentence, first)


def _row(name, theirs, judged):
    """The Row of a tap. judged: tap -> (verdict, away, own, allowed), for taps of the right shape."""
    if name not in theirs:
        return Row(name, None, "MISSING")
    return Row(name, tuple(np.shape(theirs[name])), *judged.get(name, ("SHAPE",)))


def diff_file(
    path, model, ids=None, mapping=None, soft=None, precision=None, against=None, images=(), budget=None, sounds=(),
    start=None,
):
    """Compare a file of another engine's intermediates with our pass -> Comparison, with notes about the file.

    model: a Model. ids: the prompt's, needed if the file does not hold them. mapping: a file that translates names, see
    foreign.read_trace. soft: a file of soft tokens, see foreign.read_soft. against: a second trace to compare with, in
    place of our pass. images: the files of the prompt's pictures; budget: the most soft tokens of each. sounds: the
    files of its sounds. start: the position of the first row, where the file is of a later chunk. Raises Error for
    files that cannot be read, for two traces of different prompts, and for pictures that do not fit the prompt.
    """
    pictures = given_pictures(images, budget, model.config)
    grid = pictures[0].grid(model.config) if len(pictures) == 1 else None
    heard = given_sounds(sounds, model.config)
    frames = frames_of(heard, model.config)
    theirs, tokens = read_theirs(path, model, ids, mapping, grid, frames, start)
    if found := miscounted(theirs, tokens, pictures, model.config):
        raise Error(f"{path}: {'; '.join([found[0], *(fault.title for fault in found[1])])}")
    ours = read_second(against, model.config, mapping, grid, frames, start) if against else None
    if ours and ours.tokens is not None and not np.array_equal(ours.tokens, tokens):
        raise Error(f"{against}: is of another prompt than {path}")
    weights = ours.metadata.get("fingerprint") if ours else fingerprint(model.weights)
    if other := stated(theirs, tokens, weights):
        found = Comparison([], "", other[1], None, identity=other[0])
    elif ours:
        last = None if tokens is None else looking_ahead(tokens, model.config)  # [T]
        found = diff_captures(theirs.arrays, ours.arrays, model.config, precision or "float32", last)
        found.notes += [f"{against}: {line}" for line in notes_of(ours)]
        found.unread += ours.unread
    else:
        runs = runs_of(theirs, tokens, model, soft and read_soft(soft), pictures, sounds=heard)
        found = joined([compare_traces(run.theirs, run, precision) for run in runs], path)
    found.notes += notes_of(theirs)
    found.unread += theirs.unread
    return found


def joined(found, path):
    """The Comparisons of a picture, of a sound and of the text behind them -> one. Raises Error if there is none."""
    if not found:
        raise Error(f"{path}: the trace holds arrays of a picture or sound; give it with --image or --audio")
    if len(found) == 1:
        return found[0]
    broken = next((one for one in found if one.first_broken or one.identity), found[-1])
    return Comparison(
        [row for one in found for row in one.rows], found[-1].precision,
        "\n".join(f"the {medium_of(one.rows[0].name)}: {one.sentence}" for one in found),
        broken.first_broken, broken.hint, broken.identity, [note for one in found for note in one.notes],
        {name: size for one in found for name, size in one.allowed.items()},
        [name for one in found for name in one.unread],
    )  # fmt: skip


def medium_of(tap):
    """What a tap is of, in words: the picture, the sound or the text."""
    return {"vision": "picture", "audio": "sound", "text": "text"}[part_that_has(tap)]


def _comparable(name, a, b, config, last):
    """Two captures of one tap, with non-finite values that agree, and masked scores, set to 0."""
    alike = ~np.isfinite(a) & ((a == b) | (np.isnan(a) & np.isnan(b)))
    if name.endswith("attn.scores") and min(a.min(), b.min()) <= MASKED:
        alike |= hidden_keys(config, name, a.shape, a.shape[-1], last)
    return np.where(alike, 0, a), np.where(alike, 0, b)


def _no_break(rows, precision):
    drifted = [row for row in rows if row.verdict == "DRIFT"]
    captured = sum(row.verdict != "MISSING" for row in rows)
    sentence = f"{'the only tap agrees' if captured == 1 else f'all {captured} taps agree'} within {precision} rounding"
    if drifted:
        worst = max(drifted, key=lambda row: row.away.error)
        sentence = (
            f"no op is broken: on its own inputs each of {captured} taps is right within {precision} rounding; small "
            f"errors add up to {worst.away.error:.1e} at {worst.name}"
        )
    blind = [row.name for row in rows if row.allowed > BLIND]
    if blind:
        more = f" and {len(blind) - 1} more" if len(blind) > 1 else ""
        sentence += (
            f"; but {blind[0]}{more} cannot be judged: rounding alone can change what comes before, such as a choice "
            "of experts; capture every tap before it"
        )
    return sentence


def _overflow(bad, rows, precision, run):
    """The sentence for a first broken op whose right value is larger than float16 can hold, else None."""
    if precision != "float16" or bad.verdict == "SHAPE" or not np.isinf(bad.own.errors).any():
        return None
    theirs = by_position(bad.name, run.theirs[bad.name])  # [T, n], or [1, n]
    peak = np.abs(by_position(bad.name, run.ours[bad.name])[-len(theirs) :])[~np.isfinite(theirs)].max(initial=0)
    if peak < 0.99 * LARGEST_FLOAT16:
        return None
    after = sum(row.verdict == "POISONED" for row in rows)
    return (
        f"float16 overflow at {bad.name}: the right value there is {peak:.6g}, and float16 ends at "
        f"{LARGEST_FLOAT16:g}; {after} taps after it are poisoned; compute in bfloat16 or float32"
    )


def _broken(bad, rows, precision, misshapen):
    names = [row.name for row in rows]
    before = names[: names.index(bad.name)]
    captured = [row.name for row in rows if row.verdict != "MISSING"]
    last = captured[captured.index(bad.name) - 1] if captured.index(bad.name) else None
    between = before[before.index(last) + 1 :] if last else before
    what = f"the first broken op is {bad.name} ({tap_of(bad.name).made_by})"
    if bad.verdict == "SHAPE":
        ours, theirs = misshapen.get(bad.name, (None, bad.shape))
        should = f" and should be {list(ours)}" if ours else ", which does not fit this prompt"
        return f"{what}: its shape is {list(theirs)}{should}"
    size = f"on their own inputs it is off by {bad.own.error:.1e}, where {precision} rounding allows {bad.allowed:.1e}"
    if between:
        ops = ", ".join(name.removeprefix("layers.") for name in between[-6:])
        since = (
            f"the last tap before it that was captured, {last}, is right" if last else "nothing before it was captured"
        )
        return f"{what}, or one before it that was not captured ({'..., ' * (len(between) > 6)}{ops}): {size}; {since}"
    return f"{what}: {size}"


# ---------------------------------------------------------------------------------- what the wrong array looks like
def find_hint(bad, run):
    """How their array relates to the right one: a constant, an order, a shift, another tap. One sentence, or None."""
    layer = layer_of(bad.name)
    near = [tap_kind(bad.name)] + ([bad.name.removesuffix(part_of(bad.name)) + "*"] if layer is not None else [])
    taken, keep = {}, Trace(near)
    replay = run.replay()

    def tap(name, array):
        if name == bad.name:
            taken["ours"] = array.copy()  # a head's array is used again
        return replay(name, keep(name, array))

    run.through(tap)
    ours, theirs = np.asarray(taken["ours"], np.float64), np.asarray(run.theirs[bad.name], np.float64)
    ours = ending(bad.name, ours, len(by_position(bad.name, theirs)))
    if ours.shape != theirs.shape:
        return None
    unknown, hidden = np.False_, None  # values that say nothing: masked scores; keys that a query of text may not see
    if part_that_has(bad.name) == "text" and part_of(bad.name) in ("attn.scores", "attn.pattern"):
        hidden = hidden_keys(run.config, bad.name, theirs.shape, len(run.tokens), run.last)  # [T, S]
    if bad.name.endswith("attn.scores") and (theirs <= MASKED).any():
        unknown = theirs <= MASKED  # [N, T, S]
        if hidden is not None and (words := _mask(*wrong_masks(unknown, hidden), len(run.tokens))):
            return words
    ours, theirs = np.where(unknown, 0, ours), np.where(unknown, 0, theirs)
    if not np.isfinite(theirs).all():
        return _not_finite(bad, theirs, run)
    if not theirs.any():
        return "it is all zeros: the op's result is not used, or its buffer is never written"
    good = min(max(bad.allowed, 1e-5), bad.own.error / 2)  # a hint that leaves the error as it is explains nothing

    def left(candidate):
        return compare(bad.name, np.where(unknown, 0, candidate), theirs).error

    def fits(candidate):
        return candidate.shape == theirs.shape and left(candidate) <= good

    pattern = bad.name.endswith("pattern") and _pattern(ours, theirs, hidden, good, len(run.tokens))
    attention = pattern or _blind(bad, theirs, good)
    return (
        _probabilities(bad, theirs)
        or resemblance(axes_of(bad.name), ours, theirs, _factors_of(bad.name, run), good, left)
        or (attention and "; ".join(filter(None, (_positions(bad, run), attention))))
        or _elsewhere(bad.name, keep, fits)
        or _donor(bad.name, run, keep, fits)
        or scaled(ours, theirs, good, left)
        or _positions(bad, run)
    )


def _not_finite(bad, theirs, run):
    """Which of their numbers are not finite, and how that can come about."""
    rows, where = by_position(bad.name, theirs), in_words(np.flatnonzero(np.isinf(bad.own.errors)))  # [T, n]
    wrong, order = ~np.isfinite(rows), list(run.shapes)  # [T, n]
    before = [name for name in order[: order.index(bad.name)] if name in run.theirs]
    unseen = order[order.index(before[-1]) + 1 if before else 0 : order.index(bad.name) + 1]  # may be broken
    softmax = "attn.pattern" in map(part_of, unseen) and np.isnan(rows[wrong.any(-1)]).all()
    if softmax and part_of(bad.name).startswith("attn"):
        return f"all of {where} is NaN: these queries see no key, or their scores overflow"
    cause = "an overflow, a division by 0, or queries that see no key" if softmax else "an overflow, or a division by 0"
    return f"{wrong.sum()} of its {rows.size} numbers, at {where}, are not finite: {cause}"


def _mask(missing, extra, count):
    """What is wrong with a mask. missing: keys hidden though visible; extra: seen though hidden, both bool [N, T, S].

    count: the number of tokens; the queries are the last of them.
    """
    for wrong, does, may in (missing, "masks", "may"), (extra, "does not mask", "may not"):
        if wrong.any():
            _, query, key = np.argwhere(wrong)[0]
            query += count - wrong.shape[1]
            return f"it {does} key {key} for query {query}, which {may} see it ({wrong.sum()} such pairs)"
    return None


def _pattern(ours, theirs, hidden, good, count):
    """What is wrong with a pattern, whatever its scores are, or None. hidden: [T, S], in text; count: as in `_mask`."""
    sums = theirs.sum(-1)  # [N, T]
    if np.abs(sums - 1).max() > 0.01:
        return f"its rows sum to {sums.min():.2g} to {sums.max():.2g}, not to 1"
    if hidden is None:
        return None
    extra, least = hidden & (theirs > good), np.where(theirs > 0, theirs, 1).min(-1)  # [N, T, S], [N, T]
    alike = (theirs.max(-1) < 1.01 * least) & (least < 1)  # [N, T]
    all_or_none = (theirs > 0).all(-1) | ~(theirs * ~hidden).any(-1)  # [N, T]: of all keys, or of those it may not see
    blind = np.flatnonzero((alike & all_or_none & extra.any(-1)).all(0)) + count - len(hidden)
    if len(blind):
        return f"these queries see no key, as all their weights are the same: {in_words(blind)}"
    return _mask(~hidden & (ours > good) & (theirs == 0), extra, count)


def _blind(bad, theirs, good):
    """Which queries see no key: what attention makes of them is the same row, as all their weights are the same."""
    if bad.name.startswith("audio.") or part_of(bad.name) not in ("attn.z", "attn.o", "attn_out"):
        return None
    rows = by_position(bad.name, theirs)  # [T, n]
    same = np.linalg.norm(np.diff(rows, axis=0), axis=-1) <= good * np.linalg.norm(rows[1:], axis=-1)  # [T - 1]
    both = np.flatnonzero(np.append(same, False) | np.append(False, same)) + len(bad.own.errors) - len(rows)
    blind = both[bad.own.errors[both] > bad.allowed]
    return f"its rows are the same, as of queries that see no key: {in_words(blind)}" if len(blind) > 2 else None


def _probabilities(bad, theirs):
    """Logits that have been through a softmax, or through its logarithm."""
    if bad.name == "logits":
        for words, probs in ("probabilities", theirs), ("log-probabilities", np.exp(np.minimum(theirs, 1))):
            if (probs >= 0).all() and np.abs(probs.sum(-1) - 1).max() < 0.01:
                return f"they are {words}: capture what goes into the softmax"
    return None


def resemblance(axes, ours, theirs, factors, good, left):
    """How an array relates to the right one of its shape: a constant factor, an order, a shift. One phrase, or None.

    axes: a letter for each axis, as in taps.axes_of. factors: name -> number, of `known_factors`. left: candidate ->
    how far it is from theirs; good: how far an array may be that explains theirs.
    """
    return _constant(ours, theirs, factors, good, left) or _rearranged(axes, ours, theirs, good, left)


def known_factors(sizes):
    """The factors that a scale may be wrong by; sizes: name of a size -> number."""
    known = {"-1": -1, "2": 2, "1/2": 0.5, "sqrt(2)": 2**0.5, "1/sqrt(2)": 2**-0.5}
    for name, size in sizes.items():
        known |= {f"sqrt({name})": size**0.5, f"1/sqrt({name})": size**-0.5} if size else {}
    if D := sizes.get("D"):
        rounded = widen(narrow(np.float32(D**0.5))).item()
        known[f"{rounded:g} / sqrt(D), that is sqrt(D) rounded to bfloat16"] = rounded / D**0.5
        known |= {"sqrt(2/D)": (2 / D) ** 0.5} if sizes.get("P") else {}
    return known


def _factors_of(name, run):
    """The factors that the array of a tap may be wrong by."""
    known, i, layers = known_factors(run.sizes(name)), layer_of(name), getattr(run.weights, "layers", [])
    scalars = {j: np.ravel(w.layer_scalar)[0].item() for j, w in enumerate(layers) if hasattr(w, "layer_scalar")}
    if part_of(name) == "resid_pre" and i:
        i -= 1  # the layer before made it
    if i in scalars:
        known |= {"layer_scalar": scalars[i], "1/layer_scalar": 1 / scalars[i]}
        near = [j for j in (i - 1, i + 1) if j in scalars]
        known |= {f"the layer_scalar of layer {j}, not of layer {i}": scalars[j] / scalars[i] for j in near}
    return known


def _constant(ours, theirs, known, good, left):
    size = (ours * ours).sum()
    c = float((ours * theirs).sum() / size) if size else 0.0
    if not c or not left(c * ours) <= good:
        return None
    near = [name for name, value in known.items() if c * value > 0 and abs(np.log(c / value)) < 0.01]
    limit = max(2 * left(c * ours), 1e-6)  # a name must fit as well as the number itself
    names = [name for name in near if left(known[name] * ours) <= limit]
    names.sort(key=lambda name: "head_dim" not in name)  # sizes may agree by chance: the head's own comes first
    return f"it is {c:.6g} times what it should be" + (f": {' or '.join(names)}" if names else "")


def _rearranged(axes, ours, theirs, good, left):
    tries = {}
    for letter, words in (("T", "tokens"), ("L", "layers")):
        for shift in (1, -1) if letter in axes and ours.shape[axes.index(letter)] > 2 else ():
            moved, axis = np.roll(ours, shift, axes.index(letter)), axes.index(letter)
            edge = tuple(slice(None) if i != axis else 0 if shift == 1 else -1 for i in range(len(axes)))
            moved[edge] = theirs[edge]  # what came in at the edge is unknown
            tries[f"its {words} are shifted by {shift}"] = moved
    if axes[-1] == "H" and ours.ndim == 3:
        T, N, H = ours.shape
        tries["the two halves of each head are swapped"] = np.roll(ours, H // 2, axis=-1)
        tries["each head's pairs are interleaved (2j, 2j + 1)"] = (
            ours.reshape(T, N, 2, H // 2).swapaxes(2, 3).reshape(ours.shape)
        )
        tries["each head's interleaved pairs are taken apart"] = (
            ours.reshape(T, N, H // 2, 2).swapaxes(2, 3).reshape(ours.shape)
        )
        tries["it is dealt to the heads as [head_dim, heads]"] = ours.reshape(T, H, N).swapaxes(1, 2)
        tries["its heads are in reverse order"] = ours[:, ::-1]
    if ours.ndim == 2 and ours.shape[0] == ours.shape[1]:
        tries["it is transposed"] = ours.T
    if axes[-1] in ("D", "F", "P"):
        tries["the two halves of its last axis are swapped"] = np.roll(ours, ours.shape[-1] // 2, axis=-1)
    return next((words for words, array in tries.items() if left(array) <= good), None)


def scaled(ours, theirs, good, left):
    """A norm or a learned weight too many or too few: along one axis each row has a factor of its own, or None."""
    if ours.ndim < 2 or min(len(ours), ours.shape[-1]) < 4:
        return None
    others = tuple(range(ours.ndim - 1))
    for axis, words in (
        (-1, "each row has a factor of its own: a norm over the last axis is missing or is one too many"),
        (others, "each column has a factor of its own: a learned weight is missing or is another one"),
    ):
        size = (ours * ours).sum(axis, keepdims=True)
        if left(ours * (ours * theirs).sum(axis, keepdims=True) / np.where(size > 0, size, 1)) <= good:
            return words
    return None


def _elsewhere(name, keep, fits):
    """Their array equals another of our taps: the op was left out, or the array is another layer's."""
    for other, array in keep.items():
        if other != name and array.dtype.kind == "f" and fits(np.asarray(array, np.float64)):
            return f"it equals {other}"
    return None


def _donor(bad, run, keep, fits):
    """Their scores of a KV-sharing layer come from the K of a wrong layer."""
    i = layer_of(bad)
    if i is None or part_that_has(bad) != "text" or not bad.endswith("attn.scores"):
        return None
    q, keys = np.asarray(keep[f"layers.{i}.attn.rot_q"], np.float64), Trace("layers.*.attn.rot_k")  # [T, N, H]
    run.through(keys)
    for name, k in keys.items():  # [S, K, H]
        j = layer_of(name)
        comparable = k.shape[-1] == q.shape[-1] and q.shape[1] % k.shape[1] == 0
        if j == run.config.layers[i].kv_from or not comparable:
            continue
        if fits(np.einsum("tnh,snh->nts", q, np.repeat(k, q.shape[1] // k.shape[1], axis=1))):
            return f"it reads the K of layer {j}, not of layer {run.config.layers[i].kv_from}"
    return None


def _positions(bad, run):
    """Which positions are wrong, if some of those that they captured are right."""
    errors, rows = bad.own.errors, len(by_position(bad.name, run.theirs[bad.name]))
    wrong, begin = np.flatnonzero(errors > bad.allowed), len(errors) - rows
    if len(wrong) in (0, rows):
        return None
    text = part_that_has(bad.name) == "text"
    window, asked = run.config.sliding_window if text else -2, ""
    first = next(name for name in run.shapes if name in run.theirs)
    packed = text and wrong[0] > 1 and run.tokens[wrong[0]] == run.config.source.get("bos_token_id")
    if packed:
        asked = f"; <bos> is at {wrong[0]}: if two prompts are in one row, compare each alone"
    elif bad.name == first and not run.own_ids:  # no tap before it shows a wrong token
        asked = f"; is their id at {wrong[0]} also {run.tokens[wrong[0]]}?"
    if len(wrong) == len(errors) - wrong[0]:
        reason = f" (the window is {window})" if abs(wrong[0] - window) <= 1 else asked
        are = "is" if wrong[0] == begin + 1 else "are"
        return f"{in_words(np.arange(begin, wrong[0]))} {are} right, from {wrong[0]} on all are wrong{reason}"
    end = wrong[0] + window - 1  # from here on a window holds only keys from the first wrong position on
    if not packed and wrong[0] and len(wrong) == wrong[-1] - wrong[0] + 1 and end - 3 <= wrong[-1] < end:
        asked = f"; from {end} on the window of {window} holds only keys from {wrong[0]} on, and all are right"
    are = "are" if len(wrong) > 1 else "is"
    return f"only {in_words(wrong)} {are} wrong, {len(wrong)} of {rows}{asked}"
