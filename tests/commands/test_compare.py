"""`memlab.compare` as a user starts it: on an MLflow store, on directories, and on what is not there."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest

from memlab.config import cli, jobs
from memlab.config.checks import check_compare
from memlab.tracking import mlflow_store, multirun
from memlab.tracking.mlflow_store import Tracker
from tests.reports import runs

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once


def compare(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    """The exit status."""
    from memlab.compare import job

    monkeypatch.setattr(sys, "argv", ["memlab.compare", *words])
    with pytest.raises(SystemExit) as ended:
        cli.run("compare", check_compare, job, groups=False)
    assert isinstance(ended.value.code, int)
    return ended.value.code


def track(
    uri: str, model: str, seed: int, score: float, status: str = "FINISHED", file: bool = True, **changes: Any
) -> str:
    """A run of the store as `memlab.train` writes it; its id."""
    tracker = Tracker(
        uri, "copy", f"{model}-{seed}", runs.config(model, seed, **changes), {"memlab.model": model}
    )
    for line in runs.lines():
        step = int(line.pop("step"))
        tracker.log_metrics(line, step)
    found = runs.result(model, seed, score)
    if status == "FINISHED":
        memory = {f"memory/{k}": v for k, v in found["memory"].items() if v is not None}
        single = {
            "summary/steps": 600,
            "summary/parameters": 150_000,
            "summary/train_seconds": 10,
            "summary/tokens_per_second": 9,
        }
        tracker.log_metrics({**found["metrics"], **memory, **single}, 600)
        tracker.log_metrics({"eval/accuracy_by_segments": 0.25}, 8)
        if file:
            tracker.log_text(json.dumps(found), "result.json")
    tracker.end(status)
    return str(tracker.run_id)


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, list[str]]:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    for name in ("copy", "empty"):
        mlflow_store.prepare(uri, name)
    ids = [
        track(uri, model, seed, score, file=seed == 0)
        for model, score in (("rmt", 1.0), ("transformer", 0.1))
        for seed in (0, 1)
    ]
    ids += [track(uri, "infini", 0, 0.5, status) for status in ("FAILED", "KILLED", "RUNNING")]
    return uri, ids


def test_an_experiment(
    store: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Runs with and without their files are read alike; what did not finish is named;
    the page goes into the store, once.
    """
    uri, ids = store
    monkeypatch.chdir(tmp_path)
    assert compare(monkeypatch, "experiment=copy", f"tracking.uri={uri}") == 0
    shown = capsys.readouterr().out
    assert (
        "/#/experiments/1/runs?workflowType=machine_learning" in shown
        and f"mlflow ui --backend-store-uri {uri}" in shown
    )
    assert "rmt" in shown and "1.0000" in shown and "is not significant" in " ".join(shown.split())
    assert (tmp_path / "runs/compare/copy/index.html").as_uri() in shown
    for run_id, reason in zip(ids[4:], ("failed", "was interrupted", "has not finished"), strict=True):
        assert any(run_id in line and reason in line for line in shown.splitlines())
    page = (tmp_path / "runs/compare/copy/index.html").read_text()
    assert "<figure" in page and "No figure" not in page, (
        "curves and accuracy over segments come from the store"
    )
    assert {p.name for p in (tmp_path / "runs/compare/copy").iterdir()} == {
        "index.html",
        "table.md",
        "groups.csv",
        "runs.csv",
        "figures",
    }

    assert compare(monkeypatch, "experiment=copy", f"tracking.uri={uri}", "out=again") == 0
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    (kept,) = client.search_runs(
        [client.get_experiment_by_name("copy").experiment_id], f"tags.`{multirun.KIND}` = 'comparison'"
    )
    assert "| rmt |" in kept.data.tags["mlflow.note.content"]
    assert {a.path for a in client.list_artifacts(kept.info.run_id, "comparison")} >= {
        "comparison/index.html",
        "comparison/figures",
    }
    assert (tmp_path / "again" / "index.html").exists()


def test_ids_directories_and_filter(
    store: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    uri, ids = store
    monkeypatch.chdir(tmp_path)
    for seed in range(2):
        runs.run(tmp_path / f"kept/here/{seed}", "transformer_xl", seed, 0.7)
    (tmp_path / "nothing").mkdir()
    asked = f"runs=[kept,{ids[0]},nothing,gone,kept/here/0]"
    assert compare(monkeypatch, asked, f"tracking.uri={uri}", "out=page") == 0
    shown = capsys.readouterr().out
    assert "transformer_xl" in shown and "rmt" in shown
    assert "nothing holds no run" in shown and "gone is neither a directory nor an MLflow run id" in shown
    rows = (tmp_path / "page/runs.csv").read_text().splitlines()
    assert len(rows) == 1 + 3 + 2, "a run that is named twice counts once"

    assert (
        compare(
            monkeypatch,
            "experiment=copy",
            f"tracking.uri={uri}",
            "filter=\"params.seed = '1'\"",
            "out=one",
            "track=false",
        )
        == 0
    )
    rows = (tmp_path / "one/runs.csv").read_text().splitlines()
    assert len(rows) == 1 + 2 and ids[1] in "".join(rows)


MISTAKES = {
    "": ["experiment or runs is missing", "copy (7 runs)"],
    "experiment=cpoy": ["no experiment 'cpoy'", "Did you mean 'copy'", "copy (7 runs)"],
    "experiment=empty": ["experiment=empty", "has no training", "memlab.train --multirun"],
    "experiment=copy filter=nonsense": ["filter=nonsense"],
    "experiment=copy filter=\"params.seed='77'\"": ["has no training"],
    "runs=[00000000000000000000000000000000]": ["has no run 00000000000000000000000000000000"],
    "runs=[gone]": ["none can be compared", "gone is neither"],
    "experiment=copy runs=[x]": ["both given"],
    "runs=[x] filter=y": ["filter chooses among the runs of an experiment"],
    "experiments=copy": ["unknown key 'experiments'", "Did you mean 'experiment'"],
    "experiment=copy open=maybe": ["open='maybe'"],
    "experiment=copy tracking.uri=sqlite:///none/here.db": [
        "there is no MLflow store",
        "memlab.train --multirun",
    ],
}


@pytest.mark.parametrize("words", MISTAKES)
def test_mistakes(
    words: str,
    store: tuple[str, list[str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    place = [] if "tracking.uri" in words else [f"tracking.uri={store[0]}"]
    assert compare(monkeypatch, *words.split(), *place) == 2
    (said,) = capsys.readouterr().err.strip().splitlines()
    for part in MISTAKES[words]:
        assert part in said
    assert list(tmp_path.iterdir()) == [], "nothing is left behind"


def test_an_empty_store(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow_store.prepare(uri, "copy")
    assert compare(monkeypatch, "experiment=reverse", f"tracking.uri={uri}") == 2
    assert "The store is empty; begin with: python -m memlab.train --multirun" in capsys.readouterr().err


def test_jobs_of_a_multirun_have_one_parent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Which ends as its children do, and holds their comparison."""
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.chdir(tmp_path)
    mlflow_store.prepare(uri, "copy")
    monkeypatch.setenv("MEMLAB_MULTIRUN", "")
    jobs.announce("train", ["-m", "experiment=copy", "seed=0,1"])
    children = [track(uri, "rmt", seed, 1.0) for seed in (0, 1)]
    client = MlflowClient(uri)
    (parent,) = {client.get_run(child).data.tags["mlflow.parentRunId"] for child in children}
    run = client.get_run(parent)
    assert run.info.run_name == "multirun experiment=copy seed=0,1" and run.info.status == "FINISHED"
    assert run.data.tags["memlab.command"] == "python -m memlab.train -m experiment=copy seed=0,1"
    assert compare(monkeypatch, "experiment=copy", f"tracking.uri={uri}") == 0
    assert "| rmt |" in client.get_run(parent).data.tags["mlflow.note.content"]
    assert len(client.search_runs(["1"])) == 3, "no further run is made for it"
    track(uri, "rmt", 2, 0.0, "FAILED")
    assert client.get_run(parent).info.status == "FAILED"
