"""Is it the same run? How a trace of another prompt, of other weights, or without <bos> is recognised.

The checks, in this order: the ids and the fingerprint in the file (`stated`), the number of positions (`lengths_of`),
the embeddings and the matrix products (`identify`), and, if no known mistake explains the trace, its first tap
(`unrelated`). A verdict is a pair: "other-input" or "other-weights", and a sentence.
"""

import re
from collections import defaultdict
from dataclasses import replace

import numpy as np

from ..config import GLOBAL, SLIDING
from ..errors import Error
from ..ops import linear
from ..taps import axes_of, layer_of, names_of, part_of, tap_kind, time_axis
from .foreign import keys_of, padding, part_that_has, read_trace
from .replay import by_position, compare, ending, in_words

KINDS_OF_LAYERS = {
    "global": lambda layer: layer.kind == GLOBAL, "sliding": lambda layer: layer.kind == SLIDING,
    "KV-sharing": lambda layer: layer.shares_kv, "KV-writing": lambda layer: not layer.shares_kv,
}  # fmt: skip
LINEAR = ("attn.q_raw", "attn.k_raw", "attn.o", "mlp.gate", "mlp.up", "mlp.down")
MATRICES = (*LINEAR, "attn.v_raw", "ple.proj")  # in layers; ple.gate is a product and GELU
EXACT = 30  # times the error of ops without weights: then the rounding is in the weights, not in the numbers
LARGE = 64  # adapters have a smaller rank
MOST = 128  # positions are enough to see it
CLIPPED = 0.7  # a product without its clip bounds is more like the right one than this cosine
WEIGHTLESS = (
    "attn.v", "attn.rot_q", "attn.rot_k", "attn.scores", "attn.pattern", "attn.z", "resid_mid", "resid_ffn", "mlp.act",
)  # fmt: skip


def read_theirs(path, model, ids=None, mapping=None, grid=None, frames=None, start=None):
    """A trace and its prompt -> foreign.Foreign, and the ids [T]: the given ones, else the file's.

    A file without ids is also read if the given ids fit its length only without <bos>, or with two.
    grid, frames, start: as in read_trace. Raises Error if neither the caller nor the file has ids; a trace of a picture
    or a sound alone needs none, and has None.
    """
    spare = [] if ids is None else [ids, *with_other_bos(ids).values()]
    chunk = start is not None  # its file may hold the ids of the chunk alone
    theirs = read_trace(path, model.config, mapping, ids if chunk else None, grid, frames, start, spare)
    if theirs.tokens is None and not theirs.is_medium():
        raise Error(f"{path}: holds no ids; give the prompt with --ids 2,818,... or --prompt TEXT")
    return theirs, theirs.tokens if ids is None or chunk else np.asarray(ids)[padding(ids, model.config) :]


def read_second(path, config, mapping=None, grid=None, frames=None, start=None):
    """The second trace of a comparison -> foreign.Foreign. A mapping translates its names unless they are ours."""
    own = set(names_of(config)) & keys_of(path)
    return read_trace(path, config, None if own else mapping, grid=grid, frames=frames, start=start)


def with_other_bos(ids):
    """The catalogue's id of the mistake -> the ids that a port with it reads: no <bos>, or two."""
    return {"J1": np.asarray(ids[1:]), "J2": np.asarray([*ids[:1], *ids])}


def notes_of(theirs):
    """Lines about a trace: what was converted and what was ignored; names that differ in numbers share a line."""
    groups, no_tap = defaultdict(list), len(theirs.ignored) - len(theirs.unread)
    for key, reason in theirs.unread.items():
        groups[re.sub("[0-9]+", "*", key), reason].append(key)
    notes = [f"ignored {no_tap} {'array' if no_tap == 1 else 'arrays'} that no tap holds"] if no_tap else []
    for (pattern, reason), keys in groups.items():
        notes.append(f"ignored {keys[0] if len(keys) == 1 else f'{pattern}, {len(keys)} arrays'}: {reason}")
    return [*theirs.notes, *notes]


def stated(theirs, tokens, fingerprint):
    """The verdict if the file's own ids or fingerprint are those of another run, else None.

    tokens: the given ids, None for a picture alone. fingerprint: of our weights, None if it is not known.
    """
    alike = () if tokens is None else (tokens, *with_other_bos(tokens).values())  # a wrong <bos> is named later
    if alike and not any(np.array_equal(theirs.tokens, ids) for ids in alike):
        places = np.flatnonzero(theirs.tokens[: len(tokens)] != tokens[: len(theirs.tokens)])
        place = int(places[0]) if len(places) else min(len(theirs.tokens), len(tokens))
        return "other-input", f"another prompt: the file's ids are not the given ones, from position {place} on"
    stored = theirs.metadata.get("fingerprint")
    if None not in (stored, fingerprint) and stored != fingerprint:
        name = theirs.metadata.get("model", "another model")
        return "other-weights", f"other weights: the trace was made with {name}"
    return None


def layer_groups(config):
    """The kinds of layers for which an engine may have code of its own: words -> their numbers."""
    groups = {
        f"the {kind} layers": frozenset(layer.index for layer in config.layers if of_kind(layer))
        for kind, of_kind in KINDS_OF_LAYERS.items()
    }
    return {words: layers for words, layers in groups.items() if 0 < len(layers) < config.num_hidden_layers}


def broken_ops(rows, config):
    """Which ops are broken, in which layers and at which positions, and what follows, in one line. rows: diff.Row."""
    broken = [row for row in rows if row.verdict in ("BROKEN", "SHAPE") and part_that_has(row.name) == "text"]
    if not broken:
        return ""
    layers = defaultdict(set)
    for row in broken:
        layers[part_of(row.name)].add(layer_of(row.name))
    where = defaultdict(list)  # layers -> the parts that are broken in them
    for part, numbers in layers.items():
        where[frozenset(numbers)].append(part)
    groups = {numbers: f", {words}" for words, numbers in layer_groups(config).items()}
    groups[frozenset(range(config.num_hidden_layers))] = ", all layers"

    def place(numbers):
        if None in numbers:
            return ""
        return f" in layer{'s' * (len(numbers) > 1)} {', '.join(map(str, sorted(numbers)))}{groups.get(numbers, '')}"

    ops = "; ".join(f"{', '.join(parts)}{place(numbers)}" for numbers, parts in where.items())
    first, line = broken[0], f"the broken ops: {ops}"
    if first.own and not (wrong := ~(first.own.errors <= first.allowed)).all():
        line += f"; the first is wrong at {in_words(np.flatnonzero(wrong))}"
    behind = [row.verdict for row in rows[rows.index(first) + 1 :] if row.verdict != "MISSING"]
    verbs = {"POISONED": "are poisoned", "DRIFT": "drift"}
    follows = [f"{behind.count(name)} {verb}" for name, verb in verbs.items() if name in behind]
    return f"{line}; of the {len(behind)} taps after it {' and '.join(follows)}" if follows else line


def one_id_less(run):
    """The run without its last id, if their one row is of the id before it; else None.

    The ids that generate() returns are one more than those that it reads, and its last call has one position.
    """
    if lengths_of(run.theirs, run) != {1} or len(run.tokens) < 2:
        return None
    name = next(name for name in run.shapes if name in run.theirs and "S" not in axes_of(name))
    ours, theirs, axis = run.ours[name], run.theirs[name], time_axis(name)
    rows = [np.take(ours, [place], axis) for place in (-2, -1)]
    if rows[0].shape != theirs.shape:
        return None
    before, last = (compare(name, row, theirs).error for row in rows)
    if not before < 0.1 * last:
        return None
    theirs = {name: array[..., 1:] if "S" in axes_of(name) else array for name, array in run.theirs.items()}
    return replace(run, tokens=run.tokens[:-1], theirs=theirs)  # their keys were counted from the end


def lengths_of(theirs, run):
    """The numbers of positions that their arrays have; arrays with a wrong number of axes are left out."""
    return {np.shape(a)[time_axis(n)] for n, a in theirs.items() if np.ndim(a) == len(run.shapes.get(n, ()))}


def identify(rows, theirs, run):
    """The verdict if the embeddings or the matrix products are those of another run, else None."""
    judged = {row.name: row for row in rows if row.own is not None}
    embed = judged.get("embed")
    if embed and embed.verdict == "BROKEN":
        found = _other_tokens(embed, theirs["embed"], run)
        if found:
            return found
    ours = [row for name, row in judged.items() if part_of(name) in WEIGHTLESS and "audio." not in name]
    learned = [row for name, row in judged.items() if part_of(name) in LINEAR]
    broken = [row for row in learned if row.verdict == "BROKEN"]
    tower = getattr(run.config, broken[0].name.partition(".")[0], None) if broken else None  # vision or audio
    if getattr(tower, "use_clipped_linears", False) and np.median([row.own.cosine for row in broken]) > CLIPPED:
        return None  # bounds that are not used: a known mistake
    if ours and (found := _other_matrices(judged, np.median([row.own.error for row in ours]), run)):
        return found
    if len(learned) >= 4 and len(broken) > 0.7 * len(learned):
        sound = np.mean([row.verdict != "BROKEN" for row in ours]) if ours else 0
        if sound > 0.9:
            return "other-weights", (
                f"this looks like other weights: {len(broken)} of {len(learned)} matrix products are wrong on their "
                "own inputs, while the ops without weights are right; compare checkpoint names and revisions"
            )
    return None


def _other_matrices(judged, exact, run):
    """The verdict if all that is wrong in the layers is products, by matrices of low rank or of few bits; else None.

    judged: tap -> its Row. exact: the error of ops without weights.
    """
    off = [row for name, row in judged.items() if part_of(name) in MATRICES and row.own.error > EXACT * exact]
    others = {row.name for row in judged.values() if row.verdict == "BROKEN"} - {row.name for row in off}
    scaled = [row for row in off if not row.own.cosine < 1 - row.own.error**2 / 20]  # or wrong at few positions
    if len(off) < 3 or scaled or any(layer_of(name) is not None and part_of(name) != "ple.gate" for name in others):
        return None
    gate = next((row.name for row in off if tap_kind(row.name) == "layers.*.mlp.gate"), None)
    names, found, same, replay = {row.name for row in off}, [], [], run.replay()

    def judge(name, ours):
        if name in names:
            theirs = run.theirs[name]
            ours_then = by_position(name, ending(name, ours, min(theirs.shape[time_axis(name)], MOST)))  # [T, n]
            more = by_position(name, ending(name, theirs, MOST)) - ours_then  # [T, n]
            found.append(_rank(ours_then, more, 4 * max(exact, 1e-6)))
            if name == gate:
                same.append(_of_other_inputs(run.weights.layers[layer_of(name)].gate_proj, more))
        return replay(name, ours)

    run.through(judge)
    ranks, shares = zip(*found, strict=True)
    if not (share := np.median(shares)):  # of some: a prompt that repeats itself shows no low rank in its first layers
        return None
    if share <= 0.75:  # rounded weights need all directions
        return "other-weights", (
            f"some of their matrices differ from ours by rank {max(ranks)}, and other ops agree, as with an adapter "
            "(LoRA) that one side merged, or merged with another scale (alpha / rank); "
            f"{broken_ops(list(judged.values()), run.config)}"
        )
    if any(same):  # llama.cpp rounds what it multiplies, to 8 bits
        return None
    errors = defaultdict(list)
    for row in off:
        errors[part_of(row.name)].append(row.own.error)
    found = few_bits({part: np.array(of_part) for part, of_part in errors.items()})
    if found and max(ranks) < LARGE:
        return found[0], f"{found[1]}; at so few positions an adapter (LoRA) of rank {max(ranks)} would look alike"
    return found


def _rank(ours, more, rounding):
    """The rank of what was added to a matrix, from our product and what theirs has more [T, n each] -> rank, share.

    share: of the directions that our product has, or of the rows or columns that are wrong, if they are fewer. A
    constant row, a bias, has rank 0. rounding: of the product, relative; where it hides the rank, T and 1.
    """
    if not more.any():
        return 0, 0
    rounding *= np.linalg.norm(ours) / np.linalg.norm(more)
    wrong = np.abs(more) > 0.01 * np.abs(more).max()  # [T, n]
    rank, whole = (_directions(x, rounding) for x in (more, ours))
    hidden = rounding > 0.2 or not whole
    return (len(more), 1) if hidden else (rank, rank / min(whole, wrong.any(0).sum(), wrong.any(1).sum()))


def _of_other_inputs(matrix, more):
    """Whether theirs multiplied the same matrix [F, D] by other inputs. more: what their product has more, [T, F].

    If F is at most D this cannot be told, and the answer is no.
    """
    F, D = matrix.shape
    rows = min(F, 2 * D)
    columns, _ = np.linalg.qr(np.asarray(matrix[:rows], np.float64))  # [2D, D], of length 1
    more = more[:, :rows].T  # [2D, T]
    left = more - columns @ (columns.T @ more)  # [2D, T]
    return F > D and np.linalg.norm(left) < 0.1 * np.linalg.norm(more)


def _directions(x, rest):
    """How many directions of x [T, n], its mean row aside, leave no more than this fraction of it."""
    around = x - x.mean(0)  # [T, n]
    sizes = np.linalg.eigvalsh(around @ around.T)  # [T] of the directions, squared, the smallest first
    return int((np.cumsum(sizes) > rest**2 * (x * x).sum()).sum())


def few_bits(errors):
    """The verdict if these relative errors are those of weights that were rounded, those of each part alike; else None.

    Rounding to 4 bits in groups of 32 makes an error of about 0.1; with each bit more it is half as large. errors: the
    name of a part -> its errors [n].
    """
    middles = {part: np.median(found) for part, found in errors.items()}
    if not all(0.003 < m < 0.3 and m < 5 * errors[p].min() and errors[p].max() < 5 * m for p, m in middles.items()):
        return None
    groups = []  # lists of parts
    for part in sorted(middles, key=middles.get):
        if not groups or middles[part] > 2 * middles[groups[-1][-1]]:
            groups.append([])
        groups[-1].append(part)
    bits = [round(4 + np.log2(0.1 / np.median([middles[part] for part in parts]))) for parts in groups]
    said = " and ".join(f"of about {n} bits in {', '.join(parts)}" for n, parts in zip(bits, groups, strict=True))
    return "other-weights", (
        f"this looks like the same weights, {said}; to find a mistake beside the rounding, compare with the rounded "
        "weights: give their directory or GGUF file with --weights"
    )


def _other_tokens(embed, theirs, run):
    """The verdict from embeddings that are wrong: whose rows of the token table are they?"""
    if len(theirs) != len(run.tokens):
        return None
    wrong = np.flatnonzero(embed.own.errors > embed.allowed)  # positions
    if run.soft_tokens is not None:  # their rows are not those of the table
        wrong = np.setdiff1d(wrong, run.soft_tokens[0])
    if not len(wrong):
        return None
    rows = by_position("embed", theirs)[wrong]  # [M, D]
    cosines = by_position("embed", run.ours["embed"])[wrong]  # [M, D]
    cosines = (cosines * rows).sum(-1) / (np.linalg.norm(cosines, axis=-1) * np.linalg.norm(rows, axis=-1) + 1e-30)
    turned = cosines < 0.9  # a wrong scale keeps the direction
    if not turned.any():
        return None
    table, rows = run.weights.embed_tokens, rows[turned].astype(np.float32)
    sizes = np.concatenate([np.linalg.norm(np.asarray(table[i : i + 8192]), axis=-1)
                            for i in range(0, table.shape[0], 8192)])  # [V]  # fmt: skip
    match = linear(rows, table) / (sizes * np.linalg.norm(rows, axis=-1, keepdims=True) + 1e-30)  # [M, V]
    best, rowlike = match.argmax(-1), match.max(-1) > 0.98  # [M] each
    close = rowlike & (best != run.tokens[wrong][turned])  # our own token's row: a soft token is missing
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
            "other weights, or a damaged token table: their embeddings are not rows of our token table"
        )
    return None


@np.errstate(invalid="ignore")
def unrelated(comparison, run):
    """The verdict if the first tap of a trace is unrelated to ours, or its token table is rounded; else None.

    For traces that no known mistake explains.
    """
    judged = [row for row in comparison.rows if row.own is not None and row.name != "logits"]
    if judged and judged[0].name == "embed" and judged[0].verdict == "BROKEN":
        return few_bits({"the token table": judged[0].own.errors})
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
            f"probably another prompt: positions 0 to {start - 1} are right, and from {start} on {name} is unrelated "
            "to ours; compare the ids of the two runs"
        )
    if np.mean([row.verdict == "BROKEN" for row in layers]) > 0.8 and np.median(cosines) < 0.6:
        return "other-weights", (
            "probably other weights, or another prompt: nearly every layer is wrong on its own inputs, and no known "
            "mistake explains it; compare the checkpoints, then the ids"
        )
    return None
