"""Interventions: taps that change a value at the positions you name, and what the change does to logits and loss.

    effect(model, tokens, zero("layers.4.attn_out", positions=[7]))
    effect(model, tokens, chain(scale("layers.*.ple_out", 0.5), patch("layers.3.resid_post", other_run, 7, 2)))

Each function returns a tap, for `forward(..., tap=...)`, alone or in a `chain` with others, such as `Edit` and `Trace`.
`pattern` names one tap or several ("layers.[2-4].mlp_out"); `positions` are one or several rows of this call's tokens,
negative ones count from the end; None means all.
"""

from dataclasses import dataclass

import numpy as np

from .errors import Error
from .inputs import check_tap
from .taps import Edit, time_axis


def zero(pattern, positions=None):
    """Zero ablation: the value becomes 0."""
    return _change(pattern, positions, lambda name, rows, where: np.zeros_like(rows[where]))


def mean(pattern, positions=None, trace=None):
    """Mean ablation: the mean over all positions of this run, or of another run's trace (name -> array)."""

    def new(name, rows, where):
        source = rows if trace is None else _rows(name, _recorded(trace, name))
        return source.mean(0)

    return _change(pattern, positions, new)


def other_token(pattern, source, positions=None):
    """The value that another position of the same run has: `source` is one position, or one for each of `positions`."""
    return _change(pattern, positions, lambda name, rows, where: rows[_index(source, len(rows), name)])


def patch(pattern, trace, positions=None, source=None):
    """The value from another run's trace, at the same positions or at `source` of that run (one, or one for each)."""

    def new(name, rows, where):
        theirs = _rows(name, _recorded(trace, name))
        return theirs[_index(where if source is None else source, len(theirs), f"{name} of the other run")]

    return _change(pattern, positions, new)


def scale(pattern, factor, positions=None):
    """The value times a factor."""
    return _change(pattern, positions, lambda name, rows, where: rows[where] * factor)


def chain(*taps):
    """One tap of several: each gets what the one before it returned."""

    def tap(name, array):
        for each in taps:
            array = each(name, array)
        return array

    def check(config):
        for each in taps:
            check_tap(each, config)

    tap.check = check
    return tap


@dataclass(frozen=True, eq=False)
class Effect:
    """What an intervention does; losses and KL in nats."""

    kl: np.ndarray  # [T] KL(before || after) of the next-token distribution
    loss_before: np.ndarray  # [T-1] -log p(token t + 1 | tokens to t)
    loss_after: np.ndarray  # [T-1]
    top_before: np.ndarray  # [T, k] the most probable ids, the best first
    top_after: np.ndarray  # [T, k]

    def text(self, tokenizer, position=-1):
        """The change in a few lines; top tokens at one position."""
        lines = [
            f"KL, mean over positions   {self.kl.mean():.4f} nats (at position {position}: {self.kl[position]:.4f})"
        ]
        if len(self.loss_before):
            before, after = self.loss_before.mean(), self.loss_after.mean()
            lines.append(f"loss, nats per token      {before:.4f} -> {after:.4f} ({after - before:+.4f})")
        for label, top in (("before", self.top_before), ("after", self.top_after)):
            shown = " ".join(repr(tokenizer.token(id)) for id in top[position])
            lines.append(f"top tokens {label:<6}         {shown}")
        return "\n".join(lines)


def effect(model, tokens, tap, top=5):
    """Run `tokens` [T] without and with the tap -> Effect: KL, loss on the tokens themselves, most probable tokens."""
    (before, _), (after, _) = model(tokens), model(tokens, tap=tap)  # [T, V] each
    old, new = log_softmax(before), log_softmax(after)  # [T, V] each
    return Effect(
        kl=np.maximum((np.exp(old) * (old - new)).sum(-1), 0),  # rounding may fall below 0
        loss_before=token_losses(before, tokens),
        loss_after=token_losses(after, tokens),
        top_before=np.argsort(-before, axis=-1, kind="stable")[:, :top],
        top_after=np.argsort(-after, axis=-1, kind="stable")[:, :top],
    )


def log_softmax(logits):
    """logits [T, V] -> log-probabilities in float64, [T, V]."""
    shifted = logits.astype(np.float64) - logits.max(-1, keepdims=True)  # [T, V]
    return shifted - np.log(np.exp(shifted).sum(-1, keepdims=True))


def token_losses(logits, tokens):
    """-log p(next token) at every position but the last, [T-1]; logits [T, V] of all `tokens` [T]. Sums in float64."""
    following = np.asarray(tokens)[1:, None]  # [T-1, 1]
    largest = logits[:-1].max(-1)  # [T-1]
    shifted = logits[:-1] - largest[:, None]  # [T-1, V]
    total = np.exp(shifted, out=shifted).sum(-1, dtype=np.float64)  # [T-1], in place: E2B's vocabulary is large
    return largest + np.log(total) - np.take_along_axis(logits[:-1], following, axis=-1)[:, 0]


class _NamedEdit(Edit):
    """An Edit whose functions also get the tap's name: it says which axis counts the positions."""

    def change(self, function, name, array):
        return function(name, array)


def _change(pattern, positions, new):
    """The tap that puts new(name, rows, where) into the rows `where` of every fitting array."""

    def change(name, array):
        rows = _rows(name, array)  # [T, ...], a view
        where = np.arange(len(rows)) if positions is None else _index(positions, len(rows), name)
        value = new(name, rows, where)  # [len(where), ...], or what broadcasts to it
        if value.ndim == rows.ndim and len(value) not in (1, len(where)):
            raise Error(f"{name}: {len(value)} source positions for {len(where)} positions; give one, or one for each")
        if value.shape[1:] != rows.shape[1:] and value.shape != rows.shape[1:]:
            raise Error(f"{name}: new rows of shape {list(value.shape)} do not fit {list(rows.shape[1:])}")
        rows[where] = value
        return array

    return _NamedEdit({pattern: change})


def _rows(name, array):
    """A view with the positions first: [T, ...]; scores and patterns have heads before them."""
    return np.moveaxis(array, time_axis(name), 0)


def _index(positions, count, name):
    """Positions as an array of indices from 0 to count - 1."""
    index = np.atleast_1d(np.asarray(positions))
    if index.dtype.kind not in "iu" or index.size == 0 or index.min() < -count or index.max() >= count:
        raise Error(f"{name}: positions must be whole numbers within its {count} rows, not {positions!r}")
    return np.where(index < 0, index + count, index)


def _recorded(trace, name):
    if name not in trace:
        raise Error(f"{name}: the other run's trace does not hold it; record it with Trace({name!r})")
    return np.asarray(trace[name])
