"""What all trainings share: a model, a stream of batches, an optimizer, and what the callbacks and reports ask for.

`AnsweringModule` trains on samples with an answer, `ReadingModule` on documents that are read on and on. Models know nothing of them.
"""

from __future__ import annotations

import abc
import sys
from collections.abc import Mapping
from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor

from memlab.config import Config
from memlab.models.base import Model
from memlab.splits import Held
from memlab.training import finite, optimizers, random_state, truncation
from memlab.training.processes import Processes


class MemoryModule(L.LightningModule, abc.ABC):
    """Base of the two. A subclass gives Lightning's steps, and these words and figures.

    Attributes:
        processes: those that train together.
        train_metrics: of the last step and all processes, by their names in every tracker; numbers of several parts are averaged where
            they are logged.
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
        return truncation.together(self.model, trainer.recompute_together) if trainer.recompute == "segment" else 0

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
        """Go on from there, with this process's part of what all processes kept, by rank. They may have been more or fewer."""

    def on_validation_epoch_start(self) -> None:
        self.start_evaluation()

    def on_test_epoch_start(self) -> None:
        self.start_evaluation()

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.evaluate(batch)

    def test_step(self, batch: Any, batch_index: int) -> None:
        self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        metrics = self.evaluated("validation")
        self.log_dict({**{f"val/{name}": value for name, value in metrics.items()}, "val/score": self.score(metrics)}, logger=False)

    def on_test_epoch_end(self) -> None:
        self.log_dict({f"test/{name}": value for name, value in self.evaluated("test").items()}, logger=False)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        own = {**self.own_state(), "random": random_state.collect(self.device)}
        checkpoint["memlab"] = {"common": self.common_state(), "processes": self.processes.gather(own)}

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
                f"memlab: the checkpoint is of {before} process{'es' * (before > 1)}, now there {'are' if now > 1 else 'is'} {now}: rows "
                "and what they carry are dealt out anew; sums are rounded otherwise, and dropout draws other numbers",
                file=sys.stderr,
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self._random is not None:  # not before: whatever is set up at the start may draw, and did not between two steps of one run
            random_state.restore(self._random, self.device)
            self._random = None

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: float | None = None, gradient_clip_algorithm: str | None = None
    ) -> None:
        finite.clip(self.model, optimizer, self.train_metrics["train/loss"], gradient_clip_val, self.global_step + 1)

    def configure_optimizers(self) -> Any:
        trainer = self.config.trainer
        optimizer, scheduler = optimizers.build(self.model, self.config.optim, trainer.max_steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def at_least_float32(logits: Tensor) -> Tensor:
    """For the loss: half precision is too coarse for it, and double precision is kept."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
