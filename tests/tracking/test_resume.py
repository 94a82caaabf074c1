"""Which run `resume` continues, and what may differ from it."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest

from memlab.errors import UserError
from memlab.tracking import resume
from memlab.tracking.run_directory import RunDirectory
from memlab.training.module import TrainingModule
from tests.processes import Processes
from tests.training import resuming
from tests.training.resuming import Killed, assert_same, config, kill, stopped, train


def test_another_configuration_is_an_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stopped(run)
    logged = (run / "metrics.jsonl").read_bytes()
    for words, told in {
        "optim.lr=0.5 model.width=32": r"optim.lr=0.001 \(now 0.5\)",
        "trainer.max_steps=13": r"trainer.max_steps=14 \(now 13\)",
        "model=transformer_xl ~model.memory_tokens": r"model.name=rmt \(now transformer_xl\)",
    }.items():
        changed = [word for word in words.split() if not word.startswith("~")]
        with pytest.MonkeyPatch.context() as monkeypatch:
            if "transformer_xl" in words:
                monkeypatch.setattr(
                    resuming, "SMALL", [w for w in resuming.SMALL if not w.startswith("model.memory_tokens")]
                )
            wrong = config(run, "resume=auto", *changed)
        with pytest.raises(UserError, match=told):
            train(wrong)
    with pytest.raises(UserError, match="contradicts"):
        train(config(tmp_path / "other", f"resume={run}"))
    with pytest.raises(UserError, match="there is no run"):
        train(config(tmp_path / "other", f"resume={tmp_path / 'other'}"))
    assert (run / "metrics.jsonl").read_bytes() == logged and not (run / "result.json").exists()


def test_what_may_differ(tmp_path: Path) -> None:
    """A longer run at a constant rate is the same as one that was to be so long from the beginning."""
    train(config(tmp_path / "whole", "trainer.max_steps=20"))
    run = tmp_path / "run"
    stopped(run)
    train(config(run, "trainer.max_steps=20", "trainer.checkpoint_every=5", "resume=auto"))
    assert_same(run, tmp_path / "whole")
    with pytest.raises(UserError, match="has finished after 20 steps"):
        train(config(run, "trainer.max_steps=30", "resume=auto"))
    cosine = tmp_path / "cosine"
    stopped(cosine, "optim.schedule=cosine")
    with pytest.raises(UserError, match=r"optim\.schedule=cosine"):
        train(config(cosine, "optim.schedule=cosine", "trainer.max_steps=20", "resume=auto"))


def test_a_longer_run_after_the_last_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed behind its last step, and longer then: the validation that only the end has is not part of
    the longer run.
    """
    train(config(tmp_path / "whole", "trainer.max_steps=20"))
    run = tmp_path / "run"
    with monkeypatch.context() as patched:
        patched.setattr(TrainingModule, "test_step", kill)
        with pytest.raises(Killed):
            train(config(run))
    train(config(run, "trainer.max_steps=20", "resume=auto"))
    assert_same(run, tmp_path / "whole")


def test_a_finished_run_is_told(tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    shutil.copytree(whole, run)
    before = {p: p.read_bytes() for p in run.rglob("*") if p.is_file()}
    assert train(config(run, "resume=auto")) == json.loads((run / "result.json").read_text())
    shown = capsys.readouterr()
    assert "has finished already" in shown.err and "test accuracy" in shown.out
    assert {p: p.read_bytes() for p in run.rglob("*") if p.is_file()} == before


def test_auto_finds_the_newest_unfinished_run_of_this_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    runs = tmp_path / "runs" / "copy" / "rmt"
    for day, changed, finished in ((1, [], False), (2, [], False), (3, [], True), (4, ["seed=5"], False)):
        run = runs / f"2026-01-0{day}_00-00-00-000000"
        RunDirectory(run, config(run, *changed)).release()
        if finished:
            (run / "result.json").write_text("{}")
    (runs / "notes").mkdir()
    fresh = runs / "2026-01-09_00-00-00-000000"
    assert resume.find(config(fresh, "resume=auto")).directory == runs / "2026-01-02_00-00-00-000000"
    assert (
        resume.find(config(fresh, "resume=auto", "seed=5")).directory == runs / "2026-01-04_00-00-00-000000"
    )
    assert resume.find(config(fresh, "resume=auto", "seed=6")).directory is None
    assert resume.find(config(fresh)).directory is None
    assert resume.find(config(tmp_path / "mine", "resume=auto")).directory is None, (
        "a run_dir that was given is this one and no other"
    )
    for day in (1, 2):
        (runs / f"2026-01-0{day}_00-00-00-000000" / "result.json").write_text('{"steps": 14}')
    assert resume.find(config(fresh, "resume=auto")).result is not None


def test_two_at_once(tmp_path: Path, processes: Processes) -> None:
    """The lock is there while the run's process lives, and goes with it."""
    run = tmp_path / "run"
    process = processes.start("train", *resuming.words(run, "trainer.max_steps=100000"), cwd=tmp_path)
    resuming.wait_for((run / "checkpoints" / "last.ckpt").exists)
    with pytest.raises(UserError, match="in use"):
        train(config(run, "trainer.max_steps=100000", "resume=auto"))
    with pytest.raises(UserError, match="in use"):
        train(config(run))
    os.kill(process.pid, 9)
    process.wait()
    RunDirectory(run, config(run), continues=True).release()


def test_the_test_may_be_left_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The same training and validation, without a number of the test; as while hyperparameters are being
    chosen.
    """
    tested, left = train(config(tmp_path / "tested")), train(config(tmp_path / "left", "trainer.test=false"))
    assert left["metrics"] == {
        name: value for name, value in tested["metrics"].items() if not name.startswith("test/")
    }
    assert {"val/accuracy", "val/score"} == left["metrics"].keys() and left["best_step"] == tested[
        "best_step"
    ]
    assert "trainer.test=false" in capsys.readouterr().out
    shown = [
        json.loads(line)
        for line in (tmp_path / "left" / "metrics.jsonl").read_text().splitlines()
        if "val/accuracy" in line
    ]
    assert shown
    for line in shown:  # Lightning keeps metrics in single precision
        assert line["val/score"] == pytest.approx(line["val/stage"] - 1 + line["val/accuracy"], abs=1e-6)
