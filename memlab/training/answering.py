"""Training on samples with an answer: loss on the answer, validation by both accuracies, one test."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from memlab.config.sections import Config
from memlab.evaluation.accuracy import Score, free_running
from memlab.models.base import Model
from memlab.splits import Held
from memlab.training import truncation
from memlab.training.curriculum import Curriculum
from memlab.training.data import TensorBatch, TrainingStream
from memlab.training.module import MemoryModule, added, at_least_float32
from memlab.training.processes import Processes
from memlab.training.truncation import Kept


class AnsweringModule(MemoryModule):
    """Trains a model on a stream of samples.

    Metrics, by their names in every tracker: `train/loss`, `train/accuracy` (teacher-forced, this batch);
    `val/` and `test/` `accuracy` (free-running), `accuracy_teacher_forced`, `exact_match` (free-running,
    whole answers) and `loss`. `val/score` ranks checkpoints: number of the curriculum's stage plus accuracy,
    so that no easier stage beats a later one.
    """

    headline = "accuracy"

    def __init__(self, model: Model, config: Config, stream: TrainingStream, processes: Processes) -> None:
        super().__init__(model, config, processes)
        self.stream = stream
        self.batch: TensorBatch | None = None  # of the step in progress, and what its rows gave so far
        self.read_rows: list[dict[str, Tensor]] = []
        self.scores: dict[str, Score] = {}
        self.losses: list[tuple[float, int]] = []

    @property
    def curriculum(self) -> Curriculum:
        return self.stream.curriculum

    def score_answers(self, batch: TensorBatch) -> Kept:
        """Read whole samples, with the gradient cut as `model.bptt_depth` says: nats of the answer's tokens,
        and whether they are right.
        """
        answer_T = batch.answer_BT[0]  # the same positions in every sample of a task

        def score(logits_BnV: Tensor, start: int) -> tuple[Tensor, Tensor]:
            now = slice(start, start + logits_BnV.shape[1])
            if not self.model.answers_once:
                logits_BaV, targets_Ba = (
                    logits_BnV[:, answer_T[now]],
                    batch.targets_BT[:, now][:, answer_T[now]],
                )
            else:  # one answer behind each segment, of which the last counts
                logits_BaV, targets_Ba = (
                    logits_BnV,
                    batch.targets_BT[:, answer_T].expand(-1, logits_BnV.shape[1]),
                )
            nats = F.cross_entropy(
                at_least_float32(logits_BaV.flatten(0, 1)), targets_Ba.flatten(), reduction="none"
            )
            return nats.view_as(targets_Ba), logits_BaV.detach().argmax(-1) == targets_Ba

        depth = self.config.bptt_depth
        return truncation.keep(
            self.model,
            batch.tokens_BT,
            batch.segment_lengths,
            score,
            depth=depth,
            wanted=batch.answer_segments if depth is not None else None,
            recompute=self.recompute,
        )

    def answers(self, batch: TensorBatch, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Logits [B, A, V] and targets [B, A] of the answer; of an encoder, what it says at the end of the
        sample.
        """
        answer_T = batch.answer_BT[0]
        return logits[:, answer_T] if not self.model.answers_once else logits[:, -1:], batch.targets_BT[
            :, answer_T
        ]

    def begin_step(self, batch: TensorBatch) -> None:
        self.batch, self.read_rows = batch, []

    def step_loss(self, rows: range) -> Tensor:
        assert self.batch is not None
        kept = self.score_answers(self.batch.part(rows))
        nats_BA, right_BA = (
            kept.values if not self.model.answers_once else (value[:, -1:] for value in kept.values)
        )
        # every row of every process has as many targets: means of means are the mean over the whole batch
        loss = nats_BA.mean()
        metrics = {
            "train/loss": loss.detach(),
            "train/accuracy": right_BA.float().mean(),
            # [S]: their means are taken where they are logged, which is not at every step
            **kept.diagnostics,
        }
        share = len(rows) / len(self.batch.tokens_BT)
        self.read_rows.append({name: value * share for name, value in metrics.items()})
        return loss * share

    def end_step(self) -> None:
        assert self.batch is not None
        metrics = added(self.read_rows)
        if self.curriculum.mixed:
            metrics["train/segments"] = metrics["train/loss"].new_tensor(len(self.batch.segment_lengths))
        self.train_metrics = self.processes.means(metrics)
        self.batch = None

    def start_evaluation(self) -> None:
        self.scores = {"free": Score(), "forced": Score()}
        self.losses = []

    def evaluate(self, batch: TensorBatch) -> None:
        output = truncation.read(self.model, batch.tokens_BT, batch.segment_lengths)
        logits_BAV, truth_BA = self.answers(batch, at_least_float32(output.logits))
        self.losses.append(
            (F.cross_entropy(logits_BAV.flatten(0, 1), truth_BA.flatten()).item(), truth_BA.numel())
        )
        self.scores["forced"].add(logits_BAV.argmax(-1), truth_BA)
        if self.model.answers_once:  # its one answer has no tokens to be forced
            self.scores["free"] = self.scores["forced"]
            return
        predicted_BA = free_running(
            self.model, batch.tokens_BT, batch.answer_BT[0].tolist(), batch.segment_lengths
        )
        self.scores["free"].add(predicted_BA, truth_BA)

    def evaluated(self, split: Held) -> dict[str, float]:
        everyone = self.processes.gather((self.losses, self.scores))
        values, weights = zip(*(loss for losses, _ in everyone for loss in losses), strict=True)
        self.scores = {name: Score.of([scores[name] for _, scores in everyone]) for name in self.scores}
        return {
            "accuracy": self.scores["free"].accuracy,
            "exact_match": self.scores["free"].exact_match,
            "accuracy_teacher_forced": self.scores["forced"].accuracy,
            "loss": statistics.fmean(values, weights),
        }

    def score(self, metrics: Mapping[str, float]) -> float:
        return self.curriculum.stage + metrics["accuracy"]

    def place(self) -> str:
        return f"stage {self.curriculum.words}"

    def place_metrics(self) -> dict[str, float]:
        return self.curriculum.metrics

    def short_words(self) -> str:
        return f"accuracy {self.train_metrics['train/accuracy'].item():.3f}"

    def validation_words(self, metrics: Mapping[str, float]) -> str:
        return (
            f"accuracy {metrics['val/accuracy']:.4f}  (teacher-forced "
            f"{metrics['val/accuracy_teacher_forced']:.4f})"
        )

    def validated(self, step: int, metrics: Mapping[str, float]) -> bool:
        """The curriculum goes on to its next stage, or the training stops if the last one is solved."""
        accuracy, was_last = metrics["val/accuracy"], self.curriculum.in_last_stage
        self.curriculum.update(step, accuracy)
        goal = self.config.trainer.stop_at_accuracy
        return was_last and goal is not None and accuracy >= goal

    def report(self) -> dict[str, Any]:
        curriculum = self.curriculum
        chance = curriculum.stages[-1].chance
        return {
            "chance": chance,
            "stages": len(curriculum.stages),
            "stages_began_at": curriculum.began_at,
            "samples": self.stream.position,
        }

    def common_state(self) -> dict[str, Any]:
        return {"curriculum": self.curriculum.state_dict()}

    def load_common_state(self, saved: dict[str, Any]) -> None:
        self.curriculum.load_state_dict(saved["curriculum"])

    def own_state(self) -> dict[str, Any]:
        return {"position": self.stream.position}

    def load_own_state(self, saved: list[dict[str, Any]]) -> None:
        self.stream.position = saved[0]["position"]
