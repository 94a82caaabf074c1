"""Overrides in a file: `experiment_file=best.yaml` on the command line of `memlab.train`,
and how such a file is written.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from memlab.config import foreign
from memlab.errors import ConfigError

KEY = "experiment_file"
_PLAIN = re.compile(r"[A-Za-z_/][\w./-]*(:[\w./-]+)*")  # Hydra reads these as they stand
_WORDS = {"null", "true", "false", "nan", "inf"}  # except for these


def expand(words: Sequence[str]) -> list[str]:
    """A command line with the lines of its `experiment_file` put in front; keys that it gives itself are left
    out of the file's.

    Raises:
        ConfigError: the file cannot be read, or is not a list of keys and values.
    """
    given = [word.partition("=")[2] for word in words if word.partition("=")[0] == KEY]
    if not given or given == ["null"]:
        return list(words)
    if len(given) > 1:
        raise ConfigError(f"{KEY} is given twice: {given[0]} and {given[1]}")
    own = {word.partition("=")[0].lstrip("+~") for word in words}
    return [*(word for key, word in read(given[0]).items() if key not in own), *words]


def read(file: str) -> dict[str, str]:
    """The words of a file of overrides by their keys.

    Raises:
        ConfigError: see `expand`.
    """
    path = Path(file.strip("'\"")).expanduser()
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{KEY}={file}: {error.strerror}") from None
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{KEY}={file} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{KEY}={file} has no keys; a line of it is such as `optim.lr: 2e-3`")
    flat = flatten_overrides(values, f"{KEY}={file}")
    if KEY in flat:
        raise ConfigError(f"{KEY}={file}: {KEY} within such a file is not followed")
    foreign.check(f"{KEY}={file}", flat, references=True)
    return {key: word(key, value) for key, value in flat.items()}


def flatten_overrides(values: Mapping[Any, Any], where: str) -> dict[str, Any]:
    """Keys with dots, whether they are written so or nested.

    Args:
        where: for messages.

    Raises:
        ConfigError: a key is not a string, or is there twice.
    """
    flat: dict[str, Any] = {}

    def add(prefix: str, values: Mapping[Any, Any]) -> None:
        for key, value in values.items():
            if not isinstance(key, str) or not key:
                raise ConfigError(f"{where}: the key {key!r} is not a name such as optim.lr")
            if isinstance(value, Mapping):
                add(f"{prefix}{key}.", value)
            elif f"{prefix}{key}" in flat:
                raise ConfigError(f"{where}: {prefix}{key} is given twice")
            else:
                flat[f"{prefix}{key}"] = number(value)

    add("", values)
    return flat


def number(value: Any) -> Any:
    """YAML 1.1 reads 1e-3 as a word; Hydra and people read it as a number."""
    if isinstance(value, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", value):
        return float(value)
    return value


def word(key: str, value: Any) -> str:
    """`key=value` as Hydra's command line reads it back to the same value."""
    return f"{key}={text(value)}"


def text(value: Any) -> str:
    """A value as Hydra's command line reads it."""
    if isinstance(value, list | tuple):
        return "[" + ",".join(text(v) for v in value) + "]"
    if value is None or isinstance(value, bool | int | float):
        return json.dumps(value) if not isinstance(value, float) else repr(value)
    said = str(value)
    if _PLAIN.fullmatch(said) and said.lower() not in _WORDS:
        return said
    if said.startswith("${") and said.endswith("}"):
        return said  # an interpolation
    # Hydra reads backslashes only before a quote
    return "'" + re.sub(r"(\\+)(?='|$)", r"\1\1", said).replace("'", "\\'") + "'"
