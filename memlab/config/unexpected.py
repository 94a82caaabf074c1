"""Unexpected errors: the traceback goes into a file of the run, and one line on the screen says
where.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path

from memlab.errors import UserError, first_line
from memlab.version import __version__

NAME = "error.log"


class UnexpectedError(Exception):
    """Something failed, and its traceback is in a file; the message says what and where."""


@contextlib.contextmanager
def kept_in(*directories: str | Path | None) -> Iterator[None]:
    """Write an unexpected error's traceback to `error.log` in the first of these directories that exists.

    Without one, and with MEMLAB_TRACEBACK set, the error passes as it is.

    Raises:
        UnexpectedError: in place of the error.
    """
    try:
        yield
    except (UserError, UnexpectedError):
        raise
    except Exception as error:
        place = next((Path(d) for d in directories if d is not None and os.path.isdir(d)), None)
        if place is None or os.environ.get("MEMLAB_TRACEBACK"):
            raise
        try:
            file = _write(place.absolute() / NAME, error)
        except OSError:  # such as a full disk; the traceback must not be lost
            raise error from None
        raise UnexpectedError(
            f"{type(error).__name__}: {first_line(error)}. This was not expected; the traceback is in {file}"
        ) from error


def _write(file: Path, error: Exception) -> Path:
    head = (
        f"{time.strftime('%Y-%m-%d %H:%M:%S')}  memlab {__version__}  python {sys.version.split()[0]}  "
        f"process {os.getpid()}\n{shlex.join(sys.argv)}\n"
    )
    # a run may come from somebody else, and a link in it would lead elsewhere
    opened = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o666)
    with open(opened, "a", encoding="utf-8", errors="backslashreplace") as log:
        log.write(head + "".join(traceback.format_exception(error)) + "\n")
    return file
