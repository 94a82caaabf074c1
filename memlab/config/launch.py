"""Which processes train together: those that torchrun started, or others of this command that this process
starts.

The first process of a node starts the others itself, before anything heavy is imported, as `python -m
memlab.train <the same overrides>`. Lightning would do so later and in ways that lose work: it hands
`--multirun` on, so that each process goes through a sweep of its own; each process dates its own run
directory; and when a run ends by Ctrl-C or by an error, its observer kills the first process while that still
writes down how it ended. This file imports no torch.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field

from memlab.config.lifetime import end_with
from memlab.errors import ConfigError, UserError

_PARENT = "MEMLAB_PARENT"  # process id of the one that started this one
_SECONDS = 20  # that the first process has to end by itself once another one is gone


@dataclass(frozen=True)
class Place:
    """One process among those that train together.

    Attributes:
        rank: 0 is the first, which alone writes and prints.
        size: all of them.
        local_rank, local_size: the same on this machine.
        nodes, node: machines, and which of them this one is.
        address, port: where the first one listens; port 0 = it has a socket that listens already, or there is
            no other process.
        outside: torchrun started the processes.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    nodes: int = 1
    node: int = 0
    address: str = "127.0.0.1"
    port: int = 0
    outside: bool = False


def by_torchrun(environment: Mapping[str, str] = os.environ) -> bool:
    return "TORCHELASTIC_RUN_ID" in environment


def rank() -> int:
    """This process's, before anything of the configuration is known."""
    return int(os.environ["RANK"]) if by_torchrun() or _PARENT in os.environ else 0


def alone(environment: MutableMapping[str, str] = os.environ) -> None:
    """Forget what launchers say of other processes, unless this one trains with some.

    A single process that is started by `srun`, or from a script that torchrun started, is rank 0 whatever
    these say; Lightning would take it for another one and have it write nothing.
    """
    if not by_torchrun(environment) and _PARENT not in environment:
        for name in ("RANK", "LOCAL_RANK", "SLURM_PROCID", "JSM_NAMESPACE_RANK"):
            environment.pop(name, None)


def known_size(name: str, strategy: str, devices: int | None, num_nodes: int) -> int | None:
    """How many processes train together, if that can be said without asking torch for GPUs.

    Args:
        name: how the user chose them, such as `trainer=ddp`, for messages.
        strategy, devices, num_nodes: as in `memlab.config.sections.TrainerConfig`.

    Raises:
        ConfigError: there are more or fewer than the strategy takes, or torchrun started a different number
            of processes.
    """
    if strategy == "single":
        if (devices, num_nodes) != (1, 1):
            key, value = ("trainer.num_nodes", num_nodes) if devices == 1 else ("trainer.devices", devices)
            raise ConfigError(
                f"{key}={value}: {name} is one process; use trainer=ddp or trainer=fsdp for several"
            )
        if by_torchrun() and int(os.environ["WORLD_SIZE"]) > 1:
            raise ConfigError(
                f"{name} is one process, and torchrun started {os.environ['WORLD_SIZE']}; use trainer=ddp"
            )
        return 1
    if not by_torchrun():
        _check_srun(name, num_nodes)
        return (
            None if devices is None else _enough(strategy, devices * num_nodes, f"trainer.devices={devices}")
        )
    size, local = int(os.environ["WORLD_SIZE"]), int(os.environ["LOCAL_WORLD_SIZE"])
    if devices not in (None, local):
        raise ConfigError(
            f"trainer.devices={devices}: torchrun started {local} processes on this node; leave the key out, "
            f"or give {local}"
        )
    if num_nodes * local != size:
        raise ConfigError(
            f"trainer.num_nodes={num_nodes}: torchrun started {size} processes, {local} of them on this node"
        )
    return _enough(strategy, size, "torchrun --nproc-per-node 1")


def _check_srun(name: str, num_nodes: int) -> None:
    """Whether SLURM started this command once on each node.

    Raises:
        ConfigError: it did so more often; each would start all processes of a training of its own.
    """
    tasks = os.environ.get("SLURM_STEP_NUM_TASKS", "1")
    if _PARENT not in os.environ and tasks.isdigit() and int(tasks) > num_nodes:
        raise ConfigError(
            f"{name} starts its processes itself, and srun started this command {tasks} times: use "
            "srun --ntasks-per-node=1, or torchrun"
        )


def _enough(strategy: str, size: int, said: str) -> int:
    if strategy == "fsdp" and size == 1:
        raise ConfigError(
            f"{said} with trainer=fsdp, which shares out the weights among several processes: use "
            "trainer=cpu or trainer=gpu"
        )
    return size


def find(strategy: str, devices: int | None, num_nodes: int, accelerator: str) -> Place:
    """This process's place. Without torchrun this is the first process of its node, and `others` starts the
    rest.

    Raises:
        ConfigError: there is one GPU, which is too few for the strategy.
        UserError: on several nodes, something is missing in the environment.
    """
    if strategy == "single":
        return Place()
    env = os.environ
    # or DDP advises against looking for unused parameters wherever it finds none
    env.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if by_torchrun() or _PARENT in env:
        local, size = int(env["LOCAL_WORLD_SIZE"]), int(env["WORLD_SIZE"])
        place = Place(
            int(env["RANK"]), size, int(env["LOCAL_RANK"]), local, size // local, int(env["GROUP_RANK"])
        )
        return _at(place, env["MASTER_ADDR"], int(env["MASTER_PORT"]), outside=by_torchrun())
    local = devices or _gpus(accelerator) or 2
    _enough(strategy, local * num_nodes, "one GPU")
    if num_nodes == 1:
        return Place(size=local, local_size=local)
    try:
        node, address, port = int(env["NODE_RANK"]), env["MASTER_ADDR"], int(env["MASTER_PORT"])
    except (KeyError, ValueError):
        raise UserError(
            f"trainer.num_nodes={num_nodes}: start the command with torchrun on each node, or set NODE_RANK "
            f"(0 .. {num_nodes - 1}), MASTER_ADDR and MASTER_PORT (of node 0) in its environment"
        ) from None
    return _at(
        Place(node * local, num_nodes * local, 0, local, num_nodes, node), address, port, outside=False
    )


def _at(place: Place, address: str, port: int, outside: bool) -> Place:
    return Place(
        place.rank,
        place.size,
        place.local_rank,
        place.local_size,
        place.nodes,
        place.node,
        address,
        port,
        outside,
    )


def _gpus(accelerator: str) -> int:
    if accelerator == "cpu":
        return 0
    import torch

    return torch.cuda.device_count()


@dataclass
class Others:
    """The processes that this one started.

    Attributes:
        listener: a socket that listens where they ask for this one, or None.
    """

    started: list[subprocess.Popen[bytes]] = field(default_factory=list)
    listener: socket.socket | None = None
    over: threading.Event = field(default_factory=threading.Event)

    def lost(self, seconds: float = 0) -> str | None:
        """How one of them ended too early, if it did, or does within some seconds."""
        deadline = time.monotonic() + seconds
        while True:
            for at, process in enumerate(self.started, 1):
                if status := process.poll():
                    how = (
                        f"was ended by {signal.Signals(-status).name}"
                        if status < 0
                        else f"ended with status {status}"
                    )
                    return (
                        f"process {at} of {len(self.started) + 1} (id {process.pid}) {how}, and the training "
                        "with it"
                    )
            if time.monotonic() >= deadline:
                return None
            time.sleep(0.05)

    def watch(self) -> None:
        """End this process if another one is gone and it does not notice, as it waits for that one where
        Python cannot interrupt it.
        """
        while not self.over.wait(1):
            if lost := self.lost():
                if not self.over.wait(_SECONDS):
                    print(f"memlab.train: error: {lost}", file=sys.stderr, flush=True)
                    os._exit(1)
                return


@contextlib.contextmanager
def others(place: Place, words: Sequence[str], threads: int | None) -> Iterator[Others]:
    """Start the other processes of this node, if this one is to do that.

    They end with this context, or with this process.

    Args:
        words: the command line after `memlab.train`.
        threads: processor threads for each process; None = as many as torch or Lightning think right.
    """
    if threads is not None and place.size > 1:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # otherwise Lightning sets another number
    running = Others()
    if place.local_rank or place.outside:
        _end_with_parent()
        yield running
        return
    if place.local_size == 1:
        yield running
        return
    address, port = place.address, place.port
    if not port:
        running.listener = socket.socket()  # kept open: no other program can take its port meanwhile
        running.listener.bind((address, 0))
        running.listener.listen(place.local_size)
        port = running.listener.getsockname()[1]
    shared = {
        **os.environ,
        _PARENT: str(os.getpid()),
        "WORLD_SIZE": str(place.size),
        "LOCAL_WORLD_SIZE": str(place.local_size),
        "GROUP_RANK": str(place.node),
        "MASTER_ADDR": address,
        "MASTER_PORT": str(port),
    }
    command = [sys.executable, "-m", "memlab.train", *(w for w in words if w not in ("-m", "--multirun"))]
    try:
        for local in range(1, place.local_size):
            own = {"RANK": str(place.rank + local), "LOCAL_RANK": str(local)}
            running.started.append(subprocess.Popen(command, env={**shared, **own}, stdin=subprocess.DEVNULL))
        threading.Thread(target=running.watch, daemon=True).start()
        yield running
        for process in running.started:  # they have nothing to do any more
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_SECONDS)
    finally:
        running.over.set()
        for process in running.started:
            if process.poll() is None:
                process.kill()
            process.wait()
        if running.listener is not None:
            running.listener.close()


def _end_with_parent() -> None:
    """However the process that started this one ends, even by kill -9, this one ends with it (on Linux)."""
    parent = os.environ.get(_PARENT)
    if parent is not None and sys.platform.startswith("linux"):
        end_with(int(parent))
