"""CONTRIBUTING's example memory, a file and a YAML: it trains, resumes after a kill, is in every report."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from memlab.benchmarks.measure import environment
from memlab.config import cli
from memlab.config.checks import check, check_compare
from memlab.config.sections import Config
from memlab.errors import UserError
from memlab.evaluation.settings import check_evaluate
from memlab.reports.comparison.command import compare
from memlab.reports.evaluation.command import evaluate
from tests.contributing import examples
from tests.processes import Processes
from tests.training import resuming

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once

NAME = "exponential_mean"
SMALL = [w for w in resuming.SMALL if not w.startswith("model.memory_tokens")]


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(examples()))


def config(run: Path, *changed: str) -> Config:
    words = [f"model={NAME}", *SMALL, f"run_dir={run}", *changed]
    composed: Config = cli.compose_checked("train", words, check, examples())
    return composed


def killed_at(step: int, run: Path) -> None:
    from memlab.training.module import TrainingModule

    with pytest.MonkeyPatch.context() as monkeypatch:
        original = TrainingModule.training_step

        def training_step(self: Any, *args: Any) -> Any:
            return resuming.kill() if self.global_step == step else original(self, *args)

        monkeypatch.setattr(TrainingModule, "training_step", training_step)
        with pytest.raises(resuming.Killed):
            resuming.train(config(run))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """One in one piece, one killed in between and gone on."""
    folder = tmp_path_factory.mktemp("own")
    whole, resumed = folder / "whole", folder / "resumed"
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(examples()))
        resuming.train(config(whole))
        killed_at(10, resumed)
        resuming.train(config(resumed, "resume=auto"))
    return whole, resumed


def test_it_goes_on_after_a_kill(runs: tuple[Path, Path]) -> None:
    whole, resumed = runs
    resuming.assert_same(resumed, whole)
    assert resuming.resumed_at(resumed) == [9]


def test_evaluate_looks_inside(runs: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"run={runs[0]}", "inside=4", "accelerator=cpu"]
    with pytest.raises(UserError, match=rf"allow it with trust=\[{NAME}\]"):
        evaluate(cli.compose_checked("evaluate", words, check_evaluate))
    words.append(f"trust=[{NAME}]")
    evaluate(cli.compose_checked("evaluate", words, check_evaluate))
    (entry,) = json.loads((runs[0] / "evaluation.json").read_text())["inside"]
    shares = entry["memory_share"]["remembered"]
    assert shares["layers"] == [1]
    assert shares["values"][0][0] == [0.0, 0.0] and min(shares["values"][1][0]) > 0  # by segment, layer, head
    said = capsys.readouterr().out
    assert "remembered" in said and "state of layer 1" in said and "not shown" not in said


def test_compare_has_it(runs: tuple[Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"runs=[{runs[0]},{runs[1]}]", f"out={tmp_path / 'page'}"]
    compare(cli.compose_checked("compare", words, check_compare))
    assert NAME in capsys.readouterr().out
    assert NAME in (tmp_path / "page" / "index.html").read_text()


def test_the_benchmark_of_forms_has_it(tmp_path: Path, processes: Processes) -> None:
    words = ["suite=forms", f"forms.models=[{NAME}]", "forms.width=16", "forms.segment_length=4", "repeats=1"]
    there = f"{environment()['PYTHONPATH']}:{examples()}"
    done = processes.run(
        "bench",
        *words,
        "--config-dir",
        str(examples()),
        f"run_dir={tmp_path}",
        cwd=tmp_path,
        PYTHONPATH=there,
    )
    assert done.returncode == 0, done.stderr
    measured = json.loads((tmp_path / "forms.json").read_text())["models"][NAME]
    assert measured["seconds"]["recurrent"] and not measured["seconds"].get("parallel")
