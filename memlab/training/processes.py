"""The processes that train together, and what they exchange in addition to gradients.

Data of the host (counts, flags, states for a checkpoint) goes through a gloo group of its own, even where
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
# Parts of gloo's and nccl's messages when another process is gone.
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
    """Another process has failed, or was asked to end, and reports it; this one ends silently."""

    def __init__(self) -> None:
        super().__init__(1)


class Processes:
    """One process by itself; `join` makes one of several.

    Attributes:
        rank: 0 is the first process, the only one that writes and prints.
        size: number of processes.
    """

    def __init__(self, place: Place | None = None, others: Others | None = None, group: Any = None) -> None:
        self.place = Place() if place is None else place
        self.rank, self.size = self.place.rank, self.place.size
        self._others = others
        self._group = group

    @classmethod
    def join(cls, place: Place, others: Others, gpu: bool) -> Processes:
        """Wait until all processes are there.

        Raises:
            UserError: one of them ended before that, or there are fewer GPUs than processes.
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
        """End the exchange between processes."""
        if dist.is_initialized():
            dist.destroy_process_group()

    @property
    def leads(self) -> bool:
        return self.rank == 0

    def share(self, amount: int) -> range:
        """This process's part of 0 .. amount - 1, divided as evenly as possible."""
        return range(amount * self.rank // self.size, amount * (self.rank + 1) // self.size)

    def gather(self, value: T) -> list[T]:
        """The values of all processes, by rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._group)
        return values

    def metric_options(self) -> dict[str, Any]:
        """Arguments for a torchmetrics object that sums its states over these processes when it computes.

        Its states stay in the host's memory.
        """
        return {"process_group": self._group, "distributed_available_fn": lambda: self.size > 1}

    def sum(self, number: int) -> int:
        """The sum of the numbers of all processes."""
        return self._reduced(number, dist.ReduceOp.SUM)

    def largest(self, number: int) -> int:
        """The largest of the numbers of all processes."""
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
        """The result of `work`, done by the first process for all.

        Raises:
            Followed: the work failed there.
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
        """The result of `work`, done by each process for itself. Only the first prints; if one fails, all do.

        Raises:
            UserError: in the first process, if another one failed.
            Followed: in other processes.
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
        first_error = next((error for error in errors if error is not None), None)
        if first_error is None:
            made: T = value
            return made
        if not self.leads:
            raise Followed
        raise failed if failed is not None else UserError(first_error)

    def lost(self, error: RuntimeError) -> BaseException:
        """The exception to raise for an error.

        An error which only means that another process is gone becomes a `UserError`, or `Followed`.
        """
        if self.size == 1 or not any(sign in str(error) for sign in _GONE):
            return error
        if not self.leads:
            return Followed()
        reason = self._others.lost(seconds=5) if self._others is not None else None
        return UserError(reason or "another process of this training is gone, and the training with it")


def _meeting(place: Place, others: Others) -> dist.Store:
    """The store through which the processes find each other.

    The first process waits in Python, where Ctrl-C reaches it.
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
        if reason := others.lost():
            raise UserError(reason)
        time.sleep(0.05)
    return store


class Started(ClusterEnvironment):
    """Informs Lightning that the processes are running already, and which one this is."""

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
