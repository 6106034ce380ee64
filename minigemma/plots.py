"""The figures: each function takes numbers, not files, and returns a matplotlib Figure. Colours are Okabe and Ito's."""

import matplotlib.pyplot as plt

PART_COLOURS = {
    "token table": "#0072B2",
    "PLE table": "#E69F00",
    "PLE projections and gates": "#D55E00",
    "attention": "#56B4E9",
    "MLP": "#009E73",
    "experts": "#F0E442",
    "norms and scalars": "#000000",
    "vision": "#CC79A7",
    "audio": "#BBBBBB",
    "unused": "#666666",
}
LINES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", "-."), ("#000000", ":"))


def part_bars(accounts):
    """Stacked bars of stored parameters by part; accounts: model name -> {part: parameters}, as Account.parts."""
    figure, axes = _axes(8, 1.2 + 0.55 * len(accounts))
    names = list(accounts)
    for part, colour in PART_COLOURS.items():
        if not any(part in parts for parts in accounts.values()):
            continue
        widths = [accounts[name].get(part, 0) / 1e9 for name in names]
        before = [_before(accounts[name], part) / 1e9 for name in names]
        axes.barh(names, widths, left=before, color=colour, label=part)
    for name in names:
        total = sum(accounts[name].values()) / 1e9
        axes.text(total, name, f" {total:.2f}", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.1 * max(sum(parts.values()) for parts in accounts.values()) / 1e9)
    axes.set_xlabel("parameters stored, billions")
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def iceberg(models):
    """What a token's pass multiplies, above the waterline, and what is only stored, below.

    models: name -> {"stored": parameters, "computed": parameters}, as accounting.overview()["models"].
    """
    figure, axes = _axes(8, 4.5)
    names = list(models)
    computed = [models[name]["computed"] / 1e9 for name in names]
    rest = [models[name]["stored"] / 1e9 - value for name, value in zip(names, computed, strict=True)]
    axes.bar(names, computed, color="#56B4E9", label="multiplied for every token")
    axes.bar(names, [-value for value in rest], color="#0072B2", label="only stored: PLE rows, other experts")
    axes.axhline(0, color="#000000", linewidth=1)
    for x, (above, below) in enumerate(zip(computed, rest, strict=True)):
        beside = {"textcoords": "offset points", "ha": "center"}
        axes.annotate(f"{above:.2f}", (x, above), (0, 3), va="bottom", **beside)
        if below >= 0.01:
            axes.annotate(f"{below:.2f}", (x, -below), (0, -4), va="top", **beside)
    axes.margins(y=0.1)
    axes.yaxis.set_major_formatter(lambda value, _: f"{abs(value):g}")
    axes.set_ylabel("parameters of the text model, billions")
    axes.legend(loc="lower left", frameon=False)
    return figure


def kv_cache_lines(lengths, sizes):
    """KV cache against context length; sizes: label -> bytes at each of `lengths` tokens (up to four labels)."""
    figure, axes = _axes(7, 4.5)
    for (label, values), (colour, style) in zip(sizes.items(), LINES, strict=False):
        axes.plot(lengths, [value / 1e9 for value in values], color=colour, linestyle=style, linewidth=2, label=label)
    axes.set_xscale("log", base=2)
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axes.set_xlabel("context, tokens")
    axes.set_ylabel("KV cache, GB")
    axes.grid(color="#DDDDDD")
    axes.legend(frameon=False)
    return figure


def layer_bars(layers):
    """Parameters of each layer by part, global layers marked, KV-sharing layers shaded; layers: as Account.layers."""
    figure, axes = _axes(9, 4)
    parts = [part for part in PART_COLOURS if any(part in layer["parts"] for layer in layers)]
    places = [layer["index"] for layer in layers]
    for part in parts:
        heights = [layer["parts"].get(part, 0) / 1e6 for layer in layers]
        before = [_before(layer["parts"], part) / 1e6 for layer in layers]
        axes.bar(places, heights, bottom=before, color=PART_COLOURS[part], label=part)
    sharing = [layer["index"] for layer in layers if layer["kv_from"] != layer["index"]]
    if sharing:
        axes.axvspan(sharing[0] - 0.5, sharing[-1] + 0.5, color="#F3E9D2", zorder=0, label="reads another's K and V")
    for layer in layers:
        if layer["kind"] == "full_attention":
            axes.text(layer["index"], layer["total"] / 1e6, "G", ha="center", va="bottom")
    axes.set_xlabel("layer (G: global attention)")
    axes.set_ylabel("parameters, millions")
    axes.margins(x=0.01)
    axes.legend(loc="upper left", bbox_to_anchor=(1, 1), frameon=False)
    return figure


def _axes(width, height):
    """A figure with one pair of axes. It is closed at once: a notebook then shows it where it is returned, and once."""
    figure, axes = plt.subplots(figsize=(width, height), layout="constrained")
    plt.close(figure)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _before(parts, part):
    """What is stacked under `part`."""
    order = list(PART_COLOURS)
    return sum(parts.get(other, 0) for other in order[: order.index(part)])
