"""Which trial a worker does next.

Decided under the storage's lock, so that a sweep of N has exactly N complete or pruned trials.

A running trial belongs to the worker whose lease it carries, and the lease's beat goes on while that worker
lives. A trial whose worker is dead is taken over as it is, with its number, its parameters and its
checkpoints: nothing is marked failed and nothing is queued, so there is no moment at which it could be lost,
and it counts once. (Optuna's own heartbeat beats only inside `Study.optimize`, ends such a trial as failed
and queues another one in a second transaction.)
"""

from __future__ import annotations

import os
import socket
import threading
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlab.errors import UserError
from memlab.sweeping import space
from memlab.sweeping.spec import Spec
from memlab.sweeping.store import Store
from memlab.sweeping.study import Arm

if TYPE_CHECKING:
    import optuna
    from optuna.trial import FrozenTrial

LEASE = "lease"
FIRST_FAILURES = 3  # a sweep that begins with this many failed trials and nothing else stops


class TooManyFailedError(UserError):
    """The sweep is broken; the message holds the last trial's error."""


class Nothing(Enum):
    """Why there is no trial for a worker."""

    LATER = "all have begun; one may still be left by a worker that dies"
    DONE = "all have ended"


@dataclass
class Lease:
    """A trial that is this worker's."""

    arm: Arm
    trial: optuna.Trial
    parameters: dict[str, Any]
    taken_over: bool


def place() -> str | None:
    """Where a process id of a lease can be looked up: machine, boot, and container;
    None = not on this system.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot}:{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return None


def began(pid: int) -> str | None:
    """When a process of this machine began, in clock ticks since boot; None = there is no such process."""
    try:
        words = (
            Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace").rpartition(")")[2].split()
        )
    except OSError:
        return None
    return None if words[0] in "ZX" else words[19]  # a zombie does nothing any more


@dataclass
class Leases:
    """One worker's view of the trials.

    Args:
        arms: the studies; one where the sweep has no arms.
        trials: N, complete or pruned, of each arm.
        since: number of trials there were in each arm when this command was started; earlier failures are not
            its own.
        grace: seconds without a beat after which a worker is dead.
        deadline: `time.time()` after which no new trial begins.
    """

    spec: Spec
    store: Store
    arms: Sequence[Arm]
    trials: int
    since: Sequence[int]
    grace: float = 120.0
    deadline: float | None = None
    worker: str = field(default_factory=lambda: uuid.uuid4().hex)
    _seen: dict[tuple[str, int], tuple[Any, float]] = field(default_factory=dict)

    def next(self) -> Lease | Nothing:
        """A trial that its worker left, else a new one, else why there is none.

        Raises:
            TooManyFailedError: the sweep is to stop.
        """
        with self.store.lock() as held:
            assert held
            lists = [arm.study.get_trials(deepcopy=False) for arm in self.arms]
            self._check_failures(lists)
            for arm, trials in zip(self.arms, lists, strict=True):
                for frozen in trials:
                    if frozen.state.name == "RUNNING" and self._is_left(arm, frozen):
                        return self._take_over(arm, frozen)
            counts = [
                sum(t.state.name in ("COMPLETE", "PRUNED", "RUNNING") for t in trials) for trials in lists
            ]
            fewest = min(range(len(counts)), key=counts.__getitem__)
            if counts[fewest] < self.trials and not (
                self.deadline is not None and time.time() > self.deadline
            ):
                return self._begin(self.arms[fewest], len(lists[fewest]))
            running = any(t.state.name == "RUNNING" for trials in lists for t in trials)
            return Nothing.LATER if running else Nothing.DONE

    def _begin(self, arm: Arm, number: int) -> Lease:
        arm.study.sampler = space.sampler(self.spec, number)
        trial = arm.study.ask()
        self._sign(trial)  # before anything else; if this worker dies before, the trial is anyone's
        return Lease(arm, trial, space.suggest(self.spec, arm.value, trial), taken_over=False)

    def _take_over(self, arm: Arm, frozen: FrozenTrial) -> Lease:
        import optuna

        arm.study.sampler = space.sampler(self.spec, frozen.number)
        trial = optuna.trial.Trial(arm.study, frozen._trial_id)
        self._sign(trial)
        trial.set_user_attr("taken_over", int(frozen.user_attrs.get("taken_over", 0)) + 1)
        return Lease(arm, trial, space.suggest(self.spec, arm.value, trial), taken_over=True)

    def _check_failures(self, lists: Sequence[Sequence[FrozenTrial]]) -> None:
        own = [
            t
            for trials, since in zip(lists, self.since, strict=True)
            for t in trials[since:]
            if t.state.name == "FAIL"
        ]
        if not own:
            return
        good = sum(t.state.name in ("COMPLETE", "PRUNED") for trials in lists for t in trials)
        why = None
        if not good and len(own) >= min(FIRST_FAILURES, self.trials):
            why = f"the first {len(own)} trials all failed"
        elif len(own) >= max(FIRST_FAILURES, self.trials * len(self.arms)):
            why = f"{len(own)} trials failed, as many as the sweep was to have"
        if why:
            raise TooManyFailedError(
                f"{why}; the last one (trial {own[-1].number}) with: "
                f"{own[-1].user_attrs.get('error', 'nothing it said')}"
            )

    def _sign(self, trial: optuna.Trial, **more: Any) -> None:
        pid = os.getpid()
        noted = {
            "worker": self.worker,
            "host": socket.gethostname(),
            "pid": pid,
            "place": place(),
            "began": began(pid),
        }
        trial.set_user_attr(LEASE, {**noted, "beat": time.time(), **more})

    def _is_left(self, arm: Arm, frozen: FrozenTrial) -> bool:
        """Whether a running trial has no living worker. Only this process's own clock is used."""
        noted = frozen.user_attrs.get(LEASE)
        if noted is None or noted.get("released"):
            return True
        if noted["worker"] == self.worker:
            return True  # this worker asks for a trial, so it has none: an answer of the storage was lost
        if noted["place"] is not None and noted["place"] == place():
            return began(noted["pid"]) != noted["began"]
        key, now = (arm.study.study_name, frozen.number), time.monotonic()
        beat, since = self._seen.setdefault(key, (noted["beat"], now))
        if beat != noted["beat"]:
            self._seen[key] = (noted["beat"], now)
            return False
        return now - since > self.grace

    def is_mine(self, lease: Lease) -> bool:
        """Whether nobody took the trial over, as happens to a worker that was stopped for longer than its
        grace.
        """
        frozen = lease.arm.study._storage.get_trial(lease.trial._trial_id)
        noted = frozen.user_attrs.get(LEASE) or {}
        return not frozen.state.is_finished() and noted.get("worker") == self.worker

    def intermediate(self, lease: Lease) -> dict[int, float]:
        """What has been reported of a trial, by step."""
        return lease.arm.study._storage.get_trial(lease.trial._trial_id).intermediate_values

    def beat(self, lease: Lease) -> bool:
        """Report that this worker is alive; False if the trial is now another one's."""
        with self.store.lock():
            if not self.is_mine(lease):
                return False
            self._sign(lease.trial)
            return True

    def release(self, lease: Lease) -> None:
        """Release a trial at once, for the next worker."""
        with self.store.lock():
            if self.is_mine(lease):
                self._sign(lease.trial, released=True)

    def end(self, lease: Lease, state: str, values: Sequence[float] | None = None, **facts: Any) -> bool:
        """Write down how a trial ended, once.

        Args:
            state: `COMPLETE`, `PRUNED` or `FAIL`.
            facts: kept with the trial.

        Returns:
            whether the trial was still this worker's.
        """
        from optuna.trial import TrialState

        with self.store.lock():
            if not self.is_mine(lease):
                return False
            for key, value in facts.items():
                lease.trial.set_user_attr(key, value)
            lease.arm.study.tell(
                lease.trial, list(values) if values is not None else None, state=TrialState[state]
            )
            return True


class Beats:
    """Reports every few seconds that the worker of a trial is alive, until it ends;
    `lost` is set when the trial is another one's.
    """

    def __init__(self, leases: Leases, lease: Lease, every: float) -> None:
        self.leases, self.lease, self.every = leases, lease, every
        self.lost = threading.Event()
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Beats:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._over.wait(self.every):
            try:
                if not self.leases.store.patiently(lambda: self.leases.beat(self.lease)):
                    self.lost.set()
                    return
            except UserError:
                return  # the worker finds the same out by itself
