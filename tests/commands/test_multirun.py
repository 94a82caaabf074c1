"""Several runs at a time: killed at any place, the same command goes on, and nothing is lost or doubled."""

from __future__ import annotations

import json
import os
import random
import signal
import time
from pathlib import Path

import pytest

from memlab.config.starter import FORKS
from tests.commands.test_train import losses, small
from tests.processes import Process, Processes
from tests.training.resuming import wait_for

pytestmark = pytest.mark.skipif(not FORKS, reason="needs /proc")
SEEDS = [0, 1, 2]


def words(place: str) -> list[str]:
    command = small("tracking=off", "trainer.max_steps=60", "trainer.checkpoint_every=5", "resume=auto")
    return ["--multirun", "jobs=2", *command, "seed=0,1,2", f"run_dir='{place}/${{seed}}'"]


def children(pid: int) -> list[int]:
    """Process ids of all that a process started, and of all that these started."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in map(int, task.read_text().split()):
            found += [child, *children(child)]
    return found


def gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except OSError:
        return True


def end(driver: Process, what: str, choose: random.Random) -> None:
    """kill -9 of the driver, of the process that forks the runs, or of a run; no orphan stays."""
    below = children(driver.pid)
    if what == "driver" or not below:
        os.kill(driver.pid, signal.SIGKILL)
        wait_for(lambda: all(gone(pid) for pid in below))
    else:
        os.kill(
            below[0] if what == "starter" or len(below) == 1 else choose.choice(below[1:]), signal.SIGKILL
        )


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory, processes: Processes) -> dict[int, list[float]]:
    """The losses of each run, uninterrupted."""
    place = tmp_path_factory.mktemp("expected")
    done = processes.run("train", *words("there"), cwd=place)
    assert done.returncode == 0, done.stderr
    logs = sorted(path.name for path in place.glob("runs/multirun/*/*.log"))
    assert logs == ["1.log", "2.log", "3.log"]
    assert done.stderr.count("running") >= 3 and "3 runs: 3 done" in done.stderr
    return {seed: losses(place / "there" / str(seed)) for seed in SEEDS}


def check(place: Path, expected: dict[int, list[float]], processes: Processes) -> None:
    """The same command goes on: no run is lost, none is there twice, no number is another."""
    done = processes.run("train", *words("there"), cwd=place)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in (place / "there").iterdir()) == [str(seed) for seed in SEEDS]
    for seed in SEEDS:
        assert json.loads((place / "there" / str(seed) / "result.json").read_text())["seed"] == seed
        assert losses(place / "there" / str(seed)) == expected[seed]


def once(what: str, wait: float, place: Path, processes: Processes, choose: random.Random) -> None:
    driver = processes.start("train", *words("there"), cwd=place)
    try:
        wait_for(lambda: any((place / "there").glob("*/metrics.jsonl")) or driver.poll() is not None)
        time.sleep(wait)
        if driver.poll() is None:
            end(driver, what, choose)
        if what != "driver":  # the driver itself lets the runs go on
            assert driver.wait() == 0, driver.communicate()
            assert what == "starter" or "killed; it " in driver.err.read_text()
    finally:
        driver.send_signal(signal.SIGKILL)
        driver.wait()


def test_a_driver_that_was_killed(
    tmp_path: Path, processes: Processes, expected: dict[int, list[float]]
) -> None:
    once("driver", 0.0, tmp_path, processes, random.Random(0))
    check(tmp_path, expected, processes)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["driver", "starter", "run"])
def test_killed_at_thirty_moments(
    what: str, tmp_path: Path, processes: Processes, expected: dict[int, list[float]]
) -> None:
    choose = random.Random(what)
    for moment in range(30):
        place = tmp_path / str(moment)
        place.mkdir()
        once(what, choose.uniform(0, 3), place, processes, choose)
        check(place, expected, processes)
