"""How trials ended is said in MLflow beside the next training: in order, all of it,
and a failure costs a warning.
"""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from memlab.sweeping.labels import Labels
from tests.sweeping import sweeps


def test_labels_are_written_beside_the_worker_and_all_of_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    written: list[tuple[int, str]] = []
    go_on = threading.Event()

    def write(order: Any, lease: Any, state: str, *_: Any) -> None:
        assert go_on.wait(10)
        if state == "failed":
            raise RuntimeError("the store is full\nsecond line")
        written.append((lease.trial.number, state))

    monkeypatch.setattr("memlab.sweeping.labels._label", write)
    order = sweeps.order(tmp_path, tracking_uri="sqlite:///nothing.db", parent_run="a run")
    with Labels(order) as labels:
        for number, state in enumerate(("complete", "failed", "pruned")):
            labels.put(SimpleNamespace(trial=SimpleNamespace(number=number)), state)  # type: ignore[arg-type]
        assert not written, "the worker does not wait for MLflow"
        go_on.set()
    assert written == [(0, "complete"), (2, "pruned")]
    assert (
        capsys.readouterr().out == "memlab: warning: trial 1 is not labelled in MLflow: the store is full\n"
    )


def test_nothing_is_labelled_without_tracking(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written: list[Any] = []
    monkeypatch.setattr("memlab.sweeping.labels._label", lambda *given: written.append(given))
    monkeypatch.setattr("memlab.sweeping.labels.client", written.append)
    with Labels(sweeps.order(tmp_path)) as labels:
        labels.load()
        labels.put(SimpleNamespace(trial=SimpleNamespace(number=0)), "complete")  # type: ignore[arg-type]
    assert not written


def test_a_worker_whose_sweep_does_not_begin_ends_in_silence() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "memlab.sweeping.worker"],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        timeout=60,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
