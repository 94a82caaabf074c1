"""The processes that train together, and what they say to each other beside the gradients.

Numbers of the host (counts, flags, states for a checkpoint) go through a gloo group of their own, also where
gradients go through nccl.
"""

from __future__ import annotations

import contextlib
import io
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from lightning.pytorch.plugins.environments import ClusterEnvironment
from torch import Tensor

from memlab.config.launch import Others, Place
from memlab.errors import UserError

T = TypeVar("T")
# What gloo and nccl say when another process is gone.
_GONE = (
    "closed by peer",
    "reset by peer",
    "Broken pipe",
    "Connection refused",
    "remote process exited",
    "Socket closed",
)
# the first process may train a tokenizer or read a large split while the others wait
_WAIT = timedelta(days=1)


class Followed(SystemExit):
    """Another process has failed, or was asked to end, and says so; this one ends without a word."""

    def __init__(self) -> None:
        super().__init__(1)


class Processes:
    """One process by itself; `join` makes one of several.

    Attributes:
        rank: 0 is the first, which alone writes and prints.
        size: how many there are.
    """

    def __init__(self, place: Place | None = None, others: Others | None = None, group: Any = None) -> None:
        self.place = Place() if place is None else place
        self.rank, self.size = self.place.rank, self.place.size
        self._others = others
        self._group = group

    @classmethod
    def join(cls, place: Place, others: Others, gpu: bool) -> Processes:
        """Wait until all are there.

        Raises:
            UserError: one of them ended before, or there are fewer GPUs than processes.
        """
        if place.size == 1:
            return cls()
        group: dict[str, Any] = {"backend": "gloo", "timeout": _WAIT}
        if gpu:
            if (gpus := torch.cuda.device_count()) < place.local_size:
                raise UserError(
                    f"{place.local_size} processes on this node and {gpus} GPU{'s' * (gpus != 1)}: each "
                    "process needs one"
                )
            torch.cuda.set_device(place.local_rank)
            group |= {"backend": "nccl", "device_id": torch.device("cuda", place.local_rank)}
        if not place.outside:
            group |= {"store": _meeting(place, others), "rank": place.rank, "world_size": place.size}
        dist.init_process_group(**group)
        return cls(place, others, dist.new_group(backend="gloo", timeout=_WAIT))

    @staticmethod
    def leave() -> None:
        """There is nothing more to say."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, amount: int) -> range:
        """This process's part of 0 .. amount - 1: one after another, as even as can be."""
        return range(amount * self.rank // self.size, amount * (self.rank + 1) // self.size)

    def gather(self, value: T) -> list[T]:
        """Everyone's value, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def metric_options(self) -> dict[str, Any]:
        """Arguments for a torchmetrics object that adds up its states over these processes when it computes.

        Its states stay in the host's memory.
        """
        return {"process_group": self._group, "distributed_available_fn": lambda: self.size > 1}

    def sum(self, number: int) -> int:
        """Of everyone's numbers."""
        return self._reduced(number, dist.ReduceOp.SUM)

    def largest(self, number: int) -> int:
        """Of everyone's numbers."""
        return self._reduced(number, dist.ReduceOp.MAX)

    def _reduced(self, number: int, operation: Any) -> int:
        if self.size == 1:
            return number
        value = torch.tensor(number)
        dist.all_reduce(value, operation, group=self._group)
        return int(value)

    def means(self, values: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Means over all processes, element by element; the same names and shapes everywhere."""
        if self.size == 1:
            return dict(values)
        flat = torch.cat([value.detach().double().flatten() for value in values.values()])
        dist.all_reduce(flat)
        parts = (flat / self.size).split([value.numel() for value in values.values()])
        return {name: part.view_as(value) for (name, value), part in zip(values.items(), parts, strict=True)}

    def first(self, work: Callable[[], T]) -> T:
        """What the first process makes, for all.

        Raises:
            Followed: it failed there.
        """
        if self.size == 1:
            return work()
        done: list[Any] = [False, None]
        try:
            if self.leads:
                done = [True, work()]
        finally:
            dist.broadcast_object_list(done, group=self._group)
        if not done[0]:
            raise Followed
        value: T = done[1]
        return value

    def each(self, work: Callable[[], T]) -> T:
        """What each process makes for itself; the first alone prints meanwhile. If one fails, all do.

        Raises:
            UserError: in the first process: another one failed.
            Followed: in those that did not fail.
        """
        if self.size == 1:
            return work()
        failed: Exception | None = None
        value: Any = None
        try:
            with contextlib.nullcontext() if self.leads else contextlib.redirect_stderr(io.StringIO()):
                value = work()
        except Exception as error:
            failed = error
        errors = self.gather(None if failed is None else f"{failed}")
        told = next((error for error in errors if error is not None), None)
        if told is None:
            made: T = value
            return made
        if not self.leads:
            raise Followed
        raise failed if failed is not None else UserError(told)

    def lost(self, error: RuntimeError) -> BaseException:
        """What is to be raised for an error; if it only says that another process is gone,
        `UserError` here or `Followed`.
        """
        if self.size == 1 or not any(words in str(error) for words in _GONE):
            return error
        if not self.leads:
            return Followed()
        told = self._others.lost(seconds=5) if self._others is not None else None
        return UserError(told or "another process of this training is gone, and the training with it")


def _meeting(place: Place, others: Others) -> dist.Store:
    """The store through which the processes find each other.

    The first one waits in Python, where Ctrl-C reaches it.
    """
    first, port, listening = place.rank == 0, place.port, None
    if first and others.listener is not None:
        port = others.listener.getsockname()[1]
        listening = others.listener.detach()  # the store closes it
    store = dist.TCPStore(
        place.address, port, None, first, timeout=_WAIT, wait_for_workers=False, master_listen_fd=listening
    )
    store.add("memlab/here", 1)
    while first and store.add("memlab/here", 0) < place.size:
        if told := others.lost():
            raise UserError(told)
        time.sleep(0.05)
    return store


class Started(ClusterEnvironment):
    """Tells Lightning that the processes are there already, and which one this is."""

    def __init__(self, place: Place) -> None:
        super().__init__()
        self.place = place

    @property
    def creates_processes_externally(self) -> bool:
        return True

    @property
    def main_address(self) -> str:
        return self.place.address

    @property
    def main_port(self) -> int:
        return self.place.port

    @staticmethod
    def detect() -> bool:
        return False

    def world_size(self) -> int:
        return self.place.size

    def set_world_size(self, size: int) -> None:
        assert size == self.place.size

    def global_rank(self) -> int:
        return self.place.rank

    def set_global_rank(self, rank: int) -> None:
        assert rank == self.place.rank

    def local_rank(self) -> int:
        return self.place.local_rank

    def node_rank(self) -> int:
        return self.place.node
