"""The three parts of a training: objective, evaluator and stream.

    stream      batches, the position in the data, and the curriculum
    objective   loss and metrics of a step
    evaluator   what a validation or test measures

`module.py` combines them and knows none of their kinds. `answers.py` and `text.py` have one of each;
`Task.trained_by` names the ones that a task needs.

A batch is an object with `tokens_BT` and a method `to(device)`. What a checkpoint stores of a part are plain
containers of tensors and numbers, of all processes together: every process calls `state_dict` at the same
time and gets the same result, and any number of processes may continue from it, each with its own batch rows.

A layer memory may have a loss of its own (`Where.add_loss`). Its mean over batch rows and segments is added
to the objective's loss. It is logged as `train/auxiliary_loss` and is no part of `train/loss`, so that
`train/loss` means the same for every model.
"""

from __future__ import annotations

import abc
import contextlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torchmetrics import MetricCollection

from memlab.config.sections import Config
from memlab.models.base import Model
from memlab.splits import Held
from memlab.training import truncation
from memlab.training.curriculum import Curriculum
from memlab.training.processes import Processes


class Objective(abc.ABC):
    """The loss of a training step.

    In each step, the calls are: `begin`, then `loss` for each part of the batch rows, then `end`.
    """

    def __init__(self, model: Model, config: Config, processes: Processes) -> None:
        self.model, self.processes = model, processes
        self.depth = config.bptt_depth
        trainer = config.trainer
        # segments that are recomputed together; 0 = none are
        together = truncation.together(model, trainer.recompute_together)
        self.recompute = together if trainer.recompute == "segment" else 0

    @abc.abstractmethod
    def begin(self, batch: Any) -> None:
        """Begin a step; `batch` has this process's batch rows."""

    @abc.abstractmethod
    def loss(self, rows: range) -> Tensor:
        """The contribution of some batch rows to the loss of the step.

        The loss of the step is the sum over the parts, averaged over the processes.
        """

    @abc.abstractmethod
    def end(self) -> dict[str, Tensor]:
        """Metrics of the step over all processes, by their names in the log, among them `train/loss`.

        Metrics with several numbers are averaged when they are logged.
        """

    def auxiliary(self, losses_BS: Tensor, found: dict[str, Tensor]) -> Tensor:
        """The auxiliary loss of the batch rows that have been read, which is also added to their metrics."""
        loss = losses_BS.mean()
        found["train/auxiliary_loss"] = loss.detach()
        return loss

    @property
    def progress(self) -> dict[str, float]:
        """How far the training is, as numbers for every log entry."""
        return {}

    def facts(self) -> dict[str, Any]:
        """Entries of `result.json` about the training."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:  # noqa: B027 - most have nothing
        """Continue from what a checkpoint stores."""


class Evaluator(abc.ABC):
    """Measures a validation or test.

    Attributes:
        headline: the most important metric.
        metrics: torchmetrics objects by name, made with `Processes.metric_options` so that they sum over all
            processes.
    """

    headline: ClassVar[str]

    def __init__(self, metrics: MetricCollection, processes: Processes) -> None:
        metrics.persistent(True)
        self.metrics, self.processes = metrics, processes

    def start(self, split: Held) -> None:
        """Begin with a split, of which nothing has been read yet."""
        self.metrics.reset()

    @abc.abstractmethod
    def read(self, batch: Any) -> None:
        """Read a batch of this process's share and update the metrics."""

    def finish(self) -> dict[str, float]:
        """The metrics by name, after all processes have read their share."""
        return {name: float(value) for name, value in self.metrics.compute().items()}

    @abc.abstractmethod
    def score(self, metrics: Mapping[str, float]) -> float:
        """How good a validation was; checkpoints are ranked by it."""

    def facts(self) -> dict[str, Any]:
        """Entries of `result.json` about the last evaluation, in addition to its metrics."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """The states of the metrics, summed over all processes."""
        with contextlib.ExitStack() as synchronised:
            for metric in self.metrics.values():
                synchronised.enter_context(metric.sync_context())
            return dict(self.metrics.state_dict())

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue counting; the first process takes over the counts of all processes."""
        self.metrics.reset()
        if self.processes.leads:
            self.metrics.load_state_dict(saved)


class Stream(abc.ABC):
    """The endless training batches of this process, at the sizes that the curriculum chooses.

    It has a length, so that Lightning does not read ahead.

    Args:
        steps: maximum number of batches.
    """

    def __init__(self, curriculum: Curriculum, steps: int) -> None:
        self.curriculum, self.steps = curriculum, steps

    def __len__(self) -> int:
        return self.steps

    @abc.abstractmethod
    def __iter__(self) -> Iterator[Any]:
        """The batches after the last one that was trained on."""

    @abc.abstractmethod
    def trained_on(self, batch: Any) -> None:
        """Move the position past this batch: checkpoints written from now on continue after it."""

    def facts(self) -> dict[str, Any]:
        """Entries of `result.json` about what was read."""
        return {}

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint stores: the position in the data, and the curriculum."""

    @abc.abstractmethod
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Continue from what a checkpoint stores."""


@dataclass
class Training:
    """The parts that train a task, and the batches of its validations and its one test."""

    objective: Objective
    evaluator: Evaluator
    stream: Stream
    validation: Iterable[Any]
    test: Iterable[Any]


def added(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of a step: the sums over the contributions of its parts."""
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
