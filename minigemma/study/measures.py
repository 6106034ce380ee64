"""How much of a token's identity a hidden state keeps, layer by layer, what takes its place, and what PLE does to it.

A depth is 0 for the scaled embedding and i + 1 for what layer i leaves behind (`resid_post`). With PLE the state just
before a layer's PLE (`resid_ffn`) is measured too. Each measure is a function of hidden states [n, D] and labels [n];
`measure` applies them all to a model and texts. Letters: n positions, C classes, B blocks of texts, others as in
model.py.

    python -m minigemma retention --weights weights/tiny weights/tiny-no-ple --plots figures
    python -m minigemma retention --weights DIR --texts FILE --count 60 --length 128 --positions 2000 --interventions 4

Both work on any checkpoint; the second line is a sample for one of E2B's size. Hidden states stay under STATE_BYTES.

Errors are standard errors over texts, because positions of one text are not independent: of a mean by its linearised
ratio (`over_texts`), of a share of variance by a jackknife over blocks of texts. They do not hold what another training
run of the same model would change. <bos>, an attention sink, and each text's last token are left out.
"""

import json
import os
import re
import signal
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from itertools import zip_longest
from multiprocessing import get_context
from pathlib import Path

import numpy as np

from ..account.report import table
from ..errors import Error
from ..files import progress
from ..interventions import chain, mean, patch, token_losses, zero
from ..ops import linear, rms_norm, softcap
from ..taps import Edit, Trace

STATE_BYTES = 2**30  # hidden states held at once, whatever the model's size
RETRIEVAL = 2 * 10**11  # multiply-adds of one self-retrieval: fewer positions where the token table is large
BLOCK = 1024  # rows of the token table read at a time: of E2B's 6 MB, still in the cache when multiplied
CLASSES = 50  # token types in a probe
RIDGE = 0.1  # added to the correlation matrix's diagonal of ones
BLOCKS = 20  # of texts, for the jackknife
BITS = (8, 4, 3, 2)
SENTENCE = "Tom put the kite in the barn."
PARTS = ("interventions 0", "interventions 1", "hidden states")  # jobs of about the same length
SMALL = 2**26  # bytes of weights below which a model is measured in a process a core, one BLAS thread each


# ------------------------------------------------------------------------------------------------------------- texts
@dataclass(frozen=True, eq=False)
class Document:
    """A text as ids, and the senses of its labelled words at the last token of each."""

    ids: np.ndarray  # [T]
    senses: dict  # position -> (word, sense)


def read_texts(path):
    """A file of texts -> [{"text": ..., "senses": [[start, end, word, sense], ...]}].

    `.jsonl`: one JSON object a line, senses (characters of the text) where there are any. Anything else: plain text,
    documents separated by blank lines.
    """
    path = Path(path)
    try:
        content = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise Error(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise Error(f"{path}: not a readable UTF-8 file ({error})") from None
    if path.suffix == ".jsonl":
        lines = enumerate(content.split("\n"), 1)
        texts = [_from_json(line, f"{path}, line {i}") for i, line in lines if line.strip()]
    else:
        texts = [{"text": text.strip(), "senses": []} for text in re.split(r"\n\s*\n", content) if text.strip()]
    if not texts:
        raise Error(f"{path}: holds no text")
    return texts


def _from_json(line, where):
    try:
        data = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise Error(f"{where}: not JSON ({error})") from None
    if not isinstance(data, dict) or not isinstance(data.get("text"), str) or not data["text"]:
        raise Error(f'{where}: expected an object with a "text"')
    senses = data.get("senses", [])
    for label in senses if isinstance(senses, list) else [senses]:
        fits = isinstance(label, list) and [type(part) for part in label] == [int, int, str, str]
        if not fits or not 0 <= label[0] < label[1] <= len(data["text"]):
            raise Error(f'{where}: a sense must be [start, end, "word", "sense"] within the text, not {label!r}')
    return {"text": data["text"], "senses": senses}


def documents(tokenizer, texts, length):
    """Texts as ids, <bos> in front, cut to `length` tokens; texts of under 4 tokens are left out."""
    found = []
    for text in texts:
        ids = tokenizer.encode(text["text"])[:length]
        ends = token_ends(tokenizer, ids, text["text"]) if text["senses"] else []
        senses = {}
        for _, end, word, sense in text["senses"]:
            position = int(np.searchsorted(ends, len(text["text"][:end].encode())))
            if position < len(ids):
                senses[position] = (word, sense)
        if len(ids) >= 4:
            found.append(Document(np.array(ids), senses))
    if not found:
        raise Error("every text is shorter than 4 tokens, so there is nothing to measure; give longer ones (--texts)")
    return found


def token_ends(tokenizer, ids, text):
    """Where in the text's UTF-8 bytes each token ends, [T]: from the tokens' own text, with "▁" for a space."""
    pieces = []
    for id in ids:
        piece = tokenizer.token(id)
        byte = re.fullmatch(r"<0x([0-9A-F]{2})>", piece)
        pieces.append(bytes([int(byte[1], 16)]) if byte else piece.replace("▁", " ").encode())
    if len(ids) and ids[0] == tokenizer.bos:
        pieces[0] = b""
    if not text.replace("▁", " ").encode().startswith(b"".join(pieces)):
        raise Error(f"the tokens of {text[:40]!r} do not spell it, so its sense labels have no place; use one without")
    return np.cumsum([len(piece) for piece in pieces])


# ----------------------------------------------------------------------------------------------------- hidden states
@dataclass(eq=False)
class Sample:
    """Hidden states at some positions of some texts, and what those positions are."""

    states: dict  # tap name -> [n, D]
    tokens: np.ndarray  # [n] the token the state stands on
    previous: np.ndarray  # [n]
    following: np.ndarray  # [n] the token it is to predict
    texts: np.ndarray  # [n] number of the text
    drawn: np.ndarray  # [n] bool: drawn at random; the others are there for their senses only
    words: np.ndarray  # [n] labelled word, "" for none
    senses: np.ndarray  # [n]
    losses: np.ndarray  # [texts] mean loss of each text, in nats a token
    counts: np.ndarray  # [texts] tokens predicted
    writes: dict  # name -> [L, n of the drawn positions], see `writes`


def state_names(config, before_ple=True):
    """The taps of the residual by depth, and before each layer's PLE."""
    after = ["embed", *(f"layers.{i}.resid_post" for i in range(config.num_hidden_layers))]
    with_ple = config.hidden_size_per_layer_input and before_ple
    return after + [f"layers.{i}.resid_ffn" for i in range(config.num_hidden_layers) if with_ple]


def gather(model, docs, names, positions, advance, taps=None, with_writes=False):
    """Run every document and keep the states `names` at about `positions` positions of all, fewer where memory says so.

    taps: one tap a document, for interventions. The same positions are drawn for the same documents every time.
    advance(1) is called after each document.
    """
    room = STATE_BYTES // (4 * model.config.hidden_size * len(names))
    each = max(1, min(positions, room) // len(docs))
    parts, losses, written = [], [], []
    record = [*names, *(WRITES if with_writes else ())]
    for number, doc in enumerate(docs):
        trace = Trace(record)
        logits, _ = model(doc.ids, tap=chain(taps[number], trace) if taps else trace)
        losses.append(token_losses(logits, doc.ids).mean())
        inner = np.arange(1, len(doc.ids) - 1)  # positions with a token before and after
        drawn = np.random.default_rng(number).permutation(inner)[:each]
        rows = np.union1d(drawn, [p for p in doc.senses if 0 < p < len(doc.ids) - 1]).astype(int)
        labels = [doc.senses.get(p, ("", "")) for p in rows]
        states = {name: trace[name][rows].astype(np.float32) for name in names}
        parts.append((states, rows, np.isin(rows, drawn), labels))
        if with_writes:
            written.append(writes(trace, model.weights, model.config, rows[np.isin(rows, drawn)]))
        advance(1)
    ids = [doc.ids for doc in docs]
    place = list(zip(ids, (rows for _, rows, *_ in parts), strict=True))
    labels = [label for *_, labels in parts for label in labels]
    return Sample(
        states={name: np.concatenate([states.pop(name) for states, *_ in parts]) for name in names},
        tokens=np.concatenate([ids[rows] for ids, rows in place]),
        previous=np.concatenate([ids[rows - 1] for ids, rows in place]),
        following=np.concatenate([ids[rows + 1] for ids, rows in place]),
        texts=np.repeat(np.arange(len(docs)), [len(rows) for _, rows in place]),
        drawn=np.concatenate([drawn for _, _, drawn, _ in parts]),
        words=np.array([word for word, _ in labels]),
        senses=np.array([sense for _, sense in labels]),
        losses=np.array(losses),
        counts=np.array([len(doc.ids) - 1 for doc in docs]),
        writes={name: np.concatenate([w[name] for w in written], axis=-1) for name in (written[0] if written else ())},
    )


# ---------------------------------------------------------------------------------------------------------- measures
def over_texts(values, texts, weights=None):
    """The (weighted) mean of values [n] and its standard error over texts [n] -> (mean, error).

    The mean is a ratio of sums over texts, sum(a) / sum(b); its error is the linearised one, from a - mean * b.
    """
    weights = np.ones(len(values)) if weights is None else weights
    a, b = np.bincount(texts, weights * values), np.bincount(texts, weights)  # [texts] each
    a, b = a[b > 0], b[b > 0]
    average = a.sum() / b.sum()
    spread = ((a - average * b) ** 2).sum() * len(a) / max(1, len(a) - 1)
    return float(average), float(np.sqrt(spread) / b.sum()) if len(a) > 1 else None


def table_mean(token_table):
    """The mean row, [D]."""
    starts = range(0, token_table.shape[0], BLOCK)
    total = sum(np.asarray(token_table[start : start + BLOCK]).sum(0, dtype=np.float64) for start in starts)
    return (total / token_table.shape[0]).astype(np.float32)


def retrieval_ranks(states, labels, token_table, centre, middle):
    """The rank of the row `labels` [n, m] among all rows of the token table by cosine with the state -> [n, m], 1 best.

    Both sides are centred: states [n, D] by their mean `centre` [D] (or one for each, [n, D]), the table by its own,
    `middle` [D]. By chance the rank is uniform.
    """
    states = _unit(states - centre)  # [n, D]
    rows = [_unit(np.asarray(token_table[column]) - middle) for column in labels.T]  # m of [n, D]
    own = np.stack([np.vecdot(states, row) for row in rows], axis=-1)  # [n, m]
    ranks = np.ones(labels.shape, int)  # [n, m]
    for _, cosines in _cosines(states, token_table, middle):
        for column in range(labels.shape[1]):
            ranks[:, column] += (cosines > own[:, column, None] + 1e-6).sum(-1)  # 1e-6: its own row, otherwise summed
    return ranks


def nearest_tokens(states, token_table, centre, middle):
    """The input lens: the row of the token table nearest to each state by cosine, centred as above -> [n]."""
    states = _unit(states - centre)  # [n, D]
    best, nearest = np.full(len(states), -np.inf), np.zeros(len(states), int)
    for start, cosines in _cosines(states, token_table, middle):
        here = cosines.argmax(-1)
        value = cosines[np.arange(len(states)), here]
        nearest, best = np.where(value > best, start + here, nearest), np.maximum(value, best)
    return nearest


def _cosines(states, token_table, middle):
    """Cosines of states [n, D] of length 1 with the centred token table, in blocks: (first row, [n, rows])."""
    for start in range(0, token_table.shape[0], BLOCK):
        rows = np.asarray(token_table[start : start + BLOCK]) - middle  # [rows, D]
        yield start, states @ rows.T / np.maximum(np.sqrt(np.vecdot(rows, rows)), 1e-12)


def probe_classes(labels, train, test):
    """The CLASSES most frequent token types, and as many rare ones -> {"frequent": ids, "rare": ids}.

    Rare: the least frequent types seen at least 5 times in training and twice in testing, frequent ones left out.
    """
    kinds, seen = np.unique(labels[train], return_counts=True)
    asked = np.array([(labels[test] == kind).sum() for kind in kinds])
    kinds, seen = kinds[(seen >= 5) & (asked >= 2)], seen[(seen >= 5) & (asked >= 2)]
    order = kinds[np.argsort(-seen, kind="stable")]
    return {"frequent": order[:CLASSES], "rare": order[CLASSES:][-CLASSES:]}


def probe(states, labels, texts, train, test, classes):
    """Linear probe: ridge regression in closed form from state to one-hot label -> (balanced accuracy, error).

    Trained on the rows `train` and tested on the rows `test` (bool [n], of disjoint texts) whose label is among
    `classes`. Every class weighs the same, in training and in testing, so chance is 1 / C. None for fewer than two.
    """
    if len(classes) < 2:
        return None
    train, test = (np.flatnonzero(rows & np.isin(labels, classes)) for rows in (train, test))
    order = np.sort(classes)
    y, asked = np.searchsorted(order, labels[train]), np.searchsorted(order, labels[test])
    weights = 1 / np.bincount(y, minlength=len(order))[y] / len(order)  # [n], sum 1
    x = states[train].astype(np.float64)  # [n, D]
    centre = weights @ x  # [D]
    scale = np.sqrt(weights @ (x - centre) ** 2) + 1e-12  # [D]
    x = (x - centre) / scale  # [n, D]
    hot = np.eye(len(order))[y] - 1 / len(order)  # [n, C]
    gram = (x * weights[:, None]).T @ x + RIDGE * np.eye(x.shape[1])  # [D, D]
    coefficients = np.linalg.solve(gram, (x * weights[:, None]).T @ hot)  # [D, C]
    right = ((states[test] - centre) / scale @ coefficients).argmax(-1) == asked
    return over_texts(right, texts[test], 1 / np.bincount(asked, minlength=len(order))[asked])


def shared_variance(states, labels, texts):
    """The share of the states' variance that the label alone explains -> (share, jackknife error over blocks of texts).

    1 - (variance within the label of a position, mean over positions) / (variance of all). Each label's variance counts
    its degrees of freedom, so that labels which say nothing give 0 however few positions each has; a label that stands
    once has none and is left out. (The adjusted R2 of a table of means would weigh labels by degrees of freedom, the
    frequent ones more the smaller the sample is: rare tokens' states vary less.) None: no label stands twice.
    """
    kinds, labels = np.unique(labels, return_inverse=True)
    x = states - states.mean(0)  # [n, D]
    blocks = min(BLOCKS, len(np.unique(texts)))
    block = np.searchsorted(np.unique(texts), texts) % blocks
    sums = np.zeros((blocks, len(kinds), x.shape[1]), np.float32)  # [B, C, D]
    counts = np.zeros((blocks, len(kinds)))  # [B, C]
    squares = np.zeros((blocks, len(kinds)))  # [B, C]
    for b in range(blocks):
        rows = block == b
        hot = np.arange(len(kinds))[:, None] == labels[rows]  # [C, n of the block]
        sums[b], counts[b] = hot.astype(np.float32) @ x[rows], hot.sum(-1)
        squares[b] = np.bincount(labels[rows], np.vecdot(x[rows], x[rows]), len(kinds))

    def share(total, count, square):  # [C, D], [C], [C]
        total, count, square = (array[count > 1] for array in (total.astype(np.float64), count, square))
        n, within = count.sum(), square - np.vecdot(total, total) / count  # [C], sums of squares
        overall = (square.sum() - (total.sum(0) ** 2).sum() / n) / (n - 1)
        return float(1 - (within * count / (count - 1)).sum() / n / overall)

    all_sums, all_counts, all_squares = sums.sum(0), counts.sum(0), squares.sum(0)
    if not (all_counts > 1).any():
        return None
    if blocks == 1:
        return share(all_sums, all_counts, all_squares), None
    without = [share(all_sums - sums[b], all_counts - counts[b], all_squares - squares[b]) for b in range(blocks)]
    error = np.sqrt((blocks - 1) / blocks * ((without - np.mean(without)) ** 2).sum())
    return share(all_sums, all_counts, all_squares), float(error)


def sense_separation(states, words, senses, texts):
    """How well the senses of two-sense words lie apart: the nearest centroid's balanced accuracy -> (accuracy, error).

    Centroids of each word's senses are made from even texts and tested on odd ones (both ways round would double the
    data, and be the same draw twice where there is little to find). Distances are in units of the spread within senses,
    dimension by dimension. Every sense weighs the same; chance is 1/2, and a tie counts one half: one token has one
    embedding. Where a word has several forms, the form may tell: that part shows at depth 0. None: no word to test.
    """
    train, test = (texts % 2 == 0) & (words != ""), (texts % 2 == 1) & (words != "")
    pairs = {}  # word -> its senses
    for word, sense in sorted(set(zip(words[train], senses[train], strict=True))):
        pairs.setdefault(word, []).append(sense)
    pairs = {word: both for word, both in pairs.items() if len(both) == 2}
    test &= np.isin(words, list(pairs))
    if not test.any():
        return None
    keys = [(word, sense) for word, both in pairs.items() for sense in both]
    rows = {key: np.flatnonzero(train & (words == key[0]) & (senses == key[1])) for key in keys}
    centroids = {key: states[where].mean(0) for key, where in rows.items()}  # [D] each
    spread = np.concatenate([states[where] - centroids[key] for key, where in rows.items()]).std(0)  # [D]
    spread = np.maximum(spread, 1e-6 * np.abs(states).max())
    right = np.zeros(len(words))
    for word, both in pairs.items():
        asked = np.flatnonzero(test & (words == word))
        far = [(((states[asked] - centroids[word, sense]) / spread) ** 2).sum(-1) for sense in both]
        away = (far[1] - far[0]) * np.where(senses[asked] == both[0], 1, -1)  # above 0: nearer to its own
        right[asked] = np.where(np.abs(away) <= 1e-5 * (far[0] + far[1]), 0.5, away > 0)
    known = np.unique(np.char.add(np.char.add(words[test], "\n"), senses[test]), return_inverse=True)[1]
    return over_texts(right[test], texts[test], 1 / np.bincount(known)[known])


# ------------------------------------------------------------------------------------------------------------ writes
WRITES = ["ple.token", *(f"layers.*.{part}" for part in (
    "resid_pre", "attn_out", "resid_mid", "mlp_out", "resid_ffn", "ple.gate", "ple.proj", "ple_out"))]  # fmt: skip


def writes(trace, weights, config, rows):
    """What each part adds to the residual at the positions `rows` of a trace -> name -> [L, rows].

    attention, mlp, ple: norm of what is added over the norm of what it is added to.
    gate open: share of the P gate values above 0 (gelu passes nearly nothing below). gate size: their root mean square.
    lookup: the lookup's share of PLE's write. Projection and its norm's factor are the same for both terms of
    (context + lookup) / sqrt(2), so ple_out is a sum of a lookup part and a context part; the share is the lookup
    part's projection onto ple_out, <part, ple_out> / <ple_out, ple_out>. Both shares add up to 1; one that works
    against the other is below 0.
    """
    found = {}

    def put(name, values):
        found.setdefault(name, []).append(values)

    for i, w in enumerate(weights.layers):

        def at(name, i=i):
            return trace[f"layers.{i}.{name}"][rows].astype(np.float64)

        for name, added, to in (("attention", "attn_out", "resid_pre"), ("mlp", "mlp_out", "resid_mid")):
            put(name, np.linalg.norm(at(added), axis=-1) / np.linalg.norm(at(to), axis=-1))
        if config.hidden_size_per_layer_input:
            gate, out, proj = at("ple.gate"), at("ple_out"), at("ple.proj")
            put("ple", np.linalg.norm(out, axis=-1) / np.linalg.norm(at("resid_ffn"), axis=-1))
            put("gate open", (gate > 0).mean(-1))
            put("gate size", np.sqrt((gate**2).mean(-1)))
            lookup = (gate * trace["ple.token"][rows, i] * 2**-0.5).astype(np.float32)  # [rows, P]
            root = np.sqrt((proj**2).mean(-1, keepdims=True) + config.rms_norm_eps)  # [rows, 1]
            part = linear(lookup, w.per_layer_projection) / root * w.post_per_layer_input_norm  # [rows, D]
            put("lookup", np.vecdot(part, out) / np.maximum(np.vecdot(out, out), 1e-30))
    return {name: np.stack(values) for name, values in found.items()}


# ----------------------------------------------------------------------------------------------------- interventions
def quantise(lookup, bits, per):
    """Looked-up rows [T, L, P] rounded to 2**bits evenly spaced values from the smallest to the largest.

    per "row": one pair of ends for a token's whole row of the table (L * P values); "slice": one for each layer's P.
    """
    axes = (1, 2) if per == "row" else 2
    low, high = lookup.min(axes, keepdims=True), lookup.max(axes, keepdims=True)  # [T, 1 or L, 1] each
    step = np.maximum(high - low, np.finfo(np.float32).tiny) / (2**bits - 1)
    return (np.round((lookup - low) / step) * step + low).astype(lookup.dtype)


def _at_layer(layer, change):
    """A tap on the lookup that changes one layer's slice [T, P]."""

    def edit(lookup):
        changed = lookup.copy()
        changed[:, layer] = change(lookup[:, layer : layer + 1])[:, 0]
        return changed

    return Edit({"ple.token": edit})


def conditions(config):
    """What is tried on PLE -> [(kind, layer or bits or None, function from a donor's (trace, T) to a tap)]."""
    layers = range(config.num_hidden_layers)

    def fixed(tap):
        return lambda donor, count: tap

    def donated(pattern):  # <bos> keeps its own
        def make(donor, count):
            where = np.arange(1, count)
            return patch(pattern, donor, where, 1 + (where - 1) % (len(donor["ple"]) - 1))

        return make

    def rounded(bits, per):
        return Edit({"ple.token": lambda lookup: quantise(lookup, bits, per)})

    def off(first, last):
        return chain(*(zero(f"layers.{i}.ple_out") for i in range(first, last)))

    found = [
        ("off everywhere", None, fixed(zero("layers.*.ple_out"))),
        ("write set to its mean", None, fixed(mean("layers.*.ple_out"))),
        ("lookup only", None, fixed(zero("ple.context"))),
        ("context only", None, fixed(zero("ple.token"))),
        ("another token's lookup", None, donated("ple.token")),
        ("another token's lookup and context", None, donated("ple")),
    ]
    for per in ("row", "slice"):
        found += [(f"lookup quantised per {per}, bits:", bits, fixed(rounded(bits, per))) for bits in BITS]
    found += [("off in layer", i, fixed(off(i, i + 1))) for i in layers]
    found += [("off from layer", i, fixed(off(i, len(layers)))) for i in layers]
    found += [("lookup pruned in layer", i, fixed(_at_layer(i, np.zeros_like))) for i in layers]
    two = partial(quantise, bits=2, per="slice")
    return found + [("lookup in 2 bits in layer", i, fixed(_at_layer(i, two))) for i in layers]


def interventions(model, docs, positions, share=slice(None)):
    """Loss and identity under each of `conditions`, or a share of them -> [dict], the plain model's first.

    change: loss minus the plain model's on the same texts. identity: `shared_variance` of the token at each depth.
    """
    names = state_names(model.config, before_ple=False)
    texts = np.arange(len(docs))
    tried = conditions(model.config)[share] if model.config.hidden_size_per_layer_input else []

    def row(kind, at, sample):
        tokens, where = sample.tokens[sample.drawn], sample.texts[sample.drawn]
        shares = [shared_variance(sample.states[name][sample.drawn], tokens, where) for name in names]
        return {
            "kind": kind,
            "at": at,
            "loss": over_texts(sample.losses, texts, sample.counts),
            "change": over_texts(sample.losses - plain.losses, texts, sample.counts),
            "identity": _columns(shares),
        }

    with progress(f"{model.directory.name}, interventions", (1 + len(tried)) * len(docs)) as advance:
        plain = gather(model, docs, names, positions, advance)
        rows = [row("plain", None, plain)]
        donors = [_lookups(model, doc) for doc in docs[1:] + docs[:1] if tried]
        for kind, at, make in tried:
            taps = [make(donor, len(doc.ids)) for donor, doc in zip(donors, docs, strict=True)]
            rows.append(row(kind, at, gather(model, docs, names, positions, advance, taps)))
    return rows


def _lookups(model, doc):
    """A trace of a document's per-layer embeddings, which are made before the first layer."""
    trace = Trace(["ple", "ple.token"])
    model(doc.ids, tap=trace, logits=None)
    return trace


# ---------------------------------------------------------------------------------------------------------- together
def hidden_states(model, docs, positions, sentence):
    """Every measure of `model`'s hidden states at every depth, what its parts write, and one sentence in full.

    A state that has lost its token still knows its neighbours, and they tell much of it: for the token's probe, "from
    neighbours" is what the same probe reads from the embeddings of the token before and the one after.
    """
    config, head = model.config, model.weights.embed_tokens
    names = state_names(config)
    with progress(f"{model.directory.name}, hidden states", len(docs)) as advance:
        sample = gather(model, docs, names, positions, advance, with_writes=True)
    drawn = sample.drawn
    tokens, previous, following, texts = (
        array[drawn] for array in (sample.tokens, sample.previous, sample.following, sample.texts)
    )
    train, test = texts % 2 == 0, texts % 2 == 1
    labels = {"token": tokens, "previous": previous, "next": following}
    classes = {name: probe_classes(array, train, test) for name, array in labels.items()}
    asked, limit = np.flatnonzero(drawn), max(1, RETRIEVAL // (head.shape[0] * head.shape[1]))
    asked, middle = asked[:: -(-len(asked) // limit)], table_mean(head)  # evenly from all texts
    columns = np.stack([sample.tokens, sample.following], axis=-1)  # [n, 2]
    found = {}
    with progress(f"{model.directory.name}, measures", len(names)) as advance:
        for name in names:
            states = sample.states[name]  # [n, D]
            ranks = retrieval_ranks(states[asked], columns[asked], head, states[drawn].mean(0), middle)
            here = {
                "retrieval": over_texts(ranks[:, 0] == 1, sample.texts[asked]),
                "retrieval, log10 of rank": over_texts(np.log10(ranks[:, 0]), sample.texts[asked]),
                "retrieval, next token": over_texts(ranks[:, 1] == 1, sample.texts[asked]),
                "senses": sense_separation(states, sample.words, sample.senses, sample.texts),
            }
            for label, array in labels.items():
                here[f"variance, {label}"] = shared_variance(states[drawn], array, texts)
                for group, chosen in classes[label].items():
                    here[f"probe, {label}, {group}"] = probe(states[drawn], array, texts, train, test, chosen)
            for measure, value in here.items():
                found.setdefault(measure, {})[name] = value
            advance(1)
    layers = range(config.num_hidden_layers)
    after = state_names(config, before_ple=False)
    before = [f"layers.{i}.resid_ffn" for i in layers] if config.hidden_size_per_layer_input else []
    chances = {"retrieval": 1 / head.shape[0], "retrieval, next token": 1 / head.shape[0], "senses": 0.5}
    chances["retrieval, log10 of rank"] = float(np.log10(np.arange(1, head.shape[0] + 1)).mean())
    chances |= {f"variance, {label}": 0.0 for label in labels}
    for label, groups in classes.items():
        chances |= {f"probe, {label}, {group}": 1 / max(1, len(chosen)) for group, chosen in groups.items()}
    beside = np.concatenate([np.asarray(head[previous]), np.asarray(head[following])], axis=-1)  # [n, 2D]
    from_neighbours = {f"probe, token, {group}": probe(beside, tokens, texts, train, test, chosen)
                       for group, chosen in classes["token"].items()}  # fmt: skip
    means = {name: states[drawn].mean(0) for name, states in sample.states.items()}
    return {
        "loss": over_texts(sample.losses, np.arange(len(docs)), sample.counts),
        "texts": len(docs),
        "positions": int(drawn.sum()),
        "retrieval positions": len(asked),
        "sense labels": int((sample.words != "").sum()),
        "measures": {
            name: {
                "chance": chances[name],
                "from neighbours": from_neighbours.get(name),
                "after": _columns([by_state[state] for state in after]),
                "before PLE": _columns([by_state[state] for state in before]),
            }
            for name, by_state in found.items()
        },
        "writes": {name: _columns([over_texts(row, texts) for row in rows]) for name, rows in sample.writes.items()},
        "sentence": lenses(model, sentence, means, middle),
    }


def lenses(model, sentence, means, middle):
    """One sentence through every depth: the rank of its own token, and what two lenses read there -> a dict of lists.

    input lens: the row of the token table nearest to the state, centred as in `retrieval_ranks` by means (state name ->
    [D]) and middle [D]. logit lens: the token that the state would predict if this depth were the last: final norm,
    token table, softcap.
    """
    config, weights, names = model.config, model.weights, state_names(model.config)
    ids, trace = np.array(model.tokenizer.encode(sentence)), Trace(names)
    if len(ids) < 2:
        raise Error("the sentence is empty; give at least one word (--sentence)")
    model(ids, tap=trace)
    result = {"tokens": [model.tokenizer.token(id) for id in ids[1:]], "rank": {}, "input lens": {}, "logit lens": {}}
    states = {name: trace[name][1:] for name in names}  # [T-1, D] each, without <bos>
    together = np.concatenate(list(states.values()))  # [depths*(T-1), D], so that the table is read once for all
    centre = np.repeat([means[name] for name in names], len(ids) - 1, axis=0)  # [depths*(T-1), D]
    own = np.tile(ids[1:], len(names))[:, None]  # [depths*(T-1), 1]
    ranks = retrieval_ranks(together, own, weights.embed_tokens, centre, middle).reshape(len(names), -1)
    nearest = nearest_tokens(together, weights.embed_tokens, centre, middle).reshape(len(names), -1)
    with progress(f"{model.directory.name}, one sentence", len(names)) as advance:
        for name, rank, near in zip(names, ranks, nearest, strict=True):
            normed = rms_norm(states[name], weights.norm, config.rms_norm_eps)
            logits = softcap(linear(normed, weights.embed_tokens), config.final_logit_softcapping)  # [T-1, V]
            result["rank"][name] = rank.tolist()
            result["input lens"][name] = [model.tokenizer.token(id) for id in near]
            result["logit lens"][name] = [model.tokenizer.token(id) for id in logits.argmax(-1)]
            advance(1)
    return result


def measure(paths, texts, load, *, count, length, positions, tried, sentence=SENTENCE):
    """Everything about each checkpoint -> a list of dicts for JSON. Small ones run in several processes.

    load: a function from a path to a Model. count, length, positions: texts, tokens of each, positions of all.
    tried: texts for the interventions; 0 leaves them out.
    """
    part = partial(_part, texts, count, length, positions, tried, sentence)
    found = {}
    if all(_size(load(path)) < SMALL for path in paths):
        jobs = [(path, name) for path in paths for name in PARTS]
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
        ignore = {"initializer": signal.signal, "initargs": (signal.SIGINT, signal.SIG_IGN)}  # the parent ends them
        with _one_thread_each(), get_context("spawn").Pool(min(cores, len(jobs)), **ignore) as pool:
            found = dict(zip(jobs, pool.starmap(partial(_loaded, load, part), jobs, chunksize=1), strict=True))
    results = []
    for path in paths:
        model = load(path)
        first, second, states = (found[path, name] if found else part(model, name) for name in PARTS)
        results.append({
            "weights": str(model.directory),
            "layers": [layer.kind for layer in model.config.layers],
            "ple": bool(model.config.hidden_size_per_layer_input),
            "settings": {"texts": count, "length": length, "positions": positions, "intervention texts": tried},
            **states,
            "interventions": first[:1] + [row for pair in zip_longest(first[1:], second[1:]) for row in pair if row],
        })  # fmt: skip
    return results


@contextmanager
def _one_thread_each():
    """New processes find this variable and give the BLAS one thread, unless the user has set it."""
    given = os.environ.get("OPENBLAS_NUM_THREADS")
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        yield
    finally:
        if given is None:
            del os.environ["OPENBLAS_NUM_THREADS"]


def _loaded(load, part, path, name):
    """One job of `measure` in a process of its own."""
    return part(load(path), name)


def _part(texts, count, length, positions, tried, sentence, model, name):
    """One of PARTS of `measure` for one model."""
    if model.tokenizer is None:
        raise Error(f"{model.directory}: has no tokenizer.json, so text cannot be read; download the whole repository")
    limit = min(length, model.config.max_position_embeddings)
    if name == "hidden states":
        return hidden_states(model, documents(model.tokenizer, texts[:count], limit), positions, sentence)
    if not tried:
        return []
    docs = documents(model.tokenizer, texts[:tried], limit)
    return interventions(model, docs, positions, slice(int(name[-1]), None, 2))


def _size(model):
    return sum(path.stat().st_size for path in model.directory.glob("*.safetensors"))


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-12)


def _columns(pairs):
    """[(mean, error) or None, ...] -> {"mean": [...], "error": [...]}."""
    return {
        "mean": [None if pair is None else pair[0] for pair in pairs],
        "error": [None if pair is None else pair[1] for pair in pairs],
    }


# ------------------------------------------------------------------------------------------------------------- report
def report(results):
    """The tables that people read: mean and standard error over texts."""
    return "\n\n\n".join(_one_report(result) for result in results)


def _one_report(result):
    writes = result["writes"]
    kept = f"{result['texts']} texts, {result['positions']:,} positions, {result['sense labels']} labelled words"
    paragraphs = [
        f"{result['weights']}: {kept}; loss {_pm(*result['loss'], 4)} nats a token",
        _by_depth(result, "token", ["retrieval", "retrieval, log10 of rank", "probe, token, frequent",
                                    "probe, token, rare", "variance, token"]),
        _by_depth(result, "neighbours", ["variance, previous", "probe, previous, frequent", "variance, next",
                                         "probe, next, frequent", "retrieval, next token", "senses"]),
        "retrieval: the token's own row of the token table is the nearest by centred cosine. probe: balanced accuracy\n"
        f"of ridge regression on up to {CLASSES} token types; the same from the embeddings of two neighbours alone.\n"
        "variance: the share that the label explains. Errors are standard errors over texts; what another training\n"
        "run would change is not in them.",
        table(["layer", *writes], [
            (f"{i}", *(_pm(column["mean"][i], column["error"][i]) for column in writes.values()))
            for i in range(len(result["layers"]))
        ]),
        "attention, mlp, ple: norm of what is added over what it is added to. gate open: share of values above 0.\n"
        "lookup: the lookup's share of PLE's write; the context projection has the rest.",
    ]  # fmt: skip
    if result["interventions"]:
        rows = [
            (row["kind"] + ("" if row["at"] is None else f" {row['at']}"), _pm(*row["loss"], 4), _pm(*row["change"], 4),
             _pm(row["identity"]["mean"][-1], row["identity"]["error"][-1]))
            for row in result["interventions"]
        ]  # fmt: skip
        paragraphs.append(table(["intervention", "loss", "change", "variance, token, at the end"], rows))
    return "\n\n".join([*paragraphs, _sentence(result["sentence"])])


def _by_depth(result, title, names):
    """A table of measures by depth, before each layer's PLE and after it where there is one."""
    rows = [("chance", *(f"{result['measures'][name]['chance']:.4f}" for name in names))]
    beside = [result["measures"][name]["from neighbours"] for name in names]
    if any(beside):
        rows.append(("from its two neighbours", *(_pm(*pair) if pair else "" for pair in beside)))
    depths = [("embedding", "after", 0)]
    for i in range(len(result["layers"])):
        depths += [(f"layer {i} before PLE", "before PLE", i)] if result["ple"] else []
        depths.append((f"layer {i}", "after", i + 1))
    for label, when, place in depths:
        columns = [result["measures"][name][when] for name in names]
        rows.append((label, *(_pm(column["mean"][place], column["error"][place]) for column in columns)))
    return table([title, *names], rows)


def _sentence(sentence):
    """Input lens and logit lens, a line a depth; a token that is the input's own is marked."""
    tokens = sentence["tokens"]
    blocks = []
    for lens in ("input lens", "logit lens"):
        rows = [
            (name, *((f"[{read}]" if read == own else read) for read, own in zip(reads, tokens, strict=True)))
            for name, reads in sentence[lens].items()
            if not name.endswith("resid_ffn")
        ]
        blocks.append(table([lens, *tokens], rows))
    return "\n\n".join(blocks)


def _pm(mean, error, digits=3):
    """0.512 ±0.004"""
    if mean is None:
        return "none"
    return f"{mean:.{digits}f}" + ("" if error is None else f" ±{error:.{digits}f}")
