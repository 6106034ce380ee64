"""Which known mistake a port makes: every candidate of the catalogue is tried, and the one that explains most is named.

A candidate is put into our pass, and each op of that pass is compared with theirs on their inputs (replay.Replay). The
right candidate leaves only rounding. A candidate explains the fraction of the excess that it removes. The excess is the
sum over taps of log10(error / allowed error): large and small errors both count, and a wrong candidate pays for every
tap that it makes worse.
"""

from contextlib import suppress
from dataclasses import dataclass, field, replace
from fnmatch import fnmatchcase
from functools import cached_property
from itertools import combinations, compress
from typing import NamedTuple

import numpy as np

from ..cache import Buffer, Cache, Entry
from ..checkpoint import fingerprint, read_unused
from ..errors import Error
from ..files import progress
from ..sampling import tokenizer_of
from ..taps import AFTER, PRECISIONS, layer_of, part_of, tap_kind
from .catalogue import FAULTS, PROBES, applicable
from .diff import BLIND, MARGIN, ROUNDING, compare_traces, healthy, medium_of, rounded_matrices
from .foreign import part_that_has, read_soft
from .pictures import frames_of, given_pictures, given_sounds, miscounted, runs_of
from .runs import PictureRun, Run, SoundRun
from .samerun import layer_groups, lengths_of, notes_of, read_theirs, stated, unrelated, with_other_bos
from .turn_mistakes import mistakes_in

FLIPPED = 0.3  # of an error may be left by a mistake that rounds: some numbers it rounds the other way
NAMED = 0.8  # the fraction of the excess that a named fault must explain
PREFIX, BEYOND = 128, 64  # of a long trace at least so many positions are searched, and so many behind the first wrong
SHORTER = 0.75  # of a trace: a longer prefix saves less than the check on the whole costs
SHAPE_EXCESS = 6  # the excess of a wrong shape, and the largest of one tap, in decades


@dataclass
class Finding:
    """A fault of the catalogue, and how much of the excess it explains."""

    id: str
    title: str
    explains: float
    evidence: str
    remedy: str


@dataclass
class Diagnosis:
    """What is wrong with a port, as far as its trace shows."""

    verdict: str  # fault, healthy, overflow, unknown, other-input, other-weights; prompt, of the ids alone
    sentence: str
    first_broken: str | None
    faults: list = field(default_factory=list)  # the best first
    rivals: list = field(default_factory=list)  # those that explain less
    next_probe: str | None = None
    comparison: object = None
    prompt: list = field(default_factory=list)  # turn_mistakes.Mistake, what the ids alone show
    notes: list = field(default_factory=list)
    unread: list = field(default_factory=list)  # the arrays of a file that were not understood, so were not judged

    @property
    def clean(self):
        """Whether everything was judged and nothing is wrong, neither in the trace nor in the prompt's ids."""
        unread = self.unread or (self.comparison and self.comparison.unread)
        return self.verdict in ("healthy", "prompt") and not unread and not any(m.blame for m in self.prompt)

    def to_dict(self):
        return {
            "verdict": self.verdict, "sentence": self.sentence, "first_broken": self.first_broken,
            "faults": [vars(fault) for fault in self.faults], "rivals": [vars(fault) for fault in self.rivals],
            "prompt": [vars(mistake) for mistake in self.prompt], "next_probe": self.next_probe,
            "precision": self.comparison and self.comparison.precision,
            "hint": self.comparison and self.comparison.hint, "notes": self.notes, "unread": self.unread,
        }  # fmt: skip


class _Reached(Exception):
    """A pass has come to the tap at which it should end."""


class Candidate(NamedTuple):
    """A mistake in one of its forms: in all layers or in some, at all positions or from one on."""

    fault: object
    change: object
    where: str = ""  # which layers, in words; "": all
    layers: frozenset | None = None  # their numbers
    start: int = 0  # the first position with the mistake
    step: int = 1  # how many tokens a later call has, for a mistake that needs a cache


class Trial(NamedTuple):
    """How much of the excess some candidates explain together."""

    candidates: tuple
    explained: float  # the fraction of the excess that they remove
    left: float  # a finer measure of what they leave
    errors: dict  # tap -> own error with them in our pass

    @property
    def fault(self):
        return self.candidates[0].fault

    def rank(self):
        """A sort key: the best trial has the smallest."""
        return -round(self.explained, 2), self.left


class Search:
    """Tries candidates on one trace."""

    def __init__(self, run, comparison, prefill):
        self.run, self.comparison, self.prefill, self.skipped = run, comparison, prefill, []
        self.best = None  # the Trial of the mistakes that are named
        # a mistake may add a tap, such as the K of a layer that should read another's: allow it what other layers have
        kinds = {tap_kind(name): error for name, error in comparison.allowed.items()}
        self.allowed = {name: kinds[tap_kind(name)] for name in run.theirs if tap_kind(name) in kinds}
        self.allowed |= comparison.allowed
        judged = [row for row in comparison.rows if row.own is not None]
        broken = [row for row in judged if row.verdict == "BROKEN"]
        shapes = [row.name for row in comparison.rows if row.verdict == "SHAPE"]
        self.own_error = {row.name: row.own.error for row in judged} | dict.fromkeys(shapes, np.inf)
        self.broken = [*(row.name for row in broken), *shapes]
        self.suspect = layer_of(comparison.first_broken or "")
        self.wrong, self.start = wrong_positions(comparison)
        if prefill is None and 1 < self.start < len(run.tokens):
            self.prefill = self.start  # if they decoded, it began there; not at 1: RoPE does not turn position 0
        self.kv, arrays, replay = {}, {}, run.replay()

        def kept(name, array):
            arrays[name] = array.copy() if ".heads." in name else array  # a head's array is used again
            onward = replay(name, array)
            if part_of(name) in ("attn.rot_k", "attn.v"):
                self.kv[name] = onward
            return onward

        run.through(kept)
        self.known = {name: (arrays[name], difference) for name, difference in replay.found.items()}
        self.early = None  # a Search of the first positions, where they are right, as nothing is wrong until much later
        if self.start >= 2 * PREFIX and has_prefixes(run, comparison):
            calls = prefill and min(prefill, PREFIX)
            self.early = Search(run.prefix(PREFIX), replace(comparison, rows=[]), calls)

    def allows(self, name):
        """The largest error of one op that rounding explains."""
        return self.allowed.get(name, 1e-6)

    def _excess(self, errors):
        total = 0.0
        for name, error in errors.items():
            decades = np.log10(max(error, 1e-30) / self.allows(name)) if np.isfinite(error) else SHAPE_EXCESS
            total += max(0.0, min(decades, SHAPE_EXCESS))
        return total

    @cached_property
    def coarse(self):
        """Own errors of a healthy port that computes in float16."""
        return healthy(self.run, ROUNDING["float16"])[1]

    def candidates(self):
        """The entries of the catalogue that this model and this run can show, harmless ones included."""
        facts = self.run.facts(self.prefill)
        entries = [fault for fault in FAULTS.values() if applicable(fault, self.run.config, **facts)]
        if self.suspect == 0:  # then no earlier layer is right: B11 would be B1
            entries = [fault for fault in entries if fault.id != "B11"]
        return [Candidate(f, change) for f in entries for change in f.changes if f.id not in ("J1", "J2")]

    def partial(self, trials):
        """Candidates in some layers only, as a mistake in one kernel makes them. trials: of each in all layers.

        Where taps of layers show the fault, only those that mend the first broken tap. Whether one does is known from
        its trial, unless the layer of that tap reads the K and V of a layer that is right.
        """
        first = self.comparison.first_broken
        if part_that_has(first) != "text" or (self.suspect is None and first not in AFTER):
            return []
        tried = [t for t in trials if t.fault.first and layer_of(t.fault.first.replace("*", "0")) is not None]
        mends, found = [t.errors.get(first, np.inf) <= self.allows(first) for t in tried], []
        for words, part in layer_groups(self.run.config).items():
            forms = [t.candidates[0]._replace(where=f"on {words} only", layers=part) for t in tried]
            if self.suspect is None:
                found += forms
            elif self.suspect in part:
                known = self.run.config.layers[self.suspect].kv_from in part
                found += compress(forms, mends) if known else self.mending(forms)
        return found

    def narrower(self, trials):
        """Trials of candidates in some layers only, then from the first wrong position on, then both. trials: of all.

        Not of B11, which itself is of some layers. Nothing begins at position 1: many mistakes leave position 0 right,
        as RoPE does not turn it. The last position alone does not show where something begins.
        """
        able = [t for t in trials if "cached" not in t.fault.needs and not t.fault.benign and t.fault.id != "B11"]
        yield from map(self.trial, self.partial(able))
        count, first = len(self.run.tokens), self.comparison.first_broken
        if part_that_has(first) == "text" and 1 < self.start < count - 1:
            late = [t.candidates[0]._replace(start=self.start) for t in able]
            whole = late if first in AFTER else self.mending(late)  # what mends logits in some layers may not in all
            others = [t.candidates[0]._replace(step=count) for t in trials if "cached" in t.fault.needs]
            others += self.mending(self.numbered())
            able = self.trials("mistakes that begin later", [(one,) for one in whole + others])
            yield from sorted(able, key=Trial.rank)
            able += [Trial((one,), -1.0, np.inf, {}) for one in late if one not in whole]
            yield from map(self.trial, self.partial(able))

    def mending(self, candidates):
        """Those that mend the first broken tap, where the pass can end, or that may leave a part of its error."""
        found, first = [], self.comparison.first_broken
        with progress("trying mistakes up to the first broken tap", len(candidates)) as advance:
            for one in candidates:
                error = (self.errors([one], first) or {}).get(first, np.inf)
                found += [one] if error <= self.allows(first) or one.fault.rounds or one.fault.flips else []
                advance(1)
        return found

    def numbered(self):
        """Candidates of mistakes that begin later and have a number, such as how far positions jump.

        Only small numbers where layer 0 does not show the mistake, as each then costs a pass of many layers.
        """
        found = []
        for fault in (fault for fault in FAULTS.values() if "late" in fault.needs):
            for change in fault.changes:
                by = change.function.keywords["by"]
                if self.suspect in (0, 1) or abs(by) <= 8:
                    found.append(Candidate(fault, change, f"by {by}", start=self.start))
        return found

    def contradicted(self, candidates):
        """Whether these mistakes would already show at the first positions. A mistake that only rounds may not."""
        if self.early is None or any(one.start or one.fault.rounds or one.fault.flips for one in candidates):
            return False
        errors = self.early.errors(candidates) or {}
        return any(not error <= self.allows(name) for name, error in errors.items())

    def errors(self, candidates, until=None):
        """Own errors with these mistakes in our pass -> tap: error; infinite where shapes differ.

        Of one that begins later, only the later positions are passed, as a call behind the cache of those before.
        until: the tap behind which the pass ends.
        """
        run, port, start = self.run, self.run.port(self.suspect, self.wrong), candidates[0].start
        cached = any("cached" in candidate.fault.needs for candidate in candidates)
        try:
            for candidate in candidates:
                port.only = candidate.layers
                candidate.change(port)
            calls = {"cache": self.before(port.config)} if start else {}
            calls |= {"prefill": self.prefill, "step": candidates[0].step} if cached else {}
            replay = run.replay(port.config, {} if calls else self.known, start)

            def tap(name, array):
                array = replay(name, array)
                if name == until:
                    raise _Reached
                return array

            with np.errstate(all="ignore"), suppress(_Reached):
                port.run(tap, **calls)
        except (ValueError, LookupError, AttributeError, TypeError):
            if len(candidates) == 1:
                self.skipped.append(candidates[0].fault.id)
            return None  # two changes that exclude each other, such as two windows, or one that this trace cannot show
        errors = {name: d.error for name, d in replay.found.items()}
        if all(candidate.fault.flips for candidate in candidates):  # then the worst position says little
            for name in errors.keys() & self.known.keys():
                left, before = typical(replay.found[name].errors), typical(self.known[name][1].errors[start:])
                errors[name] = self.own_error[name] * left / before if before else errors[name]
        return errors | dict.fromkeys(replay.misshapen, np.inf)

    def before(self, config):
        """The cache that the positions before the first wrong one leave to a port of this config: they are right."""
        start, entries = self.start, {}
        for layer in config.layers:
            if not layer.shares_kv:
                k, v = (self.kv[f"layers.{layer.index}.attn.{part}"][:start] for part in ("rot_k", "v"))
                entries[layer.index] = Entry(Buffer(k, v, start), 0, start).trim(layer.window)
        return Cache(start, entries)

    def trial(self, *candidates):
        """Put these mistakes together into our pass -> Trial.

        A tap whose shape stays wrong counts neither for nor against a candidate; it only breaks a tie.
        """
        errors = None if self.contradicted(candidates) else self.errors(candidates)
        if errors is None:
            return Trial(candidates, -1.0, np.inf, {})
        errors = self.own_error | errors
        judged = {name: error for name, error in errors.items() if np.isfinite(error)}
        for pattern in filter(None, (candidate.fault.rounds for candidate in candidates)):
            for name in filter(lambda name: fnmatchcase(name, pattern), judged):
                if judged[name] <= MARGIN * self.coarse[name]:
                    errors[name] = judged[name] = self.allows(name)
        if all(candidate.fault.flips for candidate in candidates):
            for name in [name for name, error in judged.items() if error <= FLIPPED * self.own_error.get(name, 0)]:
                errors[name] = judged[name] = min(judged[name], self.allows(name))
        before = self._excess({name: self.own_error.get(name, 0) for name in judged})
        left = len(errors) - len(judged) + np.mean([np.log10(max(e, 1e-12)) for e in judged.values()] or [0])
        return Trial(candidates, 1 - self._excess(judged) / before if before else 0.0, left, errors)

    def trials(self, what, several):
        """The Trial of each of several tuples of candidates. stderr says how far it is, if it takes long."""
        found = []
        with progress(f"trying {what} on {len(self.run.tokens)} positions", len(several)) as advance:
            for candidates in several:
                found.append(self.trial(*candidates))
                advance(1)
        return found

    def finding(self, candidate, explained, errors):
        """The Finding of a mistake that explains this fraction of the excess; errors are those of its Trial."""
        fault, begins = candidate.fault, candidate.start and f"from position {candidate.start} on"
        call = candidate.step > 1 and "all later tokens in one call"
        title = ", ".join(filter(None, (fault.title, candidate.where, begins, call)))
        mended = [n for n in self.broken if errors.get(n, np.inf) <= self.allows(n)]
        worst = max(self.broken, key=lambda name: self.own_error[name])
        evidence = (
            f"with it in our pass {len(mended)} of {len(self.broken)} broken taps agree; the error at {worst} goes "
            f"from {self.own_error[worst]:.1e} to {errors.get(worst, np.inf):.1e}"
        )
        return Finding(fault.id, title, round(float(explained), 3), evidence, fault.remedy)

    def mends_all(self, trial):
        """Whether a trial leaves only rounding."""
        return trial.explained >= NAMED and all(error <= self.allows(name) for name, error in trial.errors.items())

    def findings(self, trials):
        """The Findings of those among these trials of one mistake that explain more than a tenth."""
        return [self.finding(t.candidates[0], t.explained, t.errors) for t in trials if t.explained > 0.1]


def typical(errors):
    """The root of the mean square. A number that is rounded the other way makes a large error at one position alone."""
    return float(np.vecdot(errors, errors) / max(len(errors), 1)) ** 0.5


def diagnose(theirs, run, precision=None, prefill=None):
    """Name the mistake behind a trace. theirs: tap name -> array; run: a runs.Run of the model and the ids.

    prefill: the number of tokens in their first call, if they decoded the others one by one with a cache.
    """
    if isinstance(run, PictureRun | SoundRun):
        return _judged(compare_traces(theirs, run, precision), run, precision)
    T = len(run.tokens)
    if prefill is not None and not 1 <= prefill <= T:
        raise Error(f"--prefill is the number of tokens in their first call, from 1 to the prompt's {T}, not {prefill}")
    lengths = lengths_of(theirs, run)
    if not (T - run.start in lengths or lengths <= {1}):
        if found := _other_bos(lengths, run):
            return found
        raise Error(
            f"the trace has {', '.join(map(str, sorted(lengths)))} positions and the prompt {T} ids; give the ids that "
            "their run had, with --ids"
        )
    comparison = compare_traces(theirs, run, precision)
    sound = comparison.identity or comparison.first_broken is None
    if not sound and T > 1 and lengths == {1} and (found := _other_bos(lengths, run)):
        return found  # one position does not show the length
    return _judged(comparison, run, precision, prefill)


def _judged(comparison, run, precision, prefill=None):
    """The Diagnosis of a comparison."""
    if comparison.identity:
        return Diagnosis(comparison.identity, comparison.sentence, comparison.first_broken, comparison=comparison)
    if comparison.first_broken is None:
        probe = _next_rung(run, prefill)
        return Diagnosis("healthy", comparison.sentence, None, next_probe=probe, comparison=comparison)
    found, short = _in_prefix(run, comparison, prefill) or (_searched(Search(run, comparison, prefill)), run)
    if found.verdict == "unknown" and precision is None:
        _try_coarser(found, run, short)
    found.notes += comparison.notes if found.verdict == "unknown" else []
    return found


def wrong_positions(comparison):
    """The wrong positions of the first broken tap, and the first wrong position of all."""
    wrong = [np.flatnonzero(row.own.errors > row.allowed) for row in comparison.rows if row.verdict == "BROKEN"]
    return wrong[0] if wrong else (), int(min((places[0] for places in wrong if len(places)), default=0))


def has_prefixes(run, comparison):
    """Whether a trace has all positions of a text at each tap: then its first positions are a trace too."""
    whole = type(run) is Run and run.soft_tokens is None and lengths_of(run.theirs, run) == {len(run.tokens)}
    return whole and all(row.verdict != "SHAPE" for row in comparison.rows)


def _in_prefix(run, comparison, prefill):
    """The Diagnosis from a prefix of a long trace, and the prefix's Run; None if it does not show all that is wrong.

    No token changes what stands before it. What is named must then explain the whole trace too.
    """
    length = max(PREFIX, wrong_positions(comparison)[1] + BEYOND, prefill or 0)
    if length > SHORTER * len(run.tokens) or not has_prefixes(run, comparison):
        return None
    short = run.prefix(length)
    shorter = compare_traces(short.theirs, short, comparison.precision)
    if shorter.first_broken != comparison.first_broken or shorter.identity:
        return None
    search = Search(short, shorter, prefill)
    found = _searched(search)
    if search.best:
        all_of_it = Search(run, comparison, prefill)
        trial = all_of_it.trial(*search.best.candidates)
        if search.mends_all(search.best) != all_of_it.mends_all(trial) or trial.explained < 0.9 * search.best.explained:
            return None
    found.notes.append(f"the known mistakes were tried on the first {length} positions, which show the fault")
    found.comparison = comparison
    return found, short


def _try_coarser(found, run, short):
    """Say which coarser number format would explain a trace that no mistake explains.

    Where 16 bits are seen in the numbers, the rest may be rounding too, such as a cache in float16 beside products in
    bfloat16: the verdict becomes healthy. Elsewhere a coarser format could hide a real mistake, and is only named.
    short: a prefix, which is asked first.
    """
    inferred = found.comparison.precision
    for precision in PRECISIONS[PRECISIONS.index(inferred) + 1 :]:
        coarser = compare_traces(short.theirs, short, precision)
        if coarser.first_broken is None and short is not run:
            coarser = compare_traces(run.theirs, run, precision)
        if coarser.first_broken is None and not any(row.allowed > BLIND for row in coarser.rows):
            found.sentence += f"; {precision} rounding would explain all: if they use it, give --precision {precision}"
            if inferred == "float16":
                found.verdict, found.first_broken, found.comparison, found.next_probe = "healthy", None, coarser, None
                found.sentence = f"{coarser.sentence}, though most numbers are those of {inferred}"
            return


def _searched(search):
    """The Diagnosis of a trace in which an op is broken, with a note of what could not be tried."""
    found = _explained(search)
    if search.skipped:
        found.notes.append(f"not tried, as this trace cannot show them: {', '.join(dict.fromkeys(search.skipped))}")
    return found


def _explained(search):
    """The Diagnosis of a trace in which an op is broken: one mistake or two, another run, or unknown."""
    run, comparison = search.run, search.comparison
    singles = sorted(search.trials("known mistakes", [(one,) for one in search.candidates()]), key=Trial.rank)
    if not singles:  # the catalogue has no mistakes with sounds
        return _unknown(search, singles)
    best, first = singles[0], comparison.first_broken
    named = [(best.candidates[0], best.explained)]
    if search.mends_all(best):
        rivals = [t for t in singles[1:4] if t.explained > best.explained - 0.02 and t.fault is not best.fault]
        return _faulty(search, named, best, singles, rivals)
    if partial := next(filter(search.mends_all, search.narrower(singles)), None):
        return _faulty(search, [(partial.candidates[0], partial.explained)], partial, singles)
    pair = _best_pair(search, singles)
    if pair and pair.explained >= max(NAMED, best.explained + 0.02):
        adds = [pair.explained - search.trial(other).explained for other in reversed(pair.candidates)]
        named = zip(pair.candidates, adds, strict=True)
        return _faulty(search, sorted(named, key=lambda item: -item[1]), pair, singles)
    if best.explained >= NAMED or (best.explained > 0.3 and best.errors.get(first, np.inf) <= search.allows(first)):
        left = next((n for n in run.shapes if best.errors.get(n, 0) > search.allows(n)), None)
        found = _faulty(search, named, best, singles)
        found.sentence += f"; the rest is not in the catalogue: it begins at {left}"
        return found
    if other := unrelated(comparison, run) or rounded_matrices(comparison, run):
        return Diagnosis(*other, first, comparison=comparison)
    return _unknown(search, singles)


def _unknown(search, singles):
    """The Diagnosis of a mistake that is not in the catalogue."""
    comparison, near = search.comparison, search.findings(singles[:3])
    sentence = f"not in the catalogue: {comparison.sentence}"
    probe = _capture(comparison, search.run)
    found = Diagnosis("unknown", sentence, comparison.first_broken, [], near, probe, comparison)
    run, bos = search.run, search.run.config.source.get("bos_token_id")
    if type(run) is Run and run.start == 0 and bos not in (None, run.tokens[0]):
        found.notes.append("the ids do not begin with <bos>; of a later chunk of a prompt give --start and all ids")
    return found


def _best_pair(search, singles):
    """The best Trial of two faults, at least one of which explains much alone.

    One that needs a cache, so a pass for each token, must explain something alone.
    """
    tried = [t for t in singles if not t.fault.benign and t.explained > (0.02 if "cached" in t.fault.needs else -0.5)]
    useful = [t.candidates[0] for t in tried]
    pairs = {frozenset((a, b)): (a, b) for a in useful[:2] for b in useful[:40]}
    pairs |= {frozenset((a, b)): (a, b) for a, b in combinations(useful[:8], 2)}
    pairs = [pair for pair in pairs.values() if pair[0].fault is not pair[1].fault]
    return min(search.trials("pairs of known mistakes", pairs), key=Trial.rank, default=None)


def _faulty(search, named, trial, singles, rivals=()):
    """The Diagnosis of named faults: pairs (candidate, the fraction it explains), and their common Trial."""
    search.best = trial
    faults = [search.finding(candidate, explained, trial.errors) for candidate, explained in named]
    titles = " and ".join(f"{f.id}, {f.title}" for f in faults)
    sentence = f"{titles}: explains {100 * max(trial.explained, 0):.0f}% of the deviation"
    benign = [candidate.fault.benign for candidate, _ in named if candidate.fault.benign]
    if benign:
        sentence += f"; harmless: {benign[0]}"
    ids = {f.id for f in faults}
    runners = search.findings(t for t in singles[:5] if t.fault.id not in ids)
    probe = None
    if rivals:
        alike = list(dict.fromkeys([named[0][0].fault, *(t.fault for t in rivals)]))
        taps = list(dict.fromkeys(f.first for f in alike))
        means = f"capture {', '.join(taps)}" if len(taps) > 1 else f"run {PROBES[alike[1].probe]}"
        probe = f"to tell {', '.join(f.id for f in alike)} apart, {means}"
    comparison = search.comparison
    return Diagnosis("fault", sentence, comparison.first_broken, faults, runners, probe, comparison)


def _capture(comparison, run):
    """What to capture next: the taps just before the first broken op, if they are missing. Else None."""
    order, rows = list(run.shapes), {row.name: row for row in comparison.rows}
    first = order.index(comparison.first_broken)
    start = next((i for i in range(first - 1, -1, -1) if rows[order[i]].verdict != "MISSING"), -1)
    between = order[start + 1 : first]
    return f"capture {', '.join(between[:8])}{', ...' if len(between) > 8 else ''}" if between else None


def _next_rung(run, prefill):
    """The first probe of the ladder that this prompt does not cover, as advice. None after the last."""
    if isinstance(run, PictureRun | SoundRun):
        return None
    T, window = len(run.tokens), run.config.sliding_window
    if T < 9:
        return f"next, try {PROBES['nine']}"
    if T <= 64:
        return f"next, try {PROBES['far']}"
    if window + 1 >= T and any(layer.window for layer in run.config.layers):
        return f"next, try {PROBES['window']} ({window + 1} and {window + 2} here)"
    if prefill is None:
        return f"next, try {PROBES['cached']}"
    return f"next, try {PROBES['soft']}" if run.soft_tokens is None else None


def _other_bos(lengths, run):
    """The Diagnosis of a trace that agrees with the prompt without <bos>, or with two. Else None."""
    for id, tokens in with_other_bos(run.tokens).items():
        if not len(tokens) or not lengths <= {1, len(tokens)}:
            continue
        comparison = compare_traces(run.theirs, replace(run, tokens=tokens))
        if comparison.first_broken is None:
            fault = FAULTS[id]
            evidence = f"their {len(tokens)} positions agree with the prompt's {len(run.tokens)} ids, {fault.title}"
            finding = Finding(fault.id, fault.title, 1.0, evidence, fault.remedy)
            return Diagnosis("fault", f"{fault.id}, {fault.title}", "embed", [finding], comparison=comparison)
    return None


def diagnose_file(
    path, model, ids=None, mapping=None, soft=None, precision=None, prefill=None, images=(), budget=None, sounds=(),
    start=None,
):
    """Name the mistake in a file of another engine's intermediates -> Diagnosis, with notes about the file.

    Arguments and errors as in diff.diff_file; prefill as in `diagnose`.
    """
    pictures = given_pictures(images, budget, model.config)
    grid = pictures[0].grid(model.config) if len(pictures) == 1 else None
    heard = given_sounds(sounds, model.config)
    theirs, tokens = read_theirs(path, model, ids, mapping, grid, frames_of(heard, model.config), start)
    prompt = mistakes_in(tokens, model.tokenizer, model.small_cue) if model.tokenizer and tokens is not None else []
    if other := stated(theirs, tokens, fingerprint(model.weights)):
        found = Diagnosis(*other, None)
    elif counted := miscounted(theirs, tokens, pictures, model.config):
        found = _of_counts(*counted)
    else:
        unused = read_unused(model.directory, model.config)
        runs = runs_of(theirs, tokens, model, soft and read_soft(soft), pictures, unused, heard)
        found = _joined([diagnose(run.theirs, run, precision, prefill) for run in runs], path)
    found.notes += notes_of(theirs)
    found.unread, found.prompt = [*theirs.unread, *(found.comparison.unread if found.comparison else [])], prompt
    return found


def _of_counts(sentence, faults):
    """The Diagnosis of pictures that became a wrong number of soft tokens."""
    findings = [Finding(fault.id, fault.title, 1.0, sentence, fault.remedy) for fault in faults]
    titles = " or ".join(f"{fault.id}, {fault.title}" for fault in faults)
    verdict = "fault" if faults else "other-input"
    return Diagnosis(verdict, f"{titles}: {sentence}" if faults else sentence, None, findings)


def _joined(found, path):
    """The Diagnoses of a picture, of a sound and of the text behind them -> one, that of the first at fault."""
    if not found:
        raise Error(f"{path}: the trace holds arrays of a picture or sound; give it with --image or --audio")
    first = next((one for one in found if one.verdict != "healthy"), found[-1])
    for other in found:
        if other is not first:
            thing = medium_of(other.comparison.rows[0].name) if other.comparison else "text"
            said = other.sentence if other.verdict == "healthy" else f"{other.verdict}: {other.sentence}"
            first.notes += [f"the {thing}: {said}", *other.notes]
            first.faults += other.faults
    return first


def diagnose_ids(ids, model):
    """Name the mistakes of a chat template in the ids of a prompt, without a forward pass -> Diagnosis.

    Raises Error for an id that the model does not have: the prompt is then another model's, and nothing can be read.
    """
    for position, id in enumerate(ids):
        if not 0 <= id < model.config.vocab_size:
            raise Error(
                f"id {id} at position {position} is outside the vocabulary of {model.directory}, 0 to "
                f"{model.config.vocab_size - 1}; name the model of these ids with --weights"
            )
    prompt = mistakes_in(ids, tokenizer_of(model), model.small_cue)
    names = ", ".join(dict.fromkeys(mistake.id for mistake in prompt))
    sentence = f"the ids show {names}" if names else "the ids show no mistake"
    read = f"the ids were read with the tokenizer of {model.directory}; --weights names another model"
    return Diagnosis("prompt", sentence, None, prompt=prompt, notes=[read])
