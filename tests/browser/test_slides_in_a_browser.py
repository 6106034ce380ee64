"""The slides, made anew and driven by keyboard in headless Chromium, as test_page_in_a_browser.py says."""

import sys
import warnings
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[2] / "notebooks" / "lectures"
SIZE = {"width": 1280, "height": 720}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder with the slides of all sessions."""
    sys.path.insert(0, str(FOLDER))
    with warnings.catch_warnings():  # the course changes the filters
        import slides
    sys.path.remove(str(FOLDER))
    out = tmp_path_factory.mktemp("slides")
    assert slides.main([str(out)]) == 0
    return out


@pytest.mark.parametrize("number", "1234")
def test_the_keys_go_through_all_slides_and_each_fits_the_screen(browser, made, number):
    tab = browser.new_page(viewport=SIZE)
    asked, errors = [], []
    tab.on("request", lambda request: asked.append(request.url) if not request.url.startswith("data:") else None)
    tab.on("pageerror", lambda error: errors.append(str(error)))
    tab.goto((made / f"session_{number}.html").as_uri())
    total = tab.locator("section").count()
    for n in range(1, total + 1):
        while tab.locator("section.now .later").count():
            tab.keyboard.press("ArrowRight")
        assert tab.url.endswith(f"#{n}") and tab.locator("section.now").count() == 1
        wide, high = tab.evaluate("[document.documentElement.scrollWidth, document.documentElement.scrollHeight]")
        assert wide <= SIZE["width"] and high <= SIZE["height"], n
        assert tab.evaluate("[...document.images].every(image => image.naturalWidth && image.alt)")
        tab.keyboard.press("Space")
    tab.keyboard.press("Home")
    assert tab.url.endswith("#1") and not tab.locator("section.now aside").is_visible()
    tab.keyboard.press("n")
    assert "minutes 0 to" in tab.locator("section.now aside").inner_text()
    tab.keyboard.press("End")
    tab.keyboard.press("ArrowLeft")
    assert tab.url.endswith(f"#{total - 1}")
    assert not errors and len(asked) == 1
