"""What a file that somebody else may have written must not hold: see docs/SECURITY.md."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from memlab.config import trust
from memlab.errors import ConfigError
from memlab.terminal.plain import printable

_RESOLVER = re.compile(r"\$\{\s*[\w.${}]+\s*:")  # `${name:`, which calls a function


def check(named: str, values: Mapping[Any, Any], references: bool = False) -> None:
    """Check a file's keys and values before anything is done with them.

    Args:
        named: the file, for messages.
        references: whether `${key}`, the value of another key, is allowed. memlab itself writes none.

    Raises:
        ConfigError: it says what is trusted, or it has a resolver, such as `${oc.env:NAME}`, which reads the
            environment of whoever opens it, or a control character, which a terminal may obey.
    """
    if trust.KEY in values:
        raise ConfigError(f"{named}: {trust.KEY} is only read from the command line")
    _check(named, "", values, references)


def _check(named: str, key: str, value: Any, references: bool) -> None:
    if isinstance(value, Mapping):
        for name, inside in value.items():
            _check_text(named, f"{key}{name}", name, references)
            _check(named, f"{key}{name}.", inside, references)
    elif isinstance(value, list | tuple):
        for inside in value:
            _check(named, key, inside, references)
    else:
        _check_text(named, key.removesuffix("."), value, references)


def _check_text(named: str, key: str, value: Any, references: bool) -> None:
    if not isinstance(value, str):
        return
    if _RESOLVER.search(value) if references else "${" in value:
        raise ConfigError(
            f"{named}: {printable(key)}={printable(value)} would be replaced when the file is opened, and is "
            "not allowed here; write the value itself"
        )
    if printable(value) != value:
        raise ConfigError(f"{named}: {printable(key)}={printable(value)} has a control character")
