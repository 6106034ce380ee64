"""A pass as one HTML file: it holds the trace's numbers, and nothing that a browser could load."""

import base64
import gzip
import json
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from processes import one_line

from minigemma import Edit, Trace
from minigemma.__main__ import main
from minigemma.taps import TAPS, names_of
from minigemma.tools import page

ROOT = Path(__file__).parents[2]
SHIPPED = ROOT / "notebooks" / "anna.html"
TEXT = "Tom </script><b>&"
DATA = re.compile(r'<script type="[^"]+" id="\w+">.*?</script>', re.DOTALL)


def decode(codes):
    """The numbers behind codes, as the page's script reads them."""
    x = [float(f"{code % 2000 - 1000}e{code // 2000 + page.LOWEST}") for code in codes.tolist()]  # [n]
    return np.where(codes < page.NOT_FINITE, x, np.nan)


def read_page(text):
    """A page -> its facts, and its codes [n]."""
    (facts,) = re.findall(r'<script type="application/json" id="facts">(.*?)</script>', text, re.DOTALL)
    (numbers,) = re.findall(r'<script type="text/plain" id="numbers">(.*?)</script>', text, re.DOTALL)
    low, high = np.frombuffer(gzip.decompress(base64.b64decode(numbers)), np.uint8).reshape(2, -1)  # [n] each
    return json.loads(facts), low + 256 * high.astype(int)


@pytest.fixture(scope="module")
def written(tiny, tmp_path_factory):
    """The text of a page, its facts and codes, and the traces that it is made from."""
    path = tmp_path_factory.mktemp("page") / "page.html"
    assert main(["page", TEXT, "-o", str(path)]) == 0
    ids, traces = tiny.tokenizer.encode(TEXT), (Trace(), Trace())
    tiny(ids, tap=traces[0])
    silent = Edit({"layers.*.ple_out": np.zeros_like})
    tiny(ids, tap=lambda name, array: traces[1](name, silent(name, array)))
    text = path.read_text(encoding="utf-8")
    return text, *read_page(text), traces


def test_every_tap_of_the_pass_is_in_the_page_and_every_known_tap_has_a_box(tiny, written):
    _, facts, _, _ = written
    assert [tap["name"] for tap in facts["taps"]] == names_of(tiny.config)
    boxes = [part for row in facts["diagram"] for part in row]
    assert sorted(boxes) == sorted(kind.removeprefix("layers.*.") for kind in TAPS)
    assert {letter for tap in TAPS.values() for letter in tap.axes.split()} <= facts["letters"].keys()


def test_the_numbers_are_those_of_the_trace_to_three_digits(written):
    _, facts, codes, traces = written
    numbers = decode(codes)
    for tap in facts["taps"]:
        for trace, at in zip(traces, tap["at"], strict=True):
            array = page.by_token(tap["name"], trace[tap["name"]])[..., :: tap["every"]]  # [T, rows, kept]
            size = 3 + array[0].size
            shown = numbers[at : at + len(array) * size].reshape(len(array), size)[:, 3:]
            printed = [float(f"{x:.3g}") for x in array.ravel().tolist()]
            assert shown.ravel().tolist() == printed, tap["name"]


def test_a_number_keeps_three_digits_at_any_size_that_a_pass_has():
    x = np.array([0.0, 1, -1, 9.996, -999.6, 0.001, 1e-20, 3.4e8, 0.1 + 0.2, np.pi * 1e-9, 65504])
    assert decode(page.encode(x)).tolist() == [float(f"{value:.3g}") for value in x]
    assert decode(page.encode([1e-30])) == [0]
    assert page.encode([np.nan, np.inf, -np.inf]).tolist() == [page.NOT_FINITE + code for code in range(3)]


def test_a_page_loads_nothing_and_its_text_stays_text(written):
    text, facts, _, _ = written
    assert facts["text"] == TEXT and "<b>" not in text
    outside = DATA.sub("", text)
    assert "default-src 'none'" in outside
    assert not re.search(r"https?:|\bsrc=|\bhref=|@import|url\(|fetch\(|XMLHttp|innerHTML|eval\(", outside)
    assert text.count("<script") == 3


def test_long_arrays_are_sampled_so_that_a_page_stays_small(tiny, monkeypatch):
    ids = tiny.tokenizer.encode(TEXT)
    whole, _ = page.page_facts(tiny, ids, TEXT)
    monkeypatch.setattr(page, "LARGEST", 100_000)
    facts, codes = page.page_facts(tiny, ids, TEXT)
    assert len(codes) < 130_000  # LARGEST and three numbers a record
    assert all(few["every"] >= many["every"] for few, many in zip(facts["taps"], whole["taps"], strict=True))


def test_a_text_that_no_page_can_show_is_one_line(tmp_path, checkpoint, run):
    out = str(tmp_path / "page.html")
    for arguments, said in (
        (["", "-o", out], "the text is empty"),
        (["Anna " * 60, "-o", out], "a page shows at most 48"),
        (["Anna", "-o", str(tmp_path / "none" / "page.html")], "cannot write there"),
        (["Anna", "-o", out, "--weights", str(checkpoint)], "has no tokenizer.json"),
    ):
        one_line(run("page", *arguments), said)
    assert not list(tmp_path.glob("*.html"))


def test_the_page_in_the_notebooks_is_what_its_command_writes(tmp_path):
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    command = shlex.split(re.search(r"python -m minigemma (page .*notebooks/anna\.html)`", readme)[1])
    out = tmp_path / "anna.html"
    assert main([*command[:-1], str(out)]) == 0
    fresh, stored = (path.read_text(encoding="utf-8") for path in (out, SHIPPED))
    bare = [DATA.sub("", text) for text in (fresh, stored)]
    again = "it is older than the code: run the README's `page` command again"
    assert bare[0] == bare[1], again
    (facts, codes), (old_facts, old_codes) = read_page(fresh), read_page(stored)
    assert facts["kinds"] == old_facts["kinds"], again
    assert [tap["name"] for tap in facts["taps"]] == [tap["name"] for tap in old_facts["taps"]], again
    if codes.shape == old_codes.shape:  # where rounding makes two equal arrays differ, one more of them is stored
        np.testing.assert_allclose(decode(codes), decode(old_codes), rtol=0.02, atol=0.02, err_msg=again)
    assert len(stored) < 3_000_000
