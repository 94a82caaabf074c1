"""What launchers put into the environment, and the signals that they and terminals send."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from lightning.fabric.utilities import rank_zero

from memlab.config import launch
from memlab.config.jobs import Job, Jobs
from memlab.config.sections import OptimConfig, ShowConfig, TrainerConfig
from memlab.errors import ConfigError
from memlab.sweeping.ending import Asked
from memlab.sweeping.training_process import Following, program
from memlab.training.build import trainer
from memlab.training.signals import Ended, Signals
from tests.config.test_jobs import Run, Runs
from tests.mistakes.starting import Start

RANKS = {"RANK": "3", "LOCAL_RANK": "2", "SLURM_PROCID": "5", "JSM_NAMESPACE_RANK": "1"}
OTHERS = {"SLURM_NTASKS": "4", "NODE_RANK": "1"}


@pytest.mark.parametrize("name", RANKS)
def test_one_process_is_the_first_whatever_a_launcher_says(name: str) -> None:
    environment = {name: RANKS[name], **OTHERS}
    launch.alone(environment)
    assert environment == OTHERS


@pytest.mark.parametrize("name", ["TORCHELASTIC_RUN_ID", "MEMLAB_PARENT"])
def test_processes_that_train_together_keep_their_ranks(name: str) -> None:
    environment = {name: "1", **RANKS}
    launch.alone(environment)
    assert environment == {name: "1", **RANKS}


LAUNCHERS = {
    "srun": {"SLURM_NTASKS": "4", "SLURM_PROCID": "1", "SLURM_JOB_NAME": "mine"},
    "jsrun": {
        "LSB_JOBID": "1",
        "LSB_DJOB_RANKFILE": "none",
        "JSM_NAMESPACE_LOCAL_RANK": "1",
        "JSM_NAMESPACE_SIZE": "2",
        "JSM_NAMESPACE_RANK": "1",
    },
    "by hand": {"LOCAL_RANK": "1", "RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "nosuch", "NODE_RANK": "1"},
}


class Small:
    """What Lightning's Trainer needs of a configuration."""

    trainer = TrainerConfig(
        accelerator="cpu",
        precision="32-true",
        threads=None,
        max_steps=1,
        stop_at_accuracy=None,
        val_every=1,
        log_every=1,
    )
    optim = OptimConfig(
        lr=1.0,
        gate_lr=1.0,
        weight_decay=0.0,
        betas=[0.9, 0.9],
        warmup_steps=0,
        schedule="constant",
        gradient_clip=None,
    )


@pytest.mark.parametrize("name", LAUNCHERS)
def test_lightning_is_told_who_is_there(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for key, value in LAUNCHERS[name].items():
        monkeypatch.setenv(key, value)
    made = trainer(Small, [], [])  # type: ignore[arg-type]
    assert (made.world_size, made.global_rank, made.node_rank) == (1, 0, 0)


def test_srun_that_starts_a_training_of_several_processes_several_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "4")
    with pytest.raises(ConfigError, match=r"srun started this command 4 times: use srun --ntasks-per-node=1"):
        launch.known_size("trainer=ddp", "ddp", 2, 1)
    assert launch.known_size("trainer=cpu", "single", 1, 1) == 1  # each task is a run of its own
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    assert launch.known_size("trainer=ddp", "ddp", 2, 2) == 4  # one on each node


def test_lightning_takes_one_process_for_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise it logs nothing: what it reads when it is imported has been forgotten by then."""
    for name, value in RANKS.items():
        monkeypatch.setenv(name, value)
    assert rank_zero._get_rank() == int(RANKS["RANK"])
    launch.alone()
    assert rank_zero._get_rank() is None


def test_a_job_begins_after_that(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """A configuration may still be made of what the launcher says."""
    monkeypatch.setenv("SLURM_PROCID", "3")
    config = start.begun("show", 'seed="${oc.decode:${oc.env:SLURM_PROCID}}"').config
    assert isinstance(config, ShowConfig) and config.seed == 3
    assert "SLURM_PROCID" not in os.environ


SAVING = [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1]


@pytest.mark.parametrize("number", SAVING)
def test_a_signal_waits_until_the_step_is_saved(
    number: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(number)
    with Signals() as signals:
        signals.held = True
        os.kill(os.getpid(), number)
        assert f"memlab: {number.name}: finishing this step and saving it" in capsys.readouterr().err
        os.kill(os.getpid(), number)  # some schedulers send it twice
        with pytest.raises(Ended) as ended:
            signals.leave_if_asked()
    assert ended.value.signal == number
    assert signal.getsignal(number) == before


@pytest.mark.parametrize("number", SAVING)
def test_a_signal_outside_the_steps_ends_the_run_at_once(number: signal.Signals) -> None:
    with Signals(), pytest.raises(Ended) as ended:
        os.kill(os.getpid(), number)
    assert ended.value.signal == number


def test_nohup_is_respected(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with Signals() as signals:
            signals.take_back()
            os.kill(os.getpid(), signal.SIGHUP)
            assert signals.received is None
        with Asked() as asked:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not asked.number
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.parametrize("number", SAVING)
def test_a_sweep_is_asked_to_end(number: signal.Signals, capsys: pytest.CaptureFixture[str]) -> None:
    with Asked() as asked:
        os.kill(os.getpid(), number)
        assert asked.number == number
    assert "the sweep ends as soon as its trainings have saved" in capsys.readouterr().err


@pytest.mark.parametrize("number", SAVING)
def test_multirun_passes_a_signal_on(number: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run(128 + number, number)
    monkeypatch.setattr("memlab.config.jobs.Starter", Runs(run))
    jobs = Jobs("train")
    assert jobs.run([Job(["seed=1"]), Job(["seed=2"])]) == 128 + number
    assert run.received == [number] and jobs.waiting == ["seed=1", "seed=2"]


@pytest.mark.parametrize("number", SAVING)
def test_a_trials_training_that_was_asked_to_end_goes_on(number: signal.Signals, tmp_path: Path) -> None:
    """A scheduler's signal reaches all processes of a job; the training has saved."""
    text = (
        "import json, pathlib, sys\n"
        "place = pathlib.Path('again')\n"
        f"if not place.exists(): place.touch(); sys.exit(128 + {int(number)})\n"
        "pathlib.Path('result.json').write_text(json.dumps({'status': 'finished'}))\n"
    )
    (tmp_path / "run.py").write_text(f"import os; os.chdir({str(tmp_path)!r})\n{text}")
    following = Following(
        program([sys.executable]), [str(tmp_path / "run.py")], tmp_path, tmp_path / "log", {}
    )
    assert following.run(lambda: False, lambda step, metrics: False, every=0.01).result == {
        "status": "finished"
    }
    assert f"was ended by {number.name}" in (tmp_path / "log").read_text()
