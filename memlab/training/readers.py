"""Who reads the units of a generation: this process, or several that it starts.

All of them read a unit alike, and the division into units does not depend on their number: the results are
the same for any number of workers, each with the same number of processor threads.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import TracebackType
from typing import Self

import torch

from memlab.config.lifetime import end_with
from memlab.errors import UserError
from memlab.training.evolve_settings import EvolveConfig
from memlab.training.population import Read, Reader, Unit

_reader: Reader | None = None  # of a worker


class Readers:
    """Reads units; a `with` block ends the processes.

    Args:
        config: says how many workers there are.

    Attributes:
        here: reads in this process; it also has the tasks.
        tokens: read so far.
    """

    def __init__(self, config: EvolveConfig) -> None:
        self.workers = config.workers
        if threads := _threads(config):
            torch.set_num_threads(threads)
        self.here = Reader(config)
        self.tokens = 0
        self._pool: ProcessPoolExecutor | None = None
        if config.workers > 1:
            self._pool = ProcessPoolExecutor(
                config.workers,
                mp_context=multiprocessing.get_context("spawn"),
                initializer=_begin,
                initargs=(config, os.getpid()),
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._pool is None:
            return
        if kind is not None:  # what they read is of no use any more, and the pool would wait for it
            for process in list(self._pool._processes.values()):
                process.kill()
        self._pool.shutdown(wait=True, cancel_futures=True)

    def read(self, units: Sequence[Unit]) -> list[Read]:
        """Read units, in any order, and return the results in theirs.

        Raises:
            UserError: a worker was ended.
        """
        self.tokens += sum(
            unit.samples
            * self.here.tasks[unit.task].tokens
            * (1 if unit.candidates_Pn is None else len(unit.candidates_Pn))
            for unit in units
        )
        if self._pool is None:
            return [self.here.read(unit) for unit in units]
        try:
            return list(self._pool.map(_read, units))
        except BrokenProcessPool:
            raise UserError(
                f"one of the workers={self.workers} was ended, perhaps for lack of memory; a smaller `rows` "
                "needs less"
            ) from None


def _threads(config: EvolveConfig) -> int | None:
    return config.threads or (1 if config.workers > 1 else None)


def _begin(config: EvolveConfig, parent: int) -> None:
    """Begin a worker: it ends with its parent, which alone answers to Ctrl-C."""
    global _reader
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    if os.name == "posix" and os.uname().sysname == "Linux":
        end_with(parent)
    if threads := _threads(config):
        torch.set_num_threads(threads)
    _reader = Reader(config)


def _read(unit: Unit) -> Read:
    assert _reader is not None
    return _reader.read(unit)
