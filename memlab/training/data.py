"""Batches for the trainer: numpy from the tasks becomes tensors, and the position in the training stream is part of a checkpoint."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from memlab.tasks.base import Batch, Split, SyntheticTask
from memlab.training.curriculum import Curriculum


@dataclass(frozen=True)
class TensorBatch:
    """`memlab.tasks.base.Batch` as tensors."""

    tokens_BT: Tensor
    targets_BT: Tensor
    answer_BT: Tensor
    segment_lengths: tuple[int, ...]

    @classmethod
    def of(cls, batch: Batch) -> TensorBatch:
        tokens, targets, answer = (torch.from_numpy(a.copy()) for a in (batch.tokens_BT, batch.targets_BT, batch.answer_BT))
        return cls(tokens, targets, answer, batch.segment_lengths)

    def to(self, device: torch.device, **transfer: Any) -> TensorBatch:
        tokens, targets, answer = (t.to(device, **transfer) for t in (self.tokens_BT, self.targets_BT, self.answer_BT))
        return replace(self, tokens_BT=tokens, targets_BT=targets, answer_BT=answer)

    @property
    def answer_segments(self) -> list[bool]:
        """For each segment, whether any of its targets counts."""
        return [bool(part.any()) for part in self.answer_BT.split(list(self.segment_lengths), dim=1)]


class TrainingStream:
    """The endless stream of training batches, at the curriculum's present stage. Sized, so that Lightning does not read ahead.

    Args:
        steps: batches to give at most.
        seed: which stream.
    """

    def __init__(self, curriculum: Curriculum, steps: int, seed: int) -> None:
        self.curriculum = curriculum
        self.steps = steps
        self.seed = seed
        self.position = 0  # samples given so far

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[TensorBatch]:
        while True:
            task = self.curriculum.task
            batch = task.batch("train", self.position, task.batch_size, self.seed)
            self.position += task.batch_size
            yield TensorBatch.of(batch)


class EvaluationBatches:
    """The fixed samples of a split, of one task or of a curriculum's present stage."""

    def __init__(self, source: SyntheticTask | Curriculum, split: Split, batch_size: int = 256) -> None:
        self.source = source
        self.split: Split = split
        task = source.task if isinstance(source, Curriculum) else source
        self.size = task.size(split) or 0
        self.batch_size = batch_size
        self.made: dict[int, list[TensorBatch]] = {}  # validation comes back to the same samples many times

    def __len__(self) -> int:
        return -(-self.size // self.batch_size)

    def __iter__(self) -> Iterator[TensorBatch]:
        task = self.source.task if isinstance(self.source, Curriculum) else self.source
        if id(task) not in self.made:
            starts = range(0, self.size, self.batch_size)
            counts = (min(self.batch_size, self.size - start) for start in starts)
            self.made[id(task)] = [TensorBatch.of(task.batch(self.split, s, n)) for s, n in zip(starts, counts, strict=True)]
        return iter(self.made[id(task)])
