"""Runs that have ended: found by what the user has of them, and added to afterwards.

A run is named by its directory, by the file of one of its checkpoints, or by its MLflow run id.
"""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from memlab.errors import UserError, first_line
from memlab.files import DamagedFileError, exists, read_object
from memlab.tracking import mlflow_client
from memlab.tracking.checkpoint_file import BEST

_RUN_ID = re.compile(r"[0-9a-f]{32}")
_MOST = 1000  # metrics that MLflow takes in one call


@dataclass(frozen=True)
class Found:
    """Where a run is.

    Attributes:
        directory: of the run; of a checkpoint that lies outside of any run, a directory next to it that
            may not exist yet.
        checkpoint: the file with its weights, or the directory that `memlab.export` wrote.
        best: whether that is the checkpoint by which the run is judged.
        by_id: whether it was named by its MLflow run id.
    """

    directory: Path
    checkpoint: Path
    best: bool
    by_id: bool = False


def find(run: str, uri: str) -> Found:
    """Find the run that the user names.

    Args:
        run: a directory, a `.ckpt` file, or an MLflow run id.
        uri: of the MLflow store that run ids are looked up in.

    Raises:
        UserError: there is none, or it has not finished.
    """
    path = Path(run).expanduser().absolute()
    there = exists(f"run={run}", path)
    if there and path.is_file():
        if path.suffix != ".ckpt":
            raise UserError(f"run={run} is a file, but no checkpoint (.ckpt)")
        inside = path.parent.name == "checkpoints" and (path.parent.parent / "config.yaml").is_file()
        directory = path.parent.parent if inside else path.with_name(f"{path.stem}.evaluation")
        return Found(directory, path, best=inside and path.name == BEST)
    if there and path.is_dir() and not (path / "config.yaml").exists() and (path / "config.json").is_file():
        return Found(path, path, best=False)  # what memlab.export wrote
    if there and path.is_dir():
        return _finished(path, f"run={run}")
    if _RUN_ID.fullmatch(run):
        return replace(_finished(_directory_of(run, uri), f"run={run} in {uri}"), by_id=True)
    raise UserError(
        f"run={run}: there is no such directory or file, and it is no MLflow run id (32 hexadecimal digits)"
    )


def _finished(directory: Path, named: str) -> Found:
    """The best checkpoint of a run that has ended."""
    if not (directory / "config.yaml").is_file():
        raise UserError(f"{named}: there is no run here ({directory / 'config.yaml'} is missing)")
    best = directory / "checkpoints" / BEST
    if not (directory / "result.json").is_file():
        how = (
            f", or evaluate the checkpoint it has: run={best}"
            if best.is_file()
            else "; it has no checkpoint yet"
        )
        raise UserError(
            f"{named}: the run has not finished ({directory / 'result.json'} is missing). Continue it with "
            f"memlab.train resume=DIR{how}"
        )
    try:
        read_object(directory / "result.json")
    except DamagedFileError as error:
        raise UserError(
            f"{named}: {error}. memlab.train resume=DIR makes it again from the run's last checkpoint; or "
            f"evaluate the checkpoint as it is: run={best}"
        ) from None
    if not best.is_file():
        raise UserError(f"{named}: the run's checkpoint is gone ({best} is missing)")
    return Found(directory, best, best=True)


def _directory_of(run_id: str, uri: str) -> Path:
    """The directory of a run in MLflow."""
    client = mlflow_client.existing(uri)
    from mlflow.exceptions import MlflowException

    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        raise UserError(f"run={run_id}: tracking.uri={uri} has no such run ({first_line(error)})") from None
    place = run.data.tags.get("memlab.run_dir")
    if place is None:
        raise UserError(
            f"run={run_id}: memlab.train did not make this MLflow run (it has no tag memlab.run_dir)"
        )
    if not Path(place).is_dir():
        raise UserError(
            f"run={run_id}: its directory {place} is not on this machine; copy it here and give run=DIR"
        )
    return Path(place)


def mlflow_run_id(directory: Path) -> str | None:
    """The MLflow run of a run's directory; None = it has none."""
    facts = directory / "run.json"
    try:
        found: str | None = read_object(facts).get("mlflow_run_id") if facts.is_file() else None
    except DamagedFileError as error:
        print(f"memlab: warning: {error}; what is found is not written to MLflow", file=sys.stderr)
        return None
    return found


def add(
    uri: str,
    run_id: str | None,
    points: Iterable[tuple[str, float, int]] = (),
    files: Iterable[tuple[Path, str]] = (),
) -> None:
    """Add metrics (name, value, step) and files (path, folder among the artifacts) to an MLflow run; a
    warning says where that fails.

    Args:
        run_id: None = the run is not in MLflow.
    """
    if run_id is None:
        return
    from mlflow.entities import Metric
    from mlflow.exceptions import MlflowException

    now = int(time.time() * 1000)
    metrics = [Metric(name, float(value), now, step) for name, value, step in points]
    try:
        client = mlflow_client.existing(uri)
        for start in range(0, len(metrics), _MOST):
            client.log_batch(run_id, metrics=metrics[start : start + _MOST])
        for file, folder in files:
            client.log_artifact(run_id, str(file), folder)
    except (MlflowException, OSError, UserError) as error:
        print(
            f"memlab: warning: not written to the MLflow run {run_id} ({uri}): {first_line(error)}",
            file=sys.stderr,
        )
