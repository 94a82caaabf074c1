"""A sweep in MLflow: a run for the sweep, below it those of its trials, each labelled with its trial's number
and how that ended.

Whatever goes wrong with MLflow costs a warning: the trials are in the sweep's storage, and their figures in
their run directories.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from memlab.errors import first_line
from memlab.tracking.resume import flatten

if TYPE_CHECKING:
    from memlab.sweeping.leases import Lease
    from memlab.sweeping.order import Order

STATE, TRIAL, SWEEP = "memlab.sweep.state", "memlab.sweep.trial", "memlab.sweep"
_STATUS = {"complete": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}


def client(uri: str) -> Any:
    """MLflow's client, without its chatter."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    from mlflow import MlflowClient

    return MlflowClient(uri)


def begin(uri: str, experiment: str, study: str, parameters: Mapping[str, Any]) -> str:
    """Create the sweep's run in an existing store (see `mlflow_client.prepare`); returns its id.

    Raises:
        UserError: the store cannot be used.
    """
    from mlflow.entities import Param
    from mlflow.exceptions import MlflowException

    from memlab.errors import UserError

    try:
        store = client(uri)
        found = store.get_experiment_by_name(experiment)
        run = store.create_run(
            found.experiment_id, run_name=f"sweep {study}", tags={"memlab.kind": "sweep", SWEEP: study}
        )
        params = [Param(key, str(value)[:500]) for key, value in flatten(parameters).items()]
        store.log_batch(run.info.run_id, params=params)
    except MlflowException as error:
        raise UserError(f"tracking.uri={uri}: {str(error).splitlines()[0]}") from None
    run_id: str = run.info.run_id
    return run_id


class Labels:
    """Records in MLflow how trials ended, while the next trial trains.

    Everything is recorded when this context ends.
    """

    def __init__(self, order: Order) -> None:
        self.order = order
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.shutdown(wait=True)

    def load(self) -> None:
        """Import MLflow, which takes seconds; the worker asks for it when its training begins."""
        if (uri := self.order.tracking_uri) is not None:
            self._writer.submit(client, uri)

    def put(
        self, lease: Lease, state: str, error: str | None = None, values: Sequence[float] | None = None
    ) -> None:
        """Label a trial. One that failed before its training had a run of its own gets one here."""
        if self.order.tracking_uri is not None and self.order.parent_run is not None:
            self._writer.submit(self._write, lease, state, error, values)

    def _write(self, lease: Lease, state: str, error: str | None, values: Sequence[float] | None) -> None:
        try:
            _label(self.order, lease, state, error, values)
        except Exception as problem:  # whatever goes wrong with the store, the sweep goes on
            print(
                f"memlab: warning: trial {lease.trial.number} is not labelled in MLflow: "
                f"{first_line(problem)}",
                flush=True,
            )


def _label(order: Order, lease: Lease, state: str, error: str | None, values: Sequence[float] | None) -> None:
    assert order.tracking_uri is not None
    store, number = client(order.tracking_uri), lease.trial.number
    place = order.trial_dir(lease.arm.value, number)
    tags = {TRIAL: str(number), STATE: state, SWEEP: order.study, "mlflow.parentRunId": str(order.parent_run)}
    if lease.arm.value is not None:
        tags["memlab.sweep.arm"] = str(lease.arm.value)
    if error is not None:
        tags["memlab.sweep.error"] = error[:500]
    name = f"trial {number}" if lease.arm.value is None else f"{lease.arm.value} trial {number}"
    runs = {seed: run_id for seed in order.spec.seeds if (run_id := run_of(place / f"seed_{seed}"))}
    if not runs:
        parent = store.get_run(order.parent_run)
        run = store.create_run(
            parent.info.experiment_id, run_name=name, tags={**tags, "memlab.run_dir": str(place)}
        )
        for key, value in lease.parameters.items():
            store.log_param(run.info.run_id, key, value)
        store.set_terminated(run.info.run_id, _STATUS[state])
        return
    for seed, run_id in runs.items():
        for key, value in {
            **tags,
            "mlflow.runName": name if len(order.spec.seeds) == 1 else f"{name}, seed {seed}",
        }.items():
            store.set_tag(run_id, key, value)
        for objective, number_ in zip(order.spec.objectives, values or [], strict=False):
            store.log_metric(run_id, f"summary/objective/{objective.metric}", number_)
        store.set_terminated(run_id, _STATUS[state])  # a killed training could not say so itself


def run_of(run_dir: Path) -> str | None:
    """The MLflow run of a run directory, if it has one."""
    try:
        run_id = json.loads((run_dir / "run.json").read_text(encoding="utf-8")).get("mlflow_run_id")
    except (OSError, ValueError):
        return None
    return str(run_id) if run_id else None


def finish(uri: str, run_id: str, result: Mapping[str, Any], directory: Path) -> None:
    """The sweep's numbers, its best parameters and its figures; it has ended."""
    try:
        store = client(uri)
        numbers = {f"trials/{state}": count for state, count in result["trials"].items()}
        for name, value in result["best"]["values"].items():
            numbers[f"best/{name}"] = value
        for group in ("final", "final_default"):
            for name, facts in (result.get(group) or {}).get("metrics", {}).items():
                numbers[f"{group}/{name}"] = facts["mean"]
        for name, value in numbers.items():
            store.log_metric(run_id, name, float(value))
        for key, value in result["best"]["parameters"].items():
            store.set_tag(run_id, f"best.{key}", str(value))
        store.set_tag(run_id, "best.trial", str(result["best"]["trial"]))
        for file in sorted(directory.glob("*.yaml")) + sorted(directory.glob("*.csv")):
            store.log_artifact(run_id, str(file), "sweep")
        if (directory / "figures").is_dir():
            store.log_artifacts(run_id, str(directory / "figures"), "figures")
        store.set_terminated(run_id, "FINISHED")
    except Exception as problem:
        print(
            f"memlab: warning: not written to the sweep's MLflow run: {first_line(problem)}", file=sys.stderr
        )


def stop(uri: str | None, run_id: str | None, status: str) -> None:
    """The sweep was interrupted (KILLED) or cannot go on (FAILED)."""
    if uri is None or run_id is None:
        return
    try:
        client(uri).set_terminated(run_id, status)
    except Exception as problem:
        print(f"memlab: warning: the sweep's MLflow run is not ended: {first_line(problem)}", file=sys.stderr)


def go_on(uri: str, run_id: str) -> None:
    """The sweep is running again."""
    try:
        client(uri).update_run(run_id, status="RUNNING")
    except Exception as problem:
        print(
            f"memlab: warning: the sweep's MLflow run is not marked as running: {first_line(problem)}",
            file=sys.stderr,
        )


def label_final(order: Order, run_dir: Path, what: str, name: str) -> None:
    """Label a final training as one that belongs to no trial."""
    run_id = run_of(run_dir)
    if order.tracking_uri is None or run_id is None:
        return
    try:
        store = client(order.tracking_uri)
        for key, value in {STATE: what, SWEEP: order.study, "mlflow.runName": f"final {name}"}.items():
            store.set_tag(run_id, key, value)
    except Exception as problem:
        print(f"memlab: warning: {run_dir} is not labelled in MLflow: {first_line(problem)}", file=sys.stderr)
