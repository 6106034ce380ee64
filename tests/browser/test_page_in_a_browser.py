"""The page driven by keyboard in headless Chromium. Outside the default suite:

    python -m pip install -r tests/browser/requirements.txt && python -m pytest tests/browser

It needs Chromium on the PATH (Debian: apt-get install chromium), and is skipped without.
"""

from pathlib import Path

import pytest

from minigemma import TINY, Trace, load
from minigemma.taps import names_of

PAGE = Path(__file__).parents[2] / "notebooks" / "anna.html"


@pytest.fixture
def page(browser):
    """The shipped page, open at its first tap. Every request and every error fails the test."""
    tab = browser.new_page(viewport={"width": 1600, "height": 900})
    asked, errors = [], []
    tab.on("request", lambda request: asked.append(request.url))
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    tab.goto(PAGE.as_uri())
    tab.wait_for_selector(".heat td")
    yield tab
    assert asked == [PAGE.as_uri()] and not errors
    tab.close()


def shown(page):
    return page.inner_text("#name")


def press(page, *keys):
    for key in keys:
        page.keyboard.press(key)


def test_the_right_arrow_steps_through_every_tap_with_its_box_lit(page):
    for name in names_of(load(TINY).config):
        assert shown(page) == name
        (lit,) = page.locator("[aria-current=step]").all_inner_texts()
        assert name.endswith(lit)
        assert page.inner_text("#code").startswith("model.py:")
        press(page, "ArrowRight")
    assert shown(page) == "logits"
    press(page, "Home")
    assert shown(page) == "embed"


def test_up_and_down_change_the_layer_and_shift_changes_the_token(page):
    press(page, "ArrowUp")
    assert shown(page) == "layers.1.resid_pre"
    press(page, *["ArrowRight"] * 5, "ArrowUp", "ArrowUp")
    part = shown(page).removeprefix("layers.3.")
    assert part == names_of(load(TINY).config)[4 + 5].removeprefix("layers.0.")  # four taps stand before layer 0
    press(page, "ArrowUp", "ArrowUp")
    assert shown(page).startswith("layers.5.")  # a layer that reads another layer's K and V
    press(page, "ArrowDown", "Shift+ArrowLeft")
    assert shown(page).startswith("layers.4.")
    assert page.get_attribute("#tokens button:nth-child(19)", "aria-pressed") == "true"


def test_the_numbers_can_be_read_with_the_keyboard_and_are_those_of_the_trace(page):
    model, trace = load(TINY), Trace("layers.0.attn.q")
    model(model.tokenizer.encode("Anna put the kite in the barn. Where is the kite? The kite is in the"), tap=trace)
    page.goto(PAGE.as_uri() + "#4/layers.0.attn.q")
    page.wait_for_function("document.getElementById('name').textContent === 'layers.0.attn.q'")
    page.focus(".heat tbody td")
    press(page, "ArrowRight", "ArrowRight", "ArrowDown", "ArrowDown")
    head, index = 1, 2  # a head takes two lines of 16
    said = page.inner_text("#readout")
    assert f"head {head}, head_dim {index}: " in said
    x = float(said.rpartition(": ")[2].replace("−", "-"))
    assert x == pytest.approx(float(trace["layers.0.attn.q"][4, head, index]), rel=0.006)
    press(page, "Escape", "ArrowRight")
    assert shown(page) != "layers.0.attn.q"


def test_every_control_has_a_name_and_can_be_reached_by_tab(page):
    name = "x => x.ariaLabel || x.labels?.[0]?.textContent || x.textContent"
    names = page.evaluate(f"[...document.querySelectorAll('button, input')].map({name})")
    assert all(name.strip() for name in names)
    reached = set()
    for _ in range(90):
        press(page, "Tab")
        reached.add(page.evaluate("document.activeElement.closest('[id]')?.id"))
    assert {"tokens", "layer", "map", "heats", "next"} <= reached
    assert page.inner_text("#said").startswith("embed, ")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_enough_contrast_in_both_schemes(page, scheme):
    page.emulate_media(color_scheme=scheme)
    page.goto(PAGE.as_uri() + "#4/layers.4.attn.q")
    page.wait_for_function("document.getElementById('name').textContent === 'layers.4.attn.q'")
    assert page.evaluate(CONTRASTS) == []


# Elements whose text has less contrast than the 4.5 that WCAG 2.2 asks for. On a colour of luminance 0.18 neither black
# nor white has more than 4.58, so a number in a cell, whose colour has steps of one percent, may have 4.4.
CONTRASTS = """() => {
  const pen = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const light = (colour) => {
    pen.clearRect(0, 0, 1, 1); pen.fillStyle = colour; pen.fillRect(0, 0, 1, 1);
    const [r, g, b] = [...pen.getImageData(0, 0, 1, 1).data].slice(0, 3).map((x) => x / 255)
      .map((x) => (x <= 0.04045 ? x / 12.92 : ((x + 0.055) / 1.055) ** 2.4));
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const behind = (x) => {
    for (; x; x = x.parentElement) {
      const colour = getComputedStyle(x).backgroundColor;
      if (!/rgba\\(.*, 0\\)|transparent/.test(colour)) return colour;
    }
  };
  return [...document.querySelectorAll("button, h1, h2 span, h3, p, td:not(.small), th, caption, .aside, #strip span")]
    .filter((x) => x.textContent.trim() && !x.disabled && !x.closest(".unseen")).map((x) => {
      const [a, b] = [light(getComputedStyle(x).color), light(behind(x))];
      return [(Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05), x.textContent, x.className, x.tagName === "TD"];
    }).filter(([ratio, , , cell]) => ratio < (cell ? 4.4 : 4.5));
}"""
