"""The results of `retention.measure` as text."""

from ..files import table
from .measures import FREQUENT, SPLITS, TEXTS_EACH


# ------------------------------------------------------------------------------------------------------------- report
def study_text(results):
    """Tables for each model: means and standard errors over texts."""
    return "\n\n\n".join(_one_report(result) for result in results)


def _one_report(result):
    writes = result["writes"]
    kept = f"{result['texts']} texts, {result['positions']:,} positions, retrieval {result['retrieval positions']:,}, "
    kept += f"{result['types']} token types, {result['sense labels']} labelled words"
    paragraphs = [
        f"{result['weights']}: {kept}; loss {_pm(*result['loss'], 4)} nats per token",
        _by_depth(result, "token", ["retrieval", "retrieval, log10 of rank", "probe, token, frequent",
                                    "probe, token, rare", "variance, token", "variance, token, less 3 components",
                                    "variance, token, raw", "largest coordinate"]),
        _by_depth(result, "neighbours", ["variance, previous", "variance, next", "probe, next, frequent",
                                         "probe, next, rare", "probe, shuffled labels", "senses"]),
        _explained(result["types"]),
        _handover(result["handover"], len(result["layers"])),
        table(["layer", *writes], [
            (f"{i}", *(_pm(column["mean"][i], column["error"][i]) for column in writes.values()))
            for i in range(len(result["layers"]))
        ]),
        "attention, mlp, ple: the norm of what is added, divided by the norm of what it is added to. gate open: the\n"
        "fraction of gate values above 0. lookup: the fraction of PLE's output that comes from the lookup; the rest\n"
        "comes from the context projection.",
    ]  # fmt: skip
    if result["interventions"]:
        rows = [
            (row["kind"] + ("" if row["at"] is None else f" {row['at']}"), _pm(*row["loss"], 4), _pm(*row["change"], 4),
             _pm(row["identity"]["mean"][-1], row["identity"]["error"][-1]))
            for row in result["interventions"]
        ]  # fmt: skip
        paragraphs.append(table(["intervention", "loss", "change", "variance, token, at the end"], rows))
    return "\n\n".join([*paragraphs, _sentence(result["sentence"])])


def _explained(types):
    return f"""\
Each coordinate of the states is standardised first, except for "raw" and "largest coordinate", which is the share of
the variance that one coordinate has. Where it is large, "raw" is about that coordinate alone.
retrieval: the token's own row of the token table is the nearest by cosine. probe: balanced accuracy of a linear
discriminant of all {types} types that occur in at least {TEXTS_EACH} texts; frequent: the first {FREQUENT} of them.
It is trained on one half of the texts and tested on the other, in {SPLITS} random splits. probe, next:
what a state tells of the token behind it, so what the context alone tells of a token. variance: the fraction that the
label explains. Errors are standard errors over texts; they do not include the difference between two training runs."""


def _handover(found, depth):
    """Which word the probe names at every depth, under each condition."""
    if not found:
        return f"hand-over: none. It needs three token types that occur in {TEXTS_EACH} texts, and --swaps above 0."
    rows = []
    for condition, row in found["conditions"].items():
        for word in ("first", "second"):
            crossing = ", ".join("none" if at is None else f"{at:.1f}" for at in row["crossing"])
            last = (crossing, _pm(*row["obeys"], 2)) if word == "second" else ("", "")
            rows.append((condition if word == "first" else "", word, *(f"{x:.2f}" for x in row[word]["mean"]), *last))
    head = ["hand-over", "word", *map(str, range(depth + 1)), "crossing", "obeys"]
    return f"""{table(head, rows)}

{found["positions"]} positions, after so many layers passed. first: the embedding's word, second: PLE's. For
"undisturbed" second is a word that is nowhere, for "another word" the word that stood there. crossing: the depth from
which the second is named more often, in each split. obeys: how often the next-token distribution is nearer to the
second word's."""


def _by_depth(result, title, names):
    """A table of measures, one row per depth; for models with PLE also one just before each layer's PLE."""
    chances = [result["measures"][name]["chance"] for name in names]
    rows = [("chance", *("" if chance is None else f"{chance:.4f}" for chance in chances))]
    depths = [("embedding", "after", 0)]
    for i in range(len(result["layers"])):
        depths += [(f"layer {i} before PLE", "before PLE", i)] if result["ple"] else []
        depths.append((f"layer {i}", "after", i + 1))
    for label, when, place in depths:
        columns = [result["measures"][name][when] for name in names]
        rows.append((label, *(_pm(column["mean"][place], column["error"][place]) for column in columns)))
    return table([title, *names], rows)


def _sentence(sentence):
    """Input lens and logit lens, one row per depth; brackets mark a token that is the input token itself."""
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
    """A mean with its error, such as 0.512 ±0.004."""
    if mean is None:
        return "none"
    return f"{mean:.{digits}f}" + ("" if error is None else f" ±{error:.{digits}f}")
