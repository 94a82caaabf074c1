"""Which modules a file may name.

Configurations name classes: a task's `_target_`, a layer memory, memory tokens, a policy. To import a module
is to run its code, and a run, a checkpoint, a sweep or a preset may come from anybody. So a name leads into
memlab, or into a module that the user of this command has allowed:

    trust=[my_module]              on the command line; in Python, memlab.load(.., trust=["my_module"])
    task._target_=my_module.Mine   typing a name allows its package
    --config-dir DIR               allows the modules in DIR and those next to DIR
    entry points                   of the group `memlab.plugins` allow modules of installed packages

`check` imports nothing, not even the packages that a module lies in. See docs/SECURITY.md.
"""

from __future__ import annotations

import contextlib
import importlib.machinery
import importlib.metadata
import importlib.util
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path

from memlab.errors import ConfigError

KEY = "trust"
PLUGINS = "memlab.plugins"
CLASSES = (
    "task._target_",
    "model.layer_memory",
    "model.tokens",
    "policy.name",
)  # whose values are names of classes
_NAME = r"[^\W\d]\w*"
_DOTTED = re.compile(rf"{_NAME}(?:\.{_NAME})+")
_MODULE = re.compile(rf"{_NAME}(?:\.{_NAME})*")


class NotAllowedError(ConfigError):
    """A file names a module that nobody has allowed."""


@dataclass(frozen=True)
class Permission:
    """What the user of a command has allowed.

    Attributes:
        modules: dotted names; what lies in a package is allowed with it.
        folders: absolute; see `--config-dir`.
    """

    modules: frozenset[str] = frozenset()
    folders: frozenset[Path] = frozenset()


_NOTHING = Permission()
_CURRENT: ContextVar[Permission] = ContextVar("trust", default=_NOTHING)


def current() -> Permission:
    """What is allowed at this moment."""
    return _CURRENT.get()


@contextlib.contextmanager
def allowing(modules: str | Iterable[str] = (), folder: str | Path | None = None) -> Iterator[None]:
    """Allow more modules than before, within this context.

    Args:
        modules: dotted names.
        folder: as `--config-dir`.

    Raises:
        ConfigError: one of the names is not the name of a module.
    """
    before = _CURRENT.get()
    folders = () if folder is None else (Path(folder).absolute(),)
    token = _CURRENT.set(
        Permission(before.modules | set(module_names(modules)), before.folders.union(folders))
    )
    try:
        yield
    finally:
        _CURRENT.reset(token)


def module_names(modules: str | Iterable[str]) -> list[str]:
    """The names of modules that `trust` lists; a single one may be a string.

    Raises:
        ConfigError: one is not the name of a module.
    """
    names = [modules] if isinstance(modules, str) else list(modules)
    for name in names:
        if not isinstance(name, str) or not _MODULE.fullmatch(name):
            raise ConfigError(
                f"trust={name!r} is not the name of a module; give a list of names, such as trust=[my_module]"
            )
    return names


def typed(words: Sequence[str]) -> set[str]:
    """The packages of the classes that a command line names: `my` of `task._target_=my.module.Mine`."""
    return {
        name.partition(".")[0]
        for word in words
        if word.partition("=")[0].lstrip("+") in CLASSES
        for name in _DOTTED.findall(word.partition("=")[2])
    }


def check(key: str, target: str) -> None:
    """Check that a class that a file may have named lies in a module that may be imported.

    Nothing is imported.

    Args:
        key: such as `task._target_`, for the message.
        target: the dotted name of a class.

    Raises:
        NotAllowedError: nobody has allowed its module.
        ConfigError: it is not a dotted name.
    """
    if not _DOTTED.fullmatch(target):
        raise ConfigError(f"{key}={target!r} is not a class in a module; a class is named my_module.MyClass")
    module = target.rpartition(".")[0]
    permission = _CURRENT.get()
    if (
        not _within(module, {"memlab", *permission.modules})
        and not _lies_in(module.partition(".")[0], permission.folders)
        and not _within(module, _plugins())
    ):
        raise NotAllowedError(
            f"{key}={target} is not one of memlab's classes, and its module has not been imported: files may "
            f"name only what you allow. If you know its code, allow it with trust=[{module}] "
            "(docs/SECURITY.md)"
        )


def _within(module: str, allowed: Iterable[str]) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in allowed)


def _lies_in(package: str, folders: Iterable[Path]) -> bool:
    """Whether a top-level module or package lies directly in one of these folders or next to one."""
    places = {place.resolve() for folder in folders for place in (folder, folder.parent)}
    if not places or (spec := _find(package)) is None:
        return False
    found = list(spec.submodule_search_locations or ())
    if not found and spec.has_location and spec.origin is not None:  # others are in Python itself
        found = [spec.origin]
    return bool(found) and all(Path(place).absolute().parent.resolve() in places for place in found)


def _plugins() -> set[str]:
    """The modules of the entry points.

    The current directory, which `python -m` puts on the path, is left out: nothing is installed there.
    """
    here = os.getcwd()
    places = [place for place in sys.path if place and os.path.abspath(place) != here]
    return {
        entry.module
        for distribution in importlib.metadata.distributions(path=places)
        for entry in distribution.entry_points
        if entry.group == PLUGINS
    }


def source(module: str) -> Path | None:
    """The source file of a module, or None; unlike `importlib.util.find_spec`, this imports no package."""
    package, *parts = module.split(".")
    if not _MODULE.fullmatch(module) or (spec := _find(package)) is None:
        return None
    file, places = spec.origin, list(spec.submodule_search_locations or ())
    for part in parts:
        here = [Path(place, part) for place in places]
        possible = [path for place in here for path in (place / "__init__.py", place.with_suffix(".py"))]
        file = next((str(path) for path in possible if path.is_file()), None)
        places = [str(place) for place in here if place.is_dir()]
    return Path(file) if file is not None and file.endswith(".py") and os.path.isfile(file) else None


def _find(package: str) -> importlib.machinery.ModuleSpec | None:
    """The spec of a module that lies in no package."""
    try:
        return importlib.util.find_spec(package)
    except (ImportError, ValueError):  # ValueError: __main__
        return None
