"""What all trainings share: a model, a stream of batches, an optimizer, and what the callbacks and reports
ask for.

`AnsweringModule` trains on samples with an answer, `ReadingModule` on documents that are read on and on.
Models know nothing of them.
"""

from __future__ import annotations

import abc
import sys
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from memlab import __version__
from memlab.config.sections import Config
from memlab.models.base import Model
from memlab.splits import Held
from memlab.training import finite, optimizers, random_state, sharding, truncation
from memlab.training.processes import Processes


class MemoryModule(L.LightningModule, abc.ABC):
    """Base of the two. A subclass gives Lightning's steps, and these words and figures.

    Attributes:
        processes: those that train together.
        train_metrics: of the last step and all processes, by their names in every tracker; numbers of several
            parts are averaged where they are logged.
        headline: the metric that people look at first, without its split.
    """

    headline: ClassVar[str]

    def __init__(self, model: Model, config: Config, processes: Processes) -> None:
        super().__init__()
        self.model = model
        self.processes = processes
        self.config = config
        self.save_hyperparameters({"config": config.model_dump()})
        self.train_metrics: dict[str, Tensor] = {}
        self._random: dict[str, Any] | None = None  # out of a checkpoint, until the first step

    @property
    def recompute(self) -> int:
        """Segments that are recomputed together in training; 0 = none are."""
        trainer = self.config.trainer
        return (
            truncation.together(self.model, trainer.recompute_together)
            if trainer.recompute == "segment"
            else 0
        )

    @abc.abstractmethod
    def begin_step(self, batch: Any) -> None:
        """A training step begins, of which `batch` are this process's rows."""

    @abc.abstractmethod
    def step_loss(self, rows: range) -> Tensor:
        """What some rows of the step's batch add to its loss; called for all of them in turn, each time with
        as many.

        The mean over the processes of the sum over the rows is the loss of the step.
        """

    @abc.abstractmethod
    def end_step(self) -> None:
        """All rows of the step have been read; `train_metrics` are to be those of the step now."""

    @abc.abstractmethod
    def place(self) -> str:
        """Where in the training this is, as a person reads it."""

    @abc.abstractmethod
    def place_metrics(self) -> dict[str, float]:
        """The same as numbers, for every log entry."""

    @abc.abstractmethod
    def short_words(self) -> str:
        """The last training step in a few words, beside its loss."""

    @abc.abstractmethod
    def validation_words(self, metrics: Mapping[str, float]) -> str:
        """A validation in a few words."""

    @abc.abstractmethod
    def validated(self, step: int, metrics: Mapping[str, float]) -> bool:
        """Take note of a validation after so many steps; True if the training is to stop."""

    @abc.abstractmethod
    def report(self) -> dict[str, Any]:
        """What `result.json` says of the training beyond metrics and times."""

    @abc.abstractmethod
    def start_evaluation(self) -> None:
        """Nothing of a validation or test has been read yet."""

    @abc.abstractmethod
    def evaluate(self, batch: Any) -> None:
        """Read a batch of it and take note."""

    @abc.abstractmethod
    def evaluated(self, split: Held) -> dict[str, float]:
        """Its metrics, when all has been read."""

    @abc.abstractmethod
    def score(self, metrics: Mapping[str, float]) -> float:
        """How good a validation was, by which checkpoints are ranked."""

    @abc.abstractmethod
    def common_state(self) -> dict[str, Any]:
        """What a checkpoint keeps beside the weights, and what is the same in every process."""

    @abc.abstractmethod
    def load_common_state(self, saved: dict[str, Any]) -> None:
        """Go on from there."""

    @abc.abstractmethod
    def own_state(self) -> dict[str, Any]:
        """What a checkpoint keeps of each process: its place in the data, and what its rows carry."""

    @abc.abstractmethod
    def load_own_state(self, saved: list[dict[str, Any]]) -> None:
        """Go on from there, with this process's part of what all processes kept, by rank.

        They may have been more or fewer.
        """

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss of a step, from which Lightning goes on.

        With `trainer.accumulate`, some of its rows have sent their gradient by then.

        Gradients of all rows but the last are added up in each process alone; those of the last take them
        along to the other processes.
        """
        self.zero_grad()
        self.begin_step(batch)
        parts = split(range(len(batch.tokens_BT)), self.config.trainer.accumulate)
        for rows in parts[:-1]:
            sharding.accumulate(self, more=True)
            part = self.step_loss(rows)
            with torch.autocast(self.device.type, enabled=False):  # as in Lightning's backward pass
                part.backward()
        sharding.accumulate(self, more=False)
        loss = self.step_loss(parts[-1])
        if len(parts) > 1 and self.processes.size > 1 and not sharding.shared(self):
            # DistributedDataParallel shares the gradients of what takes part in the last backward pass, so
            # all that has one does
            loss = _Taking.apply(loss, *(p for p in self.parameters() if p.grad is not None))
        self.end_step()
        return loss

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Lightning's hook, which comes too late: part of the gradients are there.

        `training_step` does it.
        """

    def on_validation_epoch_start(self) -> None:
        sharding.gather(self)
        self.start_evaluation()

    def on_test_epoch_start(self) -> None:
        # for good: behind the test, the first process alone weighs what the model carries
        sharding.gather(self)
        self.start_evaluation()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.evaluate(batch)

    def test_step(self, batch: Any, batch_index: int) -> None:
        self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        metrics = self.evaluated("validation")
        sharding.release(self)
        self.log_dict(
            {**{f"val/{name}": value for name, value in metrics.items()}, "val/score": self.score(metrics)},
            logger=False,
        )

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self.evaluated("test").items()}, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = {**self.own_state(), "random": random_state.collect(self.device)}
        checkpoint["memlab"] = {
            "version": __version__,
            "common": self.common_state(),
            "processes": self.processes.gather(own),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        saved = checkpoint["memlab"]
        before, now = len(saved["processes"]), self.processes.size
        self.load_common_state(saved["common"])
        self.load_own_state(saved["processes"])
        if before == now:
            self._random = saved["processes"][self.processes.rank]["random"]
            return
        random_state.begin(self.config.seed, self.processes.rank, checkpoint["global_step"])
        if self.processes.leads:
            print(
                f"memlab: the checkpoint is of {before} process{'es' * (before > 1)}, now there "
                f"{'are' if now > 1 else 'is'} {now}: rows and what they carry are dealt out anew; sums are "
                "rounded otherwise, and dropout draws other numbers",
                file=sys.stderr,
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # not before: whatever is set up at the start may draw, and did not between two steps of one run
        if self._random is not None:
            random_state.restore(self._random, self.device)
            self._random = None

    def configure_gradient_clipping(
        self,
        optimizer: Any,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        finite.clip(
            self.model, optimizer, self.train_metrics["train/loss"], gradient_clip_val, self.global_step + 1
        )

    def configure_optimizers(self) -> Any:
        trainer = self.config.trainer
        optimizer, scheduler = optimizers.build(self.model, self.config.optim, trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class _Taking(torch.autograd.Function):
    """The loss as it is; the parameters beside it are in its graph, and get nothing from it."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *(None for _ in ctx.needs_input_grad[1:])


def split(rows: range, parts: int) -> list[range]:
    """Rows one after another, in parts of equal size."""
    size = len(rows) // parts
    return [rows[part * size : (part + 1) * size] for part in range(parts)]


def added(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of all rows of a step, from what each part of them adds."""
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}


def at_least_float32(logits: Tensor) -> Tensor:
    """For the loss: half precision is too coarse for it, and double precision is kept."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
