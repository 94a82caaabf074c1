"""Worker processes that read and tokenize, each for some of a text task's batch rows.

The batches are those that the task makes without workers, in the same order and with the same positions: a
batch row does not depend on the process that makes it.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from typing import Any

import torch
import torch.utils.data as torch_data

from memlab.errors import UserError
from memlab.tasks.text import TextTask
from memlab.text.streams import StreamBatch


def joined(
    task: TextTask, seed: int, rows: range, position: list[Any] | None, workers: int
) -> Iterator[StreamBatch]:
    """`task.training(seed, rows, position)`, made by `workers` processes (at most one per row; 0 = this one).

    The processes end when the iterator is closed or garbage-collected.

    Raises:
        UserError: a file cannot be read.
    """
    workers = min(workers, len(rows))
    if workers == 0:
        yield from task.training(seed, rows, position)
        return
    # DataLoader warns about more workers than processor cores, but the user asked for them
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="This DataLoader will create", category=UserWarning)
        loader: Any = torch_data.DataLoader(
            _Shares(task, seed, rows, position, workers),
            batch_size=None,
            num_workers=workers,
            collate_fn=_as_it_is,
            # it draws a seed for the workers, which must not come from the training's own generator
            generator=torch.Generator(),
        )
        parts: Any = iter(loader)
    while True:  # the loader takes one batch from each worker in turn
        batch = [next(parts) for _ in range(workers)]
        for part in batch:
            if isinstance(part, UserError):
                raise part
        yield StreamBatch.joined(batch)


class _Shares(torch_data.IterableDataset[Any]):
    """Each worker's batches: consecutive batch rows are divided among the workers."""

    def __init__(
        self, task: TextTask, seed: int, rows: range, position: list[Any] | None, workers: int
    ) -> None:
        self.task, self.seed, self.rows, self.position, self.workers = task, seed, rows, position, workers

    def __iter__(self) -> Iterator[StreamBatch | UserError]:
        os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive the fork
        info = torch_data.get_worker_info()
        assert info is not None
        own = slice(len(self.rows) * info.id // self.workers, len(self.rows) * (info.id + 1) // self.workers)
        try:
            yield from self.task.training(
                self.seed, self.rows[own], self.position[own] if self.position else None
            )
        except UserError as error:  # handed over: raised here, it would arrive wrapped in a traceback
            while True:
                yield error


def _as_it_is(batch: Any) -> Any:
    return batch
