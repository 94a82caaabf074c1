"""The directory of a run, the checkpoint that it continues from, and the command that continues it."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memlab.config.sections import Config, MLflowTracking
from memlab.errors import UserError
from memlab.reports.summary import print_summary
from memlab.tasks.base import Task
from memlab.tracking import data_record, mlflow_store
from memlab.tracking.resume import Origin
from memlab.tracking.run_directory import RunDirectory
from memlab.training import checkpoints
from memlab.training.checkpoints import BEST, LAST
from memlab.training.processes import Processes


def claim(config: Config, continues: bool, processes: Processes) -> RunDirectory:
    """The run's directory, which the first process creates or takes over for all processes.

    Raises:
        UserError: the directory or MLflow's store cannot be used.
    """
    claimed: list[RunDirectory] = []

    def take() -> Path:
        if isinstance(config.tracking, MLflowTracking):
            part_of_a_sweep = config.tracking.parent_run is not None  # which has reached the store before
            mlflow_store.prepare(config.tracking.uri, config.tracking.experiment, patient=part_of_a_sweep)
        claimed.append(RunDirectory(config.run_dir, config, continues))
        return claimed[0].path

    path = processes.first(take)
    return claimed[0] if claimed else RunDirectory(path, config, ours=False)


def known_data(task: Task, origin: Origin) -> dict[str, Any]:
    """What the task reads (`Task.data`).

    Raises:
        UserError: the run that is continued has read other data.
    """
    data = task.data()
    if origin.directory is not None:
        data_record.check(origin.directory, data)
    return data


def go_on(directory: RunDirectory) -> Path | None:
    """Restore a run's directory to its newest whole checkpoint, and return that; None = there is none.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    found = checkpoints.newest(directory.checkpoints)
    step = found[1]["global_step"] if found else 0
    directory.forget_after(checkpoints.metrics_bytes(found[1]) if found else 0)
    directory.note(resumed_at=[*directory.facts()["resumed_at"], step])
    where = (
        f"step {step}, {found[0].name}"
        if found
        else "the beginning: it was stopped before its first checkpoint"
    )
    print(f"memlab: the run continues from {where}", file=sys.stderr)
    return found[0] if found else None


def kept(directory: RunDirectory) -> str:
    """A sentence about the last checkpoint."""
    last = directory.checkpoints / LAST
    return f"The last checkpoint is kept: {last}" if last.exists() else "There is no checkpoint yet"


def command(arguments: Sequence[str], directory: Path, name: str = "train") -> str:
    """The command line of `memlab.NAME` that continues a run."""
    # for Hydra, too, some characters have a meaning
    place = str(directory) if re.fullmatch(r"[\w./-]+", str(directory)) else f"'{directory}'"
    return shlex.join(["python", "-m", f"memlab.{name}", *without_place(arguments), f"resume={place}"])


def without_place(arguments: Sequence[str]) -> list[str]:
    """A command line without the run's directory."""
    return [argument for argument in arguments if argument.partition("=")[0] not in ("resume", "run_dir")]


def say_finished(directory: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Print the result of a run that has nothing left to do, and return it."""
    print(f"memlab: the run in {directory} has finished already", file=sys.stderr)
    print_summary(result, directory, None)
    return result


def read_best(directory: RunDirectory) -> dict[str, Any]:
    """The checkpoint to be tested.

    Raises:
        UserError: it is damaged.
    """
    try:
        return checkpoints.read(directory.checkpoints / BEST)
    except checkpoints.DamagedError as error:
        raise UserError(
            f"{directory.checkpoints / BEST} is damaged ({error}); without it there is nothing to test"
        ) from None
