"""`memlab.train` as a user starts it: what lies in the run directory, what MLflow holds,
that seeds decide everything.
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from memlab.config.checks import check
from memlab.config.cli import compose_checked
from tests.processes import Processes
from tests.training import resuming

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once

# A training of seconds: three curriculum stages of a small model.
SMALL = [
    "task=copy",
    "task.length=9",
    "task.num_segments=3",
    "task.batch_size=8",
    "task.validation_size=16",
    "task.test_size=16",
    "model.width=16",
    "model.heads=2",
    "model.layers=1",
    "model.memory_tokens=4",
    "trainer.max_steps=12",
    "trainer.val_every=4",
    "trainer.log_every=1",
    "trainer.threads=1",
    "curriculum.stage_steps=4",
]


def small(*words: str) -> list[str]:
    """The small training with some keys set otherwise."""
    keys = [word.partition("=")[0] for word in words]
    return [*(w for w in SMALL if w.partition("=")[0] not in keys), *words]


def train(processes: Processes, cwd: Path, *words: str) -> None:
    done = processes.run("train", *small(*words), cwd=cwd)
    assert done.returncode == 0, done.stderr


def metrics(run_dir: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]


def losses(run_dir: Path) -> list[float]:
    return [line["train/loss"] for line in metrics(run_dir) if "train/loss" in line]


@pytest.fixture(scope="module")
def started(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The command as a user starts it, where there is no MLflow store: where, and what it printed."""
    place = tmp_path_factory.mktemp("started")
    done = subprocess.run(
        [sys.executable, "-m", "memlab.train", *small("run_dir=here")],
        cwd=place,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return place, done.stdout + done.stderr


def test_a_run_leaves_everything_that_is_promised(started: tuple[Path, str], processes: Processes) -> None:
    place, shown = started
    run = place / "here"
    result = json.loads((run / "result.json").read_text())
    assert result["status"] == "finished"
    assert {"test/accuracy", "test/accuracy_teacher_forced", "test/exact_match", "val/accuracy"} <= set(
        result["metrics"]
    )
    assert result["memory"]["state_bytes"] == 4 * 16 * 4  # m vectors of width d in fp32
    assert result["steps"] == 12 and result["samples"] == 12 * 8 and result["seed"] == 0
    assert result["stages_began_at"] == [0, 4, 8] and result["stages"] == result["best_stage"] == 3
    assert result["versions"]["torch"]
    for name in (
        "config.yaml",
        "checkpoints/best.ckpt",
        "checkpoints/last.ckpt",
        "figures/learning_curve.png",
    ):
        assert (run / name).stat().st_size > 0

    logged = metrics(run)
    assert [line["step"] for line in logged if "train/loss" in line] == list(range(1, 13))
    assert [line["step"] for line in logged if "val/accuracy" in line] == [4, 8, 12]
    assert [line["curriculum/segments"] for line in logged if "train/loss" in line] == [1] * 4 + [2] * 4 + [
        3
    ] * 4
    assert str(run) in shown and "mlflow ui --backend-store-uri sqlite:///" in shown
    assert "free-running" in shown and "Traceback" not in shown and "Warning" not in shown

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{place / 'mlflow.db'}")
    tracked = client.get_run(result["mlflow_run_id"])
    assert tracked.info.status == "FINISHED"
    assert tracked.data.params["model.memory_tokens"] == "4" and tracked.data.params["model.name"] == "rmt"
    assert tracked.data.metrics["test/accuracy"] == result["metrics"]["test/accuracy"]
    history = client.get_metric_history(result["mlflow_run_id"], "train/loss")
    assert [m.value for m in history] == losses(run)
    artifacts = {a.path for a in client.list_artifacts(result["mlflow_run_id"])}
    assert {"config", "figures"} <= artifacts

    again = processes.run("train", *small("run_dir=here"), cwd=place)
    assert again.returncode == 2 and "already holds a run" in again.stderr
    assert json.loads((run / "result.json").read_text()) == result, "the first run is untouched"


def test_a_seed_decides_every_loss(started: tuple[Path, str], tmp_path: Path, processes: Processes) -> None:
    """Same seed, same losses to the last bit in another interpreter; `seed=0` is a seed like any other;
    another seed differs from the first step on.
    """
    for name, seed in (("b", 0), ("c", 1)):
        train(processes, tmp_path, f"run_dir={name}", f"seed={seed}", "tracking=off")
    places = [started[0] / "here", tmp_path / "b", tmp_path / "c"]
    a, b, c = map(losses, places)
    assert a == b
    assert a[0] != c[0]
    results = [json.loads((place / "result.json").read_text())["metrics"] for place in places]
    assert results[0] == results[1]


def test_two_trainings_at_the_same_moment(tmp_path: Path, processes: Processes) -> None:
    """On a fresh directory both succeed, each in a directory of its own, in one MLflow store."""
    for process in [processes.start("train", *small(f"seed={seed}"), cwd=tmp_path) for seed in (0, 1)]:
        _, err = process.communicate(timeout=240)
        assert process.returncode == 0, err
    results = [json.loads(p.read_text()) for p in tmp_path.glob("runs/copy/rmt/*/result.json")]
    assert sorted(r["seed"] for r in results) == [0, 1]

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    runs = client.search_runs([client.get_experiment_by_name("copy").experiment_id])
    assert {r.info.run_id for r in runs} == {r["mlflow_run_id"] for r in results}


def test_multirun_is_a_process_for_each_job(tmp_path: Path, processes: Processes) -> None:
    """All jobs run though the first one fails, and the command says so at the end."""
    words = ["--multirun", "tracking=off", "model.heads=3,1", "run_dir=runs/${model.heads}"]
    done = processes.run("train", *small(*words), cwd=tmp_path)
    assert done.returncode != 0
    assert "1 of the jobs failed" in done.stderr and "model.heads=3" in done.stderr
    assert sorted(p.parent.name for p in tmp_path.glob("runs/*/result.json")) == ["1"]
    assert {p.name for p in tmp_path.iterdir()} == {"runs"}


def train_here(run: Path, *words: str) -> None:
    """In this process, without figures."""
    resuming.train(compose_checked("train", small(f"run_dir={run}", "tracking=off", *words), check))


@pytest.mark.parametrize("depth", [0, 1])
def test_truncated_training_runs(depth: int, tmp_path: Path) -> None:
    train_here(tmp_path / "here", f"model.bptt_depth={depth}")
    assert (tmp_path / "here" / "result.json").exists()


@pytest.mark.parametrize(("steps", "validated"), [(6, [4, 6]), (3, [3]), (8, [4, 8])])
def test_the_last_step_is_validated_once(steps: int, validated: list[int], tmp_path: Path) -> None:
    train_here(tmp_path / "here", f"trainer.max_steps={steps}")
    assert [line["step"] for line in metrics(tmp_path / "here") if "val/accuracy" in line] == validated
    assert json.loads((tmp_path / "here" / "result.json").read_text())["best_step"] in validated


def test_interrupted(tmp_path: Path, processes: Processes) -> None:
    """Ctrl-C: status 130, no result.json, the last checkpoint and all metrics kept,
    the MLflow run ends as KILLED.
    """
    words = small("trainer.max_steps=100000", "run_dir=here", "trainer.stop_at_accuracy=null")
    process = processes.start("train", *words, cwd=tmp_path)
    checkpoint = tmp_path / "here" / "checkpoints" / "last.ckpt"
    deadline = time.monotonic() + 120
    while not checkpoint.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err and "Traceback" not in err + out
    assert not (tmp_path / "here" / "result.json").exists()
    assert checkpoint.exists() and len(losses(tmp_path / "here")) >= 4

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("copy").experiment_id])
    assert run.info.status == "KILLED"
