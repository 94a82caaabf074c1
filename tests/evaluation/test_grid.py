"""Accuracy by depth and length in tokens: entries, table and figures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from memlab.config import cli
from memlab.config.checks import build_task, check
from memlab.errors import ConfigError
from memlab.evaluation import trained
from memlab.evaluation.lengths import by_depth
from memlab.evaluation.record import best
from memlab.evaluation.samples import Answers
from memlab.evaluation.settings import check_evaluate
from memlab.models.compose import compose
from memlab.reports.evaluation.command import evaluate
from memlab.tracking import finished_runs
from memlab.tracking.checkpoint_file import BEST

TASK = ["task=passkey_text", "task.digits=3", "task.depths=3", "task.segment_length=40", "task.test_size=12"]
MODEL = [
    "model=transformer",
    "model.context=full",
    "model.width=8",
    "model.heads=2",
    "model.layers=1",
    "tracking=off",
]


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A run, as if it had been trained for 7 steps."""
    found = finished_runs.Found(tmp_path, tmp_path / BEST, best=False)

    def load(*_: Any) -> trained.Trained:
        config = cli.compose_checked("train", [*TASK, *MODEL, f"run_dir={tmp_path}"], check)
        task = build_task(config)
        task.prepare()
        return trained.Trained(found, config, task, compose(config.model, task.vocab_size).eval(), 7)

    monkeypatch.setattr(finished_runs, "find", lambda *_: found)
    monkeypatch.setattr(trained, "load", load)
    return tmp_path


def asked(run: Path, *words: str) -> dict[str, Any]:
    config = cli.compose_checked("evaluate", [f"run={run}", "threads=1", *words], check_evaluate)
    return evaluate(config)


def test_lengths_are_tokens_and_the_grid_has_every_depth(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = asked(run, "lengths=[150,160,200]", "controls=[shuffled]")
    assert [(e["tokens"], e["segments"]) for e in found["lengths"]] == [(150, 4), (160, 4), (200, 5)]
    assert found["lengths_in"] == "tokens" and found["score"] == "exact_match"
    assert found["trained_tokens"] == 160 and found["chance"] == pytest.approx(
        ((1 / 9 + 2 / 10) / 3) ** 3, rel=0.1
    )
    for entry in found["lengths"]:
        assert [(cell["from"], cell["samples"]) for cell in entry["depth"]] == [(0.0, 4), (0.5, 4), (0.9, 4)]
        assert all(0 <= cell["exact_match"] <= cell["accuracy"] <= 1 for cell in entry["depth"])
    assert [e["tokens"] for e in best(found["lengths"])] == [150, 160, 200], (
        "of 4 segments there are two lengths"
    )
    printed = capsys.readouterr().out
    table = printed[printed.index("whole answers right by where the fact stands") :]
    assert "150" in table and "90% to 100%" in table and "(4)" in table
    assert "trained up to 160 tokens" in printed
    assert max(map(len, table[: table.index("written to")].splitlines()[1:])) <= 80
    drawn = {file.name for file in (run / "figures").iterdir()}
    assert {"accuracy_by_tokens.png", "depth_by_tokens.png"} <= drawn


def test_by_default_the_trained_length_and_twice_as_many_tokens(run: Path) -> None:
    assert [e["tokens"] for e in asked(run)["lengths"]] == [160, 320]
    inside = asked(run, "inside=2")["inside"]
    assert [e["length"] for e in inside] == [160]
    with pytest.raises(
        ConfigError, match=r"task\.length=4: segments of \[4\] tokens are too short for a story"
    ):
        asked(run, "lengths=[4]")


def test_a_cell_counts_its_samples_and_their_whole_answers() -> None:
    answers = Answers(2, free=[2, 1, 0, 2, 2, 1])
    cells = by_depth(answers, [0.0, 0.05, 0.5, 0.55, 1.0, 0.95])
    assert cells is not None
    assert [(c["from"], c["samples"], c["accuracy"], c["exact_match"]) for c in cells] == [
        (0.0, 2, 0.75, 0.5),
        (0.5, 2, 0.5, 0.5),
        (0.9, 2, 0.75, 0.5),
    ]
