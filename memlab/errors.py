"""Errors that users can fix.

Commands print them as one line, without a traceback, and exit with status 2.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class UserError(Exception):
    """The user's request cannot be fulfilled. The message has what was found and what is allowed."""


class ConfigError(UserError, ValueError):
    """A wrong key, value or combination in the configuration."""


def suggestion(wrong: str, choices: Iterable[str]) -> str:
    """' Did you mean 'rmt'?' if one of the choices is close to the wrong name, else ''."""
    near = difflib.get_close_matches(wrong, list(choices), n=1)
    return f" Did you mean {near[0]!r}?" if near else ""


def first_line(error: Exception) -> str:
    """The first line of an error's message."""
    return (str(error).splitlines() or [type(error).__name__])[0]
