"""Errors that are the user's to mend.

Commands print them as one line, without a traceback, and exit with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """Something the user asked for cannot be had; the message says what was found and what is allowed."""


class ConfigError(UserError, ValueError):
    """A wrong key, value or combination in the configuration."""


def suggestion(wrong: str, choices: Iterable[str]) -> str:
    """' Did you mean 'rmt'?' if one of the choices is near the wrong word, else ''."""
    near = difflib.get_close_matches(wrong, list(choices), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    return (str(error).splitlines() or [type(error).__name__])[0]
