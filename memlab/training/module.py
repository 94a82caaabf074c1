"""The LightningModule: a model, and the objective, evaluator and stream that train it.

It knows none of their kinds (see `parts.py`), and models know nothing of it.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from memlab import __version__
from memlab.config.sections import Config
from memlab.layers import low_rank
from memlab.models import trainable
from memlab.models.base import Model
from memlab.training import finite, optimizers, random_state, sharding
from memlab.training.parts import Training
from memlab.training.processes import Processes


class TrainingModule(L.LightningModule):
    """The hooks that Lightning calls in a training.

    Attributes:
        processes: the processes that train together.
        train_metrics: metrics of the last step over all processes, by their names in the log.
    """

    def __init__(self, model: Model, config: Config, training: Training, processes: Processes) -> None:
        super().__init__()
        self.model = model
        self.objective, self.evaluator, self.stream = training.objective, training.evaluator, training.stream
        self.processes = processes
        self.config = config
        self.save_hyperparameters({"config": config.model_dump()})
        self.train_metrics: dict[str, Tensor] = {}
        self._left_out = {f"model.{name}" for name in trainable.left_out(model, config.model)}
        self._random: dict[str, Any] | None = None  # from a checkpoint, until the first step

    @property
    def progress(self) -> dict[str, float]:
        """How far the training is, as numbers for every log entry."""
        return {**self.objective.progress, **self.stream.curriculum.metrics}

    def step_loss(self, rows: range) -> Tensor:
        """The contribution of some batch rows to the loss of the step; one of `sharding.FORWARD`."""
        # recomputed activations, and blocks that are gathered for each use, cannot use what came before
        each_use = self.config.trainer.recompute != "none" or sharding.shared(self)
        with contextlib.nullcontext() if each_use else low_rank.computed_once(self.model):
            loss = self.objective.loss(rows)
        if not loss.requires_grad:  # nothing that is trained took part, such as in a sample of one segment
            return _WithParameters.apply(loss, *(p for p in self.parameters() if p.requires_grad))
        return loss

    def evaluate(self, batch: Any) -> None:
        """Read a batch of a validation or test; one of `sharding.FORWARD`."""
        with low_rank.computed_once(self.model):
            self.evaluator.read(batch)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        """The loss of a step, whose gradient Lightning computes.

        With `trainer.accumulate`, this is the loss of the last part of the batch rows; the gradients of the
        other parts have been computed by then. Each process adds them up by itself, and the last backward
        pass averages the sums over the processes.
        """
        self.zero_grad()
        self.objective.begin(batch)
        parts = split(range(len(batch.tokens_BT)), self.config.trainer.accumulate)
        for rows in parts[:-1]:
            sharding.accumulate(self, more=True)
            part = self.step_loss(rows)
            with torch.autocast(self.device.type, enabled=False):  # as in Lightning's backward pass
                part.backward()
        sharding.accumulate(self, more=False)
        loss = self.step_loss(parts[-1])
        if len(parts) > 1 and self.processes.size > 1 and not sharding.shared(self):
            # DistributedDataParallel averages gradients in the last backward pass, so all parameters that
            # have one take part in it
            loss = _WithParameters.apply(loss, *(p for p in self.parameters() if p.grad is not None))
        self.train_metrics = self.objective.end()
        self.stream.trained_on(batch)
        return loss

    def optimizer_zero_grad(self, *_: Any) -> None:
        """Do nothing: when Lightning calls this, some gradients are there already; see `training_step`."""

    def on_validation_epoch_start(self) -> None:
        sharding.gather(self)
        self.evaluator.start("validation")

    def on_test_epoch_start(self) -> None:
        # not released: after the test, only the first process measures what the model carries
        sharding.gather(self)
        self.evaluator.start("test")

    def validation_step(self, batch: Any, batch_index: int) -> None:
        self.evaluate(batch)

    def test_step(self, batch: Any, batch_index: int) -> None:
        self.evaluate(batch)

    def on_validation_epoch_end(self) -> None:
        metrics = self.evaluator.finish()
        sharding.release(self)
        named = {f"val/{name}": value for name, value in metrics.items()}
        self.log_dict({**named, "val/score": self.evaluator.score(metrics)}, logger=False)

    def on_test_epoch_end(self) -> None:
        metrics = self.evaluator.finish()
        self.log_dict({f"test/{name}": value for name, value in metrics.items()}, logger=False)

    def whole(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights of a checkpoint, and those that it leaves out."""
        own = self.state_dict()
        return {**{name: own[name] for name in self._left_out}, **weights}

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        weights = checkpoint["state_dict"]
        checkpoint["state_dict"] = {n: value for n, value in weights.items() if n not in self._left_out}
        checkpoint["memlab"] = {
            "version": __version__,
            **{name: part.state_dict() for name, part in self._parts.items()},
            "random": self.processes.gather(random_state.collect(self.device)),
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = self.whole(checkpoint["state_dict"])
        saved = checkpoint["memlab"]
        for name, part in self._parts.items():
            part.load_state_dict(saved[name])
        before, now = len(saved["random"]), self.processes.size
        if before == now:
            self._random = saved["random"][self.processes.rank]
            return
        random_state.begin(self.config.seed, self.processes.rank, checkpoint["global_step"])
        if self.processes.leads:
            print(
                f"memlab: the checkpoint is of {before} process{'es' * (before > 1)}, now there "
                f"{'are' if now > 1 else 'is'} {now}: batch rows and what they carry are distributed again; "
                "sums are rounded differently, and dropout draws other numbers",
                file=sys.stderr,
            )

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # not earlier: what is set up at the start may draw numbers, which an uninterrupted run would not
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

    @property
    def _parts(self) -> dict[str, Any]:
        return {"objective": self.objective, "evaluator": self.evaluator, "stream": self.stream}


class _WithParameters(torch.autograd.Function):
    """The loss, unchanged. The parameters are in its graph, with no contribution to their gradients."""

    @staticmethod
    def forward(ctx: Any, loss: Tensor, *parameters: Tensor) -> Tensor:
        return loss.view_as(loss)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        return grad, *(None for _ in ctx.needs_input_grad[1:])


def split(rows: range, parts: int) -> list[range]:
    """Consecutive rows in parts of equal size."""
    size = len(rows) // parts
    return [rows[part * size : (part + 1) * size] for part in range(parts)]
