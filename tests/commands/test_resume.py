"""`resume=` as a user meets it: the same command again after a kill, the command that SIGTERM tells,
and one run in MLflow.
"""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from memlab.tracking import mlflow_store
from tests.processes import Processes
from tests.training import resuming
from tests.training.resuming import config, numbers, result, resumed_at, train, words

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once


def logged(run: Path) -> int:
    file = run / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.exists() else 0


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of MLflow's; making one takes longer than the rest."""
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    mlflow_store.prepare(uri, "copy")
    return uri


def test_killed_then_preempted_then_finished(tmp_path: Path, uri: str, processes: Processes) -> None:
    longer = "trainer.max_steps=42"
    train(config(tmp_path / "whole", longer))
    run, log = tmp_path / "run", tmp_path / "log"
    command = [
        *words(run, longer, "tracking=mlflow"),
        f"tracking.uri={uri}",
        "tracking.experiment=preempted",
        "resume=auto",
    ]

    process = processes.start("train", *command, cwd=tmp_path, log=log)
    resuming.wait_for(lambda: logged(run) >= 12)
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    run_id = json.loads((run / "run.json").read_text())["mlflow_run_id"]

    before = log.read_text().count("/42 ")
    process = processes.start("train", *command, cwd=tmp_path, log=log)
    resuming.wait_for(lambda: log.read_text().count("/42 ") > before)  # a validation has been told
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait() == 143, log.read_text()
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    assert client.get_run(run_id).info.status == "KILLED", log.read_text()
    assert not (run / "result.json").exists()

    (told,) = (line for line in log.read_text().splitlines() if "continue with: " in line)
    python, m, module, *rest = shlex.split(told.partition("continue with: ")[2])
    assert (python, m, module) == ("python", "-m", "memlab.train") and f"resume={run}" in rest
    process = processes.start("train", *rest, cwd=tmp_path, log=log)
    assert process.wait() == 0, log.read_text()
    assert "Traceback" not in log.read_text() and "Warning" not in log.read_text()

    assert numbers(run) == numbers(tmp_path / "whole")
    assert result(run) == result(tmp_path / "whole")
    assert len(resumed_at(run)) == 2
    (only,) = client.search_runs([client.get_experiment_by_name("preempted").experiment_id])
    assert only.info.run_id == run_id == json.loads((run / "result.json").read_text())["mlflow_run_id"]
    assert only.info.status == "FINISHED"
    for key in ("train/loss", "val/loss"):
        history = [(m.step, m.value) for m in client.get_metric_history(run_id, key)]
        assert history == [(line["step"], line[key]) for line in numbers(run) if key in line]

    process = processes.start("train", *command, cwd=tmp_path, log=log)
    assert process.wait() == 0 and "has finished already" in log.read_text()
    assert len(resumed_at(run)) == 2


def test_an_mlflow_run_that_is_gone_is_replaced(
    tmp_path: Path, uri: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """By one that has all steps, those before the kill too."""
    run = tmp_path / "run"
    tracked = ["tracking=mlflow", f"tracking.uri={uri}"]
    stop = ["trainer.checkpoint_every=1"]
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("memlab.training.module.TrainingModule.test_step", ending)
        with pytest.raises(RuntimeError):
            train(config(run, *tracked, *stop))
    from mlflow import MlflowClient

    client = MlflowClient(uri)
    gone = json.loads((run / "run.json").read_text())["mlflow_run_id"]
    assert client.get_run(gone).info.status == "FAILED"
    client.delete_run(gone)
    new = train(config(run, *tracked, *stop, "resume=auto"))["mlflow_run_id"]
    assert new != gone and f"the MLflow run {gone} is not in" in capsys.readouterr().err
    history = client.get_metric_history(new, "train/loss")
    assert [(m.step, m.value) for m in history] == [
        (n["step"], n["train/loss"]) for n in numbers(run) if "train/loss" in n
    ]


def ending(*_: object) -> None:
    raise RuntimeError


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_kill_9_ten_times_as_a_user(tmp_path: Path) -> None:
    """Ten runs, each killed at a random moment between its start and its end, then the same command again;
    the default run_dir.
    """
    draw = random.Random(4)
    changed = ["trainer.max_steps=60"]
    train(config(tmp_path / "whole", *changed))
    command = [sys.executable, "-m", "memlab.train", *words(tmp_path, *changed), "resume=auto"]
    command = [word for word in command if not word.startswith("run_dir=")]
    place = tmp_path / "here" / "runs" / "copy" / "rmt"
    place.parents[2].mkdir()
    for kill in range(10):
        steps = draw.randrange(70)
        known = set(place.glob("*"))
        process = subprocess.Popen(command, cwd=place.parents[2], stderr=subprocess.PIPE, text=True)
        resuming.wait_for(lambda known=known: set(place.glob("*")) - known)
        (run,) = set(place.glob("*")) - known
        resuming.wait_for(lambda run=run, steps=steps: logged(run) >= steps)
        process.kill()
        process.communicate()
        assert not (run / "result.json").exists(), f"kill {kill} after {steps} lines came too late"
        subprocess.run(command, cwd=place.parents[2], check=True, capture_output=True, timeout=300)
        assert numbers(run) == numbers(tmp_path / "whole"), f"kill {kill} after {steps} lines"
        assert result(run) == result(tmp_path / "whole") and len(resumed_at(run)) == 1
        (run / "config.yaml").rename(run / "done.yaml")  # or the next command would find it finished
