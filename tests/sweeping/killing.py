"""Sweeps of stand-in trainings as processes, and kill -9 at random moments of their driver,
their workers and their trainings.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

from memlab.sweeping.order import Order
from tests.sweeping import sweeps


def drive(order: Order, workers: int, log: Path) -> subprocess.Popen[bytes]:
    """A sweep's own process, with so many workers."""
    with log.open("ab") as out:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.sweeping.drive", str(workers)],
            stdin=subprocess.PIPE,
            stdout=out,
            stderr=out,
            env={**os.environ, "PYTHONPATH": sweeps.ROOT},
            start_new_session=True,
        )
    assert process.stdin is not None
    process.stdin.write(order.model_dump_json().encode())
    process.stdin.close()
    return process


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def children(pid: int) -> list[int]:
    """The living processes that one has started."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "stat").read_text().rpartition(")")[2].split()
            except OSError:
                continue
            if int(words[1]) == pid and words[0] not in "ZX":
                found.append(int(entry.name))
    return found


def trainings(directory: Path) -> list[int]:
    """Process ids of all trainings that were ever started."""
    return [
        int(line) for file in directory.glob("trials/**/starts") for line in file.read_text().splitlines()
    ]


def gone(directory: Path, seconds: float = 5.0) -> bool:
    """Whether no training is alive any more, at the latest after some seconds."""
    deadline = time.monotonic() + seconds
    while any(alive(pid) for pid in trainings(directory)):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def survive(
    order: Order, directory: Path, rng: random.Random, kills: int, workers: int = 2, seconds: float = 120
) -> dict[str, int]:
    """Run a sweep to its end, killing something now and then; returns what was killed how often.

    A killed driver is started again when nothing of it is left.
    """
    log, killed = directory / "driver.log", {"driver": 0, "worker": 0, "training": 0}
    driver, deadline = drive(order, workers, log), time.monotonic() + seconds
    while driver.poll() is None or driver.returncode != 0:
        assert time.monotonic() < deadline, log.read_text()
        assert driver.returncode in (None, 0, -signal.SIGKILL), log.read_text()
        if driver.returncode is not None:
            assert gone(directory), "orphans"
            driver = drive(order, workers, log)
        time.sleep(rng.uniform(0.05, 0.8))
        what = rng.choice(list(killed))
        victims = {
            "driver": [driver.pid] if driver.poll() is None else [],
            "worker": children(driver.pid),
            "training": [pid for pid in trainings(directory) if alive(pid)],
        }[what]
        if victims and sum(killed.values()) < kills:
            os.kill(rng.choice(victims), signal.SIGKILL)
            killed[what] += 1
            if what == "driver":
                driver.wait()
    assert gone(directory), "orphans"
    return killed
