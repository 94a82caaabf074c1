"""`trainer=ddp` and `trainer=fsdp` as a user starts them: how many processes there are, what they print,
and how they end.
"""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from mlflow import MlflowClient

from memlab.config.checks import check
from memlab.config.paths import config_dir
from memlab.errors import ConfigError
from memlab.tracking import mlflow_store
from memlab.training import checkpoints
from tests.commands.test_train import SMALL
from tests.processes import Process, Processes
from tests.training.resuming import numbers, result, resumed_at, size, train, wait_for

REPOSITORY = Path(__file__).parents[2]
# Every Python process of the test writes down how it was started.
LISTING = """
import os, sys
with open(os.environ["STARTED"], "a") as file:
    file.write(f"{os.getpid()} {os.environ.get('RANK', '-')} {' '.join(sys.orig_argv[1:])}\\n")
"""


Started = Process | subprocess.Popen[str]


def start(
    cwd: Path,
    *words: str,
    launcher: tuple[str, ...] = (),
    processes: Processes | None = None,
    **environment: str,
) -> Started:
    """The small training of two processes; the first one is a fork if there is something to fork."""
    (cwd / "site").mkdir(parents=True, exist_ok=True)
    (cwd / "started").unlink(missing_ok=True)
    (cwd / "site" / "sitecustomize.py").write_text(LISTING)
    keys = [word.partition("=")[0] for word in words]
    usual = [word for word in (*SMALL, "trainer=ddp", "tracking=off") if word.partition("=")[0] not in keys]
    where = {
        "PYTHONPATH": f"{cwd / 'site'}:{REPOSITORY}",
        "STARTED": str(cwd / "started"),
        "OMP_NUM_THREADS": "1",
    }
    if processes is not None:
        return processes.start("train", *usual, *words, cwd=cwd, **where, **environment)
    line = [*launcher, "-m", "memlab.train", *usual, *words]
    whole = {**os.environ, **where, **environment}
    return subprocess.Popen(
        [sys.executable, *line], cwd=cwd, env=whole, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def started(cwd: Path) -> list[tuple[int, str, str]]:
    """Process id, rank and command line of every training process, but for one that was forked."""
    lines = [line.split(" ", 2) for line in (cwd / "started").read_text().splitlines()]
    return [(int(pid), rank, line) for pid, rank, line in lines if line.startswith("-m memlab.train")]


@pytest.mark.parametrize("jobs", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_multirun_starts_each_process_once(jobs: int, tmp_path: Path) -> None:
    """Jobs of two processes: no process goes through the sweep by itself, and each line is printed once."""
    process = start(tmp_path, "--multirun", "trainer.devices=2", f"seed={','.join(map(str, range(jobs)))}")
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    results = [json.loads(file.read_text()) for file in tmp_path.glob("runs/copy/rmt/*/result.json")]
    found = sorted((r["seed"], r["processes"], r["steps"]) for r in results)
    assert found == [(seed, 2, 12) for seed in range(jobs)]
    assert len(list(tmp_path.glob("runs/copy/rmt/*"))) == jobs, (
        "one run directory for both processes of a job"
    )
    lines = started(tmp_path)
    assert sorted(rank for _, rank, _ in lines) == ["-", *["1"] * jobs], lines  # the first of each is a fork
    assert sum("--multirun" in line for _, _, line in lines) == 1, lines
    assert out.count("run directory") == jobs and err.count("step     12/12") == jobs
    assert "Warning" not in err and "Traceback" not in err and "[rank" not in err, err


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    process = start(
        tmp_path, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
    )
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    (file,) = tmp_path.glob("runs/copy/rmt/*/result.json")
    assert json.loads(file.read_text())["processes"] == 2
    assert out.count("run directory") == 1 and err.count("step     12/12") == 1


@pytest.mark.slow
def test_a_mistake_is_told_once_under_torchrun(tmp_path: Path) -> None:
    process = start(
        tmp_path,
        "task.batch_size=9",
        launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"),
    )
    _, err = process.communicate(timeout=280)
    assert process.returncode != 0
    assert (
        err.count("task.batch_size=9 counts the rows of all processes, and 2 cannot share them evenly") == 1
    ), err


ENDS = [
    pytest.param(
        signal.SIGTERM,
        1,
        143,
        "SIGTERM: saved; continue with: python -m memlab.train",
        marks=pytest.mark.slow,
    ),
    pytest.param(signal.SIGINT, 0, 130, "interrupted; what was done so far", marks=pytest.mark.slow),
    pytest.param(
        signal.SIGTERM,
        0,
        143,
        "SIGTERM: saved; continue with: python -m memlab.train",
        marks=pytest.mark.slow,
    ),
    pytest.param(
        signal.SIGKILL, 1, 2, "was ended by SIGKILL, and the training with it", marks=pytest.mark.slow
    ),
    pytest.param(signal.SIGKILL, 0, -9, "", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("number", "rank", "status", "told"), ENDS)
def test_a_signal_to_one_process_ends_all(
    number: int, rank: int, status: int, told: str, tmp_path: Path
) -> None:
    """The first process says how it ended, once, and no other process is left."""
    process = start(
        tmp_path,
        "trainer.devices=2",
        "trainer.max_steps=100000",
        "trainer.stop_at_accuracy=null",
        "run_dir=here",
    )
    wait_for((tmp_path / "here" / "checkpoints" / "last.ckpt").exists)
    (first, _, _), (second, _, _) = started(tmp_path)
    os.kill([first, second][rank], number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert told in err and (not told or err.count(told) == 1) and "Traceback" not in err, err
    wait_for(lambda: not Path(f"/proc/{second}").exists(), seconds=20)
    assert not (tmp_path / "here" / "result.json").exists()


def finish(process: Started) -> str:
    _, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    assert "Traceback" not in err and "Warning" not in err, err
    return err


def logged(run: Path) -> int:
    return size(run / "metrics.jsonl")


def interrupt(
    cwd: Path,
    *words: str,
    rank: int,
    later: float,
    by: Callable[[int], None],
    processes: Processes | None = None,
) -> tuple[int | None, str]:
    """Start, wait until this start has logged something and then some more seconds,
    do something to a process; how the first one ended.
    """
    before = logged(cwd / "here")
    process = start(cwd, *words, processes=processes)
    wait_for(lambda: logged(cwd / "here") not in (0, before))
    time.sleep(later)
    places = [process.pid, *(pid for pid, _, _ in started(cwd) if pid != process.pid)]
    by(places[rank])
    _, err = process.communicate(timeout=60)
    assert "Traceback" not in err, err
    wait_for(lambda: not any(Path(f"/proc/{pid}").exists() for pid in places), seconds=30)
    return process.returncode, err


def kill(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)


def test_kill_9(tmp_path: Path, processes: Processes) -> None:
    """Of one of two processes, somewhere in the run; then the same command again. (Ten kills, bit for bit:
    below, marked slow.)
    """
    words = [
        "trainer.devices=2",
        "trainer.precision=64-true",
        "trainer.max_steps=60",
        "run_dir=here",
        "resume=auto",
    ]
    interrupt(tmp_path, *words, rank=1, later=0.1, by=kill, processes=processes)
    finish(start(tmp_path, *words, processes=processes))
    keys = [word.partition("=")[0] for word in words]
    alone = [*(word for word in SMALL if word.partition("=")[0] not in keys), *words[1:3], "tracking=off"]
    with initialize_config_dir(config_dir(), version_base="1.3"):
        config = check(compose("train", alone)).model_copy(update={"run_dir": str(tmp_path / "alone")})
    train(config)
    ours, theirs = numbers(tmp_path / "here"), numbers(tmp_path / "alone")
    assert [line["step"] for line in ours] == [line["step"] for line in theirs]
    for mine, other in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(other, rel=1e-6), mine["step"]


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_ten_kills_and_a_full_disk(strategy: str, tmp_path: Path) -> None:
    """One run that ten kills -9 and a disk without room interrupt: all that is logged, here and in MLflow,
    is that of a run in one go.
    """
    draw = random.Random(7)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    mlflow_store.prepare(uri, "kills")
    words = [
        f"trainer={strategy}",
        "trainer.devices=2",
        "trainer.max_steps=400",
        "trainer.checkpoint_every=3",
        "model.dropout=0.1",
    ]
    words += ["model.width=128", "model.layers=2"]
    tracked = [
        "tracking=mlflow",
        f"tracking.uri={uri}",
        "tracking.experiment=kills",
        "run_dir=here",
        "resume=auto",
    ]
    finish(start(tmp_path, *words, "run_dir=whole"))
    for _ in range(10):
        interrupt(tmp_path, *words, *tracked, rank=draw.randrange(2), later=draw.uniform(0, 0.3), by=kill)
    run_id = json.loads((tmp_path / "here" / "run.json").read_text())["mlflow_run_id"]

    room = 3 << 20  # for what is logged, here and in MLflow, and not for a checkpoint
    assert (
        logged(tmp_path / "whole") + size(tmp_path / "mlflow.db")
        < room
        < size(tmp_path / "here" / "checkpoints" / "last.ckpt")
    )

    def fill(pid: int) -> None:
        # where steps are slow, all ten came before the second
        wait_for((tmp_path / "here" / "checkpoints" / "previous.ckpt").exists)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (room, room))

    status, err = interrupt(tmp_path, *words, *tracked, rank=0, later=0, by=fill)
    assert status == 2 and "cannot be written: File too large; those before it are untouched" in err, err
    kept = [
        checkpoints.read(tmp_path / "here" / "checkpoints" / name)["global_step"]
        for name in ("last.ckpt", "previous.ckpt")
    ]
    assert kept[0] - kept[1] in (1, 2, 3)
    assert MlflowClient(uri).get_run(run_id).info.status == "FAILED"

    finish(start(tmp_path, *words, *tracked))
    assert numbers(tmp_path / "here") == numbers(tmp_path / "whole")
    assert result(tmp_path / "here") == result(tmp_path / "whole")
    assert len(resumed_at(tmp_path / "here")) == 11
    client = MlflowClient(uri)
    (only,) = client.search_runs([client.get_experiment_by_name("kills").experiment_id])
    assert only.info.run_id == run_id and only.info.status == "FINISHED"
    for key in ("train/loss", "val/loss"):
        history = [(m.step, m.value) for m in client.get_metric_history(run_id, key)]
        assert history == [(line["step"], line[key]) for line in numbers(tmp_path / "whole") if key in line]


@pytest.mark.slow
@pytest.mark.parametrize("by", ["torchrun", "environment"])
def test_two_nodes(by: str, tmp_path: Path) -> None:
    """On one machine: two commands, as two nodes would run them, in one run directory."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    nodes = []
    for node in range(2):
        words = ["trainer=fsdp", "trainer.num_nodes=2", "run_dir=../here"]
        if by == "torchrun":
            at = [
                "--nnodes",
                "2",
                "--node-rank",
                str(node),
                "--nproc-per-node",
                "2",
                "--master-addr",
                "127.0.0.1",
                "--master-port",
                port,
            ]
            nodes.append(start(tmp_path / str(node), *words, launcher=("-m", "torch.distributed.run", *at)))
        else:
            environment = {"NODE_RANK": str(node), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
            nodes.append(start(tmp_path / str(node), *words, "trainer.devices=2", **environment))
    told = [finish(process) for process in nodes]
    assert json.loads((tmp_path / "here" / "result.json").read_text())["processes"] == 4
    assert [err.count("step     12/12") for err in told] == [1, 0], "the first process alone says how it goes"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0", "1", "here"]


@pytest.mark.parametrize(
    ("words", "told"),
    {
        "trainer=fsdp trainer.devices=1": (
            "trainer.devices=1 with trainer=fsdp, which shares out the weights among several processes"
        ),
        "trainer=fsdp trainer.devices=3": (
            "task.batch_size=32 counts the rows of all processes, and 3 cannot share them evenly"
        ),
        "trainer.accumulate=3": (
            "trainer.accumulate=3: the rows of a step (task.batch_size=32) do not divide into 3 parts"
        ),
        "trainer=ddp trainer.devices=2 trainer.accumulate=64": (
            "trainer.accumulate=64: the 16 rows of each process"
        ),
        "trainer.devices=2": "use trainer=ddp or trainer=fsdp",
    }.items(),
)
def test_mistakes(words: str, told: str) -> None:
    with initialize_config_dir(config_dir(), version_base="1.3"), pytest.raises(ConfigError) as error:
        check(compose("train", words.split()))
    assert told in str(error.value)
