"""MLflow's store, without Lightning: where it is, creating it if needed, and whether it holds a run."""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

from filelock import FileLock

from memlab.errors import UserError, first_line
from memlab.files import exists
from memlab.tracking import sqlite_store

SQLITE = "sqlite:///"
# Of the first contact with a server, in MLflow's own settings: by default it tries for more than a minute,
# and then waits two for an answer
_FIRST_CONTACT = {"MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1", "MLFLOW_HTTP_REQUEST_TIMEOUT": "10"}


def absolute_uri(uri: str) -> str:
    """The tracking URI with a SQLite file's path made absolute, so that it means the same from every
    directory.
    """
    return SQLITE + str(database_of(uri)) if uri.startswith(SQLITE) else uri


def database_of(uri: str) -> Path:
    """The file of a SQLite store, absolute."""
    return Path(uri.removeprefix(SQLITE)).expanduser().absolute()


def named(uri: str) -> str:
    """A store in a message: the key that names it, and where its value comes from if that is not the command
    line.
    """
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return f"tracking.uri={uri}" + (" (from MLFLOW_TRACKING_URI)" if given == uri else "")


def prepare(uri: str, experiment: str, patient: bool = False) -> None:
    """Create the store and the experiment if they do not exist yet, one process at a time.

    MLflow's own creation of a SQLite store is not safe when several processes begin at once (they crash on a
    duplicate column).

    Args:
        patient: wait for a server that does not answer, as later writes do; False = some seconds: its address
            may be wrong.

    Raises:
        UserError: the store cannot be reached or written.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    given, uri = named(uri), absolute_uri(uri)
    if uri.startswith(SQLITE):
        sqlite_store.check(given, database_of(uri))
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    for name in ("mlflow", "mlflow.store.db.utils", "alembic"):  # importing mlflow has set their levels
        logging.getLogger(name).setLevel(logging.WARNING)
    try:
        if uri.startswith(SQLITE):
            database = database_of(uri)
            database.parent.mkdir(parents=True, exist_ok=True)
            with lock(uri):
                # the client makes the tables
                artifacts = database.parent / "mlruns"
                _make_experiment(MlflowClient(uri), experiment, artifacts.as_uri())
                sqlite_store.follow_move(database, experiment, artifacts)
        else:
            with nullcontext() if patient else _first_contact():
                _make_experiment(MlflowClient(uri), experiment, None)
    except (MlflowException, OSError, SQLAlchemyError) as error:
        raise UserError(f"{given}: MLflow's store cannot be used: {_reason(error)}") from None


def existing(uri: str, advice: str = "") -> Any:
    """A client of a store that is there; MLflow would make a new one.

    Args:
        advice: what to do if there is none.

    Raises:
        UserError: there is no store, or it cannot be read.
    """
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    given, database = named(uri), database_of(uri)
    if uri.startswith(SQLITE):
        if not exists(given, database):
            raise UserError(
                f"{given}: there is no MLflow store ({database} is missing){advice and '. '}{advice}"
            )
        sqlite_store.check(given, database)
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import SQLAlchemyError

    try:
        client = MlflowClient(absolute_uri(uri))
        with _first_contact():
            client.search_experiments(max_results=1)
    except (MlflowException, OSError, SQLAlchemyError) as error:
        raise UserError(f"{given}: MLflow's store cannot be used: {_reason(error)}") from None
    return client


def _reason(error: Exception) -> str:
    """What an error says; of a server that cannot be reached only why: requests begins with the request, and
    how often it was tried.
    """
    line = first_line(error)
    cause = re.search(r"""Caused by \w+\(.*(?:: |, ')([^:]+)["']\)\)$""", line)
    return f"the server does not answer: {cause[1]}" if cause else line


@contextlib.contextmanager
def _first_contact() -> Iterator[None]:
    """MLflow gives up a server soon; what the user has set in the environment takes precedence."""
    mine = {key: value for key, value in _FIRST_CONTACT.items() if key not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for key in mine:
            del os.environ[key]


def lock(uri: str) -> AbstractContextManager[Any]:
    """Held by one process of this machine at a time; a server puts its own requests in order."""
    return FileLock(f"{uri.removeprefix(SQLITE)}.lock") if uri.startswith(SQLITE) else nullcontext()


def _make_experiment(client: Any, name: str, artifacts: str | None) -> None:
    found = client.get_experiment_by_name(name)
    if found is None:
        client.create_experiment(name, artifact_location=artifacts)
    elif found.lifecycle_stage != "active":
        raise UserError(
            f"the MLflow experiment {name!r} has been deleted, and keeps its name until `mlflow gc` removes "
            "it. Give another one, tracking.experiment=NAME, or bring it back with its runs: mlflow "
            f"experiments restore --experiment-id {found.experiment_id}"
        )


def holds(uri: str, run_id: str) -> bool:
    """Whether a run is in the store, and not deleted."""
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException

    try:
        return bool(MlflowClient(uri).get_run(run_id).info.lifecycle_stage == "active")
    except MlflowException:
        return False
