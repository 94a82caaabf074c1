"""Where a sweep's trials are kept: a SQLite file, or PostgreSQL for workers on many machines.

And the lock that makes them agree.

Everything that decides which worker does which trial happens while one worker holds the lock: one of the file
system next to a SQLite file, an advisory lock of the server in PostgreSQL. Both are taken back when their
holder dies, however it dies.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from memlab.errors import ConfigError, UserError

T = TypeVar("T")
PATIENCE = 600.0  # seconds that a worker waits for a store that has gone away
# a lock of a machine that is gone ends
_KEEPALIVE = "-c tcp_keepalives_idle=30 -c tcp_keepalives_interval=10 -c tcp_keepalives_count=3"


class Store:
    """A sweep's storage.

    Args:
        url: `sqlite:///FILE` or `postgresql://USER:PASSWORD@HOST/DATABASE`.
        lock_name: what the lock stands for; sweeps of other names do not wait for each other.

    Raises:
        ConfigError: the URL is of another kind.
        UserError: the storage cannot be reached, or its driver is not installed.
    """

    def __init__(self, url: str, lock_name: str) -> None:
        from sqlalchemy import make_url
        from sqlalchemy.exc import ArgumentError

        try:
            self.url = make_url(url)
        except ArgumentError:
            raise ConfigError(
                "storage is not a URL such as sqlite:///FILE or postgresql://USER:PASSWORD@HOST/DATABASE"
            ) from None
        kind = self.url.get_backend_name()
        if kind not in ("sqlite", "postgresql"):
            raise ConfigError(
                f"storage={self.name}: {kind} is not supported; use sqlite:///FILE or "
                "postgresql://USER:PASSWORD@HOST/DATABASE"
            )
        self.file: Path | None = None
        if kind == "sqlite":
            if self.url.database in (None, "", ":memory:"):
                raise ConfigError(
                    f"storage={self.name}: several processes share it, so it has to be a file: sqlite:///FILE"
                )
            self.file = Path(str(self.url.database)).absolute()
            self.url = self.url.set(database=str(self.file))
        elif self.url.drivername == "postgresql":
            self.url = self.url.set(drivername="postgresql+psycopg")
        self.lock_name = lock_name
        self._backend: Any = None

    @property
    def name(self) -> str:
        """The URL without its password."""
        return self.url.render_as_string(hide_password=True)

    @property
    def secret(self) -> str:
        """The URL with it."""
        return self.url.render_as_string(hide_password=False)

    def exists(self) -> bool:
        """Whether there can be something in it; False only for a SQLite file that is not there."""
        return self.file is None or self.file.exists()

    def check(self) -> None:
        """See whether it can be reached; nothing is written.

        Raises:
            UserError: it cannot.
        """
        if self.file is not None:
            parent = next(p for p in self.file.parents if p.exists())
            if not parent.is_dir():
                raise UserError(f"storage={self.name}: {parent} is not a directory")
            if not self.file.exists():
                return
        with self._refusing():
            engine = self._engine()
            with engine.connect() as connection:
                connection.exec_driver_sql(
                    "SELECT 1" if self.file is None else "SELECT count(*) FROM sqlite_master"
                )
            engine.dispose()

    def backend(self) -> Any:
        """Optuna's storage; its tables are made by one process at a time.

        Raises:
            UserError: the directory of its file cannot be made.
        """
        if self._backend is None:
            quiet()
            from alembic.util import CommandError
            from optuna.storages import RDBStorage

            if self.file is not None:
                try:
                    self.file.parent.mkdir(parents=True, exist_ok=True)
                except OSError as error:
                    raise UserError(f"storage={self.name}: {error.strerror}: {self.file.parent}") from None
            arguments = {"connect_args": self._arguments(), "pool_pre_ping": True}
            with self.lock("tables"):
                try:
                    self._backend = RDBStorage(self.secret, engine_kwargs=arguments)
                except (RuntimeError, CommandError) as error:
                    # such as MLflow's tables, which note their version in the same place
                    raise UserError(
                        f"storage={self.name} has tables of another program, or of another Optuna; give the "
                        f"sweeps a database of their own ({self._reason(error)})"
                    ) from None
        return self._backend

    def close(self) -> None:
        """Let go of all connections; what was opened in it cannot be used any more."""
        if self._backend is not None:
            self._backend.remove_session()
            self._backend.engine.dispose()
            self._backend = None

    def _arguments(self) -> dict[str, Any]:
        return {"timeout": 60} if self.file is not None else {"connect_timeout": 10, "options": _KEEPALIVE}

    def _engine(self) -> Any:
        from sqlalchemy import create_engine
        from sqlalchemy.pool import NullPool

        return create_engine(self.url, poolclass=NullPool, connect_args=self._arguments())

    @contextlib.contextmanager
    def _refusing(self) -> Iterator[None]:
        """What goes wrong with the storage, in one line and without the password."""
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import SQLAlchemyError

        try:
            yield
        except ModuleNotFoundError as error:
            raise UserError(
                f"storage={self.name}: {error.name} is not installed; pip install 'memlab[postgres]'"
            ) from None
        except (SQLAlchemyError, StorageInternalError, RuntimeError) as error:
            raise UserError(f"storage={self.name} cannot be used: {self._reason(error)}") from None

    def _reason(self, error: BaseException) -> str:
        cause = getattr(error, "orig", None) or error.__cause__ or error
        words = " ".join(str(cause).split()) or type(cause).__name__
        if self.url.password:
            words = words.replace(str(self.url.password), "***")
        return words if len(words) < 300 else words[:300] + "…"

    @contextlib.contextmanager
    def lock(self, what: str = "leases", wait: bool = True) -> Iterator[bool]:
        """Hold a lock that one process at a time holds, on all machines that share the storage; True if it is
        held.

        Args:
            wait: False = do not wait for the process that holds it.
        """
        if self.file is None:
            with self._server_lock(what, wait) as held:
                yield held
            return
        from filelock import FileLock, Timeout

        self.file.parent.mkdir(parents=True, exist_ok=True)
        lock = FileLock(f"{self.file}.{what}.lock", timeout=-1 if wait else 0)
        try:
            lock.acquire(poll_interval=0.02)
        except Timeout:
            yield False
            return
        try:
            yield True
        finally:
            lock.release()

    @contextlib.contextmanager
    def _server_lock(self, what: str, wait: bool) -> Iterator[bool]:
        key = int.from_bytes(
            hashlib.sha256(f"memlab {self.lock_name} {what}".encode()).digest()[:8], "big", signed=True
        )
        engine = self._engine()
        with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
            if wait:
                connection.exec_driver_sql(f"SELECT pg_advisory_lock({key})")
            elif not connection.exec_driver_sql(f"SELECT pg_try_advisory_lock({key})").scalar():
                yield False
                return
            try:
                yield True
            finally:
                with contextlib.suppress(Exception):  # with the connection the lock is gone too
                    connection.exec_driver_sql(f"SELECT pg_advisory_unlock({key})")

    def patiently(self, work: Callable[[], T], patience: float = PATIENCE) -> T:
        """The result of work that may be done twice; a storage that has gone away is waited for.

        Raises:
            UserError: it did not come back.
        """
        from optuna.exceptions import StorageInternalError
        from sqlalchemy.exc import DBAPIError, TimeoutError

        deadline, pause, reported = time.monotonic() + patience, 0.2, False
        while True:
            try:
                return work()
            except (StorageInternalError, DBAPIError, TimeoutError) as error:
                if patience <= 0:
                    raise UserError(f"storage={self.name} cannot be used: {self._reason(error)}") from None
                if time.monotonic() > deadline:
                    raise UserError(
                        f"storage={self.name} has been gone for {patience:.0f} s: {self._reason(error)}"
                    ) from None
                if not reported:
                    print(f"memlab: storage={self.name}: {self._reason(error)}; trying again", flush=True)
                    reported = True
                time.sleep(pause)
                pause = min(pause * 2, 10.0)


def quiet() -> None:
    """Optuna's own lines would stand between ours; what it calls experimental is pinned by our
    requirements.
    """
    import optuna

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)
