"""The sweep's own process: opens the study, lets workers do the trials (see `Pool`), and at the end trains
the best once more.

It decides nothing about trials. Kill it, and its workers and their trainings end with it; start it again,
here or on another machine with the same storage, and the sweep goes on.
"""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Sequence
from functools import partial
from typing import Any

from memlab.config.override_file import word
from memlab.errors import UserError
from memlab.files import check_place
from memlab.processors import cores
from memlab.sweeping import conclusion, figures, labels
from memlab.sweeping.ending import Asked, Interrupted
from memlab.sweeping.leases import Leases
from memlab.sweeping.order import Order
from memlab.sweeping.plan import Plan, gpus
from memlab.sweeping.pool import Pool
from memlab.sweeping.store import Store
from memlab.sweeping.study import Arm, open_study


def run(plan: Plan) -> int:
    """Run a sweep, or continue it; returns the exit status.

    Raises:
        UserError: it cannot begin, or it cannot go on.
    """
    with Asked() as asked:
        return _run(plan, asked)


def _run(plan: Plan, asked: Asked) -> int:
    order: Order | None = None
    pool: Pool | None = None
    try:
        store, arms = _open(plan)
        if (done := conclusion.finished(plan, arms)) is not None:
            print(f"memlab: the sweep in {plan.run_dir} has finished already", file=sys.stderr)
            conclusion.show(done, plan.run_dir, plan.config.config_dir, plan.config.trust)
            return 0
        shares = gpus(plan.config)
        pool = Pool(plan.run_dir, shares, asked)
        pool.start()  # the workers import while their order is written
        order = _order(plan, store, arms)
        (plan.run_dir / "result.json").unlink(missing_ok=True)
        began = time.time()
        asked.leave()
        _announce(plan, store, arms)
        loading = threading.Thread(target=figures.load)
        loading.start()
        pool.run(order, store, arms)
        _check_done(order, store, arms)
        loading.join()
        with store.lock("final", wait=False) as held:
            if not held:
                print(
                    "memlab: all trials have ended; another machine of this sweep trains the best and "
                    "writes the result",
                    file=sys.stderr,
                )
                return 0
            result = conclusion.conclude(plan, order, arms, shares, began, asked)
        conclusion.show(result, plan.run_dir, plan.config.config_dir, plan.config.trust)
        return 0
    except Interrupted:
        _end_tracking(order, "KILLED")
        print("memlab: interrupted; the same command goes on with the sweep", file=sys.stderr)
        return 128 + asked.number
    except UserError:
        _end_tracking(order, "FAILED")
        raise
    finally:
        if pool is not None:
            pool.end()


def _end_tracking(order: Order | None, status: str) -> None:
    if order is not None:
        labels.stop(order.tracking_uri, order.parent_run, status)


def _open(plan: Plan) -> tuple[Store, list[Arm]]:
    """Storage and studies. They are created only after everything that can be wrong with them has been
    checked.
    """
    check_place(f"run_dir={plan.config.run_dir or plan.run_dir}", plan.run_dir)
    store = Store(plan.storage, plan.config.study)
    store.check()
    directions, identity = [o.direction for o in plan.spec.objectives], plan.spec.identity()
    names = [_study_name(plan, value) for value in plan.spec.arm_values()]
    for name in names:
        store.patiently(partial(open_study, store, name, directions, identity, create=False), patience=0)
    try:
        plan.run_dir.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run_dir={plan.run_dir} cannot be used: {error.strerror}") from None
    arms = []
    for name, value in zip(names, plan.spec.arm_values(), strict=True):
        study = store.patiently(partial(open_study, store, name, directions, identity), patience=0)
        assert study is not None
        arms.append(Arm(value, study))
    return store, arms


def _study_name(plan: Plan, arm: Any) -> str:
    return plan.config.study if arm is None else f"{plan.config.study}/{arm}"


def _order(plan: Plan, store: Store, arms: Sequence[Arm]) -> Order:
    config, uri = plan.config, plan.tracking_uri()
    parent = None
    words = ["tracking=off"]
    if uri is not None:
        assert config.tracking.mlflow
        parent = _parent_run(plan, store, arms, uri, config.tracking.experiment)
        settings = {
            "tracking": "mlflow",
            "tracking.uri": uri,
            "tracking.experiment": config.tracking.experiment,
        }
        words = [word(key, value) for key, value in {**settings, "tracking.parent_run": parent}.items()]
    hours = config.hours or plan.spec.budget.hours
    environment = {}
    if plan.threads is None and "OMP_NUM_THREADS" not in os.environ and config.workers > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, cores() // config.workers))
    return Order(
        spec=plan.spec,
        study=config.study,
        storage=store.secret,
        run_dir=str(plan.run_dir),
        trials=plan.trials,
        since=[len(arm.study.get_trials(deepcopy=False)) for arm in arms],
        max_steps=plan.max_steps,
        tracking=words,
        tracking_uri=uri,
        parent_run=parent,
        heartbeat=config.heartbeat,
        grace=config.grace,
        deadline=time.time() + hours * 3600 if hours else None,
        restarts=config.restarts,
        environment=environment,
        config_dir=config.config_dir,
        trust=config.trust,
    )


def _parent_run(plan: Plan, store: Store, arms: Sequence[Arm], uri: str, experiment: str) -> str:
    """The sweep's MLflow run: one for all its machines and restarts."""
    from memlab.tracking import mlflow_client

    study = arms[0].study
    mlflow_client.prepare(uri, experiment)
    with store.lock("mlflow"):
        known = study.user_attrs.get("mlflow_run_id")
        if known is not None and mlflow_client.holds(uri, known):
            labels.go_on(uri, known)
            return str(known)
        if known is not None:
            print(
                f"memlab: the sweep's MLflow run {known} is not in {uri}; another one begins", file=sys.stderr
            )
        run_id = labels.begin(
            uri, experiment, plan.config.study, plan.spec.model_dump(exclude={"description"})
        )
        study.set_user_attr("mlflow_run_id", run_id)
        return run_id


def _announce(plan: Plan, store: Store, arms: Sequence[Arm]) -> None:
    done = sum(
        t.state.name in ("COMPLETE", "PRUNED") for arm in arms for t in arm.study.get_trials(deepcopy=False)
    )
    goal = plan.trials * len(arms)
    each = f" ({plan.trials} for each of {len(arms)} {plan.spec.arms.key}s)" if plan.spec.arms else ""
    before = f", {done} of them done before" if done else ""
    workers = f"{plan.config.workers} worker{'s' * (plan.config.workers > 1)}"
    print(
        f"memlab: sweep {plan.config.study}: {goal} trials{each}{before}, {workers}, in {plan.run_dir}",
        file=sys.stderr,
    )
    if plan.config.storage:
        print(f"memlab: storage {store.name}", file=sys.stderr)


def _check_done(order: Order, store: Store, arms: Sequence[Arm]) -> None:
    """Check that the workers ended because there was nothing left to do.

    Raises:
        UserError: they did not.
    """
    counts = [
        sum(t.state.name in ("COMPLETE", "PRUNED") for t in arm.study.get_trials(deepcopy=False))
        for arm in arms
    ]
    late = order.deadline is not None and time.time() > order.deadline
    if all(count >= order.trials for count in counts) or (late and all(counts)):
        return
    if late:
        raise UserError("the sweep's hours were over before a trial was complete; give it more, hours=…")
    leases = Leases(order.spec, store, arms, order.trials, order.since, order.grace, deadline=0)
    leases.next()  # raises what stopped the workers
    raise UserError(
        f"the workers ended with {sum(counts)} of {order.trials * len(arms)} trials; see "
        f"{order.run_dir}/workers"
    )
