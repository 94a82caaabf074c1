"""`memlab.evaluate` tests a trained run at other lengths: the training's own figures at the same length, curves beyond."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir

from memlab import cli
from memlab.config import Config, EvaluateConfig, check, check_evaluate
from memlab.errors import UserError
from memlab.evaluation import memory
from memlab.evaluation.accuracy import free_running
from memlab.paths import config_dir
from memlab.training.build import build
from memlab.training.lengths import evaluate
from memlab.training.run import train

SMALL = ["task=copy", "task.length=6", "task.num_segments=3", "task.batch_size=8", "task.validation_size=16", "task.test_size=40"]
SIZES = ["model.width=16", "model.heads=2", "model.layers=1", "model.memory_tokens=4", "trainer.max_steps=6", "trainer.threads=1"]


def configuration(place: Path, *words: str) -> Config:
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return check(compose("train", [*SMALL, *SIZES, f"run_dir={place / 'run'}", *words]))


def asked(run: Path, **more: Any) -> EvaluateConfig:
    return EvaluateConfig(run=str(run), **{"lengths": None, "samples": None, "threads": 1, **more})


def test_same_length_is_the_training_s_test_and_others_are_their_own(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = configuration(tmp_path, f"tracking.uri=sqlite:///{tmp_path}/mlflow.db")
    trained = train(config)
    result = evaluate(asked(tmp_path / "run", lengths=[3, 2, 7]))
    assert json.loads((tmp_path / "run" / "evaluation.json").read_text()) == result
    assert [length["segments"] for length in result["lengths"]] == [3, 2, 7]
    same = result["lengths"][0]
    for name in ("accuracy", "accuracy_teacher_forced", "exact_match", "loss"):
        assert same[name] == pytest.approx(trained["metrics"][f"test/{name}"], abs=1e-6)
    assert same["memory"] == trained["memory"]

    parts = build(config)  # the longest, once more by hand
    parts.module.load_state_dict(torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)["state_dict"])
    parts.model.eval()
    task = parts.task.at(7)  # type: ignore[attr-defined]
    batch = task.batch("test", 0, 40)
    predicted = free_running(parts.model, torch.from_numpy(batch.tokens_BT.copy()), batch.answer_BT[0].tolist(), task.segment_lengths)  # type: ignore[arg-type]
    right = predicted == torch.from_numpy(batch.targets_BT.copy())[:, task.answer_positions()]
    assert result["lengths"][2]["accuracy"] == pytest.approx(right.double().mean().item())
    assert result["lengths"][2]["memory"] == memory.measure(parts.model, task.segment_lengths).to_dict()

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    history = client.get_metric_history(trained["mlflow_run_id"], "eval/accuracy_by_segments")
    assert {(m.step, m.value) for m in history} == {(length["segments"], length["accuracy"]) for length in result["lengths"]}
    assert "trained with 3 segments" in capsys.readouterr().out


def test_by_default_the_trained_length_and_twice_as_many(tmp_path: Path) -> None:
    train(configuration(tmp_path, "tracking=off"))
    result = evaluate(asked(tmp_path / "run", samples=8))
    assert [(length["segments"], length["samples"]) for length in result["lengths"]] == [(3, 8), (6, 8)]


def test_what_cannot_be_evaluated(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run here"):
        evaluate(asked(tmp_path))
    config = configuration(tmp_path, "tracking=off", "task.segment_lengths=[6,8,4]", "curriculum=off")
    train(config)
    with pytest.raises(UserError, match=r"task\.segment_lengths=\[6, 8, 4\] are not equal"):
        evaluate(asked(tmp_path / "run", lengths=[5]))
    (tmp_path / "run" / "checkpoints" / "best.ckpt").write_bytes(b"nothing")
    with pytest.raises(UserError, match=r"best\.ckpt is damaged"):
        evaluate(asked(tmp_path / "run"))
    (tmp_path / "run" / "checkpoints" / "best.ckpt").unlink()
    with pytest.raises(UserError, match="no checkpoint yet"):
        evaluate(asked(tmp_path / "run"))
    assert not (tmp_path / "run" / "evaluation.json").exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([], "run is missing"),
        (["run=x", "lengths=[0]"], "lengths"),
        (["run=x", "lenghts=[1]"], "Did you mean 'lengths'"),
        (["run=x"], "no run"),
    ],
)
def test_mistakes(words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    from memlab.evaluate import job

    monkeypatch.setattr(sys, "argv", ["memlab.evaluate", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run("evaluate", check_evaluate, lambda config: job(config))
    assert ended.value.code == 2
    assert said in capsys.readouterr().err
