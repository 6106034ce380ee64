"""The slides: run the notebook of a session and write one HTML file, which needs no network.

    python notebooks/lectures/slides.py OUT         the four sessions, and the page that they link to
    python notebooks/lectures/slides.py OUT 2 3     these

Open a file in a browser. Arrow keys, space and the buttons turn over; Home and End go to the ends; n shows the speaker
notes, so that a second window can have them beside the projector. Printing gives a slide on each page.

In a notebook, the metadata of a cell says what it is, as for nbconvert: a slide begins, a fragment comes with the next
key, notes are for the speaker, skip is left out. Notes begin with the minutes that the slide takes.
"""

import argparse
import base64
import functools
import io
import os
import re
import shutil
import sys
from html import escape, unescape
from pathlib import Path

import nbformat
from IPython.display import HTML
from nbconvert import HTMLExporter
from nbconvert.preprocessors import CellExecutionError, ExecutePreprocessor

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import course

from minigemma import Error
from minigemma.files import make_directory, replacing
from minigemma.tools import figures, gallery

FOLDER = Path(course.__file__).parent / "lectures"
SESSIONS = {path.stem[-1]: path for path in sorted(FOLDER.glob("session_[0-9].ipynb"))}
MINUTES = re.compile(r"\*\*(\d+) minutes?\.\*\* ")
PAGE = "anna.html"
STYLE = """
body { margin: 0; font: 20px/1.4 sans-serif; color: #111; background: #fff }
section { padding: 3vh 5vw; break-after: page }
h1, h2 { font-size: 1.5em; line-height: 1.2; margin: 0 0 .5em; color: #14306B }
pre { line-height: 1.35; margin: .6em 0; white-space: pre-wrap }
table { border-collapse: collapse; font-size: .85em }
td, th { padding: .15em .8em; border-bottom: 1px solid #ddd; text-align: left }
img { display: block; max-width: 100%; max-height: 66vh; margin: auto }
aside { background: #F3F1EA; padding: 1.5vh 2vw; font-size: 17px; border-top: 2px solid #555 }
nav { display: none }
body:not(.speaking) aside, .later { display: none }
@media screen {
  .paged section { display: none; font-size: min(2.6vw, 4.6vh); box-sizing: border-box; min-height: 100vh }
  .paged section.now { display: flex; flex-direction: column }
  .paged section > div { flex: 1 }
  .paged nav { display: block; position: fixed; right: 1vw; bottom: 1vh }
  .speaking img { max-height: 52vh }
}
@media print { .later { display: block } }
"""
SCRIPT = """
const slides = [...document.querySelectorAll("section")], place = document.querySelector("nav span");
let now = 0;
function go(to, whole) {
  now = Math.max(0, Math.min(to, slides.length - 1));
  slides.forEach((slide, i) => slide.classList.toggle("now", i === now));
  for (const part of slides[now].querySelectorAll(".fragment")) part.classList.toggle("later", !whole);
  place.textContent = ` ${now + 1} / ${slides.length} `;
  document.title = slides[now].querySelector("h1, h2").textContent;
  history.replaceState(null, "", "#" + (now + 1));
  scrollTo(0, 0);
}
function on() {
  const next = slides[now].querySelector(".later");
  if (next) next.classList.remove("later"); else if (now < slides.length - 1) go(now + 1);
}
const back = () => now && go(now - 1, true);
const keys = {
  ArrowRight: on, PageDown: on, " ": on, ArrowLeft: back, PageUp: back, Home: () => go(0),
  End: () => go(slides.length - 1), n: () => document.body.classList.toggle("speaking"),
};
document.addEventListener("keydown", event => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.closest("a, button") && event.key === " ") return;
  if (keys[event.key]) { event.preventDefault(); keys[event.key](); }
});
const [left, right, notes] = document.querySelectorAll("nav button");
left.onclick = back; right.onclick = on; notes.onclick = keys.n;
document.body.classList.add("paged");
go((parseInt(location.hash.slice(1)) || 1) - 1);
onhashchange = () => go((parseInt(location.hash.slice(1)) || 1) - 1);
"""
BUTTONS = (
    '<nav><button aria-label="back">&larr;</button><span role="status"></span>'
    '<button aria-label="on">&rarr;</button> <button>notes (n)</button></nav>'
)


def show(figure, alt=None):
    """A figure as wide as a slide, with a text for those who cannot see it. No alt: a name in the gallery."""
    if alt is None:
        figure, alt = drawn()[figure]
    data = io.BytesIO()
    figures.save(figure, data, "png", gallery.PIXELS, alt)
    return HTML(f'<img alt="{escape(alt)}" src="data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}">')


@functools.cache
def drawn():
    """The gallery of the figures, drawn once."""
    return gallery.lecture_figures()


def slides_of(notebook):
    """The slides of a notebook -> [{"cells": those to see, "notes": text, "minutes": whole number}].

    Raises Error for a cell before the first slide, and for notes without minutes.
    """
    found = []
    for cell in notebook.cells:
        kind = cell.metadata.get("slideshow", {}).get("slide_type")
        if kind == "slide":
            found.append({"cells": [], "notes": "", "minutes": 0})
        if kind == "skip":
            continue
        if not found:
            raise Error(f"a cell before the first slide: {cell.source[:40]!r}; make it a slide or skip it")
        if kind == "notes":
            if not (minutes := MINUTES.match(cell.source)):
                raise Error(f"notes begin with minutes, as '**5 minutes.** ', but not these: {cell.source[:40]!r}")
            found[-1]["minutes"] = int(minutes[1])
            found[-1]["notes"] = cell.source[minutes.end() :]
        else:
            found[-1]["cells"].append(cell)
    return found


def page(notebook):
    """One HTML text with all slides of a notebook, as it is: code cells show their stored outputs only."""
    exporter = HTMLExporter(
        template_name="basic", exclude_input=True, exclude_output_prompt=True, exclude_anchor_links=True
    )

    def html(cells):
        return exporter.from_notebook_node(nbformat.v4.new_notebook(cells=cells))[0]

    sections, clock = [], 0
    for slide in slides_of(notebook):
        parts = []
        for cell in slide["cells"]:
            fragment = cell.metadata.get("slideshow", {}).get("slide_type") == "fragment"
            parts.append(f'<div class="fragment">{html([cell])}</div>' if fragment else html([cell]))
        time = f"minutes {clock} to {clock + slide['minutes']}"
        notes = html([nbformat.v4.new_markdown_cell(f"*{time}.* {slide['notes']}")])
        sections.append(f'<section><div>{"".join(parts)}</div><aside aria-label="notes">{notes}</aside></section>')
        clock += slide["minutes"]
    body = "\n".join(sections).replace(f'href="../{PAGE}', f'target="page" href="{PAGE}')
    body = re.sub("<pre>(.*?)</pre>", _as_large_as_fits, body, flags=re.DOTALL)
    head = f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>slides</title><style>{STYLE}</style>'
    return f"{head}</head>\n<body>\n<main>{body}</main>\n{BUTTONS}\n<script>{SCRIPT}</script></body></html>\n"


def _as_large_as_fits(code):
    """A block of code or output as large as its lines and a title fit on a slide; the longest lines are broken."""
    lines = re.sub("<[^>]*>", "", code[1]).strip("\n").split("\n")
    size = max(0.62, min(0.9, 56 / max(len(unescape(line)) for line in lines), 13 / len(lines)))
    return f'<pre style="font-size: {size:.2f}em">{code[1]}</pre>'


def run(path):
    """The notebook of a session with the outputs of a fresh run on weights/tiny. The file stays as it is.

    Raises Error where a cell fails.
    """
    notebook = nbformat.read(path, as_version=4)
    for name in ("MINIGEMMA_WEIGHTS", "MPLBACKEND"):  # titles are about weights/tiny, and no window opens
        os.environ.pop(name, None)
    program = ExecutePreprocessor(timeout=120, kernel_name="python3", coalesce_streams=True)
    try:
        program.preprocess(notebook, {"metadata": {"path": str(FOLDER)}})
    except CellExecutionError as error:
        raise Error(f"{path.name}: a cell fails with {error.ename}: {error.evalue}") from error
    for cell in notebook.cells:
        if cell.cell_type == "code":  # a slow machine's progress lines are not for the audience
            cell.outputs = [output for output in cell.outputs if output.get("name") != "stderr"]
    return notebook


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", metavar="OUT")
    parser.add_argument("sessions", nargs="*", metavar="N", help="which (default all)")
    args = parser.parse_args(argv)
    try:
        if unknown := set(args.sessions) - set(SESSIONS):
            raise Error(f"{sorted(unknown)[0]}: no such session; there are {', '.join(SESSIONS)}")
        out = make_directory(args.out)
        for number in args.sessions or SESSIONS:
            with replacing(out / f"session_{number}.html") as temporary:
                temporary.write_text(page(run(SESSIONS[number])), encoding="utf-8")
            print(out / f"session_{number}.html")
        if out.resolve() != FOLDER.parent:
            with replacing(out / PAGE) as temporary:
                shutil.copyfile(FOLDER.parent / PAGE, temporary)
    except Error as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
