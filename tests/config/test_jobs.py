"""`--multirun` and signals: the job that runs is told, no other begins, and what was not done is named."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from memlab import train
from memlab.config import jobs
from memlab.config.jobs import Job
from memlab.config.overrides import parse
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


class Run:
    """A run in the place of memlab's own: keeps the signals that it gets.

    Args:
        status: its exit status.
        asked: a signal that this process gets while the run goes on.
    """

    pid = 0

    def __init__(self, status: int, asked: int | None = None) -> None:
        self.status, self.asked = status, asked
        self.returncode: int | None = None
        self.received: list[int] = []

    def send_signal(self, number: int) -> None:
        self.received.append(number)

    def poll(self) -> int | None:
        if self.asked is not None:
            os.kill(os.getpid(), self.asked)
        self.returncode = self.status
        return self.status

    def wait(self, timeout: float | None = None) -> int:
        return self.poll() or 0


class Runs:
    """Takes the place of the starter, and gives these runs in turn."""

    def __init__(self, *runs: Run) -> None:
        self.runs, self.words, self.environments = list(runs), [], []  # type: ignore[var-annotated]

    def __call__(self, modules: Sequence[str]) -> Runs:
        return self

    def start(self, command: str, words: Sequence[str], **more: Any) -> Run:
        self.words.append(list(words))
        self.environments.append(more["environment"])
        return self.runs[len(self.words) - 1]

    def close(self) -> None:
        pass


def test_a_job_that_finishes_all_the_same_is_done(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)
    runs = [Run(1), Run(0, signal.SIGTERM), Run(0)]
    monkeypatch.setattr(jobs, "Starter", Runs(*runs))
    every = jobs.Jobs("train")
    assert every.run([Job(["a"]), Job(["b"]), Job(["c"])]) == 143
    assert [run.received for run in runs] == [[], [signal.SIGTERM], []]
    assert every.waiting == ["c"] and len(every.failed) == 1
    assert every.failed[0].startswith("a (exit status 1)")
    assert "1 of the jobs failed:\n  a" in capfd.readouterr().err
    assert signal.getsignal(signal.SIGTERM) == before


@pytest.mark.parametrize(("foreground", "received"), [(True, []), (False, [signal.SIGINT])])
def test_ctrl_c_is_sent_once(foreground: bool, received: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The terminal sends it to the job itself."""
    run = Run(130, signal.SIGINT)
    monkeypatch.setattr(jobs, "Starter", Runs(run))
    monkeypatch.setattr(jobs, "_at_keyboard", lambda: foreground)
    every = jobs.Jobs("train")
    assert every.run([Job(["a"])]) == 130 and every.waiting == ["a"] and run.received == received


def test_a_run_that_was_killed_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From its own directory, and no more than three times."""
    place = tmp_path / "it's here"

    class Noting(Runs):
        def start(self, command: str, words: Sequence[str], **more: Any) -> Run:
            Path(more["environment"]["MEMLAB_JOB_NOTE"]).write_text(str(place))
            return super().start(command, words, **more)

    runs = Noting(*[Run(-signal.SIGKILL) for _ in range(4)])
    monkeypatch.setattr(jobs, "Starter", runs)
    every = jobs.Jobs("train")
    said = every.run([Job(["seed=0", "run_dir=x", "resume=auto"])])
    assert runs.words[0] == ["seed=0", "run_dir=x", "resume=auto"]
    (again,) = {tuple(words) for words in runs.words[1:]}
    assert again[0] == "seed=0" and len(runs.words) == 4
    (override,) = parse([again[1]])
    assert (override.key_or_group, override.value()) == ("resume", str(place))
    assert "ended by SIGKILL" in str(said)


def test_cores_are_dealt_out(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(jobs, "cores", lambda: 8)
    every = [Job(["a"], {"threads": None}), Job(["b"], {"threads": 3}), Job(["c"])]
    assert [job.words for job in jobs.with_threads(every, 3)] == [["a", "trainer.threads=2"], ["b"], ["c"]]
    assert "trainer.threads=2 for each run: 8 cores, 3 runs at a time" in capsys.readouterr().out
    assert jobs.with_threads(every, 1) == every, "one at a time has the whole machine, as by hand"


def test_gpus_are_dealt_out(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    runs = Runs(Run(0), Run(0), Run(0))
    monkeypatch.setattr(jobs, "Starter", runs)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    every = jobs.Jobs("train", at_once=2, logs=tmp_path)
    assert every.run([Job([name], {"accelerator": "gpu"}) for name in "abc"]) == 0
    seen = [environment["CUDA_VISIBLE_DEVICES"] for environment in runs.environments]
    assert sorted(seen[:2]) == ["4", "7"] and seen[2] in seen[:2]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["jobs=2"], "jobs=2: this is one run; several at a time need --multirun"),
        (["--multirun", "seed=0,1", "jobs=0"], "jobs=0: jobs is one number, 1 or more"),
        (["--multirun", "seed=0,1", "jobs=two"], "jobs=two: jobs is one number, 1 or more"),
        (["--multirun", "seed=0,1", "jobs=1,2"], "jobs=1,2: jobs is one number, 1 or more"),
    ],
)
def test_mistakes_about_jobs(
    words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["memlab.train", *words])
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, getattr(sys, name))
    with pytest.raises(SystemExit) as ended:
        train.main()
    assert ended.value.code == 2 and said in capsys.readouterr().err
