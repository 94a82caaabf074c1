"""`trainer=ddp` as a user starts it: how many processes there are, what they print, and how they end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.commands.test_train import SMALL
from tests.training.resuming import wait_for

REPOSITORY = Path(__file__).parents[2]
# Every Python process of the test writes down how it was started.
LISTING = """
import os, sys
with open(os.environ["STARTED"], "a") as file:
    file.write(f"{os.getpid()} {os.environ.get('RANK', '-')} {' '.join(sys.orig_argv[1:])}\\n")
"""


def start(cwd: Path, *words: str, launcher: tuple[str, ...] = ()) -> subprocess.Popen[str]:
    cwd.mkdir(exist_ok=True)
    (cwd / "site").mkdir()
    (cwd / "site" / "sitecustomize.py").write_text(LISTING)
    keys = [word.partition("=")[0] for word in words]
    line = [*launcher, "-m", "memlab.train", *(w for w in SMALL if w.partition("=")[0] not in keys), "trainer=ddp", "tracking=off", *words]
    environment = {**os.environ, "PYTHONPATH": f"{cwd / 'site'}:{REPOSITORY}", "STARTED": str(cwd / "started"), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen([sys.executable, *line], cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def started(cwd: Path) -> list[tuple[int, str, str]]:
    """Process id, rank and command line of every training process."""
    lines = [line.split(" ", 2) for line in (cwd / "started").read_text().splitlines()]
    return [(int(pid), rank, line) for pid, rank, line in lines if line.startswith("-m memlab.train")]


def test_multirun_starts_each_process_once(tmp_path: Path) -> None:
    """Two jobs of two processes: no process goes through the sweep by itself, and each line is printed once."""
    process = start(tmp_path, "--multirun", "trainer.devices=2", "seed=0,1")
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    results = [json.loads(file.read_text()) for file in tmp_path.glob("runs/copy/rmt/*/result.json")]
    assert sorted((r["seed"], r["processes"], r["steps"]) for r in results) == [(0, 2, 12), (1, 2, 12)]
    assert len(list(tmp_path.glob("runs/copy/rmt/*"))) == 2, "one run directory for both processes of a job"
    lines = started(tmp_path)
    assert sorted(rank for _, rank, _ in lines) == ["-", "-", "-", "1", "1"], lines
    assert sum("--multirun" in line for _, _, line in lines) == 1, lines
    assert out.count("run directory") == 2 and err.count("step     12/12") == 2
    assert "Warning" not in err and "Traceback" not in err and "[rank" not in err, err


@pytest.mark.slow
def test_torchrun(tmp_path: Path) -> None:
    process = start(tmp_path, launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    out, err = process.communicate(timeout=280)
    assert process.returncode == 0, err
    (file,) = tmp_path.glob("runs/copy/rmt/*/result.json")
    assert json.loads(file.read_text())["processes"] == 2
    assert out.count("run directory") == 1 and err.count("step     12/12") == 1


@pytest.mark.slow
def test_a_mistake_is_told_once_under_torchrun(tmp_path: Path) -> None:
    process = start(tmp_path, "task.batch_size=9", launcher=("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"))
    _, err = process.communicate(timeout=280)
    assert process.returncode != 0
    assert err.count("task.batch_size=9 counts the rows of all processes, and 2 cannot share them evenly") == 1, err


ENDS = [
    pytest.param(signal.SIGTERM, 1, 143, "SIGTERM: saved; continue with: python -m memlab.train", marks=pytest.mark.slow),
    pytest.param(signal.SIGINT, 0, 130, "interrupted; what was done so far", marks=pytest.mark.slow),
    pytest.param(signal.SIGTERM, 0, 143, "SIGTERM: saved; continue with: python -m memlab.train", marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, 1, 2, "was ended by SIGKILL, and the training with it", marks=pytest.mark.slow),
    pytest.param(signal.SIGKILL, 0, -9, "", marks=pytest.mark.slow),
]


@pytest.mark.parametrize(("number", "rank", "status", "told"), ENDS)
def test_a_signal_to_one_process_ends_all(number: int, rank: int, status: int, told: str, tmp_path: Path) -> None:
    """The first process says how it ended, once, and no other process is left."""
    process = start(tmp_path, "trainer.devices=2", "trainer.max_steps=100000", "trainer.stop_at_accuracy=null", "run_dir=here")
    wait_for((tmp_path / "here" / "checkpoints" / "last.ckpt").exists)
    (first, _, _), (second, _, _) = started(tmp_path)
    os.kill([first, second][rank], number)
    _, err = process.communicate(timeout=60)
    assert process.returncode == status, err
    assert told in err and (not told or err.count(told) == 1) and "Traceback" not in err, err
    wait_for(lambda: not Path(f"/proc/{second}").exists(), seconds=20)
    assert not (tmp_path / "here" / "result.json").exists()
