"""How a command starts: the command line is checked as a whole before Hydra, torch or a tracker begin their
work.

Hydra's own messages name neither the valid keys nor a near one, it takes the last of two contradicting
overrides silently, and `+key=value` adds keys that nothing reads. Here each of these is one line, and
nothing has been written when it appears.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf

from memlab.config import composing, jobs, launch, lifetime, override_file, overrides, presets
from memlab.config.composing import Check, compose_checked
from memlab.config.jobs import Job, Jobs
from memlab.config.paths import config_dir
from memlab.config.unexpected import UnexpectedError, kept_in
from memlab.errors import ConfigError, UserError
from memlab.terminal import streams
from memlab.terminal.plain import printable
from memlab.version import __version__

__all__ = ["Check", "compose_checked", "run"]
EXIT_UNEXPECTED, EXIT_USER_ERROR = 1, 2
# The environment says where MLflow is; an empty variable says nothing, as for MLflow itself.
_MAY_BE_EMPTY = ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME")


def run(
    command: str,
    check: Check,
    job: Callable[[Any], int],
    unused: Sequence[str] = (),
    groups: bool = True,
    imports: Sequence[str] = (),
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
        imports: modules that `job` imports, and that take long; the jobs of `--multirun` share them.
    """
    streams.guard(f"memlab.{command}")
    try:
        _run(_Command(command, check, job, unused, groups, imports))
    finally:
        streams.release()


@dataclass(frozen=True)
class _Command:
    """The arguments of `run`."""

    name: str
    check: Check
    job: Callable[[Any], int]
    unused: Sequence[str]
    groups: bool
    imports: Sequence[str]


def _run(wanted: _Command) -> NoReturn:
    command = wanted.name
    if "--version" in sys.argv[1:]:  # Hydra would print its own
        print(f"memlab {__version__}")
        sys.exit(0)
    for name in _MAY_BE_EMPTY:
        if os.environ.get(name) == "":
            del os.environ[name]
    leads = launch.rank() == 0
    or_exit(command, lambda: overrides.check_surroundings(sys.argv[1:]), leads)
    if not wanted.groups:
        ConfigStore.instance().store(command, OmegaConf.load(os.path.join(config_dir(), f"{command}.yaml")))
    # argparse needs flags before overrides; users add `--multirun` wherever the cursor is
    typed = sys.argv[1:]
    words = or_exit(command, lambda: override_file.expand(typed) if command == "train" else typed, leads)
    words = overrides.spelled(words)
    sys.argv[1:] = [w for w in words if not _is_override(w)] + [w for w in words if _is_override(w)]
    arguments = get_args_parser().parse_args()
    folder = or_exit(command, lambda: overrides.check_folder(arguments.config_dir, command), leads)
    with or_exit(command, lambda: composing.allowing(typed, folder), leads):
        _compose(wanted, arguments, words, folder, leads)


def _compose(
    wanted: _Command, arguments: Any, words: Sequence[str], folder: str | None, leads: bool
) -> NoReturn:
    command, groups = wanted.name, wanted.groups
    asks_hydra = arguments.help or arguments.hydra_help or arguments.info or arguments.shell_completion
    if asks_hydra:
        if folder is not None:
            or_exit(command, lambda: _check_hydra(command, arguments, folder, groups), leads)
    else:
        found = or_exit(command, lambda: _preflight(wanted, arguments, folder), leads)
        if arguments.multirun and not arguments.cfg:
            sys.exit(_multirun(command, words, folder, found, wanted.imports))

    @hydra.main(version_base="1.3", config_path=config_dir() if groups else None, config_name=command)
    def main(composed: DictConfig) -> None:
        given = {o.key_or_group for o in overrides.parse(HydraConfig.get().overrides.task)}

        def work() -> int:
            composing.tell_folder(composed, folder)
            config = wanted.check(presets.settle(composed, given))
            launch.alone()
            with kept_in(getattr(config, "run_dir", None), getattr(config, "run", None)):
                return wanted.job(config)

        if status := or_exit(command, work):
            sys.exit(status)

    main()
    lifetime.end_quickly()
    sys.exit(0)


def _multirun(
    command: str,
    words: Sequence[str],
    folder: str | None,
    found: tuple[Sequence[Job], int],
    imports: Sequence[str],
) -> int | str:
    """Run jobs, so many at a time; returns the exit status, or a message for a failure."""
    every, at_once = found
    identity = jobs.announce(command, words)  # they know that they belong together
    options = [] if folder is None else ["--config-dir", folder]
    logs = Path("runs", "multirun", identity).absolute()
    return Jobs(command, options, at_once, logs, imports).run(jobs.with_threads(every, at_once))


def _is_override(word: str) -> bool:
    return word.startswith("~") or ("=" in word and not word.startswith("-"))


def or_exit(command: str, work: Callable[[], Any], report: bool = True) -> Any:
    """The result of `work`; a mistake of the user's ends the process with one message and no traceback."""
    try:
        return work()
    except (UserError, UnexpectedError) as error:
        if os.environ.get("MEMLAB_TRACEBACK"):
            raise
        if report:
            print(f"memlab.{command}: error: {printable(str(error))}", file=sys.stderr)
        sys.exit(EXIT_USER_ERROR if isinstance(error, UserError) else EXIT_UNEXPECTED)


def _check_hydra(command: str, arguments: Any, folder: str, groups: bool) -> None:
    with composing.composing(folder, groups):
        composing.check_hydra(command, arguments.overrides)


def _preflight(wanted: _Command, arguments: Any, folder: str | None) -> tuple[list[Job], int]:
    """Compose and check every job of the command line; returns them, and how many run at a time.

    Raises:
        ConfigError: for the first mistake.
    """
    command, groups = wanted.name, wanted.groups
    if arguments.config_name or arguments.config_path:
        raise ConfigError(
            f"--config-name and --config-path: memlab.{command} has one root; add your own files with "
            "--config-dir"
        )
    if arguments.experimental_rerun:
        raise ConfigError(
            "--experimental-rerun: memlab reads no pickled configuration; run the command again"
        )
    if arguments.multirun and launch.by_torchrun():
        raise ConfigError(
            "--multirun under torchrun: every process would go through all jobs; leave torchrun out and use "
            "trainer=ddp"
        )
    with composing.composing(folder, groups):
        given = overrides.parse(arguments.overrides, composing.loader())
        if not arguments.multirun:
            overrides.check_single(given)
        overrides.check_twice(given)
        for override in given:
            if override.key_or_group.partition(".")[0] in wanted.unused:
                raise ConfigError(
                    f"{override.input_line}: memlab.{command} does not train, so nothing reads this key"
                )
        at_once = 1
        if groups:  # else the command has a key of this name itself
            at_once, given = jobs.at_once(given, arguments.multirun)
        if arguments.multirun and groups:
            given = composing.with_preset(command, given, folder)
        found: list[Job] = []
        named = any(o.key_or_group == "run_dir" for o in given)  # the default differs for each run
        directories: set[str] = set()
        for job in overrides.jobs(given):
            composed = composing.compose_job(command, job, folder)
            config = wanted.check(composed)
            trainer = getattr(config, "trainer", None)
            found.append(Job(job, {} if trainer is None else trainer.model_dump()))
            if not named:
                continue
            directory = os.path.abspath(composed.run_dir)
            if directory in directories:
                raise ConfigError(
                    f"run_dir={composed.run_dir} is the same for several runs; make it differ, such as "
                    "run_dir='x/${seed}'"
                )
            directories.add(directory)
    return found, at_once
