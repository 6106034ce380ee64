"""The numeric tests on every Python from 3.11 that this machine has, each with its oldest and its newest NumPy.

    python .ci/versions.py [3.13 ...]

The oldest is the lowest version that requirements.txt allows and that has a wheel for that Python; the newest is the
last one that pip finds. Needs pip in the Python that runs this; the others need none.
"""

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests"))

from kernels import NUMERIC, ROOT

LOWEST_PYTHON = (3, 11)
OTHERS = ["tokenizers", "safetensors", "matplotlib", "pytest"]  # what the numeric tests import beside NumPy


def pythons():
    """(major, minor) -> every interpreter of that version on PATH or from pyenv that starts."""
    folders = [Path(folder) for folder in os.get_exec_path()]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    candidates = [path for folder in folders for path in sorted(folder.glob("python3.*"))]
    candidates += sorted(pyenv.glob("versions/*/bin/python3"))
    found = {}
    for path in candidates:
        if not re.fullmatch(r"python3(\.\d+)?", path.name):
            continue  # python3.11-config and the like
        code = "import sys; print(*sys.version_info[:2])"
        run = subprocess.run([path, "-c", code], check=False, capture_output=True, text=True)
        version = tuple(map(int, run.stdout.split())) if run.returncode == 0 else (0, 0)  # a shim may lead nowhere
        if version >= LOWEST_PYTHON:
            found.setdefault(version, []).append(path)
    return dict(sorted(found.items()))


def environment(paths, folder):
    """A virtual environment of the first of these interpreters that can make one -> its Python, or None."""
    for path in paths:
        make = [path, "-m", "venv", "--clear", "--without-pip", folder]
        if subprocess.run(make, check=False, capture_output=True).returncode == 0:
            return Path(folder, "Scripts" if os.name == "nt" else "bin", "python")
    return None


def pip(python, *words):
    """Run pip for another interpreter -> the finished process."""
    command = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check", *words]
    return subprocess.run(command, check=False, capture_output=True, text=True)


def install(python, *packages):
    """Whether these packages could be installed from wheels alone."""
    return pip(python, "install", "--only-binary", ":all:", *packages).returncode == 0


def numpy_versions(python):
    """The versions of NumPy that requirements.txt allows, oldest first; some may have no wheel for this interpreter."""
    requirement = re.search(r"^numpy>=([\d.]+)$", (ROOT / "requirements.txt").read_text(encoding="utf-8"), re.MULTILINE)
    lowest = tuple(map(int, requirement[1].split(".")))
    listed = pip(python, "index", "versions", "numpy").stdout
    names = re.search(r"^Available versions: (.*)$", listed, re.MULTILINE)[1].split(", ")
    allowed = sorted((tuple(map(int, name.split("."))), name) for name in names if name.replace(".", "").isdigit())
    return [name for version, name in allowed if version >= lowest]


def main(wanted):
    failed = []
    for version, paths in pythons().items():
        name = ".".join(map(str, version))
        if wanted and name not in wanted:
            continue
        with tempfile.TemporaryDirectory() as folder:
            python = environment(paths, folder)
            if python is None:
                print(f"Python {name}: cannot make a virtual environment", flush=True)
                continue
            versions = numpy_versions(python)
            oldest = next(version for version in versions if install(python, f"numpy=={version}"))
            for numpy in dict.fromkeys([oldest, versions[-1]]):
                print(f"+ Python {name}, NumPy {numpy}", flush=True)
                if not install(python, f"numpy=={numpy}", *OTHERS):
                    failed.append(f"installing for Python {name} with NumPy {numpy}")
                    continue
                tests = [python, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NUMERIC]
                if subprocess.run(tests, check=False, cwd=ROOT).returncode:
                    failed.append(f"Python {name} with NumPy {numpy}")
    print("failed: " + ", ".join(failed) if failed else "the numeric tests pass on all of them")
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
