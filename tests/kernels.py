"""The numeric tests under each matrix product that OpenBLAS has for this processor, with one and with two threads.

    python tests/kernels.py [KERNEL ...]

OpenBLAS holds a product, a "kernel", for each family of processors. They add in different orders, so the same pass
differs in its last bits from one computer to another. OPENBLAS_CORETYPE chooses the kernel. Without it, and without
OPENBLAS_L2_SIZE, the processor decides: that is what most people have. Prints a table, and ends with status 1 if a test
failed.
"""

import os
import platform
import re
import subprocess
import sys
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
KERNELS = ["Haswell", "Zen", "Nehalem", "Sandybridge", "SkylakeX", "unset"]
THREADS = [1, 2]
# The tests that rest on matrix products. .ci/versions.py runs the same ones under other versions of NumPy.
NUMERIC = [
    *(
        f"tests/test_{name}.py"
        for name in (
            "pass", "ops", "threads", "cache", "taps", "goldens", "tiny_weights", "twins", "finite", "interventions",
            "generate", "conversation", "weights", "long_run", "vision", "audio", "pictures_in_text", "picture_goldens",
            "sound_goldens", "tiny_sight", "tiny_hearing", "packed_weights", "gguf", "mmproj",
        )
    ),
    *(
        f"tests/debug/test_{name}.py"
        for name in ("faults", "diff", "foreign", "verify", "few_bits", "diff_sounds", "picture_traces", "checkops")
    ),
    *(f"tests/study/test_{name}.py" for name in ("retention", "recall", "rounding")),
]  # fmt: skip

# A child computes a product and prints the name of the kernel that OpenBLAS says it used.
PROBE = """
import ctypes, sys
from pathlib import Path
import numpy as np
for dtype in (np.float32, np.float64):
    a = np.ones((200, 200), dtype)
    assert ((a @ a == 200) & (a @ a[0] == 200)).all()
package = Path(np.__file__).parent
for library in [*package.parent.glob("numpy.libs/*openblas*"), *package.glob(".dylibs/*openblas*")]:
    for name in ("scipy_openblas_get_corename64_", "openblas_get_corename64_", "openblas_get_corename"):
        function = getattr(ctypes.CDLL(str(library)), name, None)
        if function:
            function.restype = ctypes.c_char_p
            sys.exit(print(function().decode()))
"""


def settings(kernel, threads):
    """The environment of a child process."""
    chosen = {name: value for name, value in os.environ.items() if name != "OPENBLAS_CORETYPE"}
    if kernel == "unset":
        chosen.pop("OPENBLAS_L2_SIZE", None)
    else:
        chosen["OPENBLAS_CORETYPE"] = kernel
    return chosen | {"OMP_NUM_THREADS": str(threads)}  # of the BLAS, and of our own pool


def probe(environment):
    """The kernel that really runs -> (its name, "") or (None, why there is none)."""
    run = subprocess.run([sys.executable, "-c", PROBE], check=False, capture_output=True, text=True, env=environment)
    if run.returncode < 0:
        return None, "this processor lacks its instructions"
    if run.returncode:
        return None, run.stderr.strip().splitlines()[-1]
    name = run.stdout.strip()
    return (name, "") if name else (None, "this NumPy does not use its own OpenBLAS")


def test(environment):
    """Run the numeric tests -> (whether all passed, pytest's last line, the failures)."""
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *NUMERIC],
        check=False, capture_output=True, text=True, cwd=ROOT, env=environment,
    )  # fmt: skip
    lines = (run.stdout + run.stderr).splitlines()
    failures = [line for line in lines if re.match("FAILED|ERROR", line)]
    return run.returncode == 0, lines[-1].strip("= "), failures


def main(kernels):
    failed = False
    print(f"Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"{'kernel':12} {'threads':>7}  {'it ran':12} result")
    for kernel in kernels:
        for threads in THREADS:
            environment = settings(kernel, threads)
            found, why = probe(environment)
            if kernel != "unset" and found not in (None, kernel):
                found, why = None, f"this OpenBLAS runs {found} in its place"
            if found is None and kernel != "unset":
                print(f"{kernel:12} {threads:>7}  {'':12} skipped: {why}")
                continue
            passed, last, failures = test(environment)
            failed |= not passed
            print(f"{kernel:12} {threads:>7}  {found or why:12} {last}", *failures, sep="\n    ", flush=True)
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or KERNELS))
