"""Training on samples with an answer: the loss of the answer's tokens, and two kinds of accuracy.

Metrics, by their names in the log: `train/loss`, `train/accuracy` (teacher-forced, this batch),
`train/auxiliary_loss` (see `parts.py`);
`val/` and `test/` `accuracy` (free-running), `accuracy_teacher_forced`, `exact_match` (free-running, whole
answers), `loss`.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

from memlab.config.sections import Config
from memlab.errors import ConfigError
from memlab.evaluation import metrics
from memlab.evaluation.accuracy import free_running
from memlab.evaluation.loss import nats
from memlab.models.base import Model
from memlab.splits import Held
from memlab.tasks.base import SyntheticTask
from memlab.training import truncation
from memlab.training.curriculum import Curriculum
from memlab.training.data import AnswerStream, EvaluationBatches, TensorBatch
from memlab.training.parts import Evaluator, Objective, Training, added
from memlab.training.processes import Processes


def training(
    config: Config, task: SyntheticTask, model: Model, curriculum: Curriculum, processes: Processes
) -> Training:
    """The parts for a task with answers.

    Raises:
        ConfigError: the model answers once per sample, and the task's answer has several tokens.
    """
    if model.answers_once and task.answer_tokens > 1:
        raise ConfigError(
            f"model={config.model['name']} answers once per sample, and the answer of "
            f"task={config.task['name']} as configured has {task.answer_tokens} tokens; use a decoder, or a "
            "task with one answer token such as associative_retrieval"
        )
    longer = [n for n in config.trainer.val_segments or [] if n != task.num_segments]
    return Training(
        AnswerObjective(model, config, processes),
        AnswerEvaluator(model, curriculum, processes, longer),
        AnswerStream(curriculum, config.trainer.max_steps, config.seed, processes),
        validation=EvaluationBatches(curriculum, "validation", processes, longer),
        test=EvaluationBatches(Curriculum([task]), "test", processes),
    )


class AnswerObjective(Objective):
    """Cross-entropy of the answer's tokens."""

    batch: TensorBatch  # of the step in progress
    read: list[dict[str, Tensor]]  # metrics of the step's parts so far

    def begin(self, batch: TensorBatch) -> None:
        self.batch, self.read = batch, []

    def loss(self, rows: range) -> Tensor:
        kept = self._answers(self.batch.part(rows))
        # an encoder answers after each segment; only the last answer counts
        nats_BA, right_BA = (value[:, -1:] if self.model.answers_once else value for value in kept.values)
        # all batch rows have the same number of targets, so means of means are the mean over the whole batch
        loss = nats_BA.mean()
        share = len(rows) / len(self.batch.tokens_BT)
        # Means of the batch are plain tensors: in a step, torchmetrics objects would cost more than they are
        # worth (65 us to update MulticlassAccuracy, 7 us for this; and a synchronisation of 24 ms per step of
        # two processes). Diagnostics are [S]; their means are computed only when they are logged.
        found = {"train/loss": loss.detach(), "train/accuracy": right_BA.float().mean(), **kept.diagnostics}
        if kept.auxiliary is not None:
            loss = loss + self.auxiliary(kept.auxiliary, found)
        self.read.append({name: value * share for name, value in found.items()})
        return loss * share

    def end(self) -> dict[str, Tensor]:
        return self.processes.means(added(self.read))

    def _answers(self, batch: TensorBatch) -> truncation.Kept:
        """Read whole samples and keep the nats of the answer's tokens, and whether they are right."""
        answer_T = batch.answer_BT[0]  # the same positions in every sample of a task
        targets_BA, once = batch.targets_BT[:, answer_T], self.model.answers_once

        def keep(logits_BaV: Tensor, start: int) -> tuple[Tensor, Tensor]:
            count = logits_BaV.shape[1]
            targets_Ba = targets_BA.expand(-1, count) if once else targets_BA[:, start : start + count]
            return nats(logits_BaV, targets_Ba), logits_BaV.detach().argmax(-1) == targets_Ba

        every = self.depth is None or self.model.has_auxiliary_loss
        wanted = None if every else batch.answer_segments
        lengths = batch.segment_lengths
        calls = truncation.plan(lengths, self.depth, wanted, recompute=self.recompute)
        segments = batch.tokens_BT.split(list(lengths), 1)
        return truncation.run(self.model, segments, calls, keep, scored_T=answer_T)


class AnswerEvaluator(Evaluator):
    """Free-running and teacher-forced answers.

    Checkpoints are ranked by the stage of the curriculum plus accuracy, so that an easier stage never beats a
    later one. In the last stage, the accuracy is the mean over all numbers of segments that are read.

    Args:
        longer: the other numbers of segments; their metrics are `accuracy_at_N`.
    """

    headline = "accuracy"

    def __init__(
        self, model: Model, curriculum: Curriculum, processes: Processes, longer: Sequence[int] = ()
    ) -> None:
        vocab_size = curriculum.stages[-1].vocab_size
        super().__init__(metrics.of_answers(vocab_size, **processes.metric_options()), processes)
        self.model, self.curriculum = model, curriculum
        self.longer = {n: metrics.accuracy(vocab_size, **processes.metric_options()) for n in longer}

    def start(self, split: Held) -> None:
        super().start(split)
        self.split = split
        for metric in self.longer.values():
            metric.reset()

    def finish(self) -> dict[str, float]:
        longer = self.longer.items()
        read = {f"accuracy_at_{n}": float(metric.compute()) for n, metric in longer if metric.update_called}
        return {**super().finish(), **read}

    def read(self, batch: TensorBatch) -> None:
        answer_T = batch.answer_BT[0]
        once = self.model.answers_once
        read = truncation.read(self.model, batch.tokens_BT, batch.segment_lengths, scored_T=answer_T)
        logits_BAV = read.logits[:, -1:] if once else read.logits
        truth_BA = batch.targets_BT[:, answer_T]
        forced_BA = logits_BAV.argmax(-1)
        if once:  # one answer has no earlier tokens that could be forced
            free_BA = forced_BA
        else:
            decoder: Any = self.model
            free_BA = free_running(decoder, batch.tokens_BT, answer_T.tolist(), batch.segment_lengths)
        nats_BA, truth, free, forced = (
            t.cpu() for t in (nats(logits_BAV, truth_BA), truth_BA, free_BA, forced_BA)
        )
        segments = len(batch.segment_lengths)
        if segments in self.longer and self.split == "validation" and self.curriculum.in_last_stage:
            self.longer[segments].update(free, truth)
            return
        self.metrics["loss"].update(nats_BA)
        self.metrics["accuracy"].update(free, truth)
        self.metrics["exact_match"].update(free, truth)
        self.metrics["accuracy_teacher_forced"].update(forced, truth)

    def score(self, metrics: Mapping[str, float]) -> float:
        longer = [value for name, value in metrics.items() if name.startswith("accuracy_at_")]
        return self.curriculum.stage + statistics.fmean([metrics["accuracy"], *longer])

    def facts(self) -> dict[str, Any]:
        return {"chance": self.curriculum.stages[-1].chance}
