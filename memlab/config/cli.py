"""How a command starts: the command line is checked as a whole before Hydra, torch or a tracker begin their
work.

Hydra's own messages name neither the valid keys nor a near one, it takes the last of two contradicting
overrides in silence, and `+key=value` adds keys that nothing reads. Here each of these is one line, and
nothing has been written when it appears.
"""

from __future__ import annotations

import copy
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra import compose, initialize, initialize_config_dir
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from memlab.config import launch, lifetime, override_file, presets
from memlab.config.checks import unknown_key
from memlab.config.jobs import Jobs, announce
from memlab.config.paths import config_dir
from memlab.errors import ConfigError, UserError, suggestion
from memlab.version import __version__

EXIT_USER_ERROR = 2
Check = Callable[[DictConfig], Any]


def run(
    command: str, check: Check, job: Callable[[Any], int], unused: Sequence[str] = (), groups: bool = True
) -> NoReturn:
    """Run a command and end the process.

    Args:
        command: `train`, ...; its root is `configs/<command>.yaml` and it is started as `python -m
            memlab.<command>`.
        check: turns a composed configuration into a typed one or raises ConfigError; must be quick and write
            nothing.
        job: does the work and returns the exit status. With `--multirun` each job is a process of its own.
        unused: keys that are in the configuration because tasks say how they are trained, and that this
            command does not read.
        groups: whether the command chooses files of `configs/*/`; False = its own keys may have the names of
            groups, such as `experiment` and `tokens`.
    """
    if "--version" in sys.argv[1:]:  # Hydra would say its own
        print(f"memlab {__version__}")
        sys.exit(0)
    if not groups:
        ConfigStore.instance().store(command, OmegaConf.load(os.path.join(config_dir(), f"{command}.yaml")))
    place = config_dir() if groups else None
    # argparse wants flags before overrides; a user adds `--multirun` where the cursor is
    words = _or_exit(
        command,
        lambda: override_file.expand(sys.argv[1:]) if command == "train" else sys.argv[1:],
        told=launch.rank() == 0,
    )
    sys.argv[1:] = [w for w in words if not _is_override(w)] + [w for w in words if _is_override(w)]
    arguments = get_args_parser().parse_args()
    if not (arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion):
        _or_exit(
            command, lambda: _preflight(command, arguments, check, unused, place), told=launch.rank() == 0
        )

    if arguments.multirun:  # its jobs know that they belong together
        announce(command, words)

    @hydra.main(version_base="1.3", config_path=place, config_name=command)
    def main(composed: DictConfig) -> None:
        overrides = list(HydraConfig.get().overrides.task)
        if HydraConfig.get().mode == RunMode.MULTIRUN:
            jobs.run(overrides)
        else:
            status = _or_exit(command, lambda: job(check(presets.settle(composed, _keys(overrides)))))
            if status:
                sys.exit(status)

    jobs = Jobs(command)
    main()
    lifetime.end_quickly()
    sys.exit(jobs.end())


def _is_override(word: str) -> bool:
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


def _or_exit(command: str, work: Callable[[], Any], told: bool = True) -> Any:
    """The result of `work`; a mistake of the user's ends the process with one message and no traceback."""
    try:
        return work()
    except UserError as error:
        if os.environ.get("MEMLAB_TRACEBACK"):
            raise
        if told:
            print(f"memlab.{command}: error: {error}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR)


def _preflight(command: str, arguments: Any, check: Check, unused: Sequence[str], place: str | None) -> None:
    """Compose and check every job of the command line.

    Raises:
        ConfigError: for the first mistake.
    """
    if arguments.config_name or arguments.config_path:
        raise ConfigError(
            f"--config-name and --config-path: memlab.{command} has one root; add your own files with "
            "--config-dir"
        )
    if arguments.multirun and launch.by_torchrun():
        raise ConfigError(
            "--multirun under torchrun: every process would go through all jobs; leave torchrun out and use "
            "trainer=ddp"
        )
    search = search_path(arguments.config_dir)
    with initialize_config_dir(place, version_base="1.3") if place else initialize(None, version_base="1.3"):
        try:
            overrides = OverridesParser.create().parse_overrides(arguments.overrides)
        except HydraException as error:
            raise ConfigError(f"cannot read the command line: {str(error).splitlines()[0]}") from None
        if not arguments.multirun and (sweep := next((o for o in overrides if o.is_sweep_override()), None)):
            raise ConfigError(f"{sweep.input_line}: several values are several runs; add --multirun")
        _check_twice(overrides)
        for override in overrides:
            if override.key_or_group.partition(".")[0] in unused:
                raise ConfigError(
                    f"{override.input_line}: memlab.{command} does not train, so nothing reads this key"
                )
        if arguments.multirun and place:
            overrides = _with_preset(command, overrides, search)
        given = any(o.key_or_group == "run_dir" for o in overrides)  # the default differs for each run
        directories: set[str] = set()
        for job in _jobs(overrides):
            composed = _compose(command, job, search)
            check(composed)
            if not given:
                continue
            directory = os.path.abspath(composed.run_dir)
            if directory in directories:
                raise ConfigError(
                    f"run_dir={composed.run_dir} is the same for several runs; make it differ, such as "
                    "run_dir='x/${seed}'"
                )
            directories.add(directory)


def compose_checked(command: str, words: Sequence[str], check: Check, folder: Path | None = None) -> Any:
    """What `check` makes of a command line, as the command itself would; nothing is written.

    Args:
        words: overrides, `KEY=VALUE`, of one job.
        folder: of further YAML files, as `--config-dir` gives it.

    Raises:
        ConfigError: for the first mistake.
    """
    with own_hydra():
        try:
            overrides = OverridesParser.create().parse_overrides(list(words))
        except HydraException as error:
            raise ConfigError(f"cannot read {' '.join(words)}: {str(error).splitlines()[0]}") from None
        if swept := next((o for o in overrides if o.is_sweep_override()), None):
            raise ConfigError(f"{swept.input_line}: several values; a training takes one")
        _check_twice(overrides)
        return check(_compose(command, list(words), search_path(folder)))


@contextmanager
def own_hydra() -> Iterator[None]:
    """A Hydra over memlab's files.

    Hydra has one at a time: that of the command that is running is set aside.
    """
    outside = GlobalHydra.instance().is_initialized()
    saved = copy.copy(GlobalHydra.instance().hydra) if outside else None
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir(), version_base="1.3"):
            yield
    finally:
        if saved is not None:
            GlobalHydra.instance().hydra = saved


def _with_preset(command: str, overrides: list[Override], search: list[str]) -> list[Override]:
    """What a preset sweeps comes first, as in Hydra's sweeper; a key on the command line replaces the
    preset's.

    Raises:
        ConfigError: several presets are asked for, or this one does not exist or cannot be read.
    """
    chosen = [o for o in overrides if o.key_or_group == presets.GROUP]
    if not chosen:
        return overrides
    if chosen[0].is_sweep_override():
        raise ConfigError(f"{chosen[0].input_line}: each is a sweep of its own; start them one after another")
    others = [o.input_line or "" for o in chosen]
    _compose(command, others, search)
    hydra_config = compose(command, [*others, *search], return_hydra_config=True).hydra
    swept = presets.swept(hydra_config, {o.key_or_group for o in overrides})
    return [*OverridesParser.create().parse_overrides(swept), *overrides]


def _keys(overrides: Sequence[str]) -> set[str]:
    return {o.key_or_group for o in OverridesParser.create().parse_overrides(list(overrides))}


def _jobs(overrides: list[Override]) -> Iterator[list[str]]:
    """The override lists of all jobs: the product of all values of all sweeps."""
    choices = []
    for override in overrides:
        if override.is_sweep_override():
            prefix = (override.input_line or "").partition("=")[0]
            choices.append([f"{prefix}={value}" for value in override.sweep_string_iterator()])
        else:
            choices.append([override.input_line or ""])
    for job in itertools.product(*choices):
        yield list(job)


def _check_twice(overrides: list[Override]) -> None:
    seen: dict[str, Override] = {}
    for override in overrides:
        key = override.get_key_element().lstrip("+~")
        if key in seen:
            raise ConfigError(f"{key} is given twice: {seen[key].input_line} and {override.input_line}")
        seen[key] = override


def _compose(command: str, job: list[str], search: list[str]) -> DictConfig:
    """The configuration of one job; its groups first, so that a wrong key is told with the keys of the
    chosen group.
    """
    loader = GlobalHydra.instance().config_loader()
    groups, values = [], []
    for override in OverridesParser.create().parse_overrides(job):
        key = override.key_or_group
        if key.startswith("hydra"):
            values.append(override)
        elif options := loader.get_group_options(key):
            if override.value() not in options and not search:
                near = suggestion(str(override.value()), options)
                raise ConfigError(
                    f"no {key} is named {override.value()!r}.{near} There are: {', '.join(sorted(options))}"
                )
            groups.append(override)
        else:
            values.append(override)
    try:
        chosen = compose(command, [*(o.input_line or "" for o in groups), *search])
        for override in values:
            if not override.key_or_group.startswith("hydra"):
                _check_key(override, chosen)
        composed = presets.settle(compose(command, [*job, *search]), _keys(job), _models(search))
        OmegaConf.resolve(composed)
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error).splitlines()[0]) from None
    return composed


def search_path(folder: Path | str | None) -> list[str]:
    """The override by which Hydra also looks for files in a folder of the user's."""
    return [f"hydra.searchpath=[file://{os.path.abspath(folder)}]"] if folder else []


def _models(search: list[str]) -> set[str]:
    """Names of all files of `model/`, those in the user's own --config-dir too."""
    own = (
        Path("".join(search).removeprefix("hydra.searchpath=[file://").removesuffix("]"), "model")
        if search
        else None
    )
    return {
        *GlobalHydra.instance().config_loader().get_group_options("model"),
        *(f.stem for f in (own.glob("*.yaml") if own else ())),
    }


def _check_key(override: Override, chosen: DictConfig) -> None:
    *path, last = override.key_or_group.split(".")
    node: Any = chosen
    for depth, part in enumerate([*path, last]):
        if not isinstance(node, DictConfig):
            raise ConfigError(f"{override.input_line}: {'.'.join(path[:depth])} is a value, it has no keys")
        if part not in node:
            if override.is_add() and depth == 1 and path == ["model"]:
                return  # an option of a part that the chosen files do not list; `check` knows them all
            known = [str(k) for k in node if not str(k).startswith("_")]
            raise unknown_key(".".join([*path[:depth], part]), known)
        node = node._get_node(part)
    if isinstance(node, DictConfig) and not path:
        raise ConfigError(
            f"{override.input_line}: {last} is a group of keys; there are: {', '.join(str(k) for k in node)}"
        )
