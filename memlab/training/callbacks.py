"""What happens around the steps: the curriculum moves to its next stage, metrics are logged, progress is
shown.
"""

from __future__ import annotations

import sys
import time
from typing import Any

import lightning as L
import torch
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from memlab.reports import progress
from memlab.terminal.tables import is_live
from memlab.training.module import TrainingModule

KEPT_STEPS = 10_000  # steps whose times a checkpoint stores, for their median


class Conductor(L.Callback):
    """Moves the curriculum to its next stage after a validation, or stops when the last stage is solved.

    Runs after the callbacks that report.

    Args:
        stop_at_accuracy: free-running validation accuracy at which the last stage counts as solved; None =
            never.
        patience: further validations before the training stops.
    """

    def __init__(self, stop_at_accuracy: float | None = None, patience: int = 0) -> None:
        self.stop_at_accuracy, self.patience = stop_at_accuracy, patience
        self.since_solved = 0  # validations, including the one that solved the last stage

    def state_dict(self) -> dict[str, Any]:
        return {"since_solved": self.since_solved}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.since_solved = state_dict["since_solved"]

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        curriculum = module.stream.curriculum
        accuracy = validation_metrics(trainer).get("val/accuracy")  # text has none
        if curriculum.in_last_stage and accuracy is not None and self.stop_at_accuracy is not None:
            self.since_solved += self.since_solved > 0 or accuracy >= self.stop_at_accuracy
            trainer.should_stop = trainer.should_stop or self.since_solved > self.patience
        curriculum.update(trainer.global_step, accuracy)


class StepClock(L.Callback):
    """Seconds and tokens of the training steps, from the request for a batch to the optimizer's step.

    Validation is not included.

    Args:
        processes: number of processes, each of which reads the same number of tokens.
    """

    def __init__(self, processes: int = 1) -> None:
        self.processes = processes
        self.steps: list[float] = []
        self.seconds = 0.0
        self.tokens = 0
        self.last = 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "seconds": self.seconds,
            "tokens": self.tokens,
            "steps": torch.tensor(self.steps[-KEPT_STEPS:], dtype=torch.float64),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.seconds, self.tokens, self.steps = (
            state_dict["seconds"],
            state_dict["tokens"],
            state_dict["steps"].tolist(),
        )

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.last = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        now = time.perf_counter()
        self.steps.append(now - self.last)
        self.seconds += now - self.last
        self.tokens += batch.tokens_BT.numel() * self.processes
        self.last = now

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.last = time.perf_counter()

    def speed_since(self, seconds: float, tokens: int) -> float:
        """Tokens per second since these counts were read."""
        return (self.tokens - tokens) / max(self.seconds - seconds, 1e-9)


class MetricsLog(L.Callback):
    """Sends training metrics (every `log_every` steps) and validation metrics to every logger.

    Calls of a tracker cost milliseconds, so they are not made at every step.
    """

    def __init__(self, log_every: int, clock: StepClock) -> None:
        self.log_every = log_every
        self.clock = clock
        self.since = (0.0, 0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.since = (self.clock.seconds, self.clock.tokens)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if trainer.global_step % self.log_every:
            return
        metrics = {name: value.mean().item() for name, value in module.train_metrics.items()}
        if module.stream.curriculum.mixed:
            metrics["train/segments"] = float(len(batch.segment_lengths))
        metrics["train/tokens_per_second"] = self.clock.speed_since(*self.since)
        metrics["train/lr"] = trainer.optimizers[0].param_groups[0]["lr"]
        metrics |= {
            "train/seconds": self.clock.seconds,
            "train/tokens": self.clock.tokens,
            **module.progress,
        }
        self.since = (self.clock.seconds, self.clock.tokens)
        log(trainer, metrics, trainer.global_step)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        place = {"val/seconds": self.clock.seconds, "val/tokens": self.clock.tokens}
        place |= {f"val/{name.partition('/')[2]}": value for name, value in module.progress.items()}
        score = float(trainer.callback_metrics["val/score"])
        log(trainer, {**validation_metrics(trainer), "val/score": score, **place}, trainer.global_step)


class ProgressReport(L.Callback):
    """A progress bar on a terminal, or a line per validation in a file."""

    def __init__(self, max_steps: int, clock: StepClock) -> None:
        self.max_steps = max_steps
        self.clock = clock
        self.console = Console(stderr=True)
        self.bar: Progress | None = None
        self.began = time.perf_counter()
        self.shown: dict[str, Any] = {"loss": "-", "train": "", "val": "-", "place": "-", "speed": "-"}
        self.drawn_at = 0.0
        self.since = (0.0, 0)

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.began = time.perf_counter()
        self.since = (self.clock.seconds, self.clock.tokens)
        if not is_live(self.console):
            return
        layout = (
            "loss {task.fields[loss]}  {task.fields[train]}  val {task.fields[val]}  {task.fields[place]}  "
            "{task.fields[speed]}"
        )
        columns = (
            MofNCompleteColumn(),
            BarColumn(bar_width=None),
            TextColumn(layout),
            TimeElapsedColumn(),
            TextColumn("<"),
            TimeRemainingColumn(),
        )
        self.bar = Progress(*columns, console=self.console, refresh_per_second=4)
        self.bar.start()
        self.bar.add_task("train", total=self.max_steps, completed=trainer.global_step, **self.shown)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, TrainingModule)
        if self.bar is None or time.perf_counter() - self.drawn_at < 0.5:
            return
        speed = self.clock.speed_since(*self.since)
        self.drawn_at, self.since = time.perf_counter(), (self.clock.seconds, self.clock.tokens)
        self.shown |= {
            "loss": f"{module.train_metrics['train/loss'].item():.3f}",
            "train": progress.step({k: v.mean().item() for k, v in module.train_metrics.items()}),
            "place": place(module),
            "speed": f"{speed:,.0f} tokens/s",
        }
        self.bar.update(self.bar.task_ids[0], completed=trainer.global_step, **self.shown)

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        assert isinstance(module, TrainingModule)
        metrics = validation_metrics(trainer)
        self.shown["val"] = f"{metrics['val/' + module.evaluator.headline]:.3f}"
        if self.bar is None:
            seconds = time.perf_counter() - self.began
            # a run that is continued after its last step has a validation, but no training step
            loss = f"  loss {module.train_metrics['train/loss'].item():.4f}" if module.train_metrics else ""
            print(
                f"step {trainer.global_step:>6}/{self.max_steps}  {seconds:6.0f} s  {place(module)}"
                f"{loss}  val {progress.validation(metrics, module.evaluator.headline)}",
                file=sys.stderr,
                flush=True,
            )

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=trainer.global_step, **self.shown)
            self.bar.stop()
            self.bar = None

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> None:
        self.on_train_end(trainer, module)


def place(module: TrainingModule) -> str:
    """How far the training is, as text."""
    curriculum = module.stream.curriculum
    return progress.place(module.progress, len(curriculum.stages), curriculum.mixed)


def validation_metrics(trainer: L.Trainer) -> dict[str, float]:
    """The metrics of the last validation."""
    return {
        k: float(v) for k, v in trainer.callback_metrics.items() if k.startswith("val/") and k != "val/score"
    }


def log(trainer: L.Trainer, metrics: dict[str, float], step: int) -> None:
    """Send metrics to every logger, for an optimizer step."""
    for logger in trainer.loggers:
        logger.log_metrics(metrics, step=step)
