"""A worker: takes one trial after another, trains it, reports its validations, and says how it ended. The
sweep starts it as `python -m memlab.sweeping.worker` and hands its order to its standard input, some time
later: meanwhile the worker imports.
"""

from __future__ import annotations

import contextlib
import math
import os
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from types import FrameType
from typing import Any

from memlab.config import lifetime
from memlab.config.starter import TRAINING, Starter
from memlab.errors import UserError
from memlab.sweeping.labels import Labels
from memlab.sweeping.leases import Beats, Lease, Leases, Nothing, TooManyFailedError
from memlab.sweeping.order import Order
from memlab.sweeping.store import Store
from memlab.sweeping.training_process import Ended, Following, starts

STOPPED, FAILED = 3, 4  # exit status: too many trials failed; this worker cannot go on
_AGGREGATE: dict[str, Callable[[Sequence[float]], float]] = {
    "mean": statistics.fmean,
    "median": statistics.median,
    "min": min,
    "max": max,
}


class Worker:
    """Works on a sweep until all its trials have ended, or until SIGTERM asks it to end."""

    def __init__(self, order: Order, starter: Starter | None = None) -> None:
        self.order = order
        self.start = starts(order.command, starter)
        self.store = Store(order.storage, order.study)
        arms = self.store.patiently(lambda: order.arms(self.store))
        self.leases = Leases(
            order.spec, self.store, arms, order.trials, order.since, order.grace, order.deadline
        )
        self.ending = False

    def run(self) -> int:
        """Work; returns the exit status."""
        with Labels(self.order) as labels:
            while not self.ending:
                leased = self.store.patiently(self.leases.next)
                if leased is Nothing.DONE:
                    return 0
                if isinstance(leased, Nothing):
                    time.sleep(1.0)
                    continue
                self.work(leased, labels)
        return 128 + signal.SIGTERM

    def work(self, lease: Lease, labels: Labels) -> None:
        """One trial, all its seeds."""
        order, number = self.order, lease.trial.number
        place = order.trial_dir(lease.arm.value, number)
        results: list[dict[str, Any]] = []
        with Beats(self.leases, lease, order.heartbeat) as beats:

            def asked() -> bool:
                return self.ending or beats.lost.is_set()

            self._note(lease, run_dir=str(place))
            labels.load()
            began = time.time()
            for seed in order.spec.seeds:
                run_dir = place / f"seed_{seed}"
                words = order.words(lease.arm.value, lease.parameters, seed, run_dir)
                training = Following(
                    self.start,
                    words,
                    run_dir,
                    place / f"seed_{seed}.log",
                    order.environment,
                    order.restarts,
                )
                first = seed == order.spec.seeds[0]
                pruned = False

                def validated(step: int, metrics: dict[str, float], first: bool = first) -> bool:
                    nonlocal pruned
                    pruned = first and self._reported(lease, step, metrics)
                    return pruned

                ended = training.run(asked, validated, order.look_every)
                if pruned and ended == Ended():  # at its last validation it is complete
                    self._end(lease, "PRUNED", seconds=time.time() - began)
                    labels.put(lease, "pruned")
                    return
                if ended.error is not None:
                    self._end(lease, "FAIL", error=ended.error, seconds=time.time() - began)
                    labels.put(lease, "failed", ended.error)
                    return
                if ended.result is None:
                    with contextlib.suppress(UserError):
                        self.store.patiently(lambda: self.leases.release(lease), patience=5)
                    return
                results.append(ended.result)
            try:
                values = [self._value(objective.metric, results) for objective in order.spec.objectives]
            except UserError as error:
                self._end(lease, "FAIL", error=str(error), seconds=time.time() - began)
                labels.put(lease, "failed", str(error))
                return
            self._end(lease, "COMPLETE", values, seconds=time.time() - began, steps=results[0].get("steps"))
            labels.put(lease, "complete", values=values)

    def _note(self, lease: Lease, **facts: Any) -> None:
        def write() -> None:
            for key, value in facts.items():
                lease.trial.set_user_attr(key, value)

        self.store.patiently(write)

    def _reported(self, lease: Lease, step: int, metrics: dict[str, float]) -> bool:
        """Report a validation; whether the trial is to be pruned."""
        objectives = self.order.spec.objectives
        value = metrics.get(objectives[0].metric)
        if len(objectives) > 1 or value is None or not math.isfinite(value):
            return False
        known = self.store.patiently(lambda: self.leases.intermediate(lease))
        # a training that goes on from a checkpoint measures some again, with the same result
        if step not in known:
            self.store.patiently(lambda: lease.trial.report(value, step))
        return self.store.patiently(lease.trial.should_prune)

    def _end(self, lease: Lease, state: str, values: Sequence[float] | None = None, **facts: Any) -> None:
        self.store.patiently(lambda: self.leases.end(lease, state, values, **facts))

    def _value(self, metric: str, results: Sequence[dict[str, Any]]) -> float:
        """A metric over the seeds of a trial.

        Raises:
            UserError: the trainings do not measure it.
        """
        return aggregate(metric, results, self.order.spec.aggregate)


def aggregate(metric: str, results: Sequence[dict[str, Any]], how: str) -> float:
    """A number of several `result.json` as one.

    Raises:
        UserError: it is not there, or is not a finite number.
    """
    group = metric.partition("/")[0]
    values = []
    for result in results:
        numbers = (
            result.get("metrics", {})
            if group in ("val", "test")
            else {f"{group}/{k}": v for k, v in result.get(group, {}).items()}
        )
        value = numbers.get(metric)
        if not isinstance(value, int | float) or not math.isfinite(value):
            there = ", ".join(sorted(k for k, v in numbers.items() if isinstance(v, int | float)))
            found = "is not measured" if value is None else f"is {value}"
            raise UserError(f"objective {metric} {found} by this training; there are: {there}")
        values.append(float(value))
    return float(_AGGREGATE[how](values))


def main() -> int:
    lifetime.end_with_starter()
    starter = Starter(TRAINING)  # it imports what trainings need, while this process does the same for itself
    import optuna.samplers  # what the first trial needs
    import optuna.storages  # noqa: F401

    given = sys.stdin.read()
    if not given:
        return 0  # the sweep could not begin
    order = Order.model_validate_json(given)
    os.environ.update(order.environment)
    try:
        worker = Worker(order, starter)

        def end(number: int, frame: FrameType | None) -> None:
            worker.ending = True

        for ending in lifetime.ENDING:
            if ending != signal.SIGINT:  # that is the sweep's, which tells its workers
                signal.signal(ending, end)
        return worker.run()
    except TooManyFailedError as error:
        print(f"memlab.sweep: {error}", flush=True)
        return STOPPED
    except UserError as error:
        print(f"memlab.sweep: {error}", flush=True)
        return FAILED
    finally:
        starter.close()


if __name__ == "__main__":
    status = main()
    lifetime.end_quickly()
    sys.exit(status)
