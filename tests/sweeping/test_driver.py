"""The sweep's own process: kill -9 of it, of its workers and of its trainings at random moments;
what it says when it cannot go on.
"""

from __future__ import annotations

import random
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.sweeping import sweeps
from tests.sweeping.killing import drive, gone, survive, trainings

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="processes that end with their starter")


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in range(1, 8))])
def test_nothing_is_lost_or_doubled_by_kills_at_random_moments(seed: int, tmp_path: Path) -> None:
    pruner = {"name": "median", "startup_trials": 2}
    fake = {"FAKE_STEPS": "6", "FAKE_PAUSE": "0.08"}
    order = sweeps.order(
        tmp_path,
        fake,
        spec=sweeps.spec(pruner=pruner),
        trials=5 if seed == 0 else 12,
        max_steps=6,
        restarts=50,
    )
    kills = 4 if seed == 0 else 15
    killed = survive(order, tmp_path, random.Random(seed), kills)
    assert sum(killed.values()) >= kills // 2, killed
    found = sweeps.check_whole(order)
    assert [trial.number for trial in found] == list(range(order.trials)), (
        "a killed trial goes on under its own number"
    )


def test_ctrl_c_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, {"FAKE_STEPS": "40", "FAKE_PAUSE": "0.15"}, trials=2)
    driver = drive(order, 2, tmp_path / "log")
    deadline = time.monotonic() + 60
    while len(trainings(tmp_path)) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    driver.send_signal(signal.SIGINT)
    assert driver.wait(30) == 130 and gone(tmp_path)
    assert {trial.state.name for trial in sweeps.trials(order)} == {"RUNNING"}
    assert drive(order, 1, tmp_path / "log").wait(60) == 0
    sweeps.check_whole(order)


def test_a_sweep_that_cannot_succeed_says_why(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, {"FAKE_FAIL": "task=reverse"})
    assert drive(order, 2, tmp_path / "log").wait(60) == 2
    said = (tmp_path / "log").read_text()
    assert "trials all failed" in said and "task=reverse is bad" in said and "Traceback" not in said
