"""Workers that share a real PostgreSQL server, as they do on many machines.

Skipped where it is not installed (the package postgresql).
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
import warnings
from collections.abc import Iterator
from pathlib import Path

import pytest

from memlab.errors import UserError
from memlab.sweeping.store import Store
from tests.commands.test_sweep import SWEEP, start
from tests.sweeping import sweeps
from tests.sweeping.killing import drive, survive

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
psycopg = pytest.importorskip("psycopg")
pytestmark = pytest.mark.skipif(not PROGRAMS, reason="PostgreSQL is not installed")
PASSWORD = "a secret & more"


class Server:
    """A server of our own on a free port of 127.0.0.1, in a directory of its own."""

    def __init__(self, directory: Path) -> None:
        self.bin, self.directory = PROGRAMS[-1].parent, directory
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        # the server refuses to run as root
        self.prefix = ["runuser", "-u", "postgres", "--"] if os.geteuid() == 0 else []
        if self.prefix:
            shutil.chown(directory, "postgres", "postgres")
        secret = directory / "password"
        secret.write_text(PASSWORD)
        if self.prefix:
            shutil.chown(secret, "postgres", "postgres")
        self._run(
            "initdb",
            "-D",
            str(directory / "data"),
            "-U",
            "memlab",
            "-A",
            "scram-sha-256",
            f"--pwfile={secret}",
            "--no-sync",
        )
        self.start()

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run(
            [*self.prefix, str(self.bin / program), *words],
            cwd="/",
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        settings = (
            f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.directory} -c "
            "fsync=off"
        )
        self._run(
            "pg_ctl",
            "-D",
            str(self.directory / "data"),
            "-o",
            settings,
            "-w",
            "-l",
            str(self.directory / "log"),
            "start",
        )

    def stop(self) -> None:
        pid = int((self.directory / "data" / "postmaster.pid").read_text().split()[0])
        os.kill(pid, signal.SIGINT)  # a fast stop: connections are cut
        deadline = time.monotonic() + 20
        while Path(f"/proc/{pid}").exists() and time.monotonic() < deadline:
            time.sleep(0.05)

    @property
    def url(self) -> str:
        from urllib.parse import quote

        return f"postgresql://memlab:{quote(PASSWORD)}@127.0.0.1:{self.port}/postgres"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    # pytest's own directories are closed to other users
    place = Path(tempfile.mkdtemp(prefix="memlab-postgres-", dir="/tmp"))
    running = Server(place)
    try:
        yield running
    finally:
        with contextlib.suppress(OSError):
            running.stop()
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_four_workers_of_two_machines_with_kills(server: Server, tmp_path: Path) -> None:
    order = sweeps.order(
        tmp_path,
        {"FAKE_STEPS": "5", "FAKE_PAUSE": "0.08"},
        study="kills",
        storage=server.url,
        trials=10,
        restarts=50,
    )
    other = drive(order, 2, tmp_path / "other.log")  # a second driver, as on another machine
    killed = survive(order, tmp_path, random.Random(1), kills=5, workers=2)
    assert other.wait(60) == 0, (tmp_path / "other.log").read_text()
    assert sum(killed.values()) >= 3
    sweeps.check_whole(order)


@pytest.mark.slow
def test_a_server_that_goes_away_for_a_while_is_waited_for(server: Server, tmp_path: Path) -> None:
    order = sweeps.order(
        tmp_path, {"FAKE_STEPS": "8", "FAKE_PAUSE": "0.1"}, study="outage", storage=server.url, trials=4
    )
    driver = drive(order, 2, tmp_path / "log")
    deadline = time.monotonic() + 30
    while not list(tmp_path.glob("trials/*/seed_0/metrics.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.05)
    server.stop()
    time.sleep(2)
    server.start()
    assert driver.wait(90) == 0, (tmp_path / "log").read_text()
    sweeps.check_whole(order)
    assert PASSWORD not in "".join(file.read_text(errors="replace") for file in tmp_path.rglob("*.log"))


def test_what_cannot_be_reached_is_told_in_one_line_without_the_password(server: Server) -> None:
    wrong = server.url.replace(str(server.port), "1")
    with pytest.raises(UserError, match=r"127\.0\.0\.1:1/postgres cannot be used: .*refused") as caught:
        Store(wrong, "x").check()
    denied = server.url.replace("secret", "guess")
    with pytest.raises(UserError, match="authentication failed") as other:
        Store(denied, "x").check()
    for error in (caught, other):
        assert (
            "\n" not in str(error.value)
            and "secret" not in str(error.value)
            and "guess" not in str(error.value)
        )


@pytest.mark.slow
def test_four_trials_at_once_log_to_an_mlflow_server_and_no_metric_is_lost(
    server: Server, tmp_path: Path
) -> None:
    """The services of docker/compose.yaml, with its flags, as processes of this machine."""
    from mlflow import MlflowClient

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    flags = [
        "--host=127.0.0.1",
        f"--port={port}",
        "--workers=1",
        "--serve-artifacts",
        f"--artifacts-destination={tmp_path / 'artifacts'}",
    ]
    flags += ["--allowed-hosts=mlflow:5000,localhost:*,127.0.0.1:*"]
    with psycopg.connect(server.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE mlflow")
    backend = server.url.replace("postgresql://", "postgresql+psycopg://").replace("/postgres", "/mlflow")
    quiet = {"MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false", "MLFLOW_DISABLE_TELEMETRY": "true"}
    with (tmp_path / "mlflow.log").open("w") as log:
        command = [sys.executable, "-m", "mlflow", "server", *flags]
        mlflow = subprocess.Popen(
            command, env={**os.environ, **quiet, "MLFLOW_BACKEND_STORE_URI": backend}, stdout=log, stderr=log
        )
    try:
        until_healthy(uri, "mlflow:5000", tmp_path / "mlflow.log")
        base = {**SWEEP["base"], "trainer.max_steps": 60, "trainer.log_every": 1}
        shared = backend.replace("+psycopg", "")
        with warnings.catch_warnings():
            # nobody can close the connections of an Optuna storage that was not made
            warnings.simplefilter("ignore", ResourceWarning)
            with pytest.raises(UserError, match="give the sweeps a database of their own"):
                Store(shared, "x").backend()
            gc.collect()
        process = start(
            tmp_path,
            "trials=4",
            "workers=4",
            f"storage='{server.url}'",
            f"tracking.uri={uri}",
            base=base,
            final={"seeds": []},
        )
        said, _ = process.communicate(timeout=280)
        assert process.returncode == 0 and "warning" not in said.lower() and PASSWORD not in said, said
        client, counted = MlflowClient(uri), 0
        for number in range(4):
            run = tmp_path / "out" / "trials" / f"{number:04d}" / "seed_0"
            run_id = json.loads((run / "run.json").read_text())["mlflow_run_id"]
            wanted: dict[str, list[tuple[int, float]]] = {}
            for line in (run / "metrics.jsonl").read_text().splitlines():
                values = json.loads(line)
                for key in values.keys() - {"step"}:
                    wanted.setdefault(key, []).append((values["step"], values[key]))
            for key, points in wanted.items():
                stored = [(metric.step, metric.value) for metric in client.get_metric_history(run_id, key)]
                if key not in ("val/score", "val/accuracy"):  # stored again as the result's, at step 0
                    assert sorted(stored) == sorted(points), (number, key)
                assert set(points) <= set(stored)
                counted += len(points)
        assert counted >= 4 * 60 * 3
        parent = json.loads((tmp_path / "out" / "result.json").read_text())["mlflow_run_id"]
        assert client.get_run(parent).info.status == "FINISHED" and client.list_artifacts(parent, "figures")
    finally:
        mlflow.terminate()
        mlflow.wait(30)


def until_healthy(uri: str, host: str, log: Path) -> None:
    """Until the server answers to a name by which the containers call it."""
    deadline = time.monotonic() + 90
    while True:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(f"{uri}/health", headers={"Host": host}), timeout=4
            ) as answer:
                assert answer.status == 200
                return
        except OSError:
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.3)
