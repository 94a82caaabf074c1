"""Checkpoints that survive a kill at any moment and a full disk, and that can be opened without running code.

Each run keeps three: `last.ckpt`, `previous.ckpt` (the one before it) and `best.ckpt` (of the best
validation). A file is written under another name, synced and renamed: under these names, there is never half
a file.
"""

from __future__ import annotations

import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins import CheckpointIO
from lightning.pytorch.trainer.states import TrainerFn

from memlab.config.sections import TrainerConfig
from memlab.errors import UserError
from memlab.tracking.checkpoint_file import BEST, LAST, PREVIOUS, DamagedError, read
from memlab.tracking.run_directory import RunDirectory
from memlab.training.processes import Processes
from memlab.training.signals import Ended, Signals


class AtomicCheckpointIO(CheckpointIO):
    """Writes and reads the checkpoints of Lightning's Trainer, for every strategy with one file."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any | None = None
    ) -> None:
        """Write a checkpoint whole. The previous `last.ckpt` becomes `previous.ckpt`.

        Raises:
            UserError: it cannot be written; checkpoints written before are untouched.
        """
        path = Path(path)
        partial = path.with_name(path.name + ".partial")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            partial.unlink(missing_ok=True)  # a link would lead elsewhere
            with partial.open("xb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            if path.name == LAST and path.exists():
                path.replace(path.with_name(PREVIOUS))
            partial.replace(path)
            _sync_directory(path.parent)
        except (OSError, RuntimeError) as error:
            # torch raises an error of its own
            cause = error if isinstance(error, OSError) else error.__context__
            if not isinstance(cause, OSError):
                raise
            partial.unlink(missing_ok=True)
            raise UserError(
                f"the checkpoint {path} cannot be written: {cause.strerror or cause}; those before it are "
                "untouched"
            ) from None

    def load_checkpoint(
        self, path: str | Path, map_location: Any | None = None, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Read a checkpoint. Only loads tensors and plain containers, whatever `weights_only` is."""
        return torch.load(path, map_location=map_location or "cpu", weights_only=True)

    def remove_checkpoint(self, path: str | Path) -> None:
        Path(path).unlink(missing_ok=True)


def _sync_directory(directory: Path) -> None:
    """Sync the names of files, too, so that they survive a power cut."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def newest(directory: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest checkpoint to continue from, or None if there is none yet.

    A damaged checkpoint is reported and moved aside.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    for partial in directory.glob("*.partial"):
        partial.unlink(missing_ok=True)
    damaged = []
    for path in (directory / LAST, directory / PREVIOUS):
        if not path.exists():
            continue
        try:
            return path, read(path)
        except DamagedError as error:
            damaged.append(f"{path} is damaged ({error})")
            if path.name == LAST and path.with_name(PREVIOUS).exists():
                print(f"memlab: warning: {damaged[-1]}; the one before is used", file=sys.stderr)
                # otherwise it would replace the previous one, which is whole
                path.replace(path.with_name("damaged.ckpt"))
    if damaged:
        raise UserError(
            f"{damaged[-1]}, and there is no other checkpoint to continue from; start again, with another "
            "run_dir"
        )
    return None


class Checkpoints(L.Callback):
    """Writes `last.ckpt` when it is due or the run is asked to end, and `best.ckpt` after a best validation.

    A checkpoint at a step with a validation is written after the validation, since Lightning does not return
    to a validation that it has not done. This callback is the last, so that checkpoints include what the
    others did at the same step.

    Args:
        began: `time.perf_counter()` when this process began with the run.
    """

    def __init__(
        self,
        directory: RunDirectory,
        config: TrainerConfig,
        signals: Signals,
        processes: Processes,
        began: float,
    ) -> None:
        self.directory = directory
        self.processes = processes
        self.config = config
        self.signals = signals
        self.best: list[float] | None = None  # score and loss of the best validation so far
        # by earlier processes, up to the checkpoint
        self.spent = {"train_seconds": 0.0, "total_seconds": 0.0}
        self.began = {"train_seconds": time.perf_counter(), "total_seconds": began}

    def seconds(self) -> dict[str, float]:
        """Time spent on the run, by all processes up to now: `train_seconds`, `total_seconds`."""
        now = time.perf_counter()
        return {name: self.spent[name] + now - self.began[name] for name in self.spent}

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.signals.take_back()
        self.signals.held = True

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.signals.take_back()

    def on_test_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.signals.take_back()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._leave_if_asked()  # everything after the last step has been saved
        self.signals.held = False
        self.signals.leave_if_asked()

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.signals.held = False

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self.config.validates_after(trainer.global_step):
            self._save_if_due(trainer)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        found = [float(trainer.callback_metrics.get(name, 0.0)) for name in ("val/score", "val/loss")]
        if self.config.select == "last" or not_worse(found, self.best):
            self.best = found
            trainer.save_checkpoint(self.directory.checkpoints / BEST)
        if trainer.state.fn == TrainerFn.FITTING:
            self._save_if_due(trainer)

    def _save_if_due(self, trainer: L.Trainer) -> None:
        asked = self.signals.agree(self.processes)
        if self.config.saves_after(trainer.global_step) or trainer.should_stop or asked:
            self._sync_metrics()
            trainer.save_checkpoint(self.directory.checkpoints / LAST)
        if asked:
            raise Ended(asked)

    def _leave_if_asked(self) -> None:
        if asked := self.signals.agree(self.processes):
            raise Ended(asked)

    def _sync_metrics(self) -> None:
        """Sync the lines so far, so that a checkpoint never knows more lines than survive."""
        if self.directory.metrics.exists():
            with self.directory.metrics.open("rb") as file:
                os.fsync(file.fileno())

    def state_dict(self) -> dict[str, Any]:
        metrics = self.directory.metrics
        return {
            "best": self.best,
            "spent": self.seconds(),
            "metrics_bytes": metrics.stat().st_size if metrics.exists() else 0,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.spent = state_dict["best"], state_dict["spent"]

    def on_save_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint["memlab_stopped"] = trainer.should_stop
        # the last batch of this run is not the last one of a run that continues for more steps
        checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["is_last_batch"] = False

    def on_load_checkpoint(
        self, trainer: L.Trainer, module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        trainer.should_stop = checkpoint["memlab_stopped"]


def not_worse(found: Sequence[float], best: Sequence[float] | None) -> bool:
    """Whether a validation with this score and loss replaces the best one so far.

    A higher score does; with equal scores a lower loss, since many checkpoints may answer all validation
    samples right; with equal losses the later one. NaN is worse than any number.
    """
    if best is None:
        return True
    (score, loss), (best_score, best_loss) = found, best

    def rank(value: float) -> float:
        return value if value == value else -math.inf

    return (rank(score), rank(-loss)) >= (rank(best_score), rank(-best_loss))


def metrics_bytes(checkpoint: dict[str, Any]) -> int:
    """Size of `metrics.jsonl` when the checkpoint was written."""
    return int(checkpoint["callbacks"][Checkpoints.__name__]["metrics_bytes"])
