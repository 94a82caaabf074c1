"""The last trainings of a sweep: the best of each arm, and its base alone, with fresh seeds.

Only here is the test read.
"""

from __future__ import annotations

import contextlib
import queue
import statistics
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

from memlab.config.starter import TRAINING, Starter
from memlab.errors import UserError
from memlab.sweeping import labels, space
from memlab.sweeping.ending import Asked
from memlab.sweeping.order import Order
from memlab.sweeping.plan import Plan
from memlab.sweeping.study import Arm
from memlab.sweeping.training_process import Following, starts
from memlab.terminal.times import duration

if TYPE_CHECKING:
    from optuna.trial import FrozenTrial


def train_final(
    plan: Plan,
    order: Order,
    shares: Sequence[Sequence[str]],
    arms: Sequence[Arm],
    chosen: Mapping[Any, FrozenTrial],
    by_arm: dict[str, dict[str, Any]],
    asked: Asked,
) -> None:
    """Train the best of each arm, and its base alone, with fresh seeds; here the test is read.

    Adds to `by_arm`.
    """
    final = plan.spec.final
    if not final.seeds:
        return
    jobs: list[tuple[Any, str, dict[str, Any], int, Path]] = []
    for seed in final.seeds:
        for arm in arms:
            place = Path(order.run_dir) / "final" / ("" if arm.value is None else str(arm.value))
            best = chosen[arm.value]
            jobs.append(
                (
                    arm.value,
                    "final",
                    space.parameters(plan.spec, best),
                    seed,
                    place / f"trial_{best.number:04d}" / f"seed_{seed}",
                )
            )
            if final.default:
                jobs.append((arm.value, "final_default", {}, seed, place / "default" / f"seed_{seed}"))
    print(
        f"memlab: the best is trained again with seeds {final.seeds}, and tested: {len(jobs)} trainings",
        file=sys.stderr,
    )
    failed = threading.Event()
    slots: queue.Queue[Sequence[str]] = queue.Queue()
    for share in shares:
        slots.put(share)

    def work(job: tuple[Any, str, dict[str, Any], int, Path]) -> dict[str, Any]:
        arm, what, parameters, seed, run_dir = job
        share = slots.get()
        environment = {**order.environment, **({"CUDA_VISIBLE_DEVICES": ",".join(share)} if share else {})}
        try:
            words = order.words(arm, parameters, seed, run_dir, test=True)
            began = time.monotonic()
            training = Following(
                start, words, run_dir, run_dir.with_suffix(".log"), environment, order.restarts
            )
            ended = training.run(lambda: failed.is_set() or bool(asked.number), lambda step, metrics: False)
        finally:
            slots.put(share)
        name = f"{'' if arm is None else f'{arm} '}{'best' if what == 'final' else 'default'}, seed {seed}"
        if ended.result is None:
            if ended.error:
                print(f"final  {name}  failed: {ended.error.splitlines()[-1]}", file=sys.stderr, flush=True)
            raise UserError(
                f"the final training of {name} failed ({run_dir}): {ended.error or 'it was asked to end'}"
            )
        print(
            f"final  {name}  {_headline(ended.result)}  {duration(time.monotonic() - began)}",
            file=sys.stderr,
            flush=True,
        )
        labels.label_final(order, run_dir, what, name)
        return ended.result

    starter = Starter(TRAINING)
    start = starts(order.command, starter)
    with contextlib.closing(starter), ThreadPoolExecutor(len(shares)) as pool:
        futures = [pool.submit(work, job) for job in jobs]
        try:
            results = [future.result() for future in futures]
        except UserError:
            failed.set()
            for future in futures:
                future.cancel()
            asked.leave()
            raise
    for arm in arms:
        for what in ("final", "final_default"):
            own = [
                result
                for job, result in zip(jobs, results, strict=True)
                if job[0] == arm.value and job[1] == what
            ]
            if own:
                by_arm[str(arm.value)][what] = summary(own)


def summary(results: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics over seeds: mean, standard deviation (of the sample; null for one seed), and each."""
    metrics: dict[str, dict[str, Any]] = {}
    for name in results[0]["metrics"]:
        values = [float(result["metrics"][name]) for result in results]
        deviation = statistics.stdev(values) if len(values) > 1 else None
        metrics[name] = {"mean": statistics.fmean(values), "deviation": deviation, "values": values}
    facts: dict[str, Any] = {"seeds": [result["seed"] for result in results], "metrics": metrics}
    if "test/accuracy" in metrics:
        facts["solve_rate"] = statistics.fmean(value >= 0.99 for value in metrics["test/accuracy"]["values"])
    return facts


def _headline(result: Mapping[str, Any]) -> str:
    for name in ("test/accuracy", "test/bits_per_byte"):
        if name in result["metrics"]:
            return f"{name} {result['metrics'][name]:.4f}"
    return ""
