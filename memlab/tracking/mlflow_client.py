"""MLflow's store, without Lightning: where it is, made if it is not there, and whether it holds a run."""

from __future__ import annotations

import logging
import os
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from memlab.errors import UserError, first_line

SQLITE = "sqlite:///"


def absolute_uri(uri: str) -> str:
    """The tracking URI with a SQLite file's path made absolute, so that it means the same from every directory."""
    return SQLITE + str(Path(uri.removeprefix(SQLITE)).absolute()) if uri.startswith(SQLITE) else uri


def prepare(uri: str, experiment: str) -> None:
    """Make the store and the experiment if they are not there yet, one process at a time.

    MLflow's own creation of a SQLite store is not safe when several processes begin at once (they crash on a duplicate column).

    Raises:
        UserError: the store cannot be reached or written.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    uri = absolute_uri(uri)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    for name in ("mlflow", "mlflow.store.db.utils", "alembic"):  # importing mlflow has set their levels
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if uri.startswith(SQLITE):
            database = Path(uri.removeprefix(SQLITE))
            database.parent.mkdir(parents=True, exist_ok=True)
            with lock(uri):
                _make_experiment(MlflowClient(uri), experiment, (database.parent / "mlruns").as_uri())  # the client makes the tables
        else:
            _make_experiment(MlflowClient(uri), experiment, None)
    except (MlflowException, OSError) as error:
        raise UserError(f"tracking.uri={uri}: MLflow's store cannot be used: {first_line(error)}") from None


def lock(uri: str) -> AbstractContextManager[Any]:
    """Held by one process of this machine at a time; a server puts its own requests in order."""
    return FileLock(f"{uri.removeprefix(SQLITE)}.lock") if uri.startswith(SQLITE) else nullcontext()


def _make_experiment(client: Any, name: str, artifacts: str | None) -> None:
    if client.get_experiment_by_name(name) is None:
        client.create_experiment(name, artifact_location=artifacts)


def holds(uri: str, run_id: str) -> bool:
    """Whether a run is in the store, and not deleted."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return bool(MlflowClient(uri).get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False
