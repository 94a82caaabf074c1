"""Workers that share a real PostgreSQL server, as they do on many machines. Skipped where it is not installed (the package postgresql)."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from memlab.errors import UserError
from memlab.sweeping.store import Store
from tests.sweeping import sweeps
from tests.sweeping.killing import drive, survive

PROGRAMS = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda p: int(p.parts[-3]))
pytest.importorskip("psycopg")
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
        self._run("initdb", "-D", str(directory / "data"), "-U", "memlab", "-A", "scram-sha-256", f"--pwfile={secret}", "--no-sync")
        self.start()

    def _run(self, program: str, *words: str) -> None:
        done = subprocess.run([*self.prefix, str(self.bin / program), *words], cwd="/", capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr

    def start(self) -> None:
        settings = f"-p {self.port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={self.directory} -c fsync=off"
        self._run("pg_ctl", "-D", str(self.directory / "data"), "-o", settings, "-w", "-l", str(self.directory / "log"), "start")

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
    place = Path(tempfile.mkdtemp(prefix="memlab-postgres-", dir="/tmp"))  # pytest's own directories are closed to other users
    running = Server(place)
    try:
        yield running
    finally:
        with contextlib.suppress(OSError):
            running.stop()
        shutil.rmtree(place, ignore_errors=True)


@pytest.mark.slow
def test_four_workers_of_two_machines_with_kills(server: Server, tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, {"FAKE_STEPS": "5", "FAKE_PAUSE": "0.08"}, study="kills", storage=server.url, trials=10, restarts=50)
    other = drive(order, 2, tmp_path / "other.log")  # a second driver, as on another machine
    killed = survive(order, tmp_path, random.Random(1), kills=5, workers=2)
    assert other.wait(60) == 0, (tmp_path / "other.log").read_text()
    assert sum(killed.values()) >= 3
    sweeps.check_whole(order)


@pytest.mark.slow
def test_a_server_that_goes_away_for_a_while_is_waited_for(server: Server, tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, {"FAKE_STEPS": "8", "FAKE_PAUSE": "0.1"}, study="outage", storage=server.url, trials=4)
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
        assert "\n" not in str(error.value) and "secret" not in str(error.value) and "guess" not in str(error.value)
