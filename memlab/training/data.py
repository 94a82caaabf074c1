"""Batches for the trainer: numpy from the tasks becomes tensors, and the position in the training stream
is part of a checkpoint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from memlab.splits import Held, Split
from memlab.tasks.base import SyntheticTask
from memlab.tasks.text import TextTask
from memlab.text.streams import StreamBatch
from memlab.training import text_loading
from memlab.training.curriculum import Curriculum
from memlab.training.processes import Processes


@dataclass
class _Tensors:
    """A batch of a task, its arrays as tensors under the same names.

    Not frozen: with trainer.precision=64-true Lightning copies it field by field.
    """

    @classmethod
    def of(cls, batch: Any) -> Self:
        values = {f.name: getattr(batch, f.name) for f in fields(cls)}
        return cls(
            **{
                name: torch.from_numpy(v.copy()) if isinstance(v, np.ndarray) else v
                for name, v in values.items()
            }
        )

    def part(self, rows: range) -> Self:
        """The same for some rows only."""
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self,
            **{name: v[rows.start : rows.stop] for name, v in values.items() if isinstance(v, Tensor | list)},
        )

    def to(self, device: torch.device, **transfer: Any) -> Self:
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(
            self, **{name: v.to(device, **transfer) for name, v in values.items() if isinstance(v, Tensor)}
        )


@dataclass
class TensorBatch(_Tensors):
    """`memlab.tasks.base.Batch` as tensors."""

    tokens_BT: Tensor
    targets_BT: Tensor
    answer_BT: Tensor
    segment_lengths: tuple[int, ...]

    @property
    def answer_segments(self) -> list[bool]:
        """For each segment, whether any of its targets counts."""
        return [bool(part.any()) for part in self.answer_BT.split(list(self.segment_lengths), dim=1)]


@dataclass
class ReadingBatch(_Tensors):
    """`memlab.text.streams.StreamBatch` as tensors."""

    tokens_BT: Tensor
    targets_BT: Tensor
    counts_BT: Tensor
    begins_BS: Tensor
    offset_BS: Tensor
    segment_lengths: tuple[int, ...]
    position: list[Any]

    @cached_property
    def counted(self) -> int:
        """Targets that count."""
        return int(self.counts_BT.sum())

    def positions(self) -> Tensor:
        """Position of each target in its document [B, T]."""
        within = torch.arange(self.segment_lengths[0], device=self.offset_BS.device)
        return (self.offset_BS[:, :, None] + within).flatten(1)


class TrainingStream:
    """The endless stream of training batches, at the size that the curriculum gives them.

    Sized, so that Lightning does not read ahead.

    Args:
        steps: batches to give at most.
        seed: which stream.
        processes: each gives its share of every batch.
    """

    def __init__(self, curriculum: Curriculum, steps: int, seed: int, processes: Processes) -> None:
        self.curriculum = curriculum
        self.steps = steps
        self.seed = seed
        self.processes = processes
        self.position = 0  # samples given so far, by all processes

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[TensorBatch]:
        while True:
            task = self.curriculum.at(self.position // self.curriculum.task.batch_size)
            own = self.processes.share(task.batch_size)
            batch = task.batch("train", self.position + own.start, len(own), self.seed)
            self.position += task.batch_size
            yield TensorBatch.of(batch)


class EvaluationBatches:
    """This process's share of the fixed samples of a split, of one task or of a curriculum's present
    stage.
    """

    def __init__(
        self, source: SyntheticTask | Curriculum, split: Split, processes: Processes, batch_size: int = 256
    ) -> None:
        self.source = source
        self.split: Split = split
        task = source.task if isinstance(source, Curriculum) else source
        self.own = processes.share(task.size(split) or 0)
        self.batch_size = batch_size
        self.made: dict[int, list[TensorBatch]] = {}  # validation comes back to the same samples many times

    def __len__(self) -> int:
        return -(-len(self.own) // self.batch_size)

    def __iter__(self) -> Iterator[TensorBatch]:
        task = self.source.task if isinstance(self.source, Curriculum) else self.source
        if id(task) not in self.made:
            starts = range(self.own.start, self.own.stop, self.batch_size)
            counts = (min(self.batch_size, self.own.stop - start) for start in starts)
            self.made[id(task)] = [
                TensorBatch.of(task.batch(self.split, s, n)) for s, n in zip(starts, counts, strict=True)
            ]
        return iter(self.made[id(task)])


class TextStream:
    """The endless training batches of a text task, of as many segments as the curriculum gives them.

    What a row reads does not depend on how many segments of it make a batch: its documents go on where the
    batch before ended.

    Args:
        steps: batches to give at most.
        seed: which order of documents.
        processes: each gives its rows of every batch.
    """

    def __init__(self, curriculum: Curriculum, steps: int, seed: int, processes: Processes) -> None:
        self.curriculum = curriculum
        self.task: TextTask = curriculum.stages[-1]
        self.steps = steps
        self.seed = seed
        self.rows = processes.share(self.task.batch_size)
        # behind the last batch that was trained on, which says itself where that is
        self.position: list[Any] | None = None
        self.batches = 0  # that were trained on

    def __len__(self) -> int:
        return self.steps

    def __iter__(self) -> Iterator[ReadingBatch]:
        if len(self.curriculum.stages) == 1:
            for batch in text_loading.joined(
                self.task, self.seed, self.rows, self.position, self.task.workers
            ):
                yield ReadingBatch.of(batch)
            return
        segments = text_loading.joined(
            self.task.at(1), self.seed, self.rows, self.position, self.task.workers
        )
        number = self.batches
        while True:
            yield ReadingBatch.of(
                StreamBatch.following(
                    [next(segments) for _ in range(self.curriculum.at(number).num_segments)]
                )
            )
            number += 1

    def trained_on(self, batch: ReadingBatch) -> None:
        """Go on behind this batch."""
        self.position = batch.position
        self.batches += 1


class TextBatches:
    """A split's documents, each read once, in the rows of one process or another.

    There are as many batches in each process.
    """

    def __init__(self, task: TextTask, split: Held, processes: Processes) -> None:
        self.task = task
        self.processes = processes
        self.split: Held = split

    def __iter__(self) -> Iterator[ReadingBatch]:
        rows = self.processes.share(self.task.evaluation_rows(self.split))
        for batch in self.task.evaluation(self.split, rows):
            yield ReadingBatch.of(batch)
