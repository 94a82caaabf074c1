"""Standard output and error that never end a command in a traceback.

Closed pipes, full disks, terminals that are gone, and terminals that cannot show a character are handled.
Output to standard error is optional: if it cannot be written, it is left out and the work continues. Standard
output is what the user wants: if a pipe was closed (`| head`), the command ends quietly, like programs that
SIGPIPE ends, and if it cannot be written for another reason, the command ends with a message.
"""

from __future__ import annotations

import codecs
import contextlib
import errno
import os
import sys
from typing import Any, TextIO

EXIT_CLOSED_PIPE = 141  # 128 + SIGPIPE
EXIT_UNWRITABLE = 2
_PLAIN = "memlab.plain"  # name of the codec error handler
_SIGNS = {
    "×": "x",
    "±": "+-",
    "–": "-",
    "—": "-",
    "…": "...",
    "·": ".",
    "→": "->",
    "≥": ">=",
    "≤": "<=",
    "∞": "inf",
    "∅": "-",
}


def guard(command: str) -> None:
    """Make this process's standard output and error safe to write to.

    Args:
        command: such as `memlab.train`, for the message.
    """
    codecs.register_error(_PLAIN, _plain)
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, Guarded):  # closed by the shell: `>&-`
            continue
        with contextlib.suppress(AttributeError, ValueError):
            stream.reconfigure(errors=_PLAIN)
        setattr(sys, name, Guarded(stream, command, needed=name == "stdout"))


def release() -> None:
    """Write out what standard output still holds; called last.

    Raises:
        SystemExit: it cannot be written.
    """
    if sys.stdout is not None:
        sys.stdout.flush()


class Guarded:
    """A text stream whose writes raise no OSError.

    Args:
        stream: the stream to write to.
        needed: True = the command ends if a write fails; False = the text is left out.
    """

    def __init__(self, stream: TextIO, command: str, needed: bool) -> None:
        self._stream, self._command, self._needed = stream, command, needed

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text)
        except OSError as error:
            self._failed(error)
            return len(text)

    def writelines(self, lines: Any) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except OSError as error:
            self._failed(error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _failed(self, error: OSError) -> None:
        """Discard everything that is written from now on, including at Python's exit.

        Raises:
            SystemExit: the stream is needed.
        """
        with contextlib.suppress(OSError, ValueError):
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self._stream.fileno())
            os.close(nothing)
        with contextlib.suppress(OSError):
            self._stream.flush()  # discards what it holds
        if not self._needed:
            return
        if error.errno == errno.EPIPE:
            raise SystemExit(EXIT_CLOSED_PIPE)
        print(f"{self._command}: error: standard output cannot be written: {error.strerror}", file=sys.stderr)
        raise SystemExit(EXIT_UNWRITABLE)


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replacements for characters that a terminal's encoding does not have."""
    assert isinstance(error, UnicodeEncodeError)
    text = error.object[error.start : error.end]
    plain = (_SIGNS.get(sign) or sign.encode("ascii", "backslashreplace").decode() for sign in text)
    return "".join(plain), error.end
