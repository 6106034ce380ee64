"""Code lines of the package by room, beside the ceilings of the design: python tests/code_lines.py [--files]

Docstrings, blank lines and lines that hold only a comment are not counted, because they are what we want more of. The
passes (model.py, vision.py, audio.py) are the exception: there every line counts, because a reader reads every line.
A ceiling is a guide, not a gate: this prints, and fails nothing.
"""

import ast
import io
import sys
import tokenize
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "minigemma"
CEILINGS = {"table": 2500, "debug": 2800, "account": 600, "study": 750, "tools": 1200}
PASSES = {"model.py": 160, "vision.py": 130, "audio.py": 130}
NO_CODE = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(text):
    """How many lines of a Python file hold code."""
    lines = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type not in NO_CODE:
            lines.update(range(token.start[0], token.end[0] + 1))
    for node in ast.walk(ast.parse(text)):
        body = getattr(node, "body", None)
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and ast.get_docstring(node) is not None:
            lines.difference_update(range(body[0].lineno, body[0].end_lineno + 1))
    return len(lines)


def room_of(path):
    """The room of a file; `table` for the files beside model.py, `command line` for __main__.py."""
    parts = path.relative_to(PACKAGE).parts
    return parts[0] if len(parts) > 1 else "command line" if path.stem == "__main__" else "table"


def main():
    """Print the table."""
    files = {path: code_lines(path.read_text(encoding="utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
    rooms = dict.fromkeys([*CEILINGS, "command line"], 0)
    for path, count in files.items():
        rooms[room_of(path)] += count
    print(f"{'room':<14}{'code lines':>11}{'ceiling':>9}")
    for room, count in rooms.items():
        print(f"{room:<14}{count:>11,}{CEILINGS.get(room, '-'):>9}")
    print(f"{'all':<14}{sum(files.values()):>11,}")
    for name, ceiling in PASSES.items():
        if (PACKAGE / name).exists():
            print(f"{name:<14}{len((PACKAGE / name).read_text(encoding='utf-8').splitlines()):>11,}{ceiling:>9}")
    tests = sum(code_lines(path.read_text(encoding="utf-8")) for path in (ROOT / "tests").rglob("*.py"))
    training = sum(code_lines(path.read_text(encoding="utf-8")) for path in (ROOT / "weights").rglob("*.py"))
    print(f"{'tests':<14}{tests:>11,}\n{'training':<14}{training:>11,}")
    if "--files" in sys.argv:
        for path, count in files.items():
            print(f"{count:6,}  {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
