"""Commands that are forks equal those that were started as usual, and are isolated from each other."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from memlab.config.starter import FORKS, Forked
from tests.commands.test_train import small
from tests.processes import REPOSITORY, Process, Processes
from tests.training.resuming import wait_for

pytestmark = pytest.mark.skipif(not FORKS, reason="commands are forked on Linux only")
ENDLESS = ["tracking=off", "trainer.max_steps=100000", "trainer.stop_at_accuracy=null"]


def as_usual(place: Path, command: str, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", f"memlab.{command}", *words],
        cwd=place,
        env={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize("words", [["task=copy", "samples=2"], ["task=copi"], ["--help"]])
def test_streams_and_status(words: list[str], tmp_path: Path, processes: Processes) -> None:
    usual, forked = as_usual(tmp_path, "show", *words), processes.run("show", *words, cwd=tmp_path)
    assert (forked.stdout, forked.stderr) == (usual.stdout, usual.stderr)
    assert forked.returncode == usual.returncode == (2 if words == ["task=copi"] else 0)


def test_a_fork_trains_bit_for_bit_the_same(tmp_path: Path, processes: Processes) -> None:
    threads = "1" if os.cpu_count() != 1 else "2"
    found: list[Any] = []
    for name in ("usual", "forked"):
        words = small(f"run_dir={name}", "tracking=off", "trainer.threads=null")
        if name == "usual":
            done = as_usual(tmp_path, "train", *words, OMP_NUM_THREADS=threads)
        else:
            done = processes.run("train", *words, cwd=tmp_path, OMP_NUM_THREADS=threads)
        assert done.returncode == 0, done.stderr
        lines = map(json.loads, (tmp_path / name / "metrics.jsonl").read_text().splitlines())
        measured = [{k: v for k, v in line.items() if "second" not in k} for line in lines]
        found.append((measured, json.loads((tmp_path / name / "result.json").read_text())))
    (usual, result), (forked, other) = found
    assert usual == forked and result["metrics"] == other["metrics"]
    assert result["hardware"] == other["hardware"] and result["hardware"]["threads"] == int(threads)


def endless(processes: Processes, place: Path, name: str) -> Process:
    """A training that goes on until it is ended; it has begun."""
    process = processes.start("train", *small(*ENDLESS, f"run_dir={name}"), cwd=place)
    wait_for((place / name / "checkpoints" / "last.ckpt").exists)
    return process


def test_a_kill_touches_no_other(tmp_path: Path, processes: Processes) -> None:
    one, other = endless(processes, tmp_path, "one"), endless(processes, tmp_path, "other")
    one.send_signal(signal.SIGKILL)
    assert one.wait(60) == -signal.SIGKILL and other.poll() is None
    other.send_signal(signal.SIGTERM)
    assert other.wait(60) == 143, "it has saved"
    with pytest.raises(ProcessLookupError):
        os.kill(one.pid, 0)


def test_a_starter_that_was_killed_is_replaced(tmp_path: Path) -> None:
    own = Processes(["torch"])  # so that this one can be killed
    try:
        words = ["task=copy", "samples=1"]
        first = own.start("show", *words, cwd=tmp_path)
        assert first.wait(60) == 0
        server = own.starter._server
        assert server is not None
        os.kill(server.pid, signal.SIGKILL)
        server.wait()
        second = own.start("show", *words, cwd=tmp_path)
        assert second.communicate() == first.communicate() and second.wait() == 0
        assert isinstance(second.running, Forked)
    finally:
        own.close()
