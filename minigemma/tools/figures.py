"""The figures: each function takes numbers, not files, and returns a matplotlib Figure.

A colour of PALETTE means the same part of the model in every figure. Whatever is no part of the model has a colour of
LINES, which are none of the palette's. Sizes are in inches. A figure is at most WIDEST wide and its text is at least
10 points high: drawn 1,600 pixels wide and shown at half that size, the text is then at least 12 pixels high.
"""

import re
import textwrap

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.lines import Line2D
from matplotlib.patheffects import Normal, Stroke

from ..taps import layer_of
from .palette import PALETTE, PLE_EDGE

WIDEST = 9
PART_COLOURS = {
    "token table": PALETTE["embedding"],
    "PLE table": PALETTE["PLE"],
    "PLE projections and gates": PALETTE["PLE"],
    "attention": PALETTE["attention"],
    "global attention": PALETTE["global attention"],
    "MLP": PALETTE["MLP"],
    "experts": PALETTE["experts"],
    "norms and scalars": PALETTE["norms"],
    "vision": PALETTE["vision"],
    "audio": PALETTE["audio"],
    "unused": PALETTE["never read"],
}
WORDS = {  # a label with this word is about that part
    "global": "global attention",
    "sliding": "attention",
    "attention": "attention",
    "MLP": "MLP",
    "PLE": "PLE",
    "embedding": "embedding",
    "vision": "vision",
    "audio": "audio",
}
LINES = (("#111111", "-"), ("#B3123F", "--"), ("#6B7A00", "-."), ("#14306B", ":"))
MORE_LINES = (("#555555", "-"), ("#B3123F", ":"))
BROKEN = "#B3123F"
WORD_ORDER = ("first", "second")  # of the hand-over: the embedding's word, PLE's word
UNITS = {"B": 1, "kB": 1e3, "MB": 1e6, "GB": 1e9}
KIND_COLOURS = {"sliding_attention": PALETTE["attention"], "full_attention": PALETTE["global attention"]}
STYLE = {
    "figure.constrained_layout.use": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#DDDDDD",
    "legend.frameon": False,
}
BESIDE = {"loc": "upper left", "bbox_to_anchor": (1, 1)}  # a legend outside, to the right
ABOVE = {"loc": "lower left", "bbox_to_anchor": (0, 1)}


def titled(figure, sentence):
    """The figure with a sentence above it that says what it shows."""
    figure.suptitle(sentence, x=0.01, ha="left", fontsize=12, wrap=True)
    return figure


def words(figure):
    """The figure for those who cannot see it: its sentence, the labels of axes and legends, then the texts in it."""
    labels, texts, legends = [figure.get_suptitle()], [], [*figure.legends]
    for axes in figure.axes:
        labels += [axes.get_title(), axes.get_xlabel(), axes.get_ylabel()]
        texts += [text.get_text() for text in axes.texts]
        legends += [axes.get_legend()] if axes.get_legend() else []
    labels += [text.get_text() for legend in legends for text in legend.get_texts()]
    found = [*dict.fromkeys(labels), *texts]
    return "; ".join(" ".join(text.split()) for text in found if re.search("[A-Za-z]{2}", text))


@plt.rc_context({"svg.hashsalt": "minigemma"})
def save(figure, path, kind="png", pixels=1600, alt=""):
    """Write a figure `pixels` wide, with a text for those who cannot see it. The same figure gives the same bytes."""
    undated = {"Description": alt} | ({"Date": None} if kind == "svg" else {"Software": None})
    figure.savefig(path, format=kind, dpi=pixels / figure.get_figwidth(), metadata=undated)


def part_bars(accounts, across="parameters stored, billions"):
    """Billions of something by part, one bar per name; accounts: name -> {part: count}. across: of what."""
    axes = _axes(8, 1.2 + 0.55 * len(accounts))
    for part, widths, under in _stacks(accounts.values(), 1e9):
        axes.barh(list(accounts), widths, left=under, label=part, **_fill(part))
    totals = [sum(parts.values()) / 1e9 for parts in accounts.values()]
    for name, total in zip(accounts, totals, strict=True):
        axes.text(total, name, f" {total:.2f}", va="center")
    axes.invert_yaxis()
    axes.set_xlim(0, 1.16 * max(totals))
    return _finish(axes, across, legend=BESIDE)


def token_boxes(ids, labels, groups, across=100):
    """A text as the model reads it: a box for each token, with its label and its id. A line ends behind a line break.

    groups: name -> labels of the special tokens that get one colour. across: most characters of a line.
    """
    places, right, line = [], 0, 0
    for id, label in zip(ids, labels, strict=True):
        width = max(len(label), len(str(id))) + 1
        if right and right + width > across:
            right, line = 3, line + 1
        places.append((right, line, width, label, id))
        right += width + 0.4
        if label.endswith("\\n"):
            right, line = 0, line + 1
    lines = 1 + max(place[1] for place in places)
    axes = _axes(0.095 * across, 0.5 * lines + 0.4)
    axes.axis("off")
    colours = {name: colour for name, (colour, _) in zip(groups, LINES[1:], strict=False)}
    colour_of = {label: colours[name] for name, of_group in groups.items() for label in of_group}
    for left, line, width, label, id in places:
        axes.barh(-line, width, left=left, height=0.8, color=colour_of.get(label, "#CCCCCC"), alpha=0.3)
        axes.text(left + width / 2, 0.12 - line, label, ha="center", va="center", family="monospace", fontsize=10)
        axes.text(left + width / 2, -0.26 - line, str(id), ha="center", va="center", color="#444444", fontsize=8)
    for name, colour in colours.items():
        axes.barh(0, 0, color=colour, alpha=0.3, label=name)
    axes.set_xlim(0, across)
    axes.set_ylim(0.5 - lines, 0.5)
    return _finish(axes, legend=ABOVE | {"ncols": 3, "fontsize": 10})


def number_bits(rows):
    """The bits of numbers, a square each; rows: label -> (bits, as a text; how many of them are the exponent)."""
    axes = _page(0.9 + 0.35 * len(rows))
    top, kinds = 10 * (0.35 * len(rows)), {"sign": 1, "exponent": 3, "digits (mantissa)": 2}  # colours of LINES
    for down, (label, (bits, exponent)) in enumerate(rows.items()):
        y = top - 3.5 * down
        axes.text(0, y, label, va="center", fontsize=11)
        for n, bit in enumerate(bits):
            kind = list(kinds)[(n > 0) + (n > exponent)]
            corner, colour = (24 + 2.05 * n, y - 1.2), (LINES[kinds[kind]][0], 0.3)
            known = axes.get_legend_handles_labels()[1]
            square = plt.Rectangle(corner, 2, 2.4, facecolor=colour, label=None if kind in known else kind)
            axes.add_patch(square)
            axes.text(corner[0] + 1, y, bit, ha="center", va="center", fontsize=10)
    return _finish(axes, legend={"loc": "upper left", "ncols": 3, "bbox_to_anchor": (0.25, 1.05)})


def squares(uses, each=10**7, rows=16):
    """Every parameter to scale: squares of `each` parameters, in blocks by what one token of text does with them.

    uses: of an Account. A block fills its columns from the left; a square that two parts share is cut.
    """
    axes = _axes(WIDEST, 5)
    axes.axis("off")
    axes.set_aspect("equal")
    left, totals = 0, {}
    for use, parts in uses.items():
        done = 0.0  # squares
        for part in filter(parts.get, PART_COLOURS):
            totals[part] = totals.get(part, 0) + parts[part]
            end = done + parts[part] / each
            while end - done > 1e-9:
                place, used = divmod(done + 1e-9, 1)
                width = min(end - done, 1 - used)
                corner = (left + place // rows + 0.92 * used, -(place % rows))
                axes.add_patch(plt.Rectangle(corner, 0.92 * width, 0.92, **_fill(part) | {"linewidth": 0.4}))
                done += width
        columns = max(1, -(-done // rows))
        text = f"{textwrap.fill(use, 13)}\n{_billions(done * each)}"
        axes.text(left + columns / 2 - 0.04, 1.2, text, ha="center", va="bottom", fontsize=10)
        left += max(columns + 0.1 * rows, 0.42 * rows)
    handles = [plt.Rectangle((0, 0), 1, 1, label=f"{part}: {_billions(size)}", **_fill(part))
               for part, size in totals.items()]  # fmt: skip
    axes.set_xlim(-0.05 * rows, left)
    axes.set_ylim(-rows, 5)
    below = {"loc": "upper center", "bbox_to_anchor": (0.5, 0), "ncols": 3, "fontsize": 10}
    return _finish(axes, legend=below | {"handles": handles})


def iceberg(accounts):
    """All parameters of each model in percent: above the water those that every token multiplies, below it the others.

    accounts: name -> uses, of an Account.
    """
    axes = _axes(WIDEST, 5)
    axes.axhspan(-100, 0, color="#EAF2F8", zorder=0)
    for model, uses in accounts.items():
        total = sum(sum(parts.values()) for parts in uses.values())
        above, *others = uses.values()
        top = _stack(axes, model, above, 100 / total, 0)
        axes.text(model, top + 1, f"{top:.0f} %\nof {_billions(total)}", ha="center", va="bottom")
        low = 0
        for parts in others:
            low = _stack(axes, model, parts, -100 / total, low)
    for part in PART_COLOURS:
        if any(part in parts for uses in accounts.values() for parts in uses.values()):
            axes.bar(0, 0, label=part, **_fill(part))
    axes.axhline(0, color="#000000", linewidth=1)
    axes.set_ylim(-100, 122)
    axes.set_yticks(range(-100, 101, 50), [abs(tick) for tick in range(-100, 101, 50)])
    axes.set_xlim(-0.6, len(accounts) - 0.4)
    return _finish(axes, up="parameters, % of the model's", legend=BESIDE)


def _stack(axes, place, parts, scale, start):
    """Stack parts on a bar, upwards or downwards -> where the bar ends."""
    for part in PART_COLOURS:
        if part in parts:
            axes.bar(place, parts[part] * scale, bottom=start, width=0.7, **_fill(part))
            start += parts[part] * scale
    return start


def waterfall(panels):
    """From what is stored to what is "effective"; panels: title -> (total, {part: parameters}, published billions).

    The parts are taken off one after the other. The band holds every number that rounds to the published one.
    """
    figure, grid = _grid(WIDEST, 4.4, 1, len(panels))
    for axes, (title, (total, parts, published)) in zip(grid[0], panels.items(), strict=True):
        low, high = (float(published) + half for half in (-0.05, 0.05))
        axes.axhspan(low, high, color="#BBBBBB", zorder=0)
        axes.text(1.4, low - 0.01 * total / 1e9, f"rounds to {published}", ha="center", va="top")
        ends, level = [("stored", total, 0, {"facecolor": LINES[0][0]})], total
        for part, size in parts.items():
            level -= size
            ends.append((f"− {part}", size, level, _fill(part)))
        ends.append(("rest", level, 0, {"facecolor": LINES[0][0]}))
        for place, (_, size, bottom, look) in enumerate(ends):
            axes.bar(place, size / 1e9, bottom=bottom / 1e9, width=0.8, **look)
            axes.text(place, (bottom + size) / 1e9, f"{size / 1e9:.2f}", ha="center", va="bottom")
        axes.set_xticks(range(len(ends)), [name.replace(" table", "\ntable") for name, *_ in ends], fontsize=10)
        axes.set_title(title)
        _finish(axes, "", "parameters, billions" if axes is grid[0, 0] else "")
    return figure


def kv_cache_lines(lengths, sizes):
    """KV cache in GB over context in tokens; sizes: label -> bytes at the first of `lengths` (at most six labels).

    Each line ends at its last size, which is written there.
    """
    axes, height = _axes(7, 4.5), 0
    for label, values in sorted(sizes.items(), key=lambda size: size[1][-1]):
        look, last = _look(label, list(sizes).index(label)), values[-1] / 1e9
        axes.plot(lengths[: len(values)], [value / 1e9 for value in values], label=label, **look)
        height = max(last, 1.5 * height)  # labels do not meet
        axes.text(1.1 * lengths[len(values) - 1], height, f"{label}: {last:.3g} GB", va="center", color=look["color"])
    _log_tokens(axes)
    axes.set_yscale("log")
    axes.set_xticks(lengths[::2])
    axes.set_xticks(lengths[::2])
    axes.set_xlim(right=lengths[-1] * 10)
    axes.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    return _finish(axes, "context, tokens", "KV cache, GB", grid=True)


def layer_bars(layers):
    """Parameters of each layer by part, in millions. G marks global layers, shading KV-sharing ones.

    layers: as Account.layers.
    """
    layers = [layer | {"parts": _by_kind(layer)} for layer in layers]
    axes = _axes(9, 4)
    places = [layer["index"] for layer in layers]
    for part, heights, under in _stacks([layer["parts"] for layer in layers], 1e6):
        axes.bar(places, heights, bottom=under, label=part, **_fill(part))
    sharing = [layer["index"] for layer in layers if layer["kv_from"] != layer["index"]]
    if sharing:
        axes.axvspan(sharing[0] - 0.5, sharing[-1] + 0.5, color="#EEEEEE", zorder=0, label="reads another's K and V")
    for layer in layers:
        if layer["kind"] == "full_attention":
            axes.text(layer["index"], layer["total"] / 1e6, "G", ha="center", va="bottom")
    axes.margins(x=0.01)
    return _finish(axes, "layer (G: global attention)", "parameters, millions", legend=BESIDE)


def architecture(config):
    """The model from left to right: its layers, the layers whose K and V they read, and the path of PLE.

    A layer is two bars: attention (height: head_dim) above MLP (height: width). All layers have the same scale.
    Attention of a layer that reads another's K and V is hollow.
    """
    layers, count, P = config.layers, config.num_hidden_layers, config.hidden_size_per_layer_input
    axes = _axes(WIDEST, 4.6)
    axes.axis("off")
    widest = max(layer.intermediate_size for layer in layers)
    tallest = max(layer.head_dim for layer in layers)
    edge, low = 0.5 + 0.17 * count, -2.4  # the distance of both ends from the outer layers; the height of PLE's box
    flow = _arrow("#000000")
    apart = {"shrinkA": 6, "shrinkB": 6}  # points left free between an arrow and its boxes
    for layer in layers:
        i, up, down = layer.index, 0.9 * layer.head_dim / tallest, 1.1 * layer.intermediate_size / widest
        colour = KIND_COLOURS[layer.kind]
        face = "white" if layer.shares_kv else colour
        axes.bar(i, up, bottom=0.08, width=0.7, facecolor=face, edgecolor=colour, linewidth=1.5)
        axes.bar(i, -down, bottom=-0.08, width=0.8, color=PALETTE["MLP"], edgecolor="white")
        if P:
            axes.annotate("", (i, -0.1 - down), (i, low + 0.25), arrowprops=_arrow(PLE_EDGE))
        if count <= 16 or i % 5 == 0 or i == count - 1:
            label = {"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none"}
            axes.text(i, -1.55, str(i), ha="center", va="center", fontsize=10, bbox=label)
    for rail, donor in enumerate(sorted({layer.kv_from for layer in layers if layer.shares_kv})):
        _kv_rail(axes, layers, donor, 1.45 + 0.45 * rail)
    box = {"boxstyle": "round,pad=0.4", "facecolor": "white"}
    around = {"ha": "center", "va": "center", "fontsize": 10}
    V, D = config.vocab_size, config.hidden_size
    start = axes.text(-edge, 0, f"token ids\n\ntoken table\n[{V:,}, {D:,}]\nrow × √{D:,}", bbox=box, **around)
    head = f"final norm\n\nthe same token\ntable: [{D:,}, {V:,}]\n\nlogits, softcap"
    head = axes.text(count - 1 + edge, 0, head, bbox=box, **around)
    ends = {"textcoords": start, "xycoords": head, "zorder": 0}
    axes.annotate("", (0, 0.5), (1, 0.5), arrowprops=flow | apart, **ends)
    if P:
        text = (
            f"PLE table [{config.vocab_size_per_layer_input:,}, {count} × {P}]: a row for each token id, plus a "
            f"projection of its embedding:\nmade once, before layer 0; layer i gets its own {P} numbers of it"
        )
        amber = box | {"facecolor": PALETTE["PLE"], "edgecolor": PLE_EDGE}
        band = axes.text((count - 1) / 2, low - 0.12, text, bbox=amber, **around)
        turn = _arrow(PLE_EDGE) | apart | {"connectionstyle": "angle,angleA=-90,angleB=0,rad=0"}
        axes.annotate("", (0, 0.5), (0.5, 0), xycoords=band, textcoords=start, arrowprops=turn)
    axes.bar(0, 0, color=KIND_COLOURS["sliding_attention"], label=f"sliding, window {config.sliding_window:,}")
    axes.bar(0, 0, color=KIND_COLOURS["full_attention"], label="global attention")
    axes.bar(0, 0, color="white", edgecolor="#000000", label="reads another's K, V")
    axes.bar(0, 0, color=PALETTE["MLP"], label=f"MLP (widest: {widest:,})")
    axes.set_xlim(-edge - 0.12 * count, count - 1 + edge + 0.16 * count)
    axes.set_ylim(low - 0.5, 2.6)
    above = {"loc": "upper left", "bbox_to_anchor": (0, 1), "ncols": 4, "fontsize": 10, "columnspacing": 1}
    return _finish(axes, legend=above)


def ple_path(config, token, i):
    """PLE's path for one token: two rows of slices are mixed once; the hidden state gates slice i in layer i.

    token: the text of the first box, such as the token and its id.
    """
    axes, L, P = _page(4.9), config.num_hidden_layers, config.hidden_size_per_layer_input
    V, D = config.vocab_size, config.hidden_size
    left, wide, bottom = 50, 38 / L, 18.5  # of the slices: left end, width of one; above: of the layer's frame
    own = left + (i + 0.5) * wide
    start = _box(axes, 0, 37.4, token)
    table = _box(axes, 14, 41.3, f"PLE table [{config.vocab_size_per_layer_input:,}, {L} × {P}]\nits row × √{P}", "PLE")
    row = _box(axes, 14, 33, f"token table\n[{V:,}, {D:,}]\nits row × √{D:,}", "embedding")
    for y in (41.3, 33):
        _flow(axes, (start, 37.4), (11.5, 37.4), (11.5, y), (14, y))
    _flow(axes, (table, 41.3), (left, 41.3))
    project = _box(axes, row + 2.5, 33, f"projection\n[{L} × {P}, {D:,}]\n× 1/√{D:,}, norm", "PLE")
    _flow(axes, (row, 33), (row + 2.5, 33))
    _flow(axes, (project, 33), (left, 33))
    for y, name in ((41.3, "lookup"), (33, "projection, called “context”"), (24.5, "sum × 1/√2")):
        for n in range(L):
            strong = 1 if n == i else 0.3
            look = {"facecolor": (PALETTE["PLE"], strong), "edgecolor": PLE_EDGE, "linewidth": 0.8 + (n == i)}
            axes.add_patch(plt.Rectangle((left + n * wide, y - 1.3), wide, 2.6, **look))
        axes.text(left + 38 / 2, y + 1.6, f"{name}: {L} slices of {P}", ha="center", va="bottom", fontsize=10)
    for y, sign in ((37.4, "+"), (28.9, "=")):
        axes.text(left + 2, y, sign, ha="center", va="center", fontsize=16)
    once = "Made once, before layer 0,\nfrom this token's id alone."
    axes.text(left - 1, 24.5, once, ha="right", va="center", fontsize=10)
    axes.add_patch(plt.Rectangle((0, 0), 90, bottom, facecolor="#F2F2F2", edgecolor="none"))
    axes.text(1, bottom - 0.7, f"In layer {i} (every layer does this with its own slice)", va="top", fontsize=10)
    _flow(axes, (1, 3), (89, 3), width=3)
    axes.text(1, 4, f"hidden state x [{D:,}]\nafter attention and MLP", va="bottom", fontsize=10)
    gate = _box(axes, 24, 11.5, f"gate [{P}, {D:,}]\nGELU", "PLE")
    _flow(axes, (21.5, 3), (21.5, 11.5), (24, 11.5))
    _flow(axes, (gate, 11.5), (own - 1.1, 11.5))
    _flow(axes, (own, 23.2), (own, 12.6), colour=PLE_EDGE)
    axes.text(own, 11.4, "×", ha="center", va="center", fontsize=14)
    back = _box(axes, own + 3.4, 11.5, f"projection\n[{D:,}, {P}], norm", "PLE")
    _flow(axes, (own + 1.1, 11.5), (own + 3.4, 11.5))
    _flow(axes, (back, 11.5), (back + 2, 11.5), (back + 2, 3.3))
    axes.text(back + 1.2, 5, "+", ha="center", va="center", fontsize=16)
    axes.text(89, 1.2, "then × layer scalar", ha="right", va="center", fontsize=10)
    return axes.figure


def whole_model(config):
    """The model on one page: its layers and whose K and V they read, one layer in full, sizes and constants.

    For models with PLE and KV sharing, without experts: E2B and E4B. The eight norms of a layer are numbered.
    """
    axes, layers, L = _page(6.3), config.layers, config.num_hidden_layers
    D, N, P, V = config.hidden_size, config.num_attention_heads, config.hidden_size_per_layer_input, config.vocab_size
    near, far = (next(layer for layer in layers if (layer.window is None) == wide) for wide in (False, True))
    narrow, wide = (f(layer.intermediate_size for layer in layers) for f in (min, max))
    left, step = 16, 59 / L
    places = [left + (i + 0.5) * step for i in range(L)]
    start = _box(axes, 0, 48.6, f"token table\n[{V:,}, {D:,}]\nrow × √{D:,}", "embedding")
    _flow(axes, (start, 48.6), (77, 48.6))
    _box(axes, 77, 48.6, "final norm\ntoken table\nlogits, capped", "embedding")
    axes.add_patch(plt.Rectangle((left, 40.2), 59, 2.6, **_fill("PLE")))
    slices = f"PLE: a row of {L} slices of {P} for each token, made once; layer i gets slice i"
    axes.text(left + 29.5, 41.4, slices, ha="center", va="center", fontsize=10)
    for x, layer in zip(places, layers, strict=True):
        colour = KIND_COLOURS[layer.kind]
        face = "white" if layer.shares_kv else colour
        high = 3 * layer.intermediate_size / wide
        square = {"facecolor": face, "edgecolor": colour, "linewidth": 1.5}
        axes.add_patch(plt.Rectangle((x - 0.42 * step, 49.2), 0.84 * step, 2.4, zorder=3, **square))
        axes.add_patch(plt.Rectangle((x - 0.42 * step, 49 - high), 0.84 * step, high, zorder=3, **_fill("MLP")))
        _flow(axes, (x, 42.8), (x, 48.9 - high), colour=PLE_EDGE)
        if layer.window is None and not layer.shares_kv:
            axes.text(x, 50.3, str(layer.index), color="white", ha="center", va="center", fontsize=10, zorder=4)
    for rail, donor in enumerate(sorted({layer.kv_from for layer in layers if layer.shares_kv})):
        colour, y = KIND_COLOURS[layers[donor].kind], 53.6 + 2 * rail
        axes.plot([places[donor]] * 2, [51.6, y], color=colour, linewidth=1.5)
        axes.text(places[donor] - 0.5, y, f"K and V of layer {donor}", ha="right", va="center", fontsize=10)
        for layer in layers:
            if layer.kv_from == donor and layer.shares_kv:
                _flow(axes, (places[donor], y), (places[layer.index], y), (places[layer.index], 51.7), colour=colour)
    _layer_in_full(axes, near, far, narrow, wide, config)
    notes = (
        f"D = {D:,}   hidden size\nL = {L}   layers, {sum(layer.window is None for layer in layers)} global\n"
        f"N = {N}   query heads\nK = {near.num_key_value_heads}   key and value heads\n"
        f"H = {near.head_dim}, global {far.head_dim}\nF = {narrow:,}, wide {wide:,}\nP = {P}   PLE in a layer\n"
        f"V = {V:,}   tokens\nwindow {config.sliding_window} tokens\n\n"
        f"embedding × √{D:,}\nlookup × √{P}\nprojection × 1/√{D:,}\ntheir sum × 1/√2\nscores × 1, not 1/√H\n"
        f"norm: x / √(mean x² + ε)\nlogits: {config.final_logit_softcapping:g} tanh(x / "
        f"{config.final_logit_softcapping:g})\nRoPE: {np.count_nonzero(near.inv_freq)} of {len(near.inv_freq)} pairs "
        f"turn;\nglobal: {np.count_nonzero(far.inv_freq)} of {len(far.inv_freq)} pairs"
    )
    axes.text(68, 38, notes, va="top", fontsize=10, linespacing=1.35)
    looks = {"sliding attention": _fill("sliding"), "global attention": _fill("global"),
             f"layers {config.first_kv_shared_layer} to {L - 1}: read another's K and V": {"fill": False},
             "MLP": _fill("MLP"), "PLE": _fill("PLE")}  # fmt: skip
    handles = [plt.Rectangle((0, 0), 1, 1, label=label, **look) for label, look in looks.items()]
    axes.legend(handles=handles, loc="upper left", bbox_to_anchor=(-0.01, 1.03), ncols=5, fontsize=10,
                columnspacing=1, handlelength=1.5, frameon=False)  # fmt: skip
    return axes.figure


def _layer_in_full(axes, near, far, narrow, wide, config):
    """One layer on the page of `whole_model`: the stream goes down at the left, each part leaves it and comes back."""
    stream, part = 1.5, "attention"
    _flow(axes, (stream, 38), (stream, 0.5), width=3)
    axes.text(stream + 1.5, 37.4, "one layer, x [D]", va="center", fontsize=10)
    _flow(axes, (stream, 32), (4, 32))
    start = _box(axes, 4, 32, "① norm", part)
    back = (("⑤ norm", part), ("o", part), ("mix of v", part), ("softmax", part), ("mask", part), ("q · k", part))
    first = _row(axes, 4, 25.6, *back, back=True)
    _flow(axes, (4, 25.6), (stream + 0.2, 25.6))
    cache = _box(axes, 51, 30.6, "K, V cache:\nits own or\na donor's", part)
    heads = f"× {near.head_dim} (global {far.head_dim})"
    for y, name, count, norm in (
        (34.8, "q", config.num_attention_heads, "② norm"),
        (32, "k", near.num_key_value_heads, "③ norm"),
        (29.2, "v", near.num_key_value_heads, "④ norm, no weight"),
    ):
        _flow(axes, (start, 32), (start + 0.9, 32), (start + 0.9, y), (12.3, y))
        ends = ((norm, part), ("RoPE", part)) if name != "v" else ((norm, part),)
        end = _row(axes, 12.3, y, (f"{name}: {count} {heads}", part), *ends)
        turn = [(cache + 1, y), (cache + 1, 25.6), (first, 25.6)] if name == "q" else [(51, y)]
        _flow(axes, (end, y), *turn)
    _flow(axes, (56, 27.4), (56, 25.8))
    parts = (
        (20.6, (("⑥ norm", "MLP"), (f"gate, up: {narrow:,} (wide {wide:,})", "MLP"), ("gelu(gate) × up", "MLP"),
                ("down", "MLP"), ("⑦ norm", "MLP"))),
        (12.6, ((f"gate: {config.hidden_size_per_layer_input}", "PLE"), ("gelu", "PLE"), ("× slice i of PLE", "PLE"),
                ("projection", "PLE"), ("⑧ norm", "PLE"))),
    )  # fmt: skip
    for y, boxes in parts:
        _flow(axes, (stream, y), (4, y))
        end = _row(axes, 4, y, *boxes)
        _flow(axes, (end, y), (end + 1, y), (end + 1, y - 3.4), (stream + 0.2, y - 3.4))
    for y in (25.6, 17.2, 9.2):
        axes.text(stream + 1.3, y + 1, "+", ha="center", va="center", fontsize=13)
    axes.text(stream + 1.5, 4, "then all of x × layer scalar", va="center", fontsize=10)


def _row(axes, left, middle, *boxes, back=False):
    """Boxes (text, part) from the left, with arrows between them (leftwards if `back`) -> where the last one ends."""
    for n, box in enumerate(boxes):
        if n:
            _flow(axes, *[(left, middle), (left + 1.5, middle)][:: -1 if back else 1])
            left += 1.5
        left = _box(axes, left, middle, *box)
    return left


def prompt_stop(config, prompt, saved):
    """Layers x positions of a prompt: which of them a call for the last logits computes.

    prompt: a text, with spaces between its tokens. saved: the share of the work that this spares, as a text.
    """
    tokens, axes, L, first = prompt.split(), _page(4.9), config.num_hidden_layers, config.first_kv_shared_layer
    left, wide, high, low = 6, 54 / len(tokens), 38 / L, 4
    end, turn = left + 54, low + first * high  # the right edge of the positions; where a prompt stops
    for layer in config.layers:
        for n in range(len(tokens)):
            runs = not layer.shares_kv or n == len(tokens) - 1
            corner, colour = (left + n * wide, low + layer.index * high), KIND_COLOURS[layer.kind]
            look = {"facecolor": colour if runs else "#FFFFFF", "edgecolor": "#FFFFFF" if runs else "#DDDDDD"}
            axes.add_patch(plt.Rectangle(corner, wide, high, linewidth=0.8, **look))
        if layer.index in (0, first - 1, first, L - 1):
            y = low + (layer.index + 0.5) * high + {first - 1: -0.4, first: 0.4}.get(layer.index, 0)
            axes.text(left - 0.7, y, str(layer.index), ha="right", va="center", fontsize=10)
    axes.text(left - 5, low + 19, "layer", rotation=90, ha="center", va="center", fontsize=10)
    for n, token in enumerate(tokens):
        axes.text(left + (n + 0.5) * wide, low - 0.6, token, ha="center", va="top", fontsize=10)
    middle, above = (left + end - wide) / 2, (turn + low + 38) / 2
    plain = {"ha": "center", "backgroundcolor": "white"}
    axes.text(middle, above + 1, textwrap.fill(f"not computed: {saved}", 30), va="bottom", fontsize=14, **plain)
    axes.text(middle, above, "What these layers write at a position,\nno other position reads.", va="top", **plain)
    last = f"The last position\nruns all {L} layers:\nits logits are wanted."
    axes.text(end + 3.5, above + 4, last, va="center", fontsize=11)
    donors = [config.layers[i] for i in sorted({layer.kv_from for layer in config.layers if layer.shares_kv})]
    for place, layer in enumerate(donors):
        x, y, top = end + 0.8 + 0.9 * place, low + (layer.index + 0.5) * high, low + 36 + 1.5 * place
        _flow(axes, (end, y), (x, y), (x, top), (end, top), colour=KIND_COLOURS[layer.kind])
    names = " and ".join(f"{layer.index} ({'sliding' if layer.window else 'global'})" for layer in donors)
    reads = f"Layers {first} to {L - 1} read\nK and V of layers\n{names}."
    axes.text(end + 3.5, turn + 2.6, reads, va="center", fontsize=11)
    writes = f"Layers 0 to {first - 1} run at\nevery position: they\nwrite the K and V\nthat later tokens read."
    axes.text(end + 3.5, (low + turn) / 2 - 2, writes, va="center", fontsize=11)
    return axes.figure


def fact_in_two_steps(before, between, after, window, links, note):
    """A text on a line, what a window covers of it, and the links of attention that carry a fact to its end.

    before, after: words with spaces between; between: how many tokens are left out there. window: how many of those
    it covers, and its text. links: (from, to, kind of layer, text, where the text is); from, to: numbers of words.
    """
    axes, right, middles, y = _page(4.1), 0, [], 10
    for word in (*before.split(), None, *after.split()):
        text = word or f"… {between} tokens …"
        width, shade = 0.96 * len(text), "#000000" if word else "#666666"
        axes.text(right + width / 2, y, text, ha="center", va="center", fontsize=11, color=shade)
        if word:
            middles.append(right + width / 2)
        else:
            start = right + width * (1 - window[0] / between)
        right += width + 1.3
    axes.plot([start, start, right, right], [y - 2, y - 3.5, y - 3.5, y - 2], color=PALETTE["attention"], linewidth=2)
    axes.text((start + right) / 2, y - 4.5, window[1], ha="center", va="top", fontsize=11)
    for one, other, kind, text, (x, height) in links:
        bow = _arrow(KIND_COLOURS[kind]) | {"connectionstyle": "arc3,rad=0.5", "linewidth": 2.5}
        axes.annotate("", (middles[other], y + 1.5), (middles[one], y + 1.5), arrowprops=bow)
        axes.text(x, height, text, va="bottom", fontsize=11)
    axes.text(0, y - 3.5, note, va="top", fontsize=11)
    return axes.figure


def _page(height):
    """Axes for a drawing WIDEST inches wide; their unit is a tenth of an inch."""
    axes = _axes(WIDEST, height)
    axes.axis("off")
    axes.set(xlim=(0, 10 * WIDEST), ylim=(0, 10 * height - 4))  # a title takes 4
    return axes


def _box(axes, left, middle, text, part=None):
    """A box as large as its text, in the colour of a part of the model -> where it ends at the right."""
    lines = text.split("\n")
    width, height = 0.82 * max(map(len, lines)) + 1.2, 1.8 * len(lines) + 1
    colour = PALETTE.get(part, "#FFFFFF")
    edge = {"PLE": PLE_EDGE, None: "#000000"}.get(part, colour)
    corner = (left, middle - height / 2)
    axes.add_patch(plt.Rectangle(corner, width, height, facecolor=(colour, 0.3), edgecolor=edge, linewidth=1.2))
    axes.text(left + width / 2, middle, text, ha="center", va="center", fontsize=10)
    return left + width


def _flow(axes, *points, colour="#000000", width=1.2):
    """A line through the points; an arrow ends it."""
    axes.plot(*zip(*points[:-1], strict=True), color=colour, linewidth=width)
    axes.annotate("", points[-1], points[-2], arrowprops=_arrow(colour) | {"linewidth": width})


def _kv_rail(axes, layers, donor, height):
    """A line from the layer that writes K and V to the layers that read them."""
    readers = [layer.index for layer in layers if layer.kv_from == donor and layer.shares_kv]
    colour = KIND_COLOURS[layers[donor].kind]
    axes.plot([donor, donor, readers[-1]], [1.0, height, height], color=colour, linewidth=1.8)
    for i in readers:
        axes.annotate("", (i, 1.02), (i, height), arrowprops=_arrow(colour))
    axes.text(donor - 0.15, height, f"K and V of layer {donor}", ha="right", va="center", fontsize=10)


def heatmaps(panels, rows, columns, bar=None, row_labels=None, column_labels=None, across=2, signed=False):
    """Matrices side by side on one colour scale; panels: title -> [rows, columns].

    rows, columns, bar: the labels of both axes and of the colour scale; without `bar` there is no scale. NaN is white.
    across: panels in a row. signed: a colour scale that is white at 0.
    """
    across = min(across, len(panels))
    down = -(-len(panels) // across)
    height, width = next(iter(panels.values())).shape
    wide, tall = ((WIDEST - 1.2) / across - 0.6) / width, min(max(0.26, 1.6 / height / down), 6.5 / height)
    wide = min(wide, 0.36)
    if width == height:
        wide = tall = min(wide, tall)
    size = (1.2 + across * max(2.2, 0.6 + wide * width), down * max(1.8, 1.1 + tall * height))
    figure, grid = _grid(*size, down, across)
    letters = 10 if min(wide, tall) > 0.16 else 8  # points
    values = np.concatenate([np.ravel(panel) for panel in panels.values()])
    high = np.nanmax(np.abs(values)) if signed else np.nanmax(values)
    low = -high if signed else min(0, np.nanmin(values))
    for place, axes in enumerate(grid.flat):
        if place >= len(panels):
            axes.axis("off")
            continue
        title, panel = list(panels.items())[place]
        image = axes.imshow(panel, cmap="PuOr" if signed else "cividis", vmin=low, vmax=high, aspect="auto")
        axes.spines[:].set_visible(True)
        axes.set_title(title, fontsize=10)
        _finish(axes, columns, rows if place % across == 0 else "")
        if column_labels is not None:
            axes.set_xticks(range(len(column_labels)), column_labels, rotation=90, fontsize=letters)
        if row_labels is not None:
            axes.set_yticks(range(len(row_labels)), row_labels if place % across == 0 else [], fontsize=letters)
    if bar:
        figure.colorbar(image, ax=grid, label=bar, shrink=0.8)
    return figure


def on_picture(image, panels, across=4):
    """A picture [h, w, 3] once a panel, with what lies on it; panels: title -> one of these, or None for nothing.

    (rows, columns): the lines of a grid. Numbers [rows, columns]: the smaller, the darker the picture is there. Colours
    [rows, columns, 3] from 0 to 1, in place of the picture. Texts [rows, columns].
    """
    side, across = min(WIDEST / across, 4.9), min(across, len(panels))
    down, (height, width) = -(-len(panels) // across), image.shape[:2]
    figure, grid = _grid(across * side, down * (side * height / width + 0.3), down, across)
    for axes in grid.flat:
        axes.axis("off")
    for axes, (title, panel) in zip(grid.flat, panels.items(), strict=False):
        axes.set_title(title, fontsize=10)
        whole = {"extent": (0, width, height, 0), "interpolation": "nearest"}
        if isinstance(panel, tuple) or panel is None:
            axes.imshow(image, **whole)
            rows, columns = panel or (0, 0)
            axes.vlines(np.linspace(0, width, columns + 1), 0, height, PALETTE["vision"], linewidth=0.8)
            axes.hlines(np.linspace(0, height, rows + 1), 0, width, PALETTE["vision"], linewidth=0.8)
        elif panel.dtype.kind == "U":
            axes.imshow(image, alpha=0.35, **whole)
            for (row, column), text in np.ndenumerate(panel):
                place = (column + 0.5) * width / panel.shape[1], (row + 0.5) * height / panel.shape[0]
                axes.text(*place, text, ha="center", va="center", fontsize=10)
        elif panel.ndim == 3:
            axes.imshow(panel, **whole)
        else:
            axes.imshow(image, **whole)
            axes.imshow(np.zeros((*panel.shape, 3)), alpha=0.8 * (1 - panel / panel.max()), **whole)
    return figure


def error_by_depth(comparison):
    """The result of `diff`: relative errors in the order of execution, each op's own and the accumulated one."""
    rows = [row for row in comparison.rows if row.own is not None]
    axes = _axes(9, 4)
    places = np.arange(len(rows))
    floor = 1e-9
    whole = [max(min(row.away.error, 1e3), floor) if row.away else np.nan for row in rows]
    axes.plot(places, whole, color=LINES[0][0], linewidth=2, label="from the beginning")
    allowed = [max(row.allowed, floor) for row in rows]
    axes.plot(places, allowed, color="#999999", linestyle=":", label="allowed, of an op")
    for verdict, colour, marker in (("OK", "#6B7A00", "."), ("DRIFT", "#14306B", "."), ("BROKEN", BROKEN, "x")):
        chosen = [i for i, row in enumerate(rows) if row.verdict == verdict]
        errors = [max(min(rows[i].own.error, 1e3), floor) for i in chosen]
        label = f"op on their inputs: {verdict}" if chosen else None
        axes.plot(chosen, errors, marker, color=colour, markersize=7, label=label)
    names = [row.name for row in rows]
    if comparison.first_broken in names:
        place = names.index(comparison.first_broken)
        axes.axvline(place, color=BROKEN, linewidth=1)
        side = "right" if place > len(rows) / 2 else "left"
        axes.annotate(f" first broken: {comparison.first_broken} ", (place, 1), xycoords=("data", "axes fraction"),
                      ha=side, va="bottom", color=BROKEN)  # fmt: skip
    layers = [f"{'v' * name.startswith('vision.')}{layer_of(name)}" for name in names]
    starts = [i for i, layer in enumerate(layers) if layer[-1].isdecimal() and layer not in layers[:i]]
    step = max(1, len(starts) // 16)
    axes.set_xticks(starts[::step], [layers[i] for i in starts[::step]])
    axes.set_yscale("log")
    axes.set_ylim(bottom=floor / 3)
    vision = ", v: of the vision tower" if names and names[0].startswith("vision.") else ""
    across, up = f"layer{vision} (taps in the order of execution)", f"relative error (at {floor:g}: less)"
    return _finish(axes, across, up, grid=True, legend=BESIDE)


def curves(x, lines, across, up, log=False, errors=None):
    """Lines over one horizontal axis; lines: label -> values at x (at most six labels).

    across, up: the labels of the axes, with units. log: the horizontal axis is logarithmic. errors: label -> standard
    errors, drawn as bars.
    """
    axes = _axes(7.5, 4)
    for place, (label, values) in enumerate(lines.items()):
        axes.errorbar(x, values, (errors or {}).get(label), elinewidth=1, label=label, **_look(label, place))
    if log:
        _log_tokens(axes)
    axes.set_ylim(bottom=min(0, axes.get_ylim()[0]))
    return _finish(axes, across, up, grid=True, legend=BESIDE if len(lines) > 1 else None)


def wavelengths(heads, window):
    """Tokens per full turn of each RoPE pair; heads: label -> inv_freq [H/2]. Pairs of frequency 0 are at the top."""
    axes = _axes(8, 4)
    turns = {label: 2 * np.pi / frequencies[frequencies > 0] for label, frequencies in heads.items()}
    top = 30 * max(values.max() for values in turns.values())
    for (label, frequencies), colour, marker in zip(heads.items(), KIND_COLOURS.values(), "os", strict=False):
        places = np.arange(len(frequencies))
        still = frequencies == 0
        look = {"color": colour, "markersize": 4}
        axes.plot(places[~still], turns[label], marker, label=f"{label}: {(~still).sum()} turn", **look)
        if still.any():
            look |= {"fillstyle": "none", "label": f"{label}: {still.sum()} never turn"}
            axes.plot(places[still], [top] * still.sum(), marker, **look)
    axes.axhline(window, color="#000000", linestyle=":", label=f"sliding window, {window:,} tokens")
    axes.set_yscale("log")
    axes.set_yticks([10.0**power for power in range(1, int(np.log10(top)))] + [top])
    axes.yaxis.set_major_formatter(lambda value, _: "never" if value >= 0.99 * top else f"{value:,.0f}")
    axes.minorticks_off()
    across = "pair j, which is the values j and j + H/2 of a head"
    return _finish(axes, across, "tokens for one full turn", legend=BESIDE)


def clouds(panels, groups):
    """Points in the plane, a colour and a marker for each group, a large cross at its mean; panels: title -> [n, 2].

    groups: the number of each point's group, [n], at most four.
    """
    figure, grid = _grid(WIDEST, 3.6, 1, len(panels))
    for axes, (title, points) in zip(grid[0], panels.items(), strict=True):
        for group, (colour, _), marker in zip(np.unique(groups), LINES, "os^D", strict=False):
            some = points[groups == group]
            axes.scatter(*some.T, s=18, color=colour, marker=marker, alpha=0.6)
            axes.scatter(*some.mean(0), s=250, color=colour, marker="+", linewidths=3)
        axes.set_title(title, fontsize=11)
        axes.set_aspect("equal", "datalim")
        _finish(axes, "first coordinate", "second coordinate" if axes is grid[0, 0] else "")
    return figure


def turned_pairs(positions, frequencies, names):
    """The point (1, 0) of a few pairs, turned by RoPE to each position; frequencies: radians per token."""
    figure, grid = _grid(WIDEST, 2.5, 1, len(frequencies))
    for axes, frequency, name in zip(grid[0], frequencies, names, strict=True):
        angles = positions * frequency
        axes.add_patch(plt.Circle((0, 0), 1, fill=False, color="#BBBBBB"))
        dots = axes.scatter(np.cos(angles), np.sin(angles), c=positions, cmap="cividis", s=30, zorder=2)
        axes.annotate("", (np.cos(angles[-1]), np.sin(angles[-1])), (0, 0), arrowprops={"arrowstyle": "->"})
        axes.set(xlim=(-1.25, 1.25), ylim=(-1.25, 1.25), aspect="equal", xticks=[-1, 0, 1], yticks=[-1, 0, 1])
        axes.spines[:].set_visible(True)
        axes.set_title(name, fontsize=10)
        _finish(axes, "first value", "second value" if axes is grid[0, 0] else "")
    figure.colorbar(dots, ax=grid, label="position", shrink=0.8)
    return figure


def kv_sources(layers):
    """The layer whose K and V each layer reads: filled squares write their own, hollow ones read those of another."""
    axes = _axes(WIDEST, 2.3)
    for layer in layers:
        colour, i, up = KIND_COLOURS[layer.kind], layer.index, 1 if layer.window else -1
        face = "white" if layer.shares_kv else colour
        axes.scatter(i, 0, 300 if len(layers) <= 16 else 220, face, "s", edgecolors=colour, linewidths=2, zorder=3)
        axes.text(i, 0, str(i), ha="center", va="center", fontsize=10, zorder=4)
        if layer.shares_kv:
            axes.plot([layer.kv_from, layer.kv_from, i], [0, up, up], color=colour, linewidth=1.5, zorder=2)
            axes.annotate("", (i, 0.3 * up), (i, up), arrowprops={"arrowstyle": "->", "color": colour, "shrinkA": 0})
    for kind, name in zip(KIND_COLOURS, ("sliding", "global"), strict=True):
        axes.scatter([], [], 80, KIND_COLOURS[kind], "s", label=f"{name}, writes K and V")
        axes.scatter([], [], 80, "white", "s", edgecolors=KIND_COLOURS[kind], linewidths=2, label=f"{name}, reads them")
    axes.set(ylim=(-1.3, 1.3), xticks=[], yticks=[])
    axes.spines[:].set_visible(False)
    axes.figure.legend(loc="outside lower center", ncols=4, frameon=False, fontsize=10)
    return _finish(axes, "layer")


def bars(names, series, up, across="", errors=None):
    """Bars in groups: one group per name, one bar per series; series: label -> a value for each name (at most four).

    across, up: the labels of the axes, with units. errors: label -> standard errors, drawn as thin bars.
    """
    axes = _axes(min(WIDEST, max(6, 1.5 + 0.28 * len(names) * (1 + len(series) / 2))), 3.8)
    width = 0.84 / len(series)
    for place, (label, values) in enumerate(series.items()):
        where = np.arange(len(names)) + width * (place - (len(series) - 1) / 2)
        spread = (errors or {}).get(label)
        axes.bar(where, values, width, label=label, yerr=spread, error_kw={"linewidth": 1}, **_fill(label, place))
    axes.set_xticks(range(len(names)), names, rotation=90 if max(map(len, names)) > 4 else 0)
    axes.axhline(0, color="#000000", linewidth=1)
    return _finish(axes, across, up, legend=ABOVE | {"ncols": len(series)} if len(series) > 1 else None)


def cache_tables(config, tokens, held):
    """Which tokens' K and V the cache of each layer holds; a panel for each moment.

    held: title -> {layer: (first, end)}, the tokens that the cache of this layer holds. Pale is what it has dropped.
    """
    down, L = -(-len(held) // 2), config.num_hidden_layers
    figure, grid = _grid(WIDEST, 0.4 + down * (0.7 + 0.17 * L), down, 2)
    for axes, (title, rows) in zip(grid.flat, held.items(), strict=True):
        for i, (first, end) in rows.items():
            for n in range(end):
                shade = 1 if n >= first else 0.15
                face = (KIND_COLOURS[config.layers[i].kind], shade)
                axes.add_patch(plt.Rectangle((n, i), 0.94, 0.9, facecolor=face, linewidth=0))
        axes.axhspan(config.first_kv_shared_layer, L, color="#EEEEEE", zorder=0)
        readers = f"layers {config.first_kv_shared_layer} to {L - 1} keep nothing"
        axes.text(0.2, (config.first_kv_shared_layer + L) / 2, readers, va="center", fontsize=10)
        axes.set(xlim=(0, len(tokens)), ylim=(0, L))
        axes.set_xticks(np.arange(len(tokens)) + 0.5, tokens, fontsize=10)
        axes.set_yticks(np.arange(config.first_kv_shared_layer) + 0.5, range(config.first_kv_shared_layer), fontsize=10)
        axes.tick_params(length=0)
        axes.set_title(title, fontsize=11, loc="left")
        _finish(axes, "", "layer" if axes in grid[:, 0] else "")
    return figure


def score_path(names, parts, start, up):
    """How a score comes about: bars one after the other, each from where the last one ended.

    parts: label -> what it added in each of `names`. start: what was there before. up: of what, with its unit.
    """
    axes, level, width = _axes(WIDEST, 3.9), start, 0.8 / len(parts)
    axes.bar(-1, start, 0.8, **_fill("embedding"))
    for place in range(len(names)):
        for n, (label, added) in enumerate(parts.items()):
            x = place - 0.4 + (n + 0.5) * width
            axes.bar(x, added[place], width, bottom=level, label=None if place else label, **_fill(label, n))
            level += added[place]
    axes.bar(len(names), level, 0.8, color=LINES[0][0])
    axes.text(len(names), level, f"{level:.1f}", ha="center", va="bottom")
    axes.set_xticks(range(-1, len(names) + 1), ["embedding", *names, "sum"])
    axes.axhline(0, color="#000000", linewidth=1)
    return _finish(axes, "layer that wrote it", up, legend={"loc": "upper left"})


def byte_bars(sizes):
    """Bars on a logarithmic scale; sizes: label -> bytes."""
    axes = _axes(8, 0.9 + 0.45 * len(sizes))
    axes.barh(list(sizes), list(sizes.values()), **_fill("PLE"))
    axes.set_xscale("log")
    axes.set_xlim(1e3, 20 * max(sizes.values()))
    for name, size in sizes.items():
        unit, scale = next((unit, scale) for unit, scale in reversed(UNITS.items()) if size >= scale)
        axes.text(size, name, f" {size / scale:.3g} {unit}", va="center")
    axes.set_xticks(list(UNITS.values())[1:], [f"1 {unit}" for unit in UNITS][1:])
    axes.minorticks_off()
    axes.invert_yaxis()
    return _finish(axes, "size, logarithmic")


def retention_figures(results, seeds=()):
    """All figures of the results of retention.measure, for one to three models -> {name: Figure}.

    seeds: results of further training runs of the same models, drawn as thin lines.
    """
    figures = {
        "retention": depth_lines(results, {
            "retrieval": "its own embedding\nis the nearest",
            "probe, token, rare": "a linear probe names\na rare token",
            "variance, token": "variance that the\ntoken explains",
        }, seeds),
        "outliers": depth_lines(results, {
            "variance, token": "variance explained,\neach coordinate alike",
            "variance, token, less 3 components": "less the 3 largest\nprincipal components",
            "variance, token, raw": "raw: the largest\ncoordinates count most",
        }, seeds),
        "context": depth_lines(results, {
            "variance, previous": "variance explained by\nthe previous token",
            "variance, token": "variance explained by\nthe token itself",
            "variance, next": "variance explained by\nthe next token",
        }, seeds),
        "senses": depth_lines(results, {"senses": "the nearest centroid\nnames the sense"}, seeds),
        "sentence": _sentence_map(results),
    }  # fmt: skip
    if all(result["handover"] for result in results):
        figures["swap"] = swap_lines(results, seeds)
    for result in results:
        if len(result["handover"].get("conditions", ())) > 2:
            figures["handover"] = handover_areas(result, seeds)
            figures["dose"] = dose_lines(result)
        if len(result["interventions"]) > 1:
            figures["interventions"] = intervention_bars(result["interventions"])
            figures["ablations"] = ablation_bars(result["interventions"])
            figures["quantisation"] = quantisation_lines(result["interventions"])
            break
    return figures


def handover_areas(result, seeds=()):
    """Whose word the state is: one position has the embedding of one word and the PLE of another.

    Violet, from below: the probe names the embedding's word; amber, from above: PLE's; white: any other word. Thin
    lines are the seeds, results of further training runs.
    """
    figure, grid = _grid(WIDEST, 4.2, 1, 2)
    stands = "the embedding is of the word that stands there,\nPLE is of another"
    panels = (stands, "embedding stays, PLE of another"), (
        "PLE is of the word that stands there,\nthe embedding is of another", "embedding of another, PLE stays",
    )  # fmt: skip
    for axes, (title, condition) in zip(grid[0], panels, strict=True):
        first, second = (np.array(result["handover"]["conditions"][condition][word]["mean"]) for word in WORD_ORDER)
        depths = np.arange(len(first))
        axes.fill_between(depths, 0, first, color=PALETTE["embedding"])
        axes.fill_between(depths, 1 - second, 1, facecolor=PALETTE["PLE"], edgecolor=PLE_EDGE)
        for seed in seeds:
            if condition in seed["handover"]["conditions"]:
                one, two = (np.array(seed["handover"]["conditions"][condition][word]["mean"]) for word in WORD_ORDER)
                axes.plot(depths, one, color="#111111", linewidth=0.8)
                axes.plot(depths, 1 - two, color=PLE_EDGE, linewidth=0.8)
        axes.text(0.28 * depths[-1], 0.5, "embedding's\nword", color="white", ha="center", va="center", fontsize=14)
        axes.text(depths[-1] - 0.15, 0.93, "PLE's word", ha="right", va="top", fontsize=14)
        axes.set_title(title, fontsize=10)
        axes.margins(0)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _finish(axes, "layers passed", "how often the probe names it" if axes is grid[0, 0] else "")
    return figure


def dose_lines(result):
    """How often the state is PLE's word, by how much PLE writes, and by which part of PLE is another word's."""
    conditions = result["handover"]["conditions"]
    mixed = "embedding stays, PLE of another"
    left, right = _grid(WIDEST, 3.8, 1, 2)[1][0]
    doses = {"0": f"{mixed}, written 0 times", "0.5": f"{mixed}, written 0.5 times", "1": mixed,
             "2": f"{mixed}, written 2 times"}  # fmt: skip
    parts = {"lookup and projection": mixed, "lookup": "lookup of another", "projection": "projection of another",
             "both, gate shuffled": f"{mixed}, gate shuffled"}  # fmt: skip
    for axes, chosen, title in ((left, doses, "PLE's write, times"), (right, parts, "of another word")):
        for place, (label, condition) in enumerate(chosen.items()):
            values, errors = _numbers(conditions[condition]["second"])
            axes.errorbar(range(len(values)), values, errors, elinewidth=1, label=label, **_look("", place))
        axes.set_title(title)
        axes.set_ylim(0, 1)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _finish(
            axes, "layers passed", "how often PLE's word is named" if axes is left else "", True, {"loc": "upper left"}
        )
    return left.figure


def swap_lines(results, seeds=()):
    """Another word stands at the position, after the same past: how often the probe names it, by depth.

    Dashed grey is what the context alone tells: the probe for the token that comes next, in the first model's state.
    """
    axes = _axes(8, 4)
    for result in seeds:
        values, _ = _numbers(result["handover"]["conditions"]["another word"]["first"])
        axes.plot(values, **_model(result, _place(result, results)) | {"linewidth": 0.8, "path_effects": None})
    for place, result in enumerate(results):
        values, errors = _numbers(result["handover"]["conditions"]["another word"]["first"])
        label = f"{_name(result)}: the new word"
        axes.errorbar(range(len(values)), values, errors, elinewidth=1, label=label, **_model(result, place))
    old = _numbers(results[0]["handover"]["conditions"]["another word"]["second"])[0]
    axes.plot(old, color="#111111", linestyle=":", label="the word that stood there")
    context = _numbers(results[0]["measures"]["probe, next, frequent"]["after"])[0]
    axes.plot(context, color="#777777", linestyle="--", label="what the past alone tells")
    axes.set_ylim(0, 1.03)
    axes.xaxis.get_major_locator().set_params(integer=True)
    return _finish(axes, "layers passed", "how often the probe names it", True, BESIDE)


def depth_lines(results, measures, seeds=()):
    """Measures over depth: one panel per measure, one line per model. A circle is the state just before a layer's PLE.

    results: of retention.measure; measures: name in results[...]["measures"] -> title of the panel. Bars are one
    standard error over texts, thin lines are `seeds`, results of further training runs. Chance is dotted.
    """
    figure, grid = _grid(min(WIDEST, 2.4 + 2.6 * len(measures)), 3.9, 1, len(measures))
    for axes, (name, title) in zip(grid[0], measures.items(), strict=True):
        for seed in seeds:
            look = _model(seed, _place(seed, results)) | {"linewidth": 0.8, "path_effects": None}
            axes.plot(_numbers(seed["measures"][name]["after"])[0], **look)
        for place, result in enumerate(results):
            look = _model(result, place)
            measure = result["measures"][name]
            after, before = (_numbers(measure[when]) for when in ("after", "before PLE"))
            depths = np.arange(len(after[0]))
            axes.errorbar(depths, *after, label=_name(result), zorder=3, **look)
            for depth, low, high in zip(depths[1:], before[0], after[0][1:], strict=False):
                axes.plot(depth, low, "o", color=PLE_EDGE, fillstyle="none", markersize=5)
                axes.plot([depth, depth], [low, high], color=PLE_EDGE, linewidth=1)
            if measure["chance"] is not None:
                axes.axhline(measure["chance"], color="#666666", linestyle=":", linewidth=1)
        axes.set_title(title, fontsize=10)
        axes.set_ylim(0, 1.03)
        axes.xaxis.get_major_locator().set_params(integer=True)
        _finish(axes, "layers passed", "share" if axes is grid[0, 0] else "", grid=True)
    handles = grid[0, 0].get_legend_handles_labels()[0]
    if any(result["ple"] for result in results):
        circle = {"marker": "o", "linestyle": "", "fillstyle": "none"}
        handles.append(Line2D([], [], color=PLE_EDGE, label="just before the layer's PLE", **circle))
    handles.append(Line2D([], [], color="#666666", linestyle=":", label="chance"))
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(measures) == 1 else 5, frameon=False)
    return figure


def _place(seed, results):
    """Which of the results a seed is a further run of: the one with as many parameters."""
    return next((i for i, result in enumerate(results) if result["parameters"] == seed["parameters"]), 0)


def _sentence_map(results):
    """Rank of each token's own embedding at each depth, one panel per model."""
    maps = {}
    for result in results:
        after = [ranks for name, ranks in result["sentence"]["rank"].items() if not name.endswith("resid_ffn")]
        maps[_name(result)] = np.log10(after)
    depth = len(results[0]["layers"])
    labels = ["embedding", *(f"layer {i}" for i in range(depth))]
    bar = "log10 of the rank of its own\nembedding (0: the nearest)"
    tokens = results[0]["sentence"]["tokens"]
    return heatmaps(maps, "state after", "token", bar, labels, tokens, across=3)


def ablation_bars(rows):
    """Change in loss, nats per token: PLE changed in one layer; PLE off from a layer on. rows: of ple.interventions."""
    left, right = _grid(10, 4.2, 1, 2)[1][0]
    single = {"off in layer": "no PLE", "lookup pruned in layer": "no lookup"}
    single |= {"lookup in 2 bits in layer": "lookup in 2 bits"}
    for place, (kind, label) in enumerate(single.items()):
        layers, changes, errors = _changes(rows, kind)
        where = layers + 0.27 * (place - 1)
        left.bar(where, changes, 0.27, yerr=errors, color=LINES[place][0], label=label, error_kw={"linewidth": 1})
    left.set_title("changed in one layer")
    left.axhline(0, color="#000000", linewidth=1)
    layers, changes, errors = _changes(rows, "off from layer")
    right.errorbar(layers, changes, errors, marker="o", capsize=3, **_look("PLE", 0))
    right.set_yscale("log")
    right.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    right.set_title("off from a layer on (log scale)")
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    _finish(left, "layer", "change in loss, nats per token", legend={"loc": "best"})
    return _finish(right, "first layer without PLE", "change in loss, nats per token", grid=True)


def intervention_bars(rows):
    """Change in loss, nats per token, by interventions on PLE in all layers at once. rows: of ple.interventions."""
    chosen = [row for row in rows if row["at"] is None and row["kind"] != "plain"]
    axes = _axes(8, 1 + 0.45 * len(chosen))
    changes, errors = zip(*(row["change"] for row in chosen), strict=True)
    places = np.arange(len(chosen))
    axes.barh(places, changes, xerr=[error or 0 for error in errors], **_fill("PLE"))
    for place, change, error in zip(places, changes, errors, strict=True):
        axes.text(change + (error or 0), place, f"  {change:+.2f}", va="center")
    axes.set_yticks(places, [row["kind"] for row in chosen])
    axes.invert_yaxis()
    axes.margins(x=0.12)
    return _finish(axes, "change in loss, nats per token")


def quantisation_lines(rows):
    """Change in loss, nats per token, over the bits of the looked-up PLE rows. rows: of ple.interventions."""
    axes = _axes(6, 3.8)
    for per, (colour, style) in zip(("row", "slice"), LINES, strict=False):
        bits, changes, errors = _changes(rows, f"lookup quantised per {per}, bits:")
        label = "one scale for a token's row" if per == "row" else "one scale for each layer's slice"
        look = {"color": colour, "linestyle": style, "linewidth": 2, "marker": "o", "capsize": 3}
        axes.errorbar(bits, changes, errors, label=label, **look)
    axes.axhline(0, color="#666666", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.invert_xaxis()
    axes.set_xticks(bits, [f"{int(bit)}" for bit in bits])
    axes.minorticks_off()
    across, up = "bits of each value of the looked-up row", "change in loss, nats per token"
    return _finish(axes, across, up, legend={"loc": "best"})


def _changes(rows, kind):
    """Layer or bits, change in loss and its error of the rows of a kind, as three arrays."""
    chosen = [(row["at"], *row["change"]) for row in rows if row["kind"] == kind]
    return np.array(chosen, float).T


def _numbers(column):
    """A column of {"mean": ..., "error": ...} as two arrays; None becomes NaN."""
    return np.array(column["mean"], float), np.array(column["error"], float)


def _model(result, place):
    """The line of a model: amber with PLE, violet without, which leaves the embedding alone."""
    return _look("PLE" if result["ple"] else "embedding", place)


def _look(label, place):
    """How a line looks: in the colour of the part that its label names, else in the one of LINES at this place."""
    colour, style = (LINES + MORE_LINES)[place]
    part = next((part for word, part in WORDS.items() if re.search(rf"\b{word}\b", label)), None)
    look = {"color": PALETTE.get(part, colour), "linestyle": style, "linewidth": 2}
    return look | ({"path_effects": [Stroke(linewidth=3.5, foreground=PLE_EDGE), Normal()]} if part == "PLE" else {})


def _fill(label, place=0):
    """How a bar looks, as `_look`; or as the part of an account that the label is."""
    colour = PART_COLOURS.get(label) or _look(label, place)["color"]
    amber = colour == PALETTE["PLE"]
    hatch = "////" if label == "PLE projections and gates" else None
    return {"facecolor": colour, "edgecolor": PLE_EDGE if amber else colour, "linewidth": 0.8, "hatch": hatch}


def _by_kind(layer):
    """The parts of a layer of an account, with global attention as a part of its own."""
    names = {"attention": "global attention"} if layer["kind"] == "full_attention" else {}
    return {names.get(part, part): size for part, size in layer["parts"].items()}


def _name(result):
    return result["weights"].replace("\\", "/").rstrip("/").split("/")[-1]


@plt.rc_context(STYLE)
def _grid(width, height, down, across):
    """A figure of width x height inches and its axes [down, across].

    It is closed at once, so that a notebook shows it only where a cell returns it.
    """
    figure, grid = plt.subplots(down, across, figsize=(width, height), squeeze=False)
    plt.close(figure)
    return figure, grid


def _axes(width, height):
    """The axes of a figure that has one pair of them."""
    return _grid(width, height, 1, 1)[1][0, 0]


@plt.rc_context(STYLE)
def _finish(axes, across="", up="", grid=False, legend=None):
    """Label the axes, draw grid and legend (the arguments of axes.legend), return the figure."""
    axes.set(xlabel=across, ylabel=up)
    if grid:
        axes.grid(visible=True)
    if legend:
        axes.legend(**legend)
    return axes.figure


def _log_tokens(axes):
    """A logarithmic horizontal axis of tokens, with 4k for 4,096."""
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_formatter(lambda value, _: f"{value / 1024:g}k" if value >= 1024 else f"{value:g}")


def _billions(parameters):
    return f"{parameters / 1e9:.2f} billion" if parameters >= 5e6 else f"{parameters / 1e6:.1f} million"


def _arrow(colour):
    return {"arrowstyle": "->", "color": colour, "linewidth": 1.2, "shrinkA": 0, "shrinkB": 0}


def _stacks(bars, unit):
    """Bars of {part: size} as stacks: (part, sizes, sum of the parts below it), [bars] each, in multiples of `unit`."""
    under = np.zeros(len(bars))
    for part in PART_COLOURS:
        sizes = np.array([parts.get(part, 0) for parts in bars]) / unit
        if sizes.any():
            yield part, sizes, under
            under = under + sizes
