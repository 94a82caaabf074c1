"""Trainings of a second, started and killed in every way, and what is compared afterwards."""

from __future__ import annotations

import functools
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from memlab.config import composing
from memlab.config.checks import check
from memlab.config.paths import config_dir
from memlab.config.sections import Config
from memlab.tracking import run_directory
from memlab.tracking.jsonl import JsonlLogger
from memlab.training import run as run_module
from memlab.training.callbacks import Conductor
from memlab.training.module import TrainingModule

# Dropout draws from torch's generator; stages change at validations; the last steps come behind the last
# regular validation.
SMALL = [
    "task=copy",
    "task.length=9",
    "task.num_segments=3",
    "task.batch_size=4",
    "task.validation_size=8",
    "task.test_size=8",
    "model.width=16",
    "model.heads=2",
    "model.layers=1",
    "model.memory_tokens=4",
    "model.dropout=0.2",
    "trainer.max_steps=14",
    "trainer.val_every=4",
    "trainer.checkpoint_every=3",
    "trainer.log_every=1",
    "trainer.threads=1",
    "curriculum.stage_steps=4",
    "tracking=off",
]


def words(run_dir: Path, *changed: str) -> list[str]:
    keys = [word.partition("=")[0] for word in changed]
    return [*(w for w in SMALL if w.partition("=")[0] not in keys), f"run_dir={run_dir}", *changed]


def config(run_dir: Path, *changed: str) -> Config:
    """The small training with some keys set otherwise."""
    resume = next((w.partition("=")[2] for w in changed if w.startswith("resume=")), "never")
    composed = _composed(*words(Path("anywhere"), *(w for w in changed if not w.startswith("resume="))))
    return composed.model_copy(update={"run_dir": str(run_dir), "resume": resume})


@functools.cache  # it takes longer than the training
def _composed(*command_line: str) -> Config:
    with initialize_config_dir(config_dir(), version_base="1.3"), composing.allowing(command_line, None):
        return check(compose("train", list(command_line)))


def train(config: Config, **more: Any) -> dict[str, Any]:
    """Train without figures, which take longer than the rest."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(run_module, "draw", lambda *_: None)
        return run_module.train(config, **more)


def numbers(run_dir: Path) -> list[dict[str, Any]]:
    """All that was logged, in order, but for speeds and times."""
    lines = [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if "second" not in key} for line in lines]


def result(run_dir: Path) -> dict[str, Any]:
    """`result.json` without what may differ between a run in one piece and one in several."""
    whole: dict[str, Any] = json.loads((run_dir / "result.json").read_text())
    return {
        key: value
        for key, value in whole.items()
        if key not in ("timing", "resumed_at", "mlflow_run_id", "command")
    }


def resumed_at(run_dir: Path) -> list[int]:
    steps: list[int] = json.loads((run_dir / "result.json").read_text())["resumed_at"]
    return steps


class Killed(BaseException):
    """Stands for a kill: nothing catches it."""


def stopping(monkeypatch: pytest.MonkeyPatch, at: int) -> list[str]:
    """Kill when one of many things is about to be done, the so-many-th of all;
    returns the list of what has been done.
    """
    done: list[str] = []

    def wrap(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def counted(*args: Any, **more: Any) -> Any:
            done.append(f"{getattr(owner, '__name__', owner)}.{name}")
            if len(done) - 1 == at:
                if name == "save":  # half of the file is there
                    args[1].write(b"PK" + bytes(1000))
                raise Killed(done[-1])
            return original(*args, **more)

        monkeypatch.setattr(owner, name, counted)

    for name in ("training_step", "validation_step", "test_step"):
        wrap(TrainingModule, name)
    wrap(Conductor, "on_validation_end")
    wrap(JsonlLogger, "log_metrics")
    wrap(torch, "save")
    wrap(Path, "replace")
    wrap(os, "truncate")
    wrap(run_directory, "write_whole")
    return done


def kill_and_resume(run: Path, at: int, *changed: str) -> str:
    """Start, kill at a point, and go on until it is finished; the point's name."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        stopping(monkeypatch, at)
        try:
            train(config(run, "resume=auto", *changed))
        except Killed as killed:
            return str(killed)
    return ""


def points(tmp_path: Path, *changed: str) -> int:
    with pytest.MonkeyPatch.context() as monkeypatch:
        done = stopping(monkeypatch, -1)
        train(config(tmp_path / "counted", *changed))
    return len(done)


def stopped(run: Path, *changed: str, step: int = 10) -> None:
    """A run that was killed in its step after this one."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        original = TrainingModule.training_step

        def training_step(self: Any, *args: Any) -> Any:
            return kill() if self.global_step == step else original(self, *args)

        monkeypatch.setattr(TrainingModule, "training_step", training_step)
        with pytest.raises(Killed):
            train(config(run, *changed))


def kill(*_: Any, **__: Any) -> None:
    raise Killed


def assert_same(run: Path, whole: Path, told: object = "") -> None:
    assert numbers(run) == numbers(whole), told
    assert result(run) == result(whole), told


def size(file: Path) -> int:
    return file.stat().st_size if file.exists() else 0


def numbers_so_far(run: Path) -> list[str]:
    return (run / "metrics.jsonl").read_text().splitlines()


def wait_for(condition: Any, seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come in time"
        time.sleep(0.01)
