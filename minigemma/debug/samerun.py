"""Is it the same run? What tells that a trace is of another prompt, other weights, or a prompt with another <bos>.

In the order in which it is asked: the file's own ids and fingerprint (`stated`), how many positions its arrays have
(`lengths_of`), the embeddings and the matrix products (`identify`), and last, where no known mistake explains the
trace, its first tap (`unrelated`). A verdict is a pair: "other-input" or "other-weights", and a sentence.
"""

import numpy as np

from ..checkpoint import read_header
from ..errors import Error
from ..ops import linear
from ..taps import layer_of, names_of, time_axis
from .foreign import read_trace
from .replay import by_position

LINEAR = ("attn.q_raw", "attn.k_raw", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
WEIGHTLESS = (
    "attn.v", "attn.rot_q", "attn.rot_k", "attn.scores", "attn.pattern", "attn.z", "resid_mid", "resid_ffn", "mlp.act",
)  # fmt: skip


def read_theirs(path, model, ids=None, mapping=None):
    """A trace and its prompt -> foreign.Foreign, and the ids [T]: the given ones, else the file's.

    Where the file holds no ids, the given ones with or without <bos> may fit its length better.
    Raises Error where there are no ids at all.
    """
    theirs = read_trace(path, model.config, mapping)
    if theirs.tokens is None:
        if ids is None:
            raise Error(f"{path}: holds no ids; give those of the prompt by --ids 2,818,... or --prompt TEXT")
        # <bos> may be missing there, or twice; of a last position alone the length is not known
        other = {len(near): near for near in with_other_bos(ids).values()} if theirs.length > 1 else {}
        theirs = read_trace(path, model.config, mapping, other.get(theirs.length, ids))
    return theirs, theirs.tokens if ids is None else np.asarray(ids)


def read_second(path, config, mapping=None):
    """A second trace, of our weights too -> foreign.Foreign; a mapping translates its names unless they are ours."""
    own = set(names_of(config)) & set(read_header(path))
    return read_trace(path, config, None if own else mapping)


def with_other_bos(ids):
    """The catalogue's mistake -> what a port reads that makes it: no <bos>, or two."""
    return {"J1": np.asarray(ids[1:]), "J2": np.asarray([*ids[:1], *ids])}


def notes_of(theirs):
    """What was recognised in a trace, what was left out, and what so goes unjudged."""
    notes = [*theirs.notes, *(f"ignored {line}" for line in theirs.ignored)]
    if theirs.unread:
        count = len(theirs.unread) + len(theirs.arrays)
        notes.append(f"{len(theirs.unread)} of {count} arrays could not be read and are not judged")
    return notes


def stated(theirs, tokens, fingerprint):
    """The verdict where the file itself says that it is of another prompt, or of weights with another fingerprint.

    fingerprint: of our weights, None where it is not known. None where the file does not say so.
    """
    alike = (tokens, *with_other_bos(tokens).values())  # which mistake that is, the comparison finds
    if not any(np.array_equal(theirs.tokens, ids) for ids in alike):
        places = np.flatnonzero(theirs.tokens[: len(tokens)] != tokens[: len(theirs.tokens)])
        place = int(places[0]) if len(places) else min(len(theirs.tokens), len(tokens))
        return "other-input", f"another prompt: the file's ids are not the given ones, from position {place} on"
    stored = theirs.metadata.get("fingerprint")
    if None not in (stored, fingerprint) and stored != fingerprint:
        name = theirs.metadata.get("model", "another model")
        return "other-weights", f"other weights: the trace was made with {name}"
    return None


def lengths_of(theirs, run):
    """How many positions their arrays have, those of another number of axes than ours left out."""
    return {np.shape(a)[time_axis(n)] for n, a in theirs.items() if np.ndim(a) == len(run.shapes.get(n, ()))}


def identify(rows, theirs, run):
    """("other-input" | "other-weights", sentence) where the trace is of another prompt or another model, else None."""
    judged = {row.name: row for row in rows if row.own is not None}
    embed = judged.get("embed")
    if embed and embed.verdict == "BROKEN":
        found = _other_tokens(embed, theirs["embed"], run)
        if found:
            return found
    ours = [row for name, row in judged.items() if name.split(".", 2)[-1] in WEIGHTLESS]
    learned = [row for name, row in judged.items() if name.split(".", 2)[-1] in LINEAR]
    broken = [row for row in learned if row.verdict == "BROKEN"]
    if len(learned) >= 4 and len(broken) > 0.7 * len(learned):
        sound = np.mean([row.verdict != "BROKEN" for row in ours]) if ours else 0
        if sound > 0.9:
            return "other-weights", (
                f"this looks like other weights: {len(broken)} of {len(learned)} matrix products are wrong on their "
                "own inputs, while the ops without weights are right; compare checkpoint names and revisions"
            )
    return None


def _other_tokens(embed, theirs, run):
    """Whose rows of the token table are their embeddings, where those are not our tokens'?"""
    if len(theirs) != len(run.tokens):
        return None
    wrong = np.flatnonzero(embed.own.errors > embed.allowed)  # positions
    rows = by_position("embed", theirs)[wrong]  # [M, D]
    cosines = by_position("embed", run.ours["embed"])[wrong]  # [M, D]
    cosines = (cosines * rows).sum(-1) / (np.linalg.norm(cosines, axis=-1) * np.linalg.norm(rows, axis=-1) + 1e-30)
    turned = cosines < 0.9  # a factor leaves the direction
    if not turned.any():
        return None
    table, rows = run.weights.embed_tokens, rows[turned].astype(np.float32)
    sizes = np.concatenate([np.linalg.norm(np.asarray(table[i : i + 8192]), axis=-1)
                            for i in range(0, table.shape[0], 8192)])  # [V]  # fmt: skip
    match = linear(rows, table) / (sizes * np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-30)  # [M, V]
    best, rowlike = match.argmax(-1), match.max(-1) > 0.98  # [M] each
    close = rowlike & (best != run.tokens[wrong][turned])  # our token's row stands there where an image's belongs
    if close.mean() > 0.5:
        shown = [
            f"position {p}: {run.tokens[p]}, theirs {t}"
            for p, t, c in zip(wrong[turned], best, close, strict=True)
            if c
        ]
        return "other-input", (
            f"another prompt: {int(close.sum())} of {len(run.tokens)} embeddings are those of other tokens "
            f"({'; '.join(shown[:3])}{'; ...' if len(shown) > 3 else ''})"
        )
    if turned.mean() > 0.5 and rowlike.mean() <= 0.5:
        return "other-weights", (
            "other weights, or a damaged token table: their embeddings are no rows of ours, whatever the token"
        )
    return None


@np.errstate(invalid="ignore")
def unrelated(comparison, run):
    """(verdict, sentence) where no mistake explains a trace because it is of another prompt or of other weights.

    Asked last, and for traces without `embed`, which tells at once: their first tap then has nothing to do with ours.
    """
    judged = [row for row in comparison.rows if row.own is not None and row.name != "logits"]
    layers = [row for row in judged if layer_of(row.name) is not None]
    if len(layers) < 3 or judged[0].name == "embed":
        return None
    name = judged[0].name
    a, b = by_position(name, run.ours[name]), by_position(name, run.theirs[name])  # [T, n] each
    if a.shape != b.shape or judged[0].verdict != "BROKEN":
        return None
    cosines = (a * b).sum(-1) / (np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1) + 1e-30)  # [T]
    wrong = judged[0].own.errors > judged[0].allowed  # [T]
    start = int(wrong.argmax())
    if start and np.median(cosines[wrong]) < 0.6:
        return "other-input", (
            f"another prompt, it seems: positions 0 to {start - 1} are right, and from {start} on {name} has "
            "nothing to do with ours; compare the ids of the two runs"
        )
    if np.mean([row.verdict == "BROKEN" for row in layers]) > 0.8 and np.median(cosines) < 0.6:
        return "other-weights", (
            "other weights or another prompt, it seems: every layer is wrong on its own inputs, and no known mistake "
            "explains it; compare the checkpoints, then the ids"
        )
    return None
