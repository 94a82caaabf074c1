"""A user's own task is trained, saved, resumed and reported with nothing of memlab edited."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from memlab.config import trust
from memlab.tracking import checkpoint_file
from memlab.training import run as run_module
from tests.training.resuming import assert_same, config, numbers, resumed_at, stopped, train

OWN = ["task._target_=tests.training.own_task.Guess", "curriculum.threshold=null"]


@pytest.fixture(autouse=True)
def allowed() -> Iterator[None]:
    with trust.allowing("tests"):
        yield


def test_an_own_objective_evaluator_and_metric(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    stopped(run, *OWN)
    train(config(run, *OWN, "resume=auto"))
    result = json.loads((run / "result.json").read_text())
    assert result["own_steps"] == result["steps"] == 14 and resumed_at(run) == [9]
    assert set(result["metrics"]) == {"test/distance", "val/distance", "val/score"}
    assert result["metrics"]["val/score"] == -result["metrics"]["val/distance"] < 0
    saved = checkpoint_file.read(run / "checkpoints" / "last.ckpt")["memlab"]
    assert saved["objective"] == {"steps": 14}
    told = capsys.readouterr()
    assert "val distance " in told.err and "test distance" in told.out
    assert [line for line in numbers(run) if "val/distance" in line]
    # with its figures, which the test above leaves out
    whole = tmp_path / "whole"
    run_module.train(config(whole, *OWN))
    assert (whole / "figures" / "learning_curve.png").exists()
    assert_same(run, whole)
