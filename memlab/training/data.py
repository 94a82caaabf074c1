"""Batches for the trainer: numpy arrays of the tasks become tensors, and streams save their position."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from functools import cached_property
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor

from memlab.splits import Held
from memlab.tasks.base import SyntheticTask
from memlab.tasks.text import TextTask
from memlab.text.streams import StreamBatch
from memlab.training import text_loading
from memlab.training.curriculum import Curriculum
from memlab.training.parts import Stream
from memlab.training.processes import Processes


@dataclass
class _Tensors:
    """A batch of a task, with its arrays as tensors under the same names.

    Not frozen, because Lightning copies it field by field with trainer.precision=64-true.
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
        """The batch with only some of its rows."""
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
        """Whether any target counts, for each segment."""
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
        """Number of targets that count."""
        return int(self.counts_BT.sum())

    def positions(self) -> Tensor:
        """Position of each target in its document, [B, T]."""
        within = torch.arange(self.segment_lengths[0], device=self.offset_BS.device)
        return (self.offset_BS[:, :, None] + within).flatten(1)


class AnswerStream(Stream):
    """Samples of a task with answers, generated as they are needed.

    Args:
        steps: maximum number of batches.
        seed: selects the stream.
        processes: each makes its share of every batch.
    """

    def __init__(self, curriculum: Curriculum, steps: int, seed: int, processes: Processes) -> None:
        super().__init__(curriculum, steps)
        self.seed, self.processes = seed, processes
        self.position = 0  # samples trained on so far, by all processes

    def __iter__(self) -> Iterator[TensorBatch]:
        size = self.curriculum.task.batch_size  # the same in all stages
        for number in itertools.count(self.position // size):
            task = self.curriculum.at(number)
            own = self.processes.share(size)
            yield TensorBatch.of(task.batch("train", number * size + own.start, len(own), self.seed))

    def trained_on(self, batch: TensorBatch) -> None:
        self.position += self.curriculum.task.batch_size

    def facts(self) -> dict[str, Any]:
        return {"samples": self.position}

    def state_dict(self) -> dict[str, Any]:
        return {"position": self.position, "curriculum": self.curriculum.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.position = saved["position"]
        self.curriculum.load_state_dict(saved["curriculum"])


class EvaluationBatches:
    """This process's share of the fixed samples of a split, at the size of a curriculum's present stage.

    Args:
        longer: further numbers of segments of samples to read in the last stage.
    """

    def __init__(
        self,
        curriculum: Curriculum,
        split: Held,
        processes: Processes,
        longer: Sequence[int] = (),
        batch_size: int = 256,
    ) -> None:
        self.curriculum, self.longer = curriculum, longer
        self.split: Held = split
        self.own = processes.share(curriculum.task.size(split))
        self.batch_size = batch_size
        # by stage: validation reads the same samples many times
        self.made: dict[int, list[TensorBatch]] = {}

    def __iter__(self) -> Iterator[TensorBatch]:
        stage, task = self.curriculum.stage, self.curriculum.task
        if stage not in self.made:
            longer = [task.at(segments) for segments in self.longer] if self.curriculum.in_last_stage else []
            self.made[stage] = [batch for t in (task, *longer) for batch in self._batches(t)]
        return iter(self.made[stage])

    def _batches(self, task: SyntheticTask) -> Iterator[TensorBatch]:
        for start in range(self.own.start, self.own.stop, self.batch_size):
            count = min(self.batch_size, self.own.stop - start)
            yield TensorBatch.of(task.batch(self.split, start, count))


class TextStream(Stream):
    """Documents of a text task, in batches of as many segments as the curriculum's stage has.

    What a batch row reads does not depend on how many segments make a batch: its documents continue where the
    previous batch ended.

    Args:
        steps: maximum number of batches.
        seed: selects the order of documents.
        rows: the batch rows that this process reads.
    """

    def __init__(
        self, curriculum: Curriculum, steps: int, seed: int, rows: range, processes: Processes
    ) -> None:
        super().__init__(curriculum, steps)
        self.task: TextTask = curriculum.stages[-1]
        self.seed, self.rows, self.processes = seed, rows, processes
        # of each batch row, after the last batch that was trained on; batches have their position
        self.position: list[Any] | None = None
        self.batches = 0  # trained on so far

    def __iter__(self) -> Iterator[ReadingBatch]:
        one_size = len(self.curriculum.stages) == 1
        task = self.task if one_size else self.task.at(1)
        read = text_loading.joined(task, self.seed, self.rows, self.position, self.task.workers)
        if one_size:
            yield from map(ReadingBatch.of, read)
            return
        for number in itertools.count(self.batches):
            segments = [next(read) for _ in range(self.curriculum.at(number).num_segments)]
            yield ReadingBatch.of(StreamBatch.following(segments))

    def trained_on(self, batch: ReadingBatch) -> None:
        self.position = batch.position
        self.batches += 1

    def state_dict(self) -> dict[str, Any]:
        everyone = self.processes.gather(self.position)
        position = None if self.position is None else [row for rows in everyone for row in rows or []]
        return {"position": position, "batches": self.batches, "curriculum": self.curriculum.state_dict()}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        position = saved["position"]
        self.position = None if position is None else position[self.rows.start : self.rows.stop]
        self.batches = saved["batches"]
        self.curriculum.load_state_dict(saved["curriculum"])


class TextBatches:
    """The documents of a split, each read once, in the batch rows of one of the processes.

    All processes have the same number of batches.
    """

    def __init__(self, task: TextTask, split: Held, processes: Processes) -> None:
        self.task, self.processes = task, processes
        self.split: Held = split

    def __iter__(self) -> Iterator[ReadingBatch]:
        rows = self.processes.share(self.task.evaluation_rows(self.split))
        yield from map(ReadingBatch.of, self.task.evaluation(self.split, rows))
