"""`import minigemma` is light, and nothing in the package needs more than the requirements or reaches the network."""

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
    allowed = {"numpy", "tokenizers", "safetensors", "matplotlib", "huggingface_hub"}
    for path in (ROOT / "minigemma").glob("*.py"):
        for line in path.read_text(encoding="utf-8").splitlines():
            words = line.split()
            if words[:1] in (["import"], ["from"]) and not words[1].startswith("."):
                package = words[1].split(".")[0].rstrip(",")
                assert package in allowed or package in sys.stdlib_module_names, f"{path.name}: {line}"


def test_files_import_only_what_the_layout_allows():
    """Imports go one way: model reads ops and cache, ops reads bf16, and so on down."""
    allowed = {
        "errors": set(), "files": {"errors"}, "config": {"errors", "files"},
        "tensors": set(), "bf16": set(), "cache": set(),
        "ops": {"bf16", "errors"}, "model": {"ops", "cache", "errors"}, "tokenizer": {"errors", "files"},
        "weights": {"config", "tensors", "bf16", "errors", "files"}, "generate": {"model", "cache", "errors"},
        "foreign": {"bf16", "cache", "errors", "files", "ops", "trace", "weights"},
        "verify": {"bf16", "config", "errors", "files", "generate", "model", "reports", "trace"},
        "interventions": {"errors", "trace"},
        "retention": {"errors", "files", "interventions", "ops", "reports", "trace"},
    }  # fmt: skip
    for name, imports in allowed.items():
        text = (ROOT / "minigemma" / f"{name}.py").read_text(encoding="utf-8")
        found = {line.split()[1].lstrip(".") for line in text.splitlines() if line.startswith("from .")}
        assert found <= imports, name
