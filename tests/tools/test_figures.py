"""The figures for a lecture: their text can be read at half size, and a colour means one part of the model."""

import re
from html import unescape
from pathlib import Path

import numpy as np
import pytest
from family import random_picture

from minigemma.__main__ import main

figures = pytest.importorskip("minigemma.tools.figures", reason="matplotlib is not installed")

from matplotlib.colors import to_hex, to_rgb  # noqa: E402
from matplotlib.image import imread  # noqa: E402
from matplotlib.text import Text  # noqa: E402

from minigemma.tools import gallery  # noqa: E402

HALF = gallery.PIXELS / 2  # pixels across, as on a slide beside others or on a page
READABLE = 12  # pixels high, at half size


@pytest.fixture(scope="module")
def drawn():
    return gallery.lecture_figures()


def contrast(colour):
    """The WCAG contrast of a colour with white."""
    linear = [value / 12.92 if value <= 0.04045 else ((value + 0.055) / 1.055) ** 2.4 for value in to_rgb(colour)]
    return 1.05 / (0.05 + 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2])


def test_all_text_can_be_read_at_half_size(drawn):
    for name, (figure, _) in drawn.items():
        figure.canvas.draw()
        for text in figure.findobj(Text):
            if text.get_text().strip() and text.get_visible():
                pixels = text.get_fontsize() * HALF / (72 * figure.get_figwidth())
                assert pixels >= READABLE, f"{name}: {text.get_text()!r} is {pixels:.1f} pixels high"


def test_each_figure_says_its_finding_in_one_sentence_and_has_a_text_for_those_who_cannot_see_it(drawn):
    for name, (figure, alt) in drawn.items():
        title = figure.get_suptitle()
        assert title and title[0].isupper() and ". " not in title, name
        assert alt.startswith(title) and len(alt) > len(title) + 40, name


def test_the_words_of_a_figure_are_its_sentence_its_labels_and_its_texts():
    figure = figures.curves([1, 2], {"ours": [0, 1], "theirs": [1, 0]}, "layer", "loss, nats")
    figure.axes[0].text(1, 0, "the\nend")
    figure.axes[0].text(1, 1, "7")
    assert figures.words(figures.titled(figure, "They cross")) == "They cross; layer; loss, nats; ours; theirs; the end"


def test_the_slides_show_figures_that_there_are(drawn):
    sessions = (Path(__file__).parents[2] / "notebooks" / "lectures").glob("session_*.ipynb")
    text = "".join(path.read_text(encoding="utf-8") for path in sessions)
    shown = set(re.findall(r'show\(\\"([\w-]+)\\"\)', text))
    assert shown and shown <= set(drawn)


def test_a_colour_means_one_part_of_the_model():
    colours = list(figures.PALETTE.values())
    others = {colour for colour, _ in figures.LINES + figures.MORE_LINES}
    assert len(set(colours)) == len(colours) and not others & set(colours)
    for part, colour in figures.PART_COLOURS.items():
        assert colour in colours, part


def test_amber_has_a_dark_edge_wherever_it_is_drawn(drawn):
    assert contrast(figures.PLE_EDGE) >= 3
    amber = figures.PALETTE["PLE"].lower()
    seen = 0
    for figure, _ in drawn.values():
        for axes in figure.axes:
            for patch in axes.patches:
                if to_hex(patch.get_facecolor()) == amber and patch.get_width():
                    assert to_hex(patch.get_edgecolor()) == figures.PLE_EDGE.lower()
                    seen += 1
    assert seen


def test_the_command_writes_every_figure_as_svg_and_png_with_its_text(tmp_path, drawn, capsys, monkeypatch):
    drawn = dict(list(drawn.items())[-2:])
    monkeypatch.setattr(gallery, "lecture_figures", lambda: drawn)
    assert main(["figures", str(tmp_path)]) == 0
    index = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert dict(reversed(pair) for pair in re.findall(r"!\[(.*)\]\((.*)\.svg\)", index)) == {
        name: alt for name, (_, alt) in drawn.items()
    }
    for name in drawn:
        assert imread(tmp_path / f"{name}.png").shape[1] == gallery.PIXELS
        written = unescape((tmp_path / f"{name}.svg").read_text(encoding="utf-8"))
        assert drawn[name][1] in written
    assert str(tmp_path) in capsys.readouterr().out


def test_on_a_picture_lie_a_grid_darkness_colours_or_words():
    image = random_picture(20, 30)
    heat, words = np.array([[0.0, 1.0], [0.5, 0.25]]), np.array([["a", "b", "c"]])
    panels = {"grid": (2, 3), "heat": heat, "colours": np.ones((1, 2, 3)), "words": words}
    grid, dark, colours, written = figures.on_picture(image, panels).axes
    assert [len(lines.get_segments()) for lines in grid.collections] == [4, 3]
    assert np.array_equal(grid.images[0].get_array(), image)
    cover = dark.images[1].get_alpha()
    assert cover[0, 1] == 0 and cover[0, 0] == cover.max()
    assert np.array_equal(colours.images[0].get_array(), panels["colours"])
    places = {text.get_text(): text.get_position() for text in written.texts}
    assert places == {"a": (5, 10), "b": (15, 10), "c": (25, 10)}
