"""Each number in the README about parameters and PLE, and in the texts of notebooks 07 and 08, is what a command gives.

The sentences are made here from the results; the README must have them word for word. What `retention` takes minutes
for is stored in weights/retention.json, -long.json and -seeds.json; a test computes a part of it again.
"""

import json
import re
from pathlib import Path

import numpy as np
import pytest

from minigemma import Edit, Trace, count
from minigemma.account import compute, memory
from minigemma.interventions import token_losses, zero
from minigemma.packed import narrow, widen
from minigemma.study import recall
from minigemma.study.handover import MIXED, REVERSED
from minigemma.study.texts import documents, read_texts

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = json.loads((ROOT / "weights" / "retention.json").read_text(encoding="utf-8"))
SEEDS = json.loads((ROOT / "weights" / "retention-seeds.json").read_text(encoding="utf-8"))
LONG = json.loads((ROOT / "weights" / "retention-long.json").read_text(encoding="utf-8"))
TINY, NO_PLE, WIDE = RESULTS
NUMBER = re.compile(r"(?<![\w.])\d+(?:,\d{3})*(?:\.\d+)?B?(?!\w)")


def percent(mean, error=None):
    return f"{100 * mean:.0f}" + ("" if error is None else f" ± {100 * error:.0f}")


def named(result, condition, word, depth):
    """How often the probe names the word after so many layers, in percent with its error."""
    column = result["handover"]["conditions"][condition][word]
    return percent(column["mean"][depth], column["error"][depth])


def most(results, condition, word):
    """The largest share at any depth, in percent."""
    return max(100 * max(result["handover"]["conditions"][condition][word]["mean"]) for result in results)


def crossings(results, condition):
    return [at for result in results for at in result["handover"]["conditions"][condition]["crossing"]]


def change(kind, at=None):
    """What an intervention adds to the loss, and its error."""
    return next(row["change"] for row in TINY["interventions"] if (row["kind"], row["at"]) == (kind, at))


def middle(result):
    return percent(result["measures"]["retrieval"]["after"]["mean"][6])


def end(result, measure):
    column = result["measures"][measure]["after"]
    return f"{column['mean'][-1]:.2f}"


def readme_sentences():
    """What the README says of the tiny weights."""
    obeys = {condition: percent(*row["obeys"]) for condition, row in TINY["handover"]["conditions"].items()}
    mixed, again = crossings([TINY], MIXED), crossings([seed for seed in SEEDS if seed["ple"]], MIXED)
    long = [np.mean(crossings([seed], MIXED)) for seed in LONG]
    twice, never = f"{MIXED}, written 2 times", f"{MIXED}, written 0 times"
    single = [change("off in layer", i)[0] for i in range(10)]
    lookup = [change("lookup pruned in layer", i)[0] for i in range(10)]
    four, two = (change("lookup quantised per row, bits:", bits) for bits in (4, 2))
    losses = [f"{result['loss'][0]:.3f}" for result in RESULTS]
    shuffled = 100 * max(TINY["measures"]["probe, shuffled labels"]["after"]["mean"])
    swapped = [named(result, "another word", "first", -1) for result in RESULTS]
    explained = [end(result, "variance, token") for result in RESULTS]
    largest = percent(TINY["measures"]["largest coordinate"]["after"]["mean"][-1])
    return f"""
From {np.mean(mixed):.1f} layers on it names PLE's word more often

The three splits of the stories agree within {np.ptp(mixed):.2f} layers; two other long runs, from other seeds, give
{long[0]:.1f} and {long[1]:.1f}, three runs on a short schedule {min(again):.1f} to {max(again):.1f}

After eight layers it names PLE's word in {named(TINY, MIXED, "second", 8)} % of cases and the embedding's in
{named(TINY, MIXED, "first", 8)} %

with the PLE of the word that stands there and the embedding of another, in {named(TINY, REVERSED, "second", 8)} and
{named(TINY, REVERSED, "first", 8)} %

A third word, which is nowhere, is named in at most {most([TINY], MIXED, "third"):.1f} %; a probe of shuffled labels is
right in at most {shuffled:.1f} %

nearer to that of PLE's word in {obeys[MIXED]} and {obeys[REVERSED]} % of cases

If PLE writes twice as much, its word takes over after {np.mean(crossings([TINY], twice)):.1f} layers; if it writes
nothing, its word is named in at most {most([TINY], never, "second"):.1f} %

the new word is named after the last layer in {swapped[0]} % of cases with PLE

it is named in {swapped[1]} and {swapped[2]} %, the old word in at most {most(RESULTS, "another word", "second"):.1f} %

after six layers its states are nearest to their own embedding in {middle(TINY)} % of cases, those of the twins in
{middle(NO_PLE)} and {middle(WIDE)} %

({explained[0]}, {explained[1]} and {explained[2]}

the largest of its 128 coordinates has {largest} % of the variance

{losses[0]} nats per token with PLE, {losses[1]} without, {losses[2]} without and wider (± {TINY["loss"][1]:.3f}; the
first 256 tokens of {TINY["texts"]} held-out stories)

with PLE off everywhere the loss rises by {change("off everywhere")[0]:.1f} nats, with PLE off in any single layer by at
most {max(single):.2f}

PLE lookups of 4 bits (one scale per row) raise the loss by {four[0]:.4f} ± {four[1]:.4f} nats, of 2 bits by
{two[0]:.3f} ± {two[1]:.3f}

Leaving out the lookup of any one of the first five layers raises it by at most {max(lookup[:5]):.4f}, of any one of the
last five by {min(lookup[5:]):.3f} to {max(lookup[5:]):.3f}

Each number is from {TINY["handover"]["positions"]} positions and {TINY["types"]} token types, so chance is
{100 / TINY["types"]:.1f} %""".split("\n\n")


def caption_sentences():
    """What the README says of E2B's parameters under its first figure."""
    e2b = count("E2B")
    uses = {use: sum(parts.values()) / 1e9 for use, parts in e2b.uses.items()}
    multiplied, looked_up, towers, unread = uses.values()
    row = e2b.config.num_hidden_layers * e2b.config.hidden_size_per_layer_input
    return [
        f"All {e2b.total:,} parameters of E2B",
        f"A token of text multiplies {multiplied:.2f} billion of them",
        f"reads one row of {row:,} numbers of a table of {looked_up:.2f} billion",
        f"{towers:.2f} billion are for pictures and sound only, {unread:.2f} billion are read by no layer",
    ]


def seeds_table():
    """What weights/README says of the short runs: each seed's value, and mean and standard deviation over the seeds."""
    measured = {
        "own embedding is the nearest, after six layers": ("retrieval", 6),
        "the same after eight layers": ("retrieval", 8),
        "a probe names a frequent token, at the end": ("probe, token, frequent", -1),
        "a probe names a rare token, at the end": ("probe, token, rare", -1),
        "variance that the token explains, at the end": ("variance, token", -1),
        "the same without 3 components": ("variance, token, less 3 components", -1),
    }
    kinds = [[seed for seed in SEEDS if seed["parameters"] == result["parameters"]] for result in RESULTS]
    for label, (name, depth) in measured.items():
        cells = [[seed["measures"][name]["after"]["mean"][depth] for seed in kind] for kind in kinds]
        yield f"| {label} | " + " | ".join(map(_spread, cells)) + " |"
    swapped = [[seed["handover"]["conditions"]["another word"]["first"]["mean"][-1] for seed in kind] for kind in kinds]
    yield "| another word is named, at the end | " + " | ".join(map(_spread, swapped)) + " |"
    crossing = [np.mean(crossings([seed], MIXED)) for seed in kinds[0]]
    yield f"| PLE's word is named more often, from this depth on | {_spread(crossing, 1)} | | |"


def long_table():
    """What weights/README says of the three long runs of the model with PLE."""
    runs = [TINY, *LONG]
    rows = {
        "loss, nats per token (256 tokens of 400 held-out stories)": [run["loss"][0] for run in runs],
        "own embedding is the nearest, after six layers": [
            run["measures"]["retrieval"]["after"]["mean"][6] for run in runs
        ],
        "another word is named, at the end": [
            run["handover"]["conditions"]["another word"]["first"]["mean"][-1] for run in runs
        ],
    }
    for label, values in rows.items():
        yield f"| {label} | " + " | ".join(f"{value:.3f}" for value in values) + " |"
    crossing = " | ".join(f"{np.mean(crossings([run], MIXED)):.1f}" for run in runs)
    yield f"| PLE's word is named more often, from this depth on | {crossing} |"


def _spread(values, digits=3):
    each = ", ".join(f"{value:.{digits}f}" for value in values)
    return each + (f": {np.mean(values):.{digits}f} ± {np.std(values, ddof=1):.{digits}f}" if len(values) > 1 else "")


def course_sentences(model):
    """What the texts of notebooks 00 to 05 say of the tiny weights and of E2B -> {notebook: sentences}."""
    e2b, config = count("E2B"), model.config
    near, far = e2b.config.layers[0], e2b.config.layers[4]
    table, row = e2b.parts["PLE table"], 2 * e2b.config.num_hidden_layers * e2b.config.hidden_size_per_layer_input
    facts = "Anna put the kite in the barn. Lily hid the doll in the tent."
    ids = model.chat_ids([{"role": "user", "content": f"{facts}\nWhere is the kite?"}])
    ids += model.tokenizer.encode("The kite is in the", bos=False)
    trace = Trace("layers.9.resid_ffn")
    model(ids, tap=trace)
    fact, asked = np.flatnonzero(np.array(ids) == model.tokenizer.encode(" kite", bos=False)[0])[:2]
    one, other = trace["layers.9.resid_ffn"][[fact, asked]]
    cosine = one @ other / np.linalg.norm(one) / np.linalg.norm(other)
    right, rival, rest = recall.answers(model, recall.questions(model), recall.unlinked(3, 3))
    scale, slowest = e2b.config.hidden_size**0.5, np.degrees(near.inv_freq[-1] * near.window)
    turning = (far.inv_freq > 0).sum()
    reach = [(sum(n.window is not None for n in c.layers), c.sliding_window - 1) for c in (config, e2b.config)]
    pairs = [sum(min(t + 1, window) for t in range(8192)) / 1e6 for window in (8192, near.window)]
    step = sum(memory.kv_cache(e2b.config, 10_001)) - sum(memory.kv_cache(e2b.config, 10_000))
    readers = [[n.kv_from for n in e2b.config.layers if n.shares_kv].count(donor) for donor in (13, 14)]
    assert readers == [16, 4]
    e4b, experts = count("E4B"), count("26B-A4B").parts["experts"]
    quarter, ple = e4b.total / 2e9, e4b.parts["PLE table"] / 2e9  # GB in 4 bits
    cache = sum(memory.kv_cache(e4b.config, 65_536)) / 1e9
    big = count("26B-A4B").config
    read = big.num_hidden_layers * big.top_k_experts * 3 * big.moe_intermediate_size * big.hidden_size
    gate, scalars = held_out_changes(model)
    return {
        "00": f"""A model of {count(config).total / 1e6:.0f} million numbers
E2B stores {e2b.total:,} parameters
About {e2b.total / 2e9:.1f} GB. It fits, and {4 - round(e2b.total / 2e9, 1):.1f} GB are left
{table / 1e9:.2f} billion stored numbers
the last {sum(n.shares_kv for n in e2b.config.layers)} layers of E2B keep none
the work stops at layer {e2b.config.first_kv_shared_layer - 1}""",
        "01": f"""is {bfloat16(scale):g} there, {100 * (bfloat16(scale) / scale - 1):.2f}% more
drifted apart, to a cosine of {cosine:.2f}
{row:,} bytes of {2 * table / 1e9:.1f} GB
= {row // 2:,}.""",
        "02": f"""turns by {slowest:.0f} degrees in the whole window of {near.window}
The global heads stop at pair {turning - 1}, and the {len(far.inv_freq) - turning} pairs after it never turn
{2 * np.pi / far.inv_freq[turning - 1]:.0f} tokens. No single pair
{turning} of {len(far.inv_freq)}; all {len(near.inv_freq)}.""",
        "04": f"""through {e2b.config.first_kv_shared_layer} of its {e2b.config.num_hidden_layers} layers only
one token goes in, after the {len(ids) - 1} before it
{step:,} bytes. The 12 sliding layers
About {2 * quarter:.1f} billion parameters are {quarter:.1f} GB in 4 bits; the PLE table is {ple:.1f} GB of these
The cache is {cache:.1f} GB
Together {quarter + cache:.1f} GB, or {quarter + cache - ple:.1f} GB with the table on the disk""",
        "05": f"""the loss rises by {gate:.2f} nats
changes the loss by {max(scalars):.2f} at most
{read / 1e9:.2f} of {experts / 1e9:.1f} billion""",
        "03": f"""{" for the tiny weights, ".join(f"{n} x {step} = {n * step:,}" for n, step in reach)} for E2B
{pairs[0]:.1f} and {pairs[1]:.1f} million. At 131,072 tokens the ratio is {131072 / 2 / near.window:.0f}
It is right in {right}, names the other place in {rival}, and something else in {rest}
{len(recall.PLACES)} and {len(recall.PLACES)}. It is right""",
    }


def held_out_changes(model):
    """Changes of the loss of notebook 05's stories: all gates 1; the scalar of one layer left out, for each layer."""
    texts = documents(model.tokenizer, read_texts(ROOT / "weights" / "texts.jsonl")[:6], 256)

    def loss(edits):
        return np.concatenate([token_losses(model(doc.ids, tap=Edit(edits))[0], doc.ids) for doc in texts]).mean()

    scalars = [float(layer.layer_scalar[0]) for layer in model.weights.layers]
    plain_loss = loss({})
    single = [loss({f"layers.{i}.resid_post": lambda x, s=s: x / s}) - plain_loss for i, s in enumerate(scalars)]
    return loss({"layers.*.ple.gate": np.ones_like}) - plain_loss, single


def bfloat16(number):
    return widen(narrow(np.array([number], np.float32)))[0]


@pytest.fixture(scope="module")
def stated(tiny):
    return course_sentences(tiny)


@pytest.mark.parametrize("notebook", ["00", "01", "02", "03", "04", "05"])
def test_the_course_says_what_the_weights_give(notebook, stated):
    (path,) = (ROOT / "notebooks").glob(f"{notebook}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = plain("\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown"))
    for sentence in stated[notebook].split("\n"):
        assert plain(sentence) in text, sentence


def plain(text):
    return " ".join(text.split())


@pytest.mark.parametrize("sentence", [*readme_sentences(), *caption_sentences()])
def test_the_readme_says_what_the_commands_give(sentence):
    assert plain(sentence) in plain(README)


@pytest.mark.parametrize("row", [*seeds_table(), *long_table()])
def test_the_tables_of_other_runs_are_what_the_command_gives(row):
    assert row in (ROOT / "weights" / "README.md").read_text(encoding="utf-8")


SIGNS = {"retrieval": (6, 8), "probe, token, frequent": (-1,), "probe, token, rare": (-1,), "variance, token": (-1,)}


@pytest.mark.parametrize(("name", "depth"), [(name, depth) for name, depths in SIGNS.items() for depth in depths])
def test_no_run_of_a_twin_lies_between_the_runs_with_ple_and_the_long_runs_agree_in_sign(name, depth):
    def values(results, ple):
        return [result["measures"][name]["after"]["mean"][depth] for result in results if result["ple"] == ple]

    higher = min(values(SEEDS, True)) > max(values(SEEDS, False))
    assert higher or max(values(SEEDS, True)) < min(values(SEEDS, False))
    long = values([*RESULTS, *LONG], True)
    assert all((run > twin) == higher for run in long for twin in values(RESULTS, False))


def test_the_hand_over_is_at_the_same_depth_in_three_long_runs_from_three_seeds():
    assert np.ptp(crossings([TINY, *LONG], MIXED)) < 1  # layer


def section(start, stop):
    return plain(README.split(start)[1].split(stop)[0])


def test_no_other_number_is_in_those_parts_of_the_readme():
    for text, sentences in (
        (section("(notebooks/figures/e2b-squares.png)", "Check in"), caption_sentences()),
        (section("## What per-layer embeddings do", "```sh"), readme_sentences()),
    ):
        rest = re.sub(r"\]\([^)]*\)|\[.otebook \d+\]", "", text)
        for sentence in sentences:
            rest = rest.replace(plain(sentence), "")
        assert not NUMBER.findall(rest), rest


def test_the_stored_results_are_those_of_the_stored_weights(tiny):
    """The texts of the interventions once more: the plain loss, and what PLE off everywhere costs."""
    docs = documents(tiny.tokenizer, read_texts(ROOT / "weights" / "texts.jsonl")[:16], 256)
    plain_loss, off = (
        np.array([token_losses(tiny(doc.ids, **tap)[0], doc.ids).sum() for doc in docs]).sum()
        for tap in ({}, {"tap": zero("layers.*.ple_out")})
    )
    counted = sum(len(doc.ids) - 1 for doc in docs)
    stored = next(row["loss"][0] for row in TINY["interventions"] if row["kind"] == "plain")
    assert plain_loss / counted == pytest.approx(stored, abs=1e-3)
    assert (off - plain_loss) / counted == pytest.approx(change("off everywhere")[0], abs=1e-2)


LEFT_OUT = (  # code, formulas, links, and the numbers of exercises, questions, notebooks, models and papers
    r"```.*?```|\$\$.*?\$\$|\$[^$\n]*\$|`[^`\n]*`|\]\([^)]*\)",
    r"^(?:# )?\d+\. |\*\*Exercise [^)]*\)|<summary>Hint \d|\((?:notebook )?0\d\)",
    r"[Nn]otebook \d+|about \d+ minutes|\b20\d\d\b|arXiv \d+\.\d+|[Ff]igure \d|[Ss]ection [\d.]*\d|(?:12|26|31)B\b",
)  # fmt: skip


def notebook_text(number):
    """The sentences of a notebook."""
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = "\n".join("".join(cell["source"]) for cell in cells if cell["cell_type"] == "markdown")
    for pattern in LEFT_OUT:
        text = re.sub(pattern, " ", text, flags=re.MULTILINE | re.DOTALL)
    return text


def billions(*counts):
    return {f"{size / 1e9:.{digits}f}{unit}" for size in counts for digits in (1, 2) for unit in ("B", "")}


def known_numbers():
    """Every number that the texts of notebooks 07 and 08 may have, with its source -> {notebook: numbers}."""
    e2b, tiny = count("E2B"), count(ROOT / "weights" / "tiny")
    config, own = e2b.config, tiny.config
    parts, shares = e2b.parts, compute.compute_account(e2b, 8192)["ple"]
    ple, resident = parts["PLE table"], memory.weights_in_memory(e2b)["4-bit"]["resident"]
    off = e2b.total - ple
    effective = [e2b.total, off, off - parts["token table"], e2b.text - ple, e2b.active, ple]
    effective += [account.text - account.parts["PLE table"] for account in [count("E4B")]] + [count("E4B").active]
    multiplied, looked_up, *_ = (sum(found.values()) for found in e2b.uses.values())
    unused = [tensor for tensor in tiny.tensors if tensor.part == "unused"]
    norms = sum(np.prod(tensor.shape, dtype=int) for tensor in e2b.tensors
                if "per_layer" in tensor.name and "norm" in tensor.name)  # fmt: skip
    row = 2 * config.num_hidden_layers * config.hidden_size_per_layer_input
    cache = sum(memory.kv_cache(config, config.max_position_embeddings))
    windows = {layer.window for name in ("E2B", "31B") for layer in count(name).config.layers if layer.window}
    accounts = billions(*effective, multiplied, looked_up) | {
        f"{e2b.total:,}", f"{len(unused)}", f"{tiny.parts['unused']:,}", f"{norms:,}", f"{row:,}", f"{row / 4096:.1f}",
        f"{config.max_position_embeddings:,}", f"{cache / 1e9:.2f}", *(f"{window:,}" for window in windows),
        f"{resident / 1e9:.2f}", f"{2 * ple / 1e9:.1f}", f"{e2b.nbytes / 1e9:.0f}",
        *(f"{100 * share['ple'] / share['of']:.{digits}f}" for share in shares.values() for digits in (0, 1)),
        "2.3B", "4.5B", "4.5",  # published, in released.EFFECTIVE
    }  # fmt: skip
    raw, alike = (
        np.array(TINY["measures"][name]["after"]["mean"]) for name in ("variance, token, raw", "variance, token")
    )
    assert raw[-1] > raw[-2]
    assert alike[-1] < alike[-2]
    off_everywhere = next(row["change"][0] for row in TINY["interventions"] if row["kind"] == "off everywhere")
    study = {
        f"{raw[-1] - raw[-2]:.2f}", f"{config.vocab_size:,}", f"{own.vocab_size:,}",
        f"{own.hidden_size_per_layer_input}",
        f"{config.num_hidden_layers}", f"{config.hidden_size_per_layer_input}", f"{config.hidden_size:,}",
        f"{off_everywhere:.0f}", f"{TINY['settings']['intervention texts']}",
        "0", "0.5", "2",  # the doses
        "4",  # bits
        "0.03", "87", "0.85", "0.13", "13", "14", "1.37", "33", "25",  # what others published
    }  # fmt: skip
    sizes = {"2", "4", "16", "4,096", "60", "8,192", "0", "2B"}  # bytes, bits, pages, lengths; what a page says
    return {"07": study, "08": accounts | sizes}


@pytest.mark.parametrize("notebook", ["07", "08"])
def test_every_number_in_the_text_of_a_notebook_is_one_that_the_commands_give(notebook):
    known = known_numbers()[notebook]
    for line in notebook_text(notebook).split("\n"):
        for number in NUMBER.findall(line):
            assert number in known, f"{number}: {line}"
