"""The workers of one machine, as the sweep's own process sees them: started,
restarted when they die, and ended.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from memlab.config import lifetime
from memlab.errors import UserError
from memlab.sweeping import table
from memlab.sweeping.ending import Asked, Interrupted
from memlab.sweeping.order import Order
from memlab.sweeping.store import Store
from memlab.sweeping.study import Arm
from memlab.sweeping.worker import FAILED, STOPPED

_QUICK = 15.0  # a worker that dies within this many seconds of its start has not worked
_DEATHS = 3  # this many quick deaths in a row end the sweep,
_KILLS = 20  # or this many by SIGKILL, which is not a worker's own doing
_WAIT = 150.0  # seconds that workers have to let their trainings save


class Pool:
    """The workers of this machine.

    Args:
        shares: the GPUs of each; as many entries as workers.
    """

    def __init__(self, run_dir: Path, shares: Sequence[Sequence[str]], asked: Asked) -> None:
        self.run_dir, self.shares, self.asked = run_dir, shares, asked
        self.order: Order | None = None
        self.processes: dict[int, subprocess.Popen[bytes]] = {}
        self.started: dict[int, float] = {}
        self.deaths = dict.fromkeys(range(len(shares)), 0)

    def start(self) -> None:
        """Start all workers; they wait for their order."""
        for worker in range(len(self.shares)):
            self._start(worker)

    def run(self, order: Order, store: Store, arms: Sequence[Arm]) -> None:
        """Give the workers their order, and wait until none has anything left to do.

        Raises:
            UserError: workers cannot work.
            Interrupted: someone asked the sweep to end; its trainings have saved.
        """
        self.order = order
        for worker in self.processes:
            self._give(worker)
        shown = table.Shown(order, arms, len(self.shares))
        try:
            with shown:
                while self.processes:
                    self.asked.leave()
                    self._look()
                    with contextlib.suppress(UserError):  # the workers say so if the storage stays away
                        store.patiently(shown.update, patience=0)
                    self._wait(0.5)
                with contextlib.suppress(UserError):
                    store.patiently(shown.update, patience=0)
        except Interrupted:
            self._ask_to_end()
            raise
        finally:
            self.end()

    def log(self, worker: int) -> Path:
        return self.run_dir / "workers" / f"{os.uname().nodename}-{worker}.log"

    def _start(self, worker: int) -> None:
        log = self.log(worker)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as out:
            self.processes[worker] = subprocess.Popen(
                [sys.executable, "-m", "memlab.sweeping.worker"],
                stdin=subprocess.PIPE,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**os.environ, lifetime.DIES_WITH: str(os.getpid())},
                start_new_session=True,  # Ctrl-C is the sweep's, which tells its workers
            )
        self.started[worker] = time.monotonic()
        if self.order is not None:
            self._give(worker)

    def _give(self, worker: int) -> None:
        """Send a worker its order."""
        assert self.order is not None
        share, stdin = self.shares[worker], self.processes[worker].stdin
        environment = {
            **self.order.environment,
            **({"CUDA_VISIBLE_DEVICES": ",".join(share)} if share else {}),
        }
        assert stdin is not None
        with contextlib.suppress(BrokenPipeError):  # it died at once, which is seen soon
            stdin.write(self.order.model_copy(update={"environment": environment}).model_dump_json().encode())
        with contextlib.suppress(BrokenPipeError):
            stdin.close()

    def _wait(self, seconds: float) -> None:
        """Or until a worker ends, if there is one."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            if len(self.processes) == 1:
                next(iter(self.processes.values())).wait(seconds)
            else:
                time.sleep(seconds)

    def _look(self) -> None:
        for worker, process in list(self.processes.items()):
            status = process.poll()
            if status is None:
                continue
            del self.processes[worker]
            if status in (0, STOPPED):
                continue
            quick = time.monotonic() - self.started[worker] < _QUICK
            self.deaths[worker] = self.deaths[worker] + 1 if quick else 0
            said = self._last_words(worker)
            if status == FAILED and not quick:
                raise UserError(said)
            if self.deaths[worker] >= (_KILLS if status == -signal.SIGKILL else _DEATHS):
                raise UserError(f"worker {worker} cannot work: {said}")
            how = (
                f"was ended by {signal.Signals(-status).name}"
                if status < 0
                else f"ended with status {status}"
            )
            print(f"memlab: worker {worker} {how}; another one takes its place", file=sys.stderr)
            self._start(worker)

    def _last_words(self, worker: int) -> str:
        lines = self.log(worker).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        return lines[-1].removeprefix("memlab.sweep: ") if lines else f"it said nothing ({self.log(worker)})"

    def _ask_to_end(self) -> None:
        for process in self.processes.values():
            process.terminate()
        deadline = time.monotonic() + _WAIT
        for process in self.processes.values():
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(max(0.0, deadline - time.monotonic()))

    def end(self) -> None:
        """End whatever is left of the workers."""
        for process in self.processes.values():
            if process.poll() is None:
                process.kill()
            process.wait()
            if process.stdin is not None:
                process.stdin.close()
        self.processes.clear()
