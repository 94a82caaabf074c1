"""Ctrl-C and SIGTERM, at every stage of a run."""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from memlab.training import run as run_module
from memlab.training.module import TrainingModule
from tests.training.resuming import assert_same, config, resumed_at, train


@pytest.mark.parametrize("method", ["training_step", "validation_step"])
def test_sigterm_saves_and_ends(
    method: str,
    tmp_path: Path,
    whole: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a step, or in the validation behind step 8: that is finished, saved, and told how it goes on."""
    original = getattr(TrainingModule, method)

    def signalled(self: Any, *args: Any) -> Any:
        if self.global_step == (6 if method == "training_step" else 8):
            for _ in range(2):  # some schedulers send it twice
                os.kill(os.getpid(), signal.SIGTERM)
        return original(self, *args)

    monkeypatch.setattr(TrainingModule, method, signalled)
    run = tmp_path / "run"
    with pytest.raises(SystemExit) as ended:
        train(config(run), arguments=["task=copy", "resume=auto", "run_dir=x", "optim.lr=1e-3"])
    assert ended.value.code == 143
    told = capsys.readouterr().err.splitlines()[-1]
    assert (
        told == "memlab: SIGTERM: saved; continue with: python -m memlab.train task=copy optim.lr=1e-3 "
        f"resume={run}"
    )
    monkeypatch.undo()
    train(config(run, f"resume={run}"))
    assert resumed_at(run) == [7 if method == "training_step" else 8]
    assert_same(run, whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_signals_behind_the_training_end_it_at_once(
    number: int, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to be saved in the test. The handlers are afterwards what they were."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def signalled(*_: Any) -> None:
        os.kill(os.getpid(), number)
        pytest.fail("it went on")

    monkeypatch.setattr(TrainingModule, "test_step", signalled)
    with pytest.raises(SystemExit) as ended:
        train(config(tmp_path / "run"))
    assert ended.value.code == 128 + number
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    monkeypatch.undo()
    train(config(tmp_path / "run", "resume=auto"))
    assert_same(tmp_path / "run", whole)


def test_a_second_ctrl_c_ends_at_once() -> None:
    """Also while the first is being answered, whatever hangs there."""
    hanging = """
import os, signal, sys, time
from memlab.training.signals import Ended, Signals
with Signals() as signals:
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except Ended:
        print("ending", flush=True)
        time.sleep(100)
"""
    process = subprocess.Popen([sys.executable, "-c", hanging], stdout=subprocess.PIPE, text=True)
    assert process.stdout and process.stdout.readline() == "ending\n"
    process.send_signal(signal.SIGINT)
    assert process.wait(20) == -signal.SIGINT
    process.stdout.close()


def test_the_command_that_goes_on() -> None:
    command = run_module.command(
        ["--config-dir", "my configs", "seed=1", "resume=auto", "run_dir=x"], Path("/a b/c,d=1")
    )
    assert shlex.split(command) == [
        "python",
        "-m",
        "memlab.train",
        "--config-dir",
        "my configs",
        "seed=1",
        "resume='/a b/c,d=1'",
    ]
    parsed = OverridesParser.create().parse_override(shlex.split(command)[-1])
    assert parsed.value() == "/a b/c,d=1"
