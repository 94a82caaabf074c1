"""`memlab.sweep` as a user starts it, on trainings of seconds: what it leaves in its directory and in
MLflow; kills; trainer=ddp.
"""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.sweeping.killing import alive, children

SWEEP: dict[str, Any] = {
    "base": {
        "model": "rmt",
        "task": "reverse",
        "task.length": 4,
        "task.num_segments": 2,
        "task.batch_size": 8,
        "task.validation_size": 16,
        "task.test_size": 16,
        "model.layers": 1,
        "model.width": 16,
        "model.heads": 2,
        "model.memory_tokens": 2,
        "trainer.max_steps": 30,
        "trainer.val_every": 10,
        "trainer.threads": 1,
    },
    "space": {
        "optim.lr": {"type": "float", "low": 1e-4, "high": 1e-2, "log": True},
        "model.write_memory": {"type": "categorical", "choices": ["carried", "learned"]},
    },
    "objectives": [{"metric": "val/score", "direction": "maximize"}],
    "budget": {"trials": 3},
}


def start(cwd: Path, *words: str, **changes: Any) -> subprocess.Popen[str]:
    (cwd / "tiny.yaml").write_text(yaml.safe_dump({**SWEEP, **changes}))
    command = [sys.executable, "-m", "memlab.sweep", "sweep=./tiny.yaml", "run_dir=out", *words]
    return subprocess.Popen(command, cwd=cwd, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def sweep(cwd: Path, *words: str, **changes: Any) -> str:
    process = start(cwd, *words, **changes)
    said, _ = process.communicate(timeout=280)
    assert process.returncode == 0, said
    assert "Traceback" not in said and "Warning" not in said, said
    return said


@pytest.mark.slow
def test_a_sweep_leaves_everything_that_is_promised(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    said = sweep(tmp_path, final={"seeds": [7], "default": True})
    out = tmp_path / "out"
    result = json.loads((out / "result.json").read_text())
    assert result["trials"] == {"complete": 3, "pruned": 0, "failed": 0}
    with (out / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    best = max(rows, key=lambda row: float(row["val/score"]))
    assert result["best"]["trial"] == int(best["trial"]) and result["best"]["values"] == {
        "val/score": float(best["val/score"])
    }
    assert result["best"]["parameters"]["optim.lr"] == float(best["optim.lr"])
    for row in rows:
        run = json.loads((out / "trials" / f"{int(row['trial']):04d}" / "seed_0" / "result.json").read_text())
        assert run["metrics"]["val/score"] == float(row["val/score"])
        assert not [name for name in run["metrics"] if name.startswith("test/")], (
            "the test is left alone while choosing"
        )
    for what in ("final", "final_default"):
        assert result[what]["seeds"] == [7] and len(result[what]["metrics"]["test/accuracy"]["values"]) == 1
    for name in ("history", "importance", "parallel_coordinates", "validations"):
        assert f"{name}.png" in result["figures"] and (out / "figures" / f"{name}.png").stat().st_size > 0
    assert str(out / "best.yaml") in said and "trial   0  complete" in said

    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    parent = client.get_run(result["mlflow_run_id"])
    assert parent.info.status == "FINISHED" and parent.data.tags["best.trial"] == str(result["best"]["trial"])
    assert {f.path for f in client.list_artifacts(parent.info.run_id, "figures")} >= {"figures/history.png"}
    runs = client.search_runs(
        [parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'"
    )
    trials = {
        run.data.tags["memlab.sweep.trial"]: run for run in runs if "memlab.sweep.trial" in run.data.tags
    }
    assert sorted(trials) == ["0", "1", "2"] and {
        run.data.tags["memlab.sweep.state"] for run in trials.values()
    } == {"complete"}
    assert len(runs) == 3 + 2
    for row in rows:
        assert trials[row["trial"]].data.params["optim.lr"] == row["optim.lr"]

    again = sweep(tmp_path, final={"seeds": [7], "default": True})
    assert "has finished already" in again
    words = ["experiment_file=out/best.yaml", "seed=7", "run_dir=by_hand", "tracking=off"]
    subprocess.run(
        [sys.executable, "-m", "memlab.train", *words], cwd=tmp_path, check=True, capture_output=True
    )
    by_hand = json.loads((tmp_path / "by_hand" / "result.json").read_text())
    assert by_hand["metrics"]["test/accuracy"] == result["final"]["metrics"]["test/accuracy"]["values"][0]


def until(condition: Any, seconds: float = 60) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


@pytest.mark.slow
def test_kill_9_of_the_sweep_and_the_same_command_again(tmp_path: Path) -> None:
    longer = {**SWEEP["base"], "trainer.max_steps": 400, "trainer.stop_at_accuracy": None}
    process = start(tmp_path, "trials=2", "tracking=off", base=longer)
    metrics = tmp_path / "out" / "trials" / "0000" / "seed_0" / "metrics.jsonl"
    until(lambda: metrics.exists() and metrics.read_text().count("val/score") >= 2)
    below = [pid for worker in children(process.pid) for pid in [worker, *children(worker)]]
    assert len(below) >= 2
    process.kill()
    process.communicate()
    until(lambda: not any(alive(pid) for pid in below), 10)
    sweep(tmp_path, "trials=2", "tracking=off", base=longer)
    result = json.loads((tmp_path / "out" / "result.json").read_text())
    assert result["trials"] == {"complete": 2, "pruned": 0, "failed": 0}
    first = json.loads((metrics.parent / "result.json").read_text())
    assert first["resumed_at"] and first["resumed_at"][0] > 0, "it went on from its checkpoint"
    steps = [json.loads(line)["step"] for line in metrics.read_text().splitlines() if "val/score" in line]
    assert steps == list(range(10, 401, 10))


@pytest.mark.slow
def test_all_processes_of_a_ddp_trial_have_the_same_parameters(tmp_path: Path) -> None:
    base = {**SWEEP["base"], "trainer": "ddp", "trainer.devices": 2}
    process = start(tmp_path, "trials=2", "tracking=off", base=base)
    seen: dict[str, dict[str, list[str]]] = {}
    while process.poll() is None:
        for entry in Path("/proc").iterdir():
            try:
                words = (entry / "cmdline").read_text().split("\0")
                environment = (entry / "environ").read_text().split("\0")
            except (OSError, ValueError):
                continue
            place = next((w for w in words if w.startswith(f"run_dir={tmp_path}")), None)
            if "memlab.train" in words and place is not None:
                rank = next((e.partition("=")[2] for e in environment if e.startswith("RANK=")), "0")
                seen.setdefault(place, {})[rank] = [w for w in words if "=" in w]
        time.sleep(0.05)
    said, _ = process.communicate()
    assert process.returncode == 0, said
    assert len(seen) == 2
    with (tmp_path / "out" / "trials.csv").open() as file:
        rows = list(csv.DictReader(file))
    for at, (place, ranks) in enumerate(sorted(seen.items())):
        assert ranks["0"] == ranks["1"] and set(ranks) == {"0", "1"}
        assert f"optim.lr={rows[at]['optim.lr']}" in ranks["0"] and f"{at:04d}" in place
        result = json.loads((Path(place.partition("=")[2]) / "result.json").read_text())
        assert result["processes"] == 2
    assert rows[0]["optim.lr"] != rows[1]["optim.lr"]


@pytest.mark.slow
def test_sigterm_saves_and_the_same_command_goes_on(tmp_path: Path) -> None:
    longer = {
        **SWEEP["base"],
        "trainer.max_steps": 400,
        "trainer.stop_at_accuracy": None,
        "trainer.checkpoint_every": 400,
    }
    process = start(tmp_path, "trials=1", base=longer)
    run = tmp_path / "out" / "trials" / "0000" / "seed_0"
    until(lambda: (run / "metrics.jsonl").exists() and "val/score" in (run / "metrics.jsonl").read_text())
    os.kill(process.pid, signal.SIGTERM)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 143 and "the same command goes on" in said and "Traceback" not in said
    assert (run / "checkpoints" / "last.ckpt").exists() and not (tmp_path / "out" / "result.json").exists()
    assert "goes on" in sweep(tmp_path, "trials=1", base=longer)
    assert json.loads((run / "result.json").read_text())["resumed_at"][0] > 0
