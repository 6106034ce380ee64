"""The figures for a lecture: each with one sentence as its title and a text for those who cannot see it."""

from ..account import compute, memory, parameters
from ..files import make_directory, replacing
from ..released import RELEASED
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
        "e2b-architecture": (
            figures.architecture(e2b.config),
            "E2B reads a second table: each layer gets its own vector of the token",
            "E2B from left to right: token table, 35 layers of attention and MLP, final norm. PLE's table feeds every "
            "layer. Every fifth layer has global attention. Layers 15 to 34 read the keys and values of layers 13, 14.",
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
            figures.iceberg(compute.overview()["models"]),
            "E2B multiplies less than half of what it stores",
            "For each released model, the parameters that each token multiplies above a line, the others below it.",
        ),
        "kv-cache": (
            figures.kv_cache_lines(lengths, caches),
            "Up to its longest context, E2B's cache stays far smaller than its weights",
            "The size of the KV cache of each released model from 256 tokens to the model's longest context.",
        ),
    }
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
