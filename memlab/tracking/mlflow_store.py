"""MLflow in one place: a store that several runs may create at the same moment, and a logger whose runs
compare well in its UI.

Parameters are named as on the command line (`model.memory_tokens`), metrics as in `metrics.jsonl`, single
numbers for tables and scatter plots are under `summary/`. A run that is interrupted ends as KILLED, one that
fails as FAILED.

All writing is done by one thread next to the training, in order: training never waits for the store, Ctrl-C
(which Python raises in the main thread) never lands within a transaction and leaves the database locked, and
a store that fails costs a warning, not the run: `metrics.jsonl` and `result.json` hold everything.
"""

from __future__ import annotations

import hashlib
import json
import math
import sys
import time
from argparse import Namespace
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

from lightning.pytorch.loggers import MLFlowLogger
from lightning.pytorch.utilities import rank_zero_only

from memlab.config import jobs
from memlab.errors import first_line
from memlab.tracking import multirun
from memlab.tracking.mlflow_client import SQLITE, absolute_uri, holds, lock, prepare
from memlab.tracking.resume import flatten

__all__ = ["SQLITE", "Tracker", "absolute_uri", "holds", "page_of", "prepare"]

_MARKS = (
    "train/loss",
    "val/loss",
    "evolve/mean",
)  # one of them is in each line that is logged while training
LONG = 20.0  # seconds; MLflow tries to reach a server for more, and a SQLite store fails sooner
_MOST = 1000  # metrics that MLflow takes in one call
# of a task: how its samples are read, not what they are
_NOT_DATA = ("_target_", "batch_size", "workers", "cache_dir")


def page_of(uri: str, experiment_id: str, metric: str, ascending: bool) -> str:
    """The address of an experiment's charts in MLflow's UI, all trainings side by side: sorted by a metric,
    it does not hide them under their multiruns. Of a SQLite store, where `mlflow ui` shows it.
    """
    server = "http://127.0.0.1:5000" if uri.startswith(SQLITE) else uri.rstrip("/")
    order = f"orderByKey={quote(f'metrics.`{metric}`')}&orderByAsc={str(ascending).lower()}"
    shown = f"workflowType=machine_learning&compareRunsMode=CHART&{order}"
    return f"{server}/#/experiments/{experiment_id}/runs?{shown}"


class Tracker(MLFlowLogger):
    """Lightning's MLflow logger with our names and endings.

    Args:
        uri: absolute tracking URI.
        experiment: its name; it exists (see `prepare`).
        run_name: shown in the UI.
        parameters: nested configuration; becomes dotted parameter names.
        tags: `memlab.model` and the like.
        run_id: of the run that is continued (see `holds`); None = a new run.
        parent: of the run under which MLflow shows this one.
    """

    def __init__(
        self,
        uri: str,
        experiment: str,
        run_name: str,
        parameters: Mapping[str, Any],
        tags: dict[str, str],
        run_id: str | None = None,
        parent: str | None = None,
    ) -> None:
        if parent is not None:
            tags = {**tags, "mlflow.parentRunId": parent}
        super().__init__(
            experiment_name=experiment, tracking_uri=uri, run_name=run_name, tags=tags, run_id=run_id
        )
        self.uri = uri
        self.failures: list[Exception] = []
        self._waited_until = -math.inf  # `time.monotonic()` when a slow write last failed
        self._stored: dict[str, int] = {}  # the last step that a continued run has already, see `_mark`
        self._writer = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mlflow")
        if run_id is None:
            self.begin(parameters)
        else:
            self.go_on()

    @rank_zero_only
    def begin(self, parameters: Mapping[str, Any]) -> None:
        """Create the run, with its parameters.

        Raises:
            mlflow.exceptions.MlflowException: the store does not take it.
        """
        from mlflow.entities import Param

        flat = dict(sorted(flatten(parameters).items()))
        params = [Param(key, str(value)) for key, value in flat.items()]

        def work() -> None:
            client = self._mlflow_client
            found = client.get_experiment_by_name(self._experiment_name)
            if found and (parent := multirun.parent(client, found.experiment_id, lock(self.uri))):
                self.tags = {**(self.tags or {}), multirun.PARENT: parent}
            self.experiment.log_batch(self.run_id, params=params)

        self._writer.submit(work).result()

    @rank_zero_only
    def go_on(self) -> None:
        """The run is running again; what it already has is not stored a second time.

        Its parameters stay as they are.

        Raises:
            mlflow.exceptions.MlflowException: the store does not take it.
        """

        def work() -> None:
            self.experiment.update_run(self.run_id, status="RUNNING")
            for key in _MARKS:
                history = self.experiment.get_metric_history(self.run_id, key)
                self._stored[key] = max((metric.step for metric in history), default=-1)

        self._writer.submit(work).result()

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.log_lines([{"step": step or 0, **metrics}])

    @rank_zero_only
    def log_lines(self, lines: Iterable[Mapping[str, float]]) -> None:
        """Store lines of `metrics.jsonl`, except for those that the run has."""
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        new = (line for line in lines if line["step"] > self._stored.get(_mark(line), -1))
        metrics = [
            Metric(key, float(value), now, int(line["step"]))
            for line in new
            for key, value in line.items()
            if key != "step"
        ]
        for start in range(0, len(metrics), _MOST):
            part = metrics[start : start + _MOST]
            self._write(lambda part=part: self.experiment.log_batch(self.run_id, metrics=part))  # type: ignore[misc]

    def log_hyperparams(self, params: dict[str, Any] | Namespace) -> None:
        """Parameters are logged once, at the beginning, with dotted names."""

    @rank_zero_only
    def log_artifacts(self, directory: Path, under: str) -> None:
        """Store all files of a directory with the run."""
        self._write(lambda: self.experiment.log_artifacts(self.run_id, str(directory), under))

    @rank_zero_only
    def log_text(self, text: str, name: str) -> None:
        """Store a file of this content with the run."""
        self._write(lambda: self.experiment.log_text(self.run_id, text, name))

    @rank_zero_only
    def log_dataset(self, task: Mapping[str, Any]) -> None:
        """The run's task as the data that it is trained and tested on.

        Not by MLflow's own classes: they load and hash real data.
        """
        from mlflow.entities import Dataset, DatasetInput, InputTag

        content = json.dumps(
            {key: value for key, value in task.items() if key not in _NOT_DATA}, sort_keys=True
        )
        digest = hashlib.sha256(content.encode()).hexdigest()[:8]
        dataset = Dataset(task["name"], digest, "memlab", content)
        context = [InputTag("mlflow.data.context", "training")]
        self._write(
            lambda: self.experiment.log_inputs(self.run_id, datasets=[DatasetInput(dataset, context)])
        )

    @rank_zero_only
    def describe(self, text: str, figure: str = "figures/learning_curve.png") -> None:
        """What the UI's page of the run says first, in Markdown, with a figure among the artifacts."""
        note = f"{text}\n\n![{figure}](get-artifact?path={quote(figure)}&run_uuid={self.run_id})"
        self._write(lambda: self.experiment.set_tag(self.run_id, "mlflow.note.content", note))

    @rank_zero_only
    def log_artifact(self, file: Path, under: str) -> None:
        """Store a file with the run."""
        self._write(lambda: self.experiment.log_artifact(self.run_id, str(file), under))

    def finalize(self, status: str = "success") -> None:
        """Lightning calls this after each of fit and test; `end` reports the run's end."""

    @rank_zero_only
    def end(self, status: str) -> None:
        """Write what is still to be written, and end the run as FINISHED, FAILED or KILLED."""
        self._write(lambda: self.experiment.set_terminated(self.run_id, status))
        self._write(self._end_parent)
        self._writer.shutdown(wait=True)
        if self.failures:
            print(
                f"memlab: warning: {len(self.failures)} writes to MLflow ({self.uri}) failed, first with: "
                f"{first_line(self.failures[0])}; metrics.jsonl has everything",
                file=sys.stderr,
            )

    def _end_parent(self) -> None:
        run = self.experiment.get_run(self.run_id)
        if jobs.multirun() is not None and (parent := run.data.tags.get(multirun.PARENT)):
            with lock(self.uri):
                multirun.child_ended(self.experiment, run.info.experiment_id, parent)

    def _write(self, write: Callable[[], object]) -> None:
        asked = time.monotonic()

        def attempt() -> None:
            # it waited for a write that a server did not take for minutes: one such wait is enough
            if asked < self._waited_until:
                self.failures.append(self.failures[-1])
                return
            began = time.monotonic()
            try:
                write()
            except Exception as error:  # whatever goes wrong with the store, the training goes on
                self.failures.append(error)
                if time.monotonic() - began > LONG:
                    self._waited_until = time.monotonic()

        self._writer.submit(attempt)


def _mark(line: Mapping[str, float]) -> str:
    """The metric that marks a line as a training step's or a validation's; the result's numbers, at the end,
    have neither.
    """
    return next((mark for mark in _MARKS if mark in line), "")
