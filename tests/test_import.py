"""`import minigemma` is light, and nothing in the package needs more than the requirements or reaches the network."""

import ast
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def modules_after(statement):
    """The top-level packages that a statement loads in a fresh interpreter, the standard library's left out."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    last = run.stdout.splitlines()[-1]
    return {name.split(".")[0] for name in last.split()} - set(sys.stdlib_module_names)


def test_importing_minigemma_loads_numpy_and_nothing_else():
    assert modules_after("import minigemma") <= {"minigemma", "numpy", "_distutils_hack"}


def test_params_loads_numpy_and_nothing_else():
    statement = "from minigemma.__main__ import main; main(['params', 'E2B'])"
    assert modules_after(statement) <= {"minigemma", "numpy", "_distutils_hack"}


def test_no_file_of_the_package_imports_what_is_not_in_the_requirements():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    allowed = {line.split(">")[0].strip() for line in lines} | {"huggingface_hub"}  # which tokenizers brings along
    for path in (ROOT / "minigemma").rglob("*.py"):
        for node in imports(path):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for package in (name.split(".")[0] for name in names if not getattr(node, "level", 0)):
                assert package in allowed or package in sys.stdlib_module_names, f"{path.name}: {package}"


def imports(path):
    """Every import statement of a file, those inside functions too."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]
