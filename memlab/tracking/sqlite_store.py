"""An MLflow store in a SQLite file, looked at without MLflow, which takes seconds to import and has no word
for what may be wrong here.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlparse

from memlab.errors import UserError
from memlab.files import check_place, exists

PATIENCE = 120.0  # seconds that a locked store is waited for
_SAID_AFTER = 2.0  # seconds after which the wait is reported
_HEADER = b"SQLite format 3\0"


def check(named: str, database: Path) -> None:
    """Whether MLflow can use a store of this name: a database that can be written to, or no file yet.

    Waits while another process has it locked.

    Args:
        named: the key and its value, for messages.

    Raises:
        UserError: it cannot.
    """
    if not exists(named, database):
        check_place(named, database)
        return
    if database.is_dir():
        raise UserError(f"{named} is a directory; give the file of a SQLite database, or of one to be made")
    try:
        with database.open("rb") as file:
            head = file.read(len(_HEADER))
    except OSError as error:
        raise UserError(f"{named} cannot be read: {error.strerror}") from None
    if head and head != _HEADER:
        raise UserError(f"{named}: {database} is not a SQLite database; give another file, or move it away")
    try:
        _wait_until_free(named, database)
    except sqlite3.DatabaseError as error:
        raise UserError(
            f"{named}: {database} is damaged ({error}); give another file, or restore it"
        ) from None


def _wait_until_free(named: str, database: Path) -> None:
    began, said = time.monotonic(), False
    while True:
        try:
            with _opened(database, timeout=0.5) as connection:
                connection.execute("BEGIN IMMEDIATE")
                connection.rollback()
            return
        except sqlite3.OperationalError as error:
            if "locked" not in str(error):
                raise UserError(f"{named}: MLflow's store cannot be used: {error}") from None
        waited = time.monotonic() - began
        if waited > PATIENCE:
            raise UserError(f"{named}: another process has had {database} locked for {waited:.0f} s")
        if waited > _SAID_AFTER and not said:
            said = True
            print(
                f"memlab: {database} is locked by another process; waiting for it, {PATIENCE:.0f} s at most",
                file=sys.stderr,
            )
        time.sleep(0.1)


@contextlib.contextmanager
def _opened(database: Path, timeout: float) -> Iterator[sqlite3.Connection]:
    connection = sqlite3.connect(database, timeout=timeout, isolation_level=None)
    try:
        yield connection
    finally:
        connection.close()


def follow_move(database: Path, experiment: str, artifacts: Path) -> None:
    """Have an experiment keep its artifacts beside the store again, where the folder of both was moved.

    MLflow stores where an experiment's artifacts lie as an absolute path when it makes the experiment. Only a
    folder `mlruns` that is gone is followed; every other place was chosen by somebody.
    """
    with _opened(database, timeout=20) as connection:
        row = connection.execute(
            "SELECT experiment_id, artifact_location FROM experiments WHERE name = ?", [experiment]
        ).fetchone()
        if row is None:
            return
        number, location = row
        before = _local(location)
        if before is None or before == artifacts or before.name != artifacts.name or before.exists():
            return
        connection.execute(
            "UPDATE experiments SET artifact_location = ? WHERE experiment_id = ?",
            [artifacts.as_uri(), number],
        )
        connection.execute(
            "UPDATE runs SET artifact_uri = ? || substr(artifact_uri, ?) "
            "WHERE experiment_id = ? AND substr(artifact_uri, 1, ?) = ?",
            [artifacts.as_uri(), len(location) + 1, number, len(location) + 1, f"{location}/"],
        )
    print(
        f"memlab: {database} was moved here from {before.parent}, and its artifacts with it", file=sys.stderr
    )


def _local(location: str | None) -> Path | None:
    """A path on this machine; None = it is on a server."""
    parsed = urlparse(location or "")
    if parsed.scheme == "file":
        return Path(unquote(parsed.path))
    return Path(parsed.path) if location and not parsed.scheme else None
