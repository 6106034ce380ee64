"""`import minigemma` is light, and nothing in the package needs more than the requirements or reaches the network."""

import ast
import sys
from functools import cache
from pathlib import Path

import pytest
from processes import python

ROOT = Path(__file__).parents[1]


def modules_after(statement):
    """The top-level packages that a statement loads in a fresh interpreter, the standard library's left out."""
    code = f"import sys; before = set(sys.modules); {statement}; print(*sorted(set(sys.modules) - before))"
    run = python("-c", code)
    last = run.stdout.splitlines()[-1]
    return {name.split(".")[0] for name in last.split()} - set(sys.stdlib_module_names)


def test_importing_minigemma_loads_numpy_and_nothing_else():
    assert modules_after("import minigemma") <= {"minigemma", "numpy", "_distutils_hack"}


def test_params_loads_numpy_and_nothing_else():
    statement = "from minigemma.__main__ import main; main(['params', 'E2B'])"
    assert modules_after(statement) <= {"minigemma", "numpy", "_distutils_hack"}


def test_no_file_of_the_package_imports_what_is_not_in_the_requirements():
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    allowed = {line.split(">")[0].strip() for line in lines} | {"huggingface_hub", "PIL"}  # tokenizers and matplotlib
    for path in (ROOT / "minigemma").rglob("*.py"):
        for node in imports(path):
            names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
            for package in (name.split(".")[0] for name in names if not getattr(node, "level", 0)):
                assert package in allowed or package in sys.stdlib_module_names, f"{path.name}: {package}"


@cache
def imports(path):
    """Every import statement of a file, those inside functions too."""
    nodes = ast.walk(ast.parse(path.read_text(encoding="utf-8")))
    return [node for node in nodes if isinstance(node, ast.Import | ast.ImportFrom)]


ROOMS = ("account", "debug", "study", "tools")


def own_imports(path):
    """The package's modules that a file imports, as dotted names below `minigemma`."""
    package = path.relative_to(ROOT / "minigemma").parts[:-1]
    found = set()
    for node in imports(path):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*package[: len(package) - node.level + 1], *(node.module or "").split(".")]
            base = [part for part in base if part]
            names = [[*base, alias.name] for alias in node.names]
            for name in names:
                is_module = (ROOT / "minigemma" / Path(*name)).with_suffix(".py").exists()
                found.add(".".join(name if is_module else base))
    return found - {""}


def files(room=None):
    """The files of a room, or of the table; __init__ and __main__ of the package left out."""
    place = ROOT / "minigemma" / (room or "")
    found = place.rglob("*.py") if room else place.glob("*.py")
    return [path for path in found if room or not path.stem.startswith("__")]


def room_of(module):
    first = module.split(".")[0]
    return first if first in ROOMS else None


def test_no_file_on_the_table_imports_a_room():
    for path in files():
        assert not any(map(room_of, own_imports(path))), path.name


def test_the_passes_import_ops_inputs_and_the_cache_only():
    for name in ("model", "vision", "audio"):
        path = ROOT / "minigemma" / f"{name}.py"
        if path.exists():
            assert own_imports(path) <= {"ops", "inputs", "cache", "errors"}, name


def test_rooms_do_not_import_each_other_but_tools_may_import_all():
    for room in ROOMS[:-1]:
        for path in files(room):
            assert {room_of(module) for module in own_imports(path)} <= {None, room}, path


DEBUGGER = (
    "foreign", "replay", "port", "runs", "samerun", "catalogue", "pictures", "diff", "turn_mistakes", "diagnosis",
    "checkops", "report",
)  # fmt: skip


def test_the_debuggers_files_import_only_files_before_them():
    for path in files("debug"):
        part = path.relative_to(ROOT / "minigemma" / "debug").parts[0].removesuffix(".py")
        before = {*DEBUGGER[: DEBUGGER.index(part)], part} if part in DEBUGGER else set()
        assert {module.split(".")[1] for module in own_imports(path) if room_of(module)} <= before, path


@pytest.mark.parametrize(("package", "only"), [("matplotlib", "figures.py"), ("PIL", "inputs.py")])
def test_only_the_figures_draw_and_only_the_inputs_open_pictures(package, only):
    for path in (ROOT / "minigemma").rglob("*.py"):
        names = {node.module if isinstance(node, ast.ImportFrom) else node.names[0].name for node in imports(path)}
        assert any((name or "").split(".")[0] == package for name in names) == (path.name == only), path


def test_files_and_errors_import_nothing_that_could_import_them():
    assert own_imports(ROOT / "minigemma" / "errors.py") == set()
    assert own_imports(ROOT / "minigemma" / "files.py") <= {"errors"}


def test_importing_minigemma_loads_no_room():
    statement = "import minigemma; print([n for n in sys.modules if n.split('.')[1:2] and n.split('.')[1] in ROOMS])"
    code = f"import sys; ROOMS = {ROOMS}; {statement}"
    run = python("-c", code)
    assert run.stdout.strip() == "[]"


def test_no_import_goes_in_a_circle():
    graph = {}
    for path in (ROOT / "minigemma").rglob("*.py"):
        name = ".".join(path.relative_to(ROOT / "minigemma").with_suffix("").parts)
        graph[name] = {module for module in own_imports(path) if module != name}
    while graph:
        leaves = [name for name, needs in graph.items() if not needs & graph.keys()]
        assert leaves, f"these import each other: {sorted(graph)}"
        for name in leaves:
            del graph[name]


def test_old_names_of_modules_go_on_working_and_say_the_new_one_once(capsys):
    code = (
        "import minigemma; from minigemma import plots, accounting; minigemma.retention; minigemma.retention;"
        "print(minigemma.trace.Replay is minigemma.Replay, accounting.count is minigemma.count)"
    )
    run = python("-c", code)
    assert run.stdout == "True True\n"
    assert run.stderr.count("minigemma.retention is now") == 1
    assert "minigemma.plots is now minigemma.tools.figures" in run.stderr


def test_no_public_function_has_the_name_of_its_module():
    for path in (ROOT / "minigemma").rglob("*.py"):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}
        assert path.stem not in names, path
