"""Damaged checkpoints, a full disk, and what a checkpoint may hold."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memlab.errors import UserError
from memlab.tracking.jsonl import JsonlLogger
from memlab.training import checkpoints, random_state
from tests.training.resuming import assert_same, config, resumed_at, stopped, train


def cut(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2)


def flip(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def empty(file: Path) -> None:
    file.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, empty])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(
    damage: Callable[[Path], None], tmp_path: Path, whole: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    stopped(run)
    damage(run / "checkpoints" / "last.ckpt")
    train(config(run, "resume=auto"))
    (line,) = (line for line in capsys.readouterr().err.splitlines() if "is damaged" in line)
    assert str(run / "checkpoints" / "last.ckpt") in line and "the one before is used" in line
    assert resumed_at(run) == [6], "checkpoints were at 3, 6 and 9"
    assert_same(run, whole)


def test_two_damaged_checkpoints_are_an_error(tmp_path: Path) -> None:
    run = tmp_path / "run"
    stopped(run)
    for name in ("last", "previous"):
        cut(run / "checkpoints" / f"{name}.ckpt")
    for _ in range(2):
        with pytest.raises(UserError, match=r"ckpt is damaged \(.*no other checkpoint"):
            train(config(run, "resume=auto"))
    assert not (run / "result.json").exists()


def test_a_damaged_best_checkpoint_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = tmp_path / "run"
    stopped(run, step=13)
    cut(run / "checkpoints" / "best.ckpt")
    monkeypatch.setattr(checkpoints.Checkpoints, "on_validation_end", lambda *_: None)  # no better one comes
    with pytest.raises(UserError, match=r"best.ckpt is damaged .*nothing to test"):
        train(config(run, "resume=auto"))


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> tuple[Any, ...]:
            return Path.touch, (tmp_path / "ran",)

    torch.save({"memlab": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(checkpoints.DamagedError):
        checkpoints.read(tmp_path / "evil.ckpt")
    with pytest.raises(Exception, match=r"weights_only|Unsupported"):
        checkpoints.AtomicCheckpointIO().load_checkpoint(tmp_path / "evil.ckpt", weights_only=False)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("raised", [OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), None])
def test_full_disk(
    raised: OSError | None, tmp_path: Path, whole: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At once when a file is opened for writing, or (None) in the midst of writing, as torch tells it."""
    run = tmp_path / "run"
    save = torch.save

    class Full:
        def __init__(self, file: Any) -> None:
            self.file, self.left = file, 2000

        def write(self, data: Any) -> int:
            self.left -= len(bytes(data))
            if self.left < 0:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return int(self.file.write(data))

        def flush(self) -> None:
            self.file.flush()

    def full(checkpoint: Any, file: Any) -> None:
        if checkpoint["global_step"] < 9:
            return save(checkpoint, file)
        if raised is not None:
            raise raised
        return save(checkpoint, Full(file))

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(UserError, match=r"last.ckpt cannot be written: No space left on device"):
        train(config(run))
    monkeypatch.undo()
    assert sorted(p.name for p in (run / "checkpoints").iterdir()) == [
        "best.ckpt",
        "last.ckpt",
        "previous.ckpt",
    ]
    assert [
        checkpoints.read(run / "checkpoints" / f"{name}.ckpt")["global_step"] for name in ("last", "previous")
    ] == [6, 3]
    assert not (run / "result.json").exists()
    train(config(run, "resume=auto"))
    assert_same(run, whole)


def test_full_disk_while_logging(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(JsonlLogger, "log_metrics", full)
    with pytest.raises(UserError, match=r"No space left on device.*There is no checkpoint yet.*resume="):
        train(config(tmp_path / "run"))


def test_random_states_come_back() -> None:
    cpu = torch.device("cpu")

    def draw() -> list[float]:
        return [torch.rand(1).item(), float(np.random.normal()), float(np.random.rand()), random.random()]

    draw()
    states = random_state.collect(cpu)
    drawn = [draw(), draw()]
    random_state.restore(states, cpu)
    assert [draw(), draw()] == drawn
