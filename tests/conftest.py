"""Shared by all tests: one thread (two cores are shared by everything here) and a fixed seed before each
test.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.core.config_store import ConfigStore

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
# of the commands that tests start, too: with more threads than cores they wait for each other
os.environ["OMP_NUM_THREADS"] = "1"
torch.set_num_threads(1)
# a shell's background jobs are born ignoring Ctrl-C, and so would the commands that tests start
if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup() -> None:
    """Before all fixtures: no test writes to the store of who runs it, or to that of an earlier test, which
    MLflow's client leaves in the environment.
    """
    for name in ("MLFLOW_TRACKING_URI", "MLFLOW_EXPERIMENT_NAME"):
        os.environ.pop(name, None)


@pytest.fixture(autouse=True)
def _no_store_of_another_test() -> Iterator[None]:
    """MLflow sets the variable in its process, and commands that a later test starts would inherit it."""
    yield
    os.environ.pop("MLFLOW_TRACKING_URI", None)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _own_config_store(monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands without groups put their root there (`memlab.config.cli.run`), where the next test would
    find it.
    """
    store = ConfigStore.instance()
    monkeypatch.setattr(store, "repo", dict(store.repo))


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run of `tests.training.resuming`, uninterrupted."""
    from tests.training import resuming

    run = tmp_path_factory.mktemp("whole") / "run"
    resuming.train(resuming.config(run))
    return run


@pytest.fixture(scope="session")
def processes() -> Iterator[Any]:
    """Starts commands; see `tests.processes.Processes`."""
    from tests.processes import Processes

    started = Processes()
    yield started
    started.close()
