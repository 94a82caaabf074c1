"""A task of a user's own, with an objective, an evaluator and a metric of its own; see test_own_task.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from torchmetrics import MeanAbsoluteError, MetricCollection

from memlab.config.sections import Config
from memlab.models.base import Model
from memlab.tasks.copy import Copy
from memlab.training import answers, truncation
from memlab.training.curriculum import Curriculum
from memlab.training.data import AnswerStream, EvaluationBatches, TensorBatch
from memlab.training.parts import Evaluator, Training
from memlab.training.processes import Processes


class Guess(Copy):
    """Copying, in which a token that is nearly right is nearly as good."""

    trained_by = "tests.training.own_task.training"


class Smooth(answers.AnswerObjective):
    """The loss of answers, doubled."""

    steps = 0

    def loss(self, rows: range) -> Tensor:
        return 2 * super().loss(rows)

    def end(self) -> dict[str, Tensor]:
        self.steps += 1
        return super().end()

    def facts(self) -> dict[str, Any]:
        return {"own_steps": self.steps}

    def state_dict(self) -> dict[str, Any]:
        return {"steps": self.steps}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.steps = saved["steps"]


class Distance(Evaluator):
    """How far the predicted ids are from the true ones."""

    headline = "distance"

    def __init__(self, model: Model, processes: Processes) -> None:
        metric = MeanAbsoluteError(**processes.metric_options())
        super().__init__(MetricCollection({"distance": metric}), processes)
        self.model = model

    def read(self, batch: TensorBatch) -> None:
        logits_BTV = truncation.read(self.model, batch.tokens_BT, batch.segment_lengths).logits
        where = batch.answer_BT
        predicted, truth = logits_BTV.argmax(-1)[where], batch.targets_BT[where]
        self.metrics.update(predicted.to(torch.float32), truth.to(torch.float32))

    def score(self, metrics: Mapping[str, float]) -> float:
        return -metrics["distance"]


def training(
    config: Config, task: Guess, model: Model, curriculum: Curriculum, processes: Processes
) -> Training:
    return Training(
        Smooth(model, config, processes),
        Distance(model, processes),
        AnswerStream(curriculum, config.trainer.max_steps, config.seed, processes),
        validation=EvaluationBatches(curriculum, "validation", processes),
        test=EvaluationBatches(Curriculum([task]), "test", processes),
    )
