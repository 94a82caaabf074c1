"""Which checkpoint stands for a run: ties, saturation, patience, and validation at other lengths."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest

from memlab.config.sections import Config
from memlab.errors import ConfigError
from memlab.tracking import checkpoint_file
from memlab.training.checkpoints import not_worse
from memlab.training.result import saturated
from tests.training.resuming import config, numbers, stopped, train

NAN = math.nan


@pytest.mark.parametrize(
    ("found", "best", "takes_over"),
    [
        ([1.0, 0.1], None, True),
        ([1.1, 0.9], [1.0, 0.1], True),  # accuracy goes before loss
        ([0.9, 0.0], [1.0, 0.1], False),
        ([2.0, 0.01], [2.0, 0.02], True),  # both right about all samples: the lower loss
        ([2.0, 0.02], [2.0, 0.01], False),
        ([2.0, 0.01], [2.0, 0.01], True),  # nothing tells them apart: the later one
        ([NAN, 0.0], [0.0, 1.0], False),
        ([0.0, NAN], [0.0, 1.0], False),
        ([0.0, 1.0], [NAN, NAN], True),
        ([NAN, NAN], [NAN, NAN], True),
    ],
)
def test_ties_go_to_the_lower_loss_then_to_the_later_one(
    found: list[float], best: list[float] | None, takes_over: bool
) -> None:
    assert not_worse(found, best) is takes_over


def lines(*accuracies: float, stage: int = 2, **more: float) -> list[dict[str, float]]:
    return [
        {"step": 10 * n, "val/accuracy": value, "val/stage": stage, **more}
        for n, value in enumerate(accuracies)
    ]


def test_saturation_is_of_the_last_validations() -> None:
    assert saturated(lines(0.5, 1.0, 1.0, 1.0)) == {"since_step": 10, "validations": 3}
    assert saturated(lines(1.0, 1.0, 0.99, 1.0)) is None  # one alone is no tie
    assert saturated(lines(1.0, 1.0, stage=1) + lines(0.9, 1.0)) is None  # another stage is another task
    assert (
        saturated(lines(1.0, 1.0, **{"val/accuracy_at_14": 0.9})) is None
    )  # longer samples distinguish them
    assert saturated(lines(1.0, 1.0, **{"val/accuracy_teacher_forced": 0.9})) is not None
    assert saturated([{"step": 1, "val/loss": 1.0}]) is None


def solved_from(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Validation accuracy is 1 from a step on, and its loss falls and rises again."""
    from memlab.training.answers import AnswerEvaluator

    original = AnswerEvaluator.finish

    def finish(self: AnswerEvaluator) -> dict[str, float]:
        count = finish.__dict__["count"] = finish.__dict__.get("count", 0) + 1
        at = 4 * count
        return {**original(self), "accuracy": float(at >= step), "loss": abs(at - 12) / 100}

    monkeypatch.setattr(AnswerEvaluator, "finish", finish)


EASY = (
    "task.num_segments=1",
    "trainer.stop_at_accuracy=0.999",
    "trainer.max_steps=40",
    "trainer.checkpoint_every=2",
)


def validations(run: Path) -> list[int]:
    return [line["step"] for line in numbers(run) if "val/accuracy" in line]


def test_patience_goes_on_after_the_goal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved_from(monkeypatch, 8)
    found = train(config(tmp_path / "run", *EASY, "trainer.patience=3"))
    assert validations(tmp_path / "run") == [4, 8, 12, 16, 20]
    assert found["steps"] == 20 and found["best_step"] == 12  # 1.0 at 8 to 20: the lowest loss
    assert found["saturated"] == {"since_step": 8, "validations": 4}


def test_patience_is_counted_over_a_kill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved_from(monkeypatch, 8)
    stopped(tmp_path / "run", *EASY, "trainer.patience=3", step=10)
    found = train(config(tmp_path / "run", *EASY, "trainer.patience=3", "resume=auto"))
    assert validations(tmp_path / "run") == [4, 8, 12, 16, 20] and found["steps"] == 20


def test_the_last_weights_can_be_selected(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    solved_from(monkeypatch, 8)
    found = train(config(tmp_path / "run", *EASY, "trainer.patience=3", "trainer.select=last"))
    assert found["best_step"] == found["steps"] == 20 and found["selected"] == "last"
    assert checkpoint_file.read(tmp_path / "run" / "checkpoints" / "best.ckpt")["global_step"] == 20


def test_longer_samples_decide_in_the_last_stage(tmp_path: Path) -> None:
    train(config(tmp_path / "run", "trainer.val_segments=[3,5,6]"))
    found = [line for line in numbers(tmp_path / "run") if "val/accuracy" in line]
    last = max(line["val/stage"] for line in found)
    for line in found:
        longer = [line[name] for name in ("val/accuracy_at_5", "val/accuracy_at_6") if name in line]
        assert len(longer) == (2 if line["val/stage"] == last else 0)
        expected = line["val/stage"] - 1 + sum([line["val/accuracy"], *longer]) / (1 + len(longer))
        assert line["val/score"] == pytest.approx(expected, abs=1e-6)
    assert any("val/accuracy_at_6" in line for line in found)
    assert "val/accuracy_at_3" not in found[-1], "that is the task's own length"
    json.loads((tmp_path / "run" / "result.json").read_text())


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("trainer.val_segments=[]", "trainer.val_segments"),
        ("trainer.stop_at_accuracy=null trainer.patience=2", "trainer.patience=2"),
        ("trainer.select=first", "trainer.select"),
    ],
)
def test_what_cannot_be_selected_is_said(tmp_path: Path, word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        made: Config = config(tmp_path / "run", *word.split())
        del made
