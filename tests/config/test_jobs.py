"""`--multirun` and signals: the job that runs is told, no other begins, and what was not done is named."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from memlab.config import jobs
from tests.commands.test_train import SMALL
from tests.processes import Processes
from tests.training.resuming import wait_for


def test_sigterm_reaches_the_job_that_runs(tmp_path: Path, processes: Processes) -> None:
    """It saves; the driver names it and the others, and ends with 143."""
    keys = ["trainer.max_steps"]
    words = [
        *(w for w in SMALL if w.partition("=")[0] not in keys),
        "trainer.max_steps=100000",
        "trainer.stop_at_accuracy=null",
    ]
    words += ["tracking=off", "--multirun", "seed=0,1,2", "run_dir='here/${seed}'"]
    driver = processes.start("train", *words, cwd=tmp_path)
    wait_for((tmp_path / "here" / "0" / "checkpoints" / "last.ckpt").exists)
    driver.send_signal(signal.SIGTERM)
    _, err = driver.communicate(timeout=60)
    assert driver.returncode == 143, err
    assert (
        err.count("SIGTERM: saved; continue with: python -m memlab.train") == 1 and "Traceback" not in err
    ), err
    told = err[err.index("memlab.train: SIGTERM: 3 of the jobs not done:") :]
    assert [f"seed={seed}" in line for seed, line in enumerate(told.splitlines()[1:])] == [True] * 3, told
    assert [path.name for path in (tmp_path / "here").iterdir()] == ["0"]


class Job:
    """A job in the place of memlab's own: writes down what it gets."""

    def __init__(self, status: int, asked: int | None = None) -> None:
        self.status, self.asked = status, asked
        self.received: list[int] = []

    def __call__(self, *_: object) -> Job:
        return self

    def send_signal(self, number: int) -> None:
        self.received.append(number)

    def wait(self) -> int:
        if self.asked is not None:
            os.kill(os.getpid(), self.asked)
        return self.status


def test_a_job_that_finishes_all_the_same_is_done(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    every = jobs.Jobs("train")
    for name, job in (("a", Job(1)), ("b", Job(0, signal.SIGTERM)), ("c", Job(0))):
        monkeypatch.setattr(subprocess, "Popen", job)
        every.run([name])
        assert job.received == [signal.SIGTERM] * (name == "b")
    assert every.end() == 143
    assert (every.failed, every.waiting) == (["a (exit status 1)"], ["c"])
    assert "1 of the jobs failed:\n  a" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("foreground", "received"), [(True, []), (False, [signal.SIGINT])])
def test_ctrl_c_is_told_once(foreground: bool, received: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal tells it to the job itself."""
    job = Job(130, signal.SIGINT)
    monkeypatch.setattr(subprocess, "Popen", job)
    monkeypatch.setattr(jobs, "_at_keyboard", lambda: foreground)
    every = jobs.Jobs("train")
    every.run(["a"])
    assert every.end() == 130 and every.waiting == ["a"] and job.received == received
