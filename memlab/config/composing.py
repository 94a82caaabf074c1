"""A configuration as a command line describes it, composed by Hydra and checked key by key.

Nothing is written, and no torch is imported.
"""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from hydra import compose, initialize, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.config_search_path import SearchPathQuery
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from memlab.config import overrides, presets, pretrained_keys, trust
from memlab.config.checks import unknown_key
from memlab.config.paths import config_dir
from memlab.errors import ConfigError, suggestion

Check = Callable[[DictConfig], Any]
Folder = str | Path | None


@contextlib.contextmanager
def composing(folder: Folder = None, groups: bool = True) -> Iterator[None]:
    """Hydra ready to compose, as it is once a command has begun.

    Args:
        folder: of further YAML files of the user's, searched after memlab's own; see `--config-dir`.
        groups: whether the command chooses files of `configs/*/`.
    """
    # a command may be composing its own configuration: Hydra has one at a time
    outside = GlobalHydra.instance().is_initialized()
    saved = copy.copy(GlobalHydra.instance().hydra) if outside else None
    GlobalHydra.instance().clear()
    start = (
        initialize_config_dir(config_dir(), version_base="1.3")
        if groups
        else initialize(None, version_base="1.3")
    )
    try:
        with start:
            if folder is not None:
                _look_in(folder)
            yield
    finally:
        if saved is not None:
            GlobalHydra.instance().hydra = saved


def _look_in(folder: str | Path) -> None:
    hydra: Any = GlobalHydra.instance().hydra
    places = hydra.config_loader.get_search_path()
    places.prepend("command-line", f"file://{Path(folder).absolute()}", SearchPathQuery(provider="schema"))
    hydra.config_loader = ConfigLoaderImpl(config_search_path=places)


def allowing(typed: Sequence[str], folder: Folder) -> AbstractContextManager[None]:
    """What a command line allows: what it trusts, the classes that it names, and its `--config-dir`.

    Args:
        typed: its words, without those of an `experiment_file`.

    Raises:
        ConfigError: `trust` is no list of modules.
    """
    given = [word for word in typed if word.partition("=")[0] == trust.KEY]
    return trust.allowing([*trust.typed(typed), *overrides.trusted(overrides.parse(given))], folder)


def loader() -> Any:
    """Hydra's, which knows the files of all groups."""
    return GlobalHydra.instance().config_loader()


def compose_checked(
    command: str, words: Sequence[str], check: Check, folder: Folder = None, typed: bool = True
) -> Any:
    """What `check` makes of a command line, as the command itself would; nothing is written.

    Args:
        words: overrides, `KEY=VALUE`, of one job.
        folder: see `composing`.
        typed: whether a person typed the words, which allows the modules of the classes that they name.

    Raises:
        ConfigError: for the first mistake.
    """
    words = overrides.spelled(words)
    with composing(folder), allowing(words if typed else (), folder):
        given = overrides.parse(words, loader())
        if swept := next((o for o in given if o.is_sweep_override()), None):
            raise ConfigError(f"{swept.input_line}: several values; a training takes one")
        overrides.check_twice(given)
        return check(compose_job(command, words, folder))


def with_preset(command: str, given: list[Override], folder: Folder) -> list[Override]:
    """What a preset sweeps comes first, as in Hydra's sweeper; a key on the command line replaces the
    preset's.

    Raises:
        ConfigError: several presets are asked for, or this one does not exist or cannot be read.
    """
    chosen = [o for o in given if o.key_or_group == presets.GROUP]
    if not chosen:
        return given
    if chosen[0].is_sweep_override():
        raise ConfigError(f"{chosen[0].input_line}: each is a sweep of its own; start them one after another")
    words = [o.input_line or "" for o in chosen]
    compose_job(command, words, folder)
    hydra_config = compose(command, words, return_hydra_config=True).hydra
    swept = overrides.parse(presets.swept(hydra_config, {o.key_or_group for o in given}), loader())
    if any(o.key_or_group == trust.KEY for o in swept):
        raise ConfigError("trust is set in a file; only the command line says what is trusted")
    return [*swept, *given]


def compose_job(command: str, job: Sequence[str], folder: Folder = None) -> DictConfig:
    """The configuration of one job; its groups first, so that a wrong key is reported with the keys of the
    chosen group.

    Raises:
        ConfigError: for the first mistake.
    """
    given = overrides.parse(job)
    files, values = [], []
    for override in given:
        key = override.key_or_group
        if options := loader().get_group_options(key):
            if override.value() not in options:
                near = suggestion(str(override.value()), options)
                raise ConfigError(
                    f"no {key} is named {override.value()!r}.{near} There are: {', '.join(sorted(options))}"
                )
            _check_shadowed(key, str(override.value()), folder)
            files.append(override)
        else:
            values.append(override)
    try:
        chosen = compose(command, [o.input_line or "" for o in files])
        for override in values:
            _check_key(override, chosen)
        composed = compose(command, list(job), return_hydra_config=folder is not None)
        if folder is not None:  # else all files are memlab's
            _check_hydra(command, composed)
        if composed.get(trust.KEY) and trust.KEY not in {o.key_or_group for o in given}:
            raise ConfigError("trust is set in a file; only the command line says what is trusted")
        tell_folder(composed, folder)
        models = set(loader().get_group_options("model"))
        composed = presets.settle(composed, {o.key_or_group for o in given}, models)
        OmegaConf.resolve(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    return composed


def check_hydra(command: str, words: Sequence[str]) -> None:
    """Check that no file of a command line changes Hydra's own settings; other mistakes are not looked for.

    Raises:
        ConfigError: one does.
    """
    with contextlib.suppress(HydraException, OmegaConfBaseException):
        _check_hydra(command, compose(command, list(words), return_hydra_config=True))


def _check_hydra(command: str, composed: DictConfig) -> None:
    """Refuse settings of Hydra's own in a file, and take this section out of a configuration.

    Some of them name functions that Hydra calls (callbacks, logging), or set the environment.
    """
    ours = _hydra(compose(command, [], return_hydra_config=True))
    for key, value in _hydra(composed).items():
        if value != ours.get(key):
            raise ConfigError(
                f"hydra.{key} is set in a file: of Hydra's own settings, memlab reads only "
                "hydra.sweeper.params of a preset"
            )
    with open_dict(composed):
        del composed["hydra"]


def _hydra(composed: DictConfig) -> dict[str, Any]:
    """Hydra's settings, except for those that differ between command lines."""
    settings: Any = OmegaConf.to_container(composed.hydra, resolve=False)
    for name in ("overrides", "runtime"):
        settings.pop(name)
    settings["sweeper"].pop("params", None)
    for name in ("override_dirname", "config_name", "name"):
        settings["job"].pop(name, None)
    return dict(settings)


def _check_shadowed(group: str, name: str, folder: Folder) -> None:
    if folder is None:
        return
    own = Path(folder, group, f"{name}.yaml")
    if own.is_file() and Path(config_dir(), group, f"{name}.yaml").is_file():
        raise ConfigError(f"{own}: memlab has a file {group}/{name}.yaml itself; give yours another name")


def tell_folder(composed: DictConfig, folder: Folder) -> None:
    """A command with a key `config_dir` knows the folder that `--config-dir` names."""
    if folder is not None and "config_dir" in composed and composed.config_dir is None:
        composed.config_dir = str(folder)


def _check_key(override: Override, chosen: DictConfig) -> None:
    *path, last = override.key_or_group.split(".")
    node: Any = chosen
    for depth, part in enumerate([*path, last]):
        if not isinstance(node, DictConfig):
            raise ConfigError(f"{override.input_line}: {'.'.join(path[:depth])} is a value, it has no keys")
        if part not in node:
            if override.is_add() and depth == 1 and path == ["model"]:
                return  # an option of a part that the chosen files do not list; `check` knows them all
            if path[:depth] == ["model"] and chosen.model.get("backbone") == pretrained_keys.NAME:
                pretrained_keys.refuse(part, override.input_line or "")
            if not depth and last != part and (options := loader().get_group_options(part)):
                raise ConfigError(
                    f"{override.input_line}: no {part} is chosen; add {part}=NAME. There are: "
                    f"{', '.join(sorted(options))}"
                )
            known = [str(k) for k in node if not str(k).startswith("_")]
            raise unknown_key(".".join([*path[:depth], part]), known)
        node = node._get_node(part)
    if isinstance(node, DictConfig) and not path:
        raise ConfigError(
            f"{override.input_line}: {last} is a group of keys; there are: {', '.join(str(k) for k in node)}"
        )
