"""The worker's loop on stand-in trainings: leases, pruning, failures, endings,
and kills at random moments.
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from memlab.config.lifetime import DIES_WITH
from memlab.sweeping.leases import LEASE, Lease, Nothing, TooManyFailedError
from memlab.sweeping.order import Order
from memlab.sweeping.store import Store
from memlab.sweeping.worker import Worker, aggregate
from tests.sweeping import sweeps
from tests.sweeping.killing import alive


def test_a_worker_does_exactly_n_trials(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path)
    assert Worker(order).run() == 0
    found = sweeps.check_whole(order)
    for trial in found:
        assert trial.values is not None
        assert trial.intermediate_values.keys() == {1, 2, 3, 4, 5} and trial.user_attrs["steps"] == 5
        words = json.loads((Path(trial.user_attrs["run_dir"]) / "seed_0" / "result.json").read_text())
        assert trial.values == [words["metrics"]["val/score"]]
    assert Worker(order).run() == 0, "there is nothing left to do"
    assert len(sweeps.trials(order)) == 4
    more = order.model_copy(update={"trials": 5})
    assert Worker(more).run() == 0
    assert [t.params for t in sweeps.check_whole(more)][:4] == [t.params for t in found]


def test_parameters_do_not_depend_on_restarts_or_on_which_worker_draws_them(tmp_path: Path) -> None:
    whole, parts = sweeps.order(tmp_path / "whole"), sweeps.order(tmp_path / "parts", trials=2)
    Worker(whole).run()
    Worker(parts).run()
    Worker(parts.model_copy(update={"trials": 4})).run()
    assert [t.params for t in sweeps.trials(whole)] == [t.params for t in sweeps.trials(parts)]


def test_a_bad_trial_is_pruned_and_keeps_its_last_validation(tmp_path: Path) -> None:
    pruner = {"name": "median", "startup_trials": 1}
    order = sweeps.order(
        tmp_path,
        {"FAKE_STEPS": "20", "FAKE_PAUSE": "0.05"},
        spec=sweeps.spec(pruner=pruner),
        trials=8,
        max_steps=20,
    )
    Worker(order).run()
    found = sweeps.check_whole(order)
    pruned = [t for t in found if t.state.name == "PRUNED"]
    assert pruned, "random learning rates over three decades: some are far worse than the median"
    for trial in pruned:
        steps = (Path(trial.user_attrs["run_dir"]) / "seed_0" / "metrics.jsonl").read_text().splitlines()
        assert len(steps) < 20 and not (Path(trial.user_attrs["run_dir"]) / "seed_0" / "result.json").exists()
        assert trial.values == [trial.intermediate_values[max(trial.intermediate_values)]]


def test_seeds_are_aggregated(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, spec=sweeps.spec(seeds=[1, 2, 4]), trials=1)
    Worker(order).run()
    (trial,) = sweeps.check_whole(order)
    results = [{"metrics": {"val/score": trial.intermediate_values[5] + 1e-3 * seed}} for seed in (1, 2, 4)]
    for how, offset in (("mean", 7e-3 / 3), ("median", 2e-3), ("max", 4e-3), ("min", 1e-3)):
        assert aggregate("val/score", results, how) == pytest.approx(
            trial.intermediate_values[5] + offset, abs=1e-12
        )
    assert trial.values[0] == pytest.approx(aggregate("val/score", results, "mean"), abs=1e-12)


def test_arms_get_as_many_trials_each(tmp_path: Path) -> None:
    order = sweeps.order(
        tmp_path,
        spec=sweeps.spec(base={"task": "reverse"}, arms={"key": "model", "values": ["rmt", "infini"]}),
        trials=1,
        since=[0, 0],
    )
    Worker(order).run()
    arms = order.arms(Store(order.storage, order.study))
    assert [len(arm.study.get_trials()) for arm in arms] == [1, 1]
    assert {path.parent.name for path in (tmp_path / "trials").glob("*/*")} == {"rmt", "infini"}


def test_several_objectives_are_read_from_the_result(tmp_path: Path) -> None:
    space = {**sweeps.SPEC["space"], "model.memory_tokens": {"type": "int", "low": 4, "high": 24, "step": 4}}
    objectives = [
        {"metric": "val/score", "direction": "maximize"},
        {"metric": "memory/state_bytes", "direction": "minimize"},
    ]
    order = sweeps.order(tmp_path, spec=sweeps.spec(space=space, objectives=objectives), trials=2)
    Worker(order).run()
    for trial in sweeps.check_whole(order):
        assert trial.values[1] == trial.params["model.memory_tokens"]


def test_a_metric_that_is_not_measured_fails_the_trial_with_what_there_is(tmp_path: Path) -> None:
    order = sweeps.order(
        tmp_path, spec=sweeps.spec(objectives=[{"metric": "val/accuracy", "direction": "maximize"}])
    )
    with pytest.raises(TooManyFailedError, match=r"val/accuracy is not measured .* there are: val/score"):
        Worker(order).run()


def failing(tmp_path: Path, **changes: Any) -> Order:
    space = {**sweeps.SPEC["space"], "model.width": {"type": "categorical", "choices": [1, 2]}}
    return sweeps.order(tmp_path, {"FAKE_FAIL": "model.width=2"}, spec=sweeps.spec(space=space), **changes)


def test_a_failing_trial_records_its_error_and_the_sweep_goes_on(tmp_path: Path) -> None:
    order = failing(tmp_path, trials=6)
    assert Worker(order).run() == 0
    failed = [t for t in sweeps.trials(order) if t.state.name == "FAIL"]
    assert failed and all(
        t.user_attrs["error"] == "memlab.train: error: model.width=2 is bad" for t in failed
    )
    sweeps.check_whole(order, failed=len(failed))


def test_a_sweep_whose_first_trials_all_fail_stops_and_may_be_started_again(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, {"FAKE_FAIL": "task=reverse"})
    with pytest.raises(TooManyFailedError, match=r"the first 3 trials all failed.*task=reverse is bad"):
        Worker(order).run()
    assert len(sweeps.trials(order)) == 3
    mended = order.model_copy(update={"environment": {"PYTHONPATH": sweeps.ROOT}, "since": [3]})
    assert Worker(mended).run() == 0
    sweeps.check_whole(mended, failed=3)


def lease(worker: Worker) -> Lease:
    leased = worker.leases.next()
    assert isinstance(leased, Lease)
    return leased


def test_who_may_have_a_trial(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, trials=1, grace=0.3)
    first, second = Worker(order), Worker(order)
    mine = lease(first)
    assert second.leases.next() is Nothing.LATER, "its worker, this process, is alive"
    first.leases.release(mine)
    again = lease(second)
    assert (
        again.taken_over and again.trial.number == mine.trial.number and again.parameters == mine.parameters
    )
    assert not first.leases.beat(mine) and not first.leases.end(mine, "COMPLETE", [1.0]), (
        "it is another one's now"
    )
    assert second.leases.end(again, "COMPLETE", [0.5])
    assert not second.leases.end(again, "COMPLETE", [0.7]), "once"
    assert second.leases.next() is Nothing.DONE and sweeps.trials(order)[0].values == [0.5]


def test_a_worker_of_another_machine_is_dead_when_its_beats_stop(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, trials=1, grace=0.5)
    first, second = Worker(order), Worker(order)
    mine = lease(first)
    elsewhere = {**mine.trial.user_attrs[LEASE], "place": "another machine", "pid": 1}
    for beat in range(4):  # its clock may be wrong: only that the beat changes counts
        mine.trial.set_user_attr(LEASE, {**elsewhere, "beat": -beat})
        assert second.leases.next() is Nothing.LATER
        time.sleep(0.3)
    time.sleep(0.3)
    assert lease(second).trial.number == mine.trial.number


def test_a_trial_without_a_lease_is_anyones(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, trials=1)
    first, second = Worker(order), Worker(order)
    first.leases.arms[0].study.ask()  # and died
    assert lease(second).trial.number == 0


def test_two_claims_at_one_moment_are_two_trials(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, trials=5)
    workers = [Worker(order) for _ in range(4)]
    got: list[Any] = []
    threads = [
        threading.Thread(target=lambda w=w: got.extend(w.leases.next() for _ in range(1))) for w in workers
    ]  # type: ignore[misc]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(c.trial.number for c in got) == [0, 1, 2, 3]


def test_a_training_that_is_killed_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, {"FAKE_STEPS": "8", "FAKE_PAUSE": "0.1"}, trials=1)
    thread = threading.Thread(target=Worker(order).run)
    thread.start()
    for kills in (1, 2):
        os.kill(started(tmp_path, kills)[-1], signal.SIGKILL)
    thread.join()
    (trial,) = sweeps.check_whole(order)
    assert trial.number == 0 and trial.state.name == "COMPLETE"
    assert "was ended by SIGKILL" in (tmp_path / "trials" / "0000" / "seed_0.log").read_text()


def test_a_training_that_is_always_killed_fails(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, {"FAKE_STEPS": "50", "FAKE_PAUSE": "0.1"}, trials=1, restarts=1)
    failures: list[BaseException] = []

    def work() -> None:
        try:
            Worker(order).run()
        except TooManyFailedError as error:
            failures.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    for kills in (1, 2):
        os.kill(started(tmp_path, kills)[-1], signal.SIGKILL)
    thread.join()
    assert "it was ended by SIGKILL, 2 times" in str(failures[0])


def started(directory: Path, count: int, seconds: float = 60) -> list[int]:
    """Process ids of all trainings so far, when there are at least so many."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        ids = [
            int(line) for file in directory.glob("trials/**/starts") for line in file.read_text().splitlines()
        ]
        if len(ids) >= count:
            time.sleep(0.1)
            return ids
        time.sleep(0.02)
    raise AssertionError(f"{count} trainings did not start")


def spawn(order: Order) -> subprocess.Popen[bytes]:
    """A worker as the sweep starts it."""
    environment = {**os.environ, "PYTHONPATH": sweeps.ROOT, DIES_WITH: str(os.getpid())}
    process = subprocess.Popen(
        [sys.executable, "-m", "memlab.sweeping.worker"], stdin=subprocess.PIPE, env=environment
    )
    assert process.stdin is not None
    process.stdin.write(order.model_dump_json().encode())
    process.stdin.close()
    return process


@pytest.mark.skipif(sys.platform != "linux", reason="PR_SET_PDEATHSIG")
def test_workers_and_trainings_are_killed_at_random_moments(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, {"FAKE_STEPS": "6", "FAKE_PAUSE": "0.05"}, trials=6, restarts=20)
    rng, workers, kills = random.Random(0), [spawn(order) for _ in range(2)], 0
    deadline = time.monotonic() + 100
    while any(w.poll() != 0 for w in workers):
        assert time.monotonic() < deadline
        time.sleep(rng.uniform(0.1, 0.9))
        if kills < 5:
            trainings = [pid for pid in started(tmp_path, 1) if alive(pid)]
            if trainings and rng.random() < 0.4:
                os.kill(rng.choice(trainings), signal.SIGKILL)
            else:
                rng.choice(workers).kill()
            kills += 1
        for at, worker in enumerate(workers):
            if worker.poll() not in (None, 0):
                workers[at] = spawn(order)
    sweeps.check_whole(order)
    assert not [pid for pid in started(tmp_path, 1) if alive(pid)], "no orphans"


def test_sigterm_leaves_the_trial_for_the_next_worker_at_once(tmp_path: Path) -> None:
    order = sweeps.order(tmp_path, {"FAKE_STEPS": "40", "FAKE_PAUSE": "0.15"}, trials=1)
    worker = spawn(order)
    (pid,) = started(tmp_path, 1)
    worker.terminate()
    assert worker.wait(20) == 128 + signal.SIGTERM and not alive(pid)
    (trial,) = sweeps.trials(order)
    assert trial.state.name == "RUNNING" and trial.user_attrs[LEASE]["released"]
    assert Worker(order).run() == 0
    (trial,) = sweeps.check_whole(order)
    assert trial.user_attrs["taken_over"] == 1
