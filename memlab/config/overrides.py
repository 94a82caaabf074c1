"""The words of a command line, `KEY=VALUE`, read as Hydra reads them, and what is wrong with them.

Hydra's grammar has characters of its own, and its parser names its own exceptions. Here a word that it cannot
read is named with the same word in quotes.
"""

from __future__ import annotations

import itertools
import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException

from memlab.config import trust
from memlab.errors import ConfigError, UserError, first_line

# What Hydra's own settings would do, and which key of ours does it.
_OURS = {
    "run": "run_dir=DIR says where a run is kept",
    "sweep": "run_dir=DIR says where a run is kept, and each job of --multirun has its own",
    "output_subdir": "run_dir=DIR says where a run is kept",
    "searchpath": "--config-dir DIR adds a folder of YAML files",
    "launcher": "memlab starts the jobs of --multirun itself",
    "sweeper": "memlab starts the jobs of --multirun itself; memlab.sweep searches",
    "mode": "--multirun starts several jobs",
}


_BACKBONE = re.compile(r"^([+~]*)backbone\.")


def spelled(words: Sequence[str]) -> list[str]:
    """The words with `backbone.KEY` as `model.KEY`: the keys of a backbone belong to `model`."""
    return [_BACKBONE.sub(r"\1model.", word) for word in words]


def check_surroundings(words: Sequence[str]) -> None:
    """Check that this process can read its command line and knows where it is.

    Raises:
        UserError: the current directory is gone, or the locale cannot represent a name.
    """
    try:
        place = os.getcwd()
    except OSError:
        raise UserError("the current directory has been deleted; change to one that exists") from None
    for what, text in [("the current directory's name", place), *((f"the word {w!r}", w) for w in words)]:
        if re.search("[\ud800-\udfff]", text):
            raise UserError(
                f"{what} is not readable in this locale ({sys.getfilesystemencoding()}); set PYTHONUTF8=1, "
                "or LC_ALL=C.UTF-8"
            )


def check_folder(folder: str | None, command: str | None = None) -> str | None:
    """The absolute path of `--config-dir`.

    Raises:
        ConfigError: there is no such folder, or it has a root of its own for the command.
    """
    if folder is None:
        return None
    path = os.path.abspath(os.path.expanduser(folder))
    if not os.path.isdir(path):
        raise ConfigError(f"--config-dir {folder}: there is no such folder")
    if command is not None and os.path.exists(os.path.join(path, f"{command}.yaml")):
        raise ConfigError(f"--config-dir {folder}: memlab has a file {command}.yaml itself; remove yours")
    return path


def parse(words: Sequence[str], loader: Any = None) -> list[Override]:
    """The words as Hydra reads them.

    Args:
        loader: Hydra's, to look up the names that `glob(..)` matches.

    Raises:
        ConfigError: one of them cannot be read, or is a setting of Hydra's own.
    """
    found = []
    for word in words:
        try:
            (override,) = OverridesParser.create(config_loader=loader).parse_overrides([word])
        except HydraException as error:
            raise ConfigError(_unreadable(word, error)) from None
        _check_owner(override)
        if not override.key_or_group:
            raise ConfigError(f"cannot read {word!r}: a word is KEY=VALUE, such as seed=1")
        found.append(override)
    return found


def trusted(overrides: Sequence[Override]) -> list[str]:
    """The modules that `trust=[..]` names.

    Raises:
        ConfigError: they are not names of modules.
    """
    names: list[str] = []
    for override in overrides:
        if override.key_or_group != trust.KEY:
            continue
        value = None if override.is_sweep_override() else override.value()
        if not isinstance(value, str | list):
            raise ConfigError(
                f"{override.input_line}: give a list of names of modules, such as trust=[my_module]"
            )
        names += trust.module_names([value] if isinstance(value, str) else map(str, value))
    return names


def _check_owner(override: Override) -> None:
    whole, _, rest = override.key_or_group.replace("/", ".").partition(".")
    if whole == "hydra":
        setting = rest.partition(".")[0]
        how = _OURS.get(setting, "the keys of a command are listed by --help")
        raise ConfigError(f"{override.input_line}: memlab does not read Hydra's own settings; {how}")


def _unreadable(word: str, error: HydraException) -> str:
    """Why Hydra cannot read a word, and how it can be written."""
    key, equals, value = word.partition("=")
    if not equals:
        return f"cannot read {word!r}: a word is KEY=VALUE, such as seed=1"
    quoted = _quoted(key, value)
    try:
        again = OverridesParser.create().parse_override(quoted)
    except HydraException:
        return f"cannot read {word!r}: {key!r} is not the name of a key"
    called = re.match(r"(\w+)\(", value)
    if called and called[1] in (
        "choice",
        "range",
        "glob",
        "interval",
        "shuffle",
        "sort",
        "tag",
        "int",
        "float",
    ):
        return f"cannot read {word!r}: {str(error).splitlines()[1]}"
    assert isinstance(again.value(), str)
    return (
        f"cannot read {word!r}: outside quotes a value has no characters such as ~ # & ; ! ( ) [ ] {{ }} ' = "
        f"and no letters beyond a-z. Quote it, in quotes that the shell leaves: {shlex.quote(quoted)}"
    )


def _quoted(key: str, value: str) -> str:
    """A word whose value is one text, whatever is in it."""
    return f"{key}={QuotedString(value, Quote.double).with_quotes()}"


def check_twice(overrides: Sequence[Override]) -> None:
    """Check that each key is given once.

    Raises:
        ConfigError: one is given twice.
    """
    seen: dict[str, Override] = {}
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        if key in seen:
            raise ConfigError(f"{key} is given twice: {seen[key].input_line} and {override.input_line}")
        seen[key] = override


def check_single(overrides: Sequence[Override]) -> None:
    """Check that the words describe one job.

    Raises:
        ConfigError: one of them has several values.
    """
    for override in overrides:
        if override.is_sweep_override():
            _check_enumerable(override)
            line = override.input_line or ""
            key, _, value = line.partition("=")
            sweep = override.value()
            one = shlex.quote(_quoted(key, value))
            more = f", or quote it if it is one value: {one}" if getattr(sweep, "simple_form", False) else ""
            raise ConfigError(f"{line}: several values are several runs; add --multirun{more}")


def jobs(overrides: Sequence[Override]) -> Iterator[list[str]]:
    """The words of each job: the product of all values of all sweeps, the last one fastest.

    Raises:
        ConfigError: a sweep has no values that can be listed, or none at all.
    """
    choices = []
    for override in overrides:
        line = override.input_line or ""
        if not override.is_sweep_override():
            choices.append([line])
            continue
        _check_enumerable(override)
        key = line.partition("=")[0]
        try:
            values = list(override.sweep_string_iterator())
        except (HydraException, ValueError, TypeError) as error:
            raise ConfigError(f"{line}: {first_line(error)}") from None
        if not values:
            raise ConfigError(f"{line}: there is no such value, so no run would begin")
        choices.append([f"{key}={value}" for value in values])
    for job in itertools.product(*choices):
        yield list(job)


def _check_enumerable(override: Override) -> None:
    if override.is_discrete_sweep():
        return
    raise ConfigError(
        f"{override.input_line}: a range of numbers without steps has no list of values; give values, such "
        f"as {override.key_or_group}=1,2,3, or search the range with memlab.sweep (docs/SWEEPS.md)"
    )
