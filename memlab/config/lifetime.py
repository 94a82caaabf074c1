"""How long a process lives: not beyond the one that started it, and no longer than needed at its own end.

This file imports no torch.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal
import sys
import threading
import time

# The signals by which a process is asked to end: Ctrl-C, a scheduler that takes the machine back, a terminal
# that is closed, and SLURM's notice before the time is over (--signal=USR1@60). All but Ctrl-C let it save.
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
DIES_WITH = "MEMLAB_DIES_WITH"  # process id of the one with which this one is to end, however that ends


def end_with_starter() -> None:
    """End this process with the one that started it, if that one requested it in the environment.

    The processes that this one starts are not affected.
    """
    parent = os.environ.pop(DIES_WITH, None)
    if parent is None:
        return
    if sys.platform.startswith("linux"):
        end_with(int(parent))
    else:
        threading.Thread(target=_watch_parent, args=[int(parent)], daemon=True).start()


def end_with(parent: int) -> None:
    """End this process with its parent, however that ends, even by kill -9; on Linux."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)  # PR_SET_PDEATHSIG
    if os.getppid() != parent:
        os._exit(1)


def _watch_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(0.5)
    os._exit(1)


def end_quickly() -> None:
    """Called last: the interpreter's end then does not search all that torch and MLflow made for garbage,
    which takes up to a second.
    """
    gc.freeze()
