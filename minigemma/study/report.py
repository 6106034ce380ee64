"""The results of `retention.measure` as text."""

from ..files import table
from .measures import CLASSES


# ------------------------------------------------------------------------------------------------------------- report
def study_text(results):
    """Tables for each model: means and standard errors over texts."""
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
        f"of ridge regression on up to {CLASSES} token types; from its two neighbours: from their embeddings alone.\n"
        "variance: the fraction that the label explains. Errors are standard errors over texts; they do not include\n"
        "the difference between two training runs.",
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


def _by_depth(result, title, names):
    """A table of measures, one row per depth; for models with PLE also one just before each layer's PLE."""
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
