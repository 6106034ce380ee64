"""Running the course's notebooks: for its tests, and to store their outputs anew.

    python tests/notebook_runs.py           all of them
    python tests/notebook_runs.py 01 03     these

An exercise is a code cell with one hole, a line `name = ...`, `return ...` or `...`, and a call of check(). The cell
after it folds hints and the solution away in <details>: the solution's ```python block stands in the hole's place.
"""

import base64
import io
import os
import re
import sys
import tempfile
from pathlib import Path

import nbformat
import numpy as np
from nbclient import NotebookClient
from nbformat.v4 import new_code_cell

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # run as a program, it finds the package beside tests/

from minigemma.files import replacing

FOLDER = Path(__file__).resolve().parents[1] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("[0-9][0-9]*.ipynb"))
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
HOLE = re.compile(r"^( *)(?:\w+ = |return |)\.\.\.(?:  #.*)?$", re.MULTILINE)
SOLUTION = re.compile(r"<summary>Solution</summary>.*?```python\n(.*?)\n```", re.DOTALL)
GRID = 24  # a thumbnail has as many squares each way
FIGURE = re.compile(r"^<Figure size .*>$")


def read(path):
    return nbformat.read(path, as_version=4)


def exercises(notebook):
    """(number of the cell, the cell with its solution in the hole) of each exercise."""
    found = []
    for number, cell in enumerate(notebook.cells):
        hole = HOLE.search(cell.source) if cell.cell_type == "code" else None
        if hole:
            solution = SOLUTION.search(notebook.cells[number + 1].source)[1]
            lines = "\n".join(hole[1] + line for line in solution.split("\n"))
            found.append((number, cell.source[: hole.start()] + lines + cell.source[hole.end() :]))
    return found


def run(notebook):
    """Execute all cells, in order, in a fresh kernel and an empty folder, on the weights of this repository."""
    settings = {"PYTHONPATH": str(FOLDER), "PYTHONDONTWRITEBYTECODE": "1", "MPLBACKEND": None}
    settings |= {"MINIGEMMA_WEIGHTS": None}
    with tempfile.TemporaryDirectory() as folder:
        settings |= {"IPYTHONDIR": folder, "JUPYTER_RUNTIME_DIR": folder}  # nobody's own profile decides
        before = {name: os.environ.pop(name, None) for name in settings}
        os.environ.update({name: value for name, value in settings.items() if value is not None})
        try:
            client = NotebookClient(
                notebook, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}},
                record_timing=False, coalesce_streams=True,
                extra_arguments=["--Application.log_level=ERROR"],  # not that its channel is local TCP
            )  # fmt: skip
            client.execute()
        finally:
            for name, value in before.items():
                os.environ.pop(name, None)
                if value is not None:
                    os.environ[name] = value
    return notebook


def run_with_solutions(path):
    """Execute a notebook, with each exercise's solution as a cell of its own behind the open exercise."""
    notebook = read(path)
    for number, solution in reversed(exercises(notebook)):
        notebook.cells.insert(number + 1, new_code_cell(solution, id=f"solution-{number}"))
    return run(notebook)


def texts(cell):
    """What a cell printed or showed as text; without a figure's own line, and without what a library warns of."""
    found = []
    for output in cell.get("outputs", []):
        if output.get("name") == "stderr":
            continue
        text = output.get("text", output.get("data", {}).get("text/plain", ""))
        found += [line for line in text.splitlines() if not FIGURE.match(line)]
    return found


def pictures(cell):
    """What pictures a cell shows, as thumbnails: so coarse that another version of matplotlib draws the same."""
    import matplotlib.image

    found = []
    for output in cell.get("outputs", []):
        if "image/png" in output.get("data", {}):
            image = matplotlib.image.imread(io.BytesIO(base64.b64decode(output["data"]["image/png"])))[..., :3]
            rows = [part.mean((0, 2)) for part in np.array_split(image, GRID, axis=0)]  # [GRID][width]
            found.append(np.array([[part.mean() for part in np.array_split(row, GRID)] for row in rows]))
    return found


def _is_progress(output):
    """Whether this output is a percentage that a slow machine shows."""
    return output.get("name") == "stderr" and bool(re.fullmatch(r"(.*: (\d+ %|done in \d+ s)\s*)+", output["text"]))


def store(path):
    """Run a notebook and write it with its outputs, beside the old one and renamed."""
    notebook = read(path)
    for number, cell in enumerate(notebook.cells):
        cell.id, cell.metadata = f"cell-{number:02d}", {}
        if cell.cell_type == "code":
            cell.outputs, cell.execution_count = [], None
    notebook.metadata = METADATA
    run(notebook)
    notebook.metadata = METADATA  # the kernel adds its own version
    for cell in notebook.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if not _is_progress(output)]
    nbformat.validate(notebook)
    with replacing(path) as temporary:
        nbformat.write(notebook, temporary)


if __name__ == "__main__":
    for path in NOTEBOOKS:
        if not sys.argv[1:] or path.name[:2] in sys.argv[1:]:
            store(path)
            print(f"{path.name}: {path.stat().st_size / 1e3:.0f} kB")
