"""Take from Python what Windows lacks, in this process and in its children:

    PYTHONPATH=tests/without_unix python -m pytest tests --ignore tests/parity

The tests that need it are then skipped, and no other test may notice. Notebooks run in kernels that keep everything:
IPython chooses its own code by the name of the system, which stays the same. So does psutil, which transformers
imports: hence without the parity suite.
"""

import os
import signal
import sys

for name in ("pty", "termios", "resource", "fcntl"):
    sys.modules[name] = None  # an import of it raises ModuleNotFoundError

for owner, names in ((os, ("fork", "forkpty", "mkfifo")), (signal, ("SIGALRM", "alarm", "setitimer"))):
    for name in names:
        if hasattr(owner, name):
            delattr(owner, name)


def refuse(*_, **__):
    raise OSError("without_unix: this user may not make symbolic links")


os.symlink = refuse
