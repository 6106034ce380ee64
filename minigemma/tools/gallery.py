"""The figures for a lecture: each with one sentence as its title and a text for those who cannot see it."""

import math

from .. import TINY, load
from ..account import compute, memory, parameters
from ..account.parameters import USES
from ..files import make_directory, read_json, replacing
from ..released import EFFECTIVE, RELEASED
from ..study import recall
from . import figures

PIXELS = 1600  # across


def lecture_figures():
    """Every figure for a lecture -> {name: (figure, text for those who cannot see it)}."""
    accounts = {name: parameters.count(name) for name in RELEASED}
    e2b = accounts["E2B"]
    lengths = [2**power for power in range(8, 19)]
    caches = {
        name: [sum(memory.kv_cache(account.config, n)) for n in lengths if n <= account.config.max_position_embeddings]
        for name, account in accounts.items()
    }
    drawn = {
        f"{name.lower()}-squares": (
            figures.squares(account.uses, each),
            f"A token multiplies {_billions(account.uses[USES[0]])} of {name}'s {_billions(account.parts)} billion "
            f"parameters; a square is {each // 10**6} million",
            "Squares to scale, in blocks by what one token of text does with the parameters: "
            + "; ".join(f"{use} {sum(parts.values()):,}" for use, parts in account.uses.items())
            + ".",
        )
        for name, account in accounts.items()
        for each in [10**7 * math.ceil(account.total / 6e9)]
    } | {
        "e2b-architecture": (
            figures.architecture(e2b.config),
            "E2B reads a second table: each layer gets its own vector of the token",
            "E2B from left to right: token table, 35 layers of attention and MLP, final norm. PLE's table feeds every "
            "layer. Every fifth layer has global attention. Layers 15 to 34 read the keys and values of layers 13, 14.",
        ),
        "e2b-whole": (
            figures.whole_model(e2b.config),
            "E2B on one page: 35 layers, eight norms in each, 15 that write K and V, one PLE row for all of them",
            "Above: token table, 35 layers, final norm and logits. Layers 0 to 14 write keys and values; later sliding "
            "layers read those of layer 13, later global ones those of layer 14. PLE enters every layer. Below: one "
            "layer in full, as three paths that leave the hidden state and are added to it: attention with norms 1 to "
            "5, MLP with norms 6 and 7, PLE with norm 8; then the layer scalar. Beside it: sizes and constants.",
        ),
        "ple-path": (
            figures.ple_path(e2b.config, "a token:\nits id", 9),
            "PLE gives each layer its own slice of the token's row, and the hidden state decides what is written",
            "The token's id picks a row of the PLE table and a row of the token table. The second is projected and "
            "normed. Both are 35 slices of 256; their sum times 1/√2 is made once. In layer 9 the hidden state makes "
            "a gate of 256, which multiplies slice 9; a projection and a norm follow, and the result is added.",
        ),
        "prompt-stop": (
            figures.prompt_stop(e2b.config, "Anna put the kite in the barn . Where is the kite ?", _saved(e2b)),
            "A prompt stops at layer 14: later layers write nothing that another position could read",
            "A grid of E2B's 35 layers and the positions of a prompt. Layers 0 to 14 run at every position. Layers 15 "
            "to 34 run at the last position only, and read the keys and values of layers 13 and 14. "
            f"Not computed: {_saved(e2b)}.",
        ),
        "two-steps": (
            two_steps(load(TINY)),
            "In the tiny weights a fact crosses the window in two steps: a short link, then a long look",
            "The text: Anna put the kite in the barn, then a long story, then the question where the kite is. One arc "
            "goes from barn back to kite, in sliding layer 3; one from the last token to barn, in global layer 9. With "
            "either of them cut, nearly all answers are wrong.",
        ),
        "e2b-layers": (
            figures.layer_bars(e2b.layers),
            "From layer 15 on, E2B's layers reuse keys and values, and their MLP is twice as wide",
            "Bars of the parameters of each of E2B's 35 layers by part. Layers 15 to 34 are taller.",
        ),
        "family-parts": (
            figures.part_bars({name: account.parts for name, account in accounts.items()}),
            "PLE's table is the largest part of E2B and E4B; experts are the largest of 26B-A4B",
            "Bars of the stored parameters of the five released models by part, in billions.",
        ),
        "iceberg": (
            figures.iceberg({name: account.uses for name, account in accounts.items()}),
            "E2B and E4B multiply about half of what they store for a token, 26B-A4B a seventh",
            "For each released model, in percent of its parameters: above the water what each token multiplies, "
            "below it the PLE table, the experts that are not chosen, vision, audio, and what is never read.",
        ),
        "effective": (
            figures.waterfall({name: _effective(accounts[name]) for name in ("E2B", "E4B")}),
            "The subtraction that gives E2B's 2.3 billion does not give E4B's 4.5",
            "Two waterfalls: stored parameters less the PLE table, audio and vision. E2B's rest lies in the band that "
            "rounds to 2.3 billion; E4B's rest lies above the band that rounds to 4.5.",
        ),
        "kv-cache": (
            figures.kv_cache_lines(lengths, caches),
            "Up to its longest context, E2B's cache stays far smaller than its weights",
            "The size of the KV cache of each released model from 256 tokens to the model's longest context.",
        ),
    }
    results, seeds = (read_json(TINY.parent / name, list) for name in ("retention.json", "retention-seeds.json"))
    studied = figures.retention_figures(results, seeds)
    titles = {
        "handover": (
            "Which word is a state of the tiny weights: early layers hold the embedding's, late layers PLE's",
            "One position has the embedding of one word and the per-layer embeddings of another. Two panels, over the "
            "layers passed: in violet how often a probe names the embedding's word, in amber how often PLE's. Violet "
            "gives way to amber between five and eight layers. Thin lines are three other seeds.",
        ),
        "dose": (
            "The more PLE writes, the earlier the state is PLE's word; no part of PLE does it alone",
            "Lines over the layers passed: how often the probe names PLE's word, for PLE's write times 0, 0.5, 1 and "
            "2, and for lookup and projection of another word together and alone.",
        ),
        "swap": (
            "Another word after the same past is still read after the last layer, with PLE and without",
            "Lines over the layers passed for the model with PLE and two twins without: how often the probe names the "
            "new word; the word that stood there is hardly ever named.",
        ),
        "retention": (
            "In the middle, the model with PLE keeps less of its embedding than its twins",
            "Three panels over the layers passed, for the model with PLE and two twins: own embedding nearest, a probe "
            "names a rare token, variance that the token explains.",
        ),
    }
    drawn |= {name: (studied[name], *said) for name, said in titles.items()}
    return {name: (figures.titled(figure, title), f"{title}. {alt}") for name, (figure, title, alt) in drawn.items()}


def write_figures(directory):
    """Write every figure as SVG and PNG, 1,600 pixels wide, and an index with their texts -> the names of the files."""
    directory, written, index = make_directory(directory), [], ["# The figures\n"]
    for name, (figure, alt) in lecture_figures().items():
        for kind in ("svg", "png"):
            with replacing(directory / f"{name}.{kind}") as temporary:
                figures.save(figure, temporary, kind, PIXELS, alt)
            written.append(f"{name}.{kind}")
        index.append(f"![{alt}]({name}.svg)\n")
    with replacing(directory / "index.md") as temporary:
        temporary.write_text("\n".join(index), encoding="utf-8")
    return [*written, "index.md"]


def _billions(parts):
    return f"{sum(parts.values()) / 1e9:.2f}"


def _saved(account, length=1024):
    """The share of a prompt's multiply-adds that a call for the last logits does not need, as a text."""
    whole, short = (sum(compute.prefill_multiply_adds(account.config, length, shortcut=stop).values())
                    for stop in (False, True))  # fmt: skip
    return f"{1 - short / whole:.0%} of the work of a prompt of {length:,} tokens"


def two_steps(model):
    """The figure of a fact that crosses the window of the tiny weights, with numbers measured on 16 questions."""
    asked, W = recall.questions(model), model.config.sliding_window
    whole, far, near, verb = (
        recall.answers(model, asked, *edits)
        for edits in ((), [recall.blind([9], W)], [recall.unlinked(3, 3)], [recall.unlinked(3, 5)])
    )
    before, after = "Anna put the kite in the barn .", "Where is the kite ? The kite is in the"
    ids, last, n = asked[0].ids, len(f"{before} {after}".split()) - 1, len(asked)
    place = ids.index(asked[0].right)
    behind = len(model.chat_ids([{"role": "user", "content": "Where is the kite?"}])) - 4 + 5  # tokens from "Where" on
    between = len(ids) - behind - (place + 2)
    links = [
        (6, 3, "sliding_attention", f"First, in sliding layer 3,\nbarn looks at kite.\n"
         f"Link cut: {near[0]} of {n} right,\n{near[1]} name the other place.", (0, 16)),
        (last, 6, "full_attention", f"Then, in global layer 9, the last token looks\n{len(ids) - 1 - place} positions "
         f"back at barn. View taken away: {far[0]} of {n} right.", (32, 27)),
    ]  # fmt: skip
    window = W - behind, f"what a sliding layer sees from the last token: {W} tokens"
    note = f"Nothing cut: {whole[0]} of {n} right.\nLink to “put” cut, not to “kite”: {verb[0]} of {n} right."
    return figures.fact_in_two_steps(before, between, after, window, links, note)


def _effective(account):
    """What `figures.waterfall` draws of a model: total, the parts to take off, the published billions."""
    return (
        account.total,
        {part: account.parts[part] for part in ("PLE table", "audio", "vision")},
        EFFECTIVE[account.name],
    )
