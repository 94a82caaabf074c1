"""The three parts of a training: objective, evaluator and stream.

    stream      batches, where in the data the training is, and the curriculum
    objective   the loss and the metrics of a step
    evaluator   what a validation or test reads, and its metrics

`module.py` puts them together and knows none of their kinds. `answers.py` and `text.py` have one of each; a
task says by `trained_by` which it needs.

A batch is an object with `tokens_BT` and a method `to(device)`. States for a checkpoint are plain containers
of tensors and numbers. They are those of all processes together: every process asks for them at the same time
and gets the same, and after loading, any number of processes may go on, each with its own rows.
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

    For each step come, in this order: `begin`, `loss` for one part of the rows after another, `end`.
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
        """A step begins; `batch` are this process's rows."""

    @abc.abstractmethod
    def loss(self, rows: range) -> Tensor:
        """What some rows add to the loss of the step.

        The mean over the processes of the sum over the parts is the loss of the step.
        """

    @abc.abstractmethod
    def end(self) -> dict[str, Tensor]:
        """Metrics of the step and of all processes by the names they are logged under, `train/loss` among
        them.

        Those with several numbers are averaged where they are logged.
        """

    @property
    def progress(self) -> dict[str, float]:
        """Numbers that say how far the training is, for every log entry."""
        return {}

    def facts(self) -> dict[str, Any]:
        """What `result.json` says of the training."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps."""
        return {}

    def load_state_dict(self, saved: dict[str, Any]) -> None:  # noqa: B027 - most have nothing
        """Go on from there."""


class Evaluator(abc.ABC):
    """What is measured in a validation or test.

    Attributes:
        headline: the metric that people look at first.
        metrics: torchmetrics objects by name, made with `Processes.metric_options` so that their sums are
            those of all processes.
    """

    headline: ClassVar[str]

    def __init__(self, metrics: MetricCollection, processes: Processes) -> None:
        metrics.persistent(True)
        self.metrics, self.processes = metrics, processes

    def start(self, split: Held) -> None:
        """Nothing of the split has been read yet."""
        self.metrics.reset()

    @abc.abstractmethod
    def read(self, batch: Any) -> None:
        """Read a batch of this process's share and update the metrics."""

    def finish(self) -> dict[str, float]:
        """The metrics by name, now that all processes have read their share."""
        return {name: float(value) for name, value in self.metrics.compute().items()}

    @abc.abstractmethod
    def score(self, metrics: Mapping[str, float]) -> float:
        """How good a validation was; checkpoints are ranked by it."""

    def facts(self) -> dict[str, Any]:
        """What `result.json` has of the last evaluation beside its metrics."""
        return {}

    def state_dict(self) -> dict[str, Any]:
        """What the metrics have counted so far, in all processes together."""
        with contextlib.ExitStack() as synchronised:
            for metric in self.metrics.values():
                synchronised.enter_context(metric.sync_context())
            return dict(self.metrics.state_dict())

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on counting; the first process takes over what all of them had counted."""
        self.metrics.reset()
        if self.processes.leads:
            self.metrics.load_state_dict(saved)


class Stream(abc.ABC):
    """The endless training batches of this process, at the sizes that the curriculum gives them.

    It is sized, so that Lightning does not read ahead.

    Args:
        steps: batches to give at most.
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
        """A checkpoint that is written from now on goes on after this batch."""

    def facts(self) -> dict[str, Any]:
        """What `result.json` says of what was read."""
        return {}

    @abc.abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint keeps: the place in the data, and the curriculum."""

    @abc.abstractmethod
    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from there."""


@dataclass
class Training:
    """The parts that a task is trained by, and the batches of its validations and its one test."""

    objective: Objective
    evaluator: Evaluator
    stream: Stream
    validation: Iterable[Any]
    test: Iterable[Any]


def added(parts: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Metrics of all rows of a step, from what each part of them adds."""
    return {name: torch.stack([part[name] for part in parts]).sum(0) for name in parts[0]}
