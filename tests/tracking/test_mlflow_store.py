"""The tracker on a real SQLite store: what is written arrives in order,
and neither Ctrl-C nor a failing store does harm.
"""

from __future__ import annotations

import _thread
import os
import signal
import time
from typing import Any

import pytest

from memlab.errors import UserError
from memlab.tracking import mlflow_client, mlflow_store
from memlab.tracking.mlflow_store import Tracker

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    uri = f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"
    mlflow_store.prepare(uri, "tests")
    return uri


@pytest.fixture
def tracker(uri: str) -> Tracker:
    return Tracker(
        uri, "tests", "a run", {"model": {"width": 8, "_target_": "left.out"}}, {"memlab.model": "rmt"}
    )


def stored(tracker: Tracker) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(tracker.uri).get_run(str(tracker.run_id))


def test_written_in_order(tracker: Tracker) -> None:
    for step in range(20):
        tracker.log_metrics({"train/loss": 1 / (step + 1)}, step)
    tracker.end("FINISHED")
    run = stored(tracker)
    assert run.info.status == "FINISHED" and run.data.params == {"model.width": "8"}
    history = tracker.experiment.get_metric_history(tracker.run_id, "train/loss")
    assert [(m.step, m.value) for m in history] == [(step, 1 / (step + 1)) for step in range(20)]


def test_a_run_may_have_a_parent(uri: str) -> None:
    child = Tracker(uri, "tests", "a child", {}, {}, parent="of an id")
    child.end("FINISHED")
    assert stored(child).data.tags["mlflow.parentRunId"] == "of an id"


def test_interrupt_in_the_middle_of_a_write(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The interrupt reaches the main thread; the transaction is finished, the store is not locked,
    and the run ends as KILLED.
    """
    from mlflow.store.tracking.sqlalchemy_store import SqlAlchemyStore

    log = SqlAlchemyStore._log_metrics  # called with the database session open

    def interrupted(*args: Any, **more: Any) -> Any:
        _thread.interrupt_main()
        time.sleep(0.05)
        return log(*args, **more)

    monkeypatch.setattr(SqlAlchemyStore, "_log_metrics", interrupted)
    # a shell's background jobs are born ignoring it
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            tracker.log_metrics({"train/loss": 1.0}, 1)
            time.sleep(5)
    finally:
        signal.signal(signal.SIGINT, before)
    monkeypatch.undo()
    tracker.end("KILLED")
    assert stored(tracker).info.status == "KILLED" and stored(tracker).data.metrics == {"train/loss": 1.0}
    assert "warning" not in capsys.readouterr().err


def test_a_failing_store_costs_a_warning(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError("no space left\nmore")

    monkeypatch.setattr(tracker.experiment, "log_batch", full)
    tracker.log_metrics({"train/loss": 1.0}, 1)
    tracker.log_metrics({"train/loss": 0.5}, 2)
    tracker.end("FINISHED")
    err = capsys.readouterr().err
    assert "2 writes to MLflow" in err and "no space left; metrics.jsonl" in err
    assert stored(tracker).info.status == "FINISHED"


def test_a_server_that_does_not_answer_is_told_in_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    began = time.monotonic()
    with pytest.raises(
        UserError, match=r"^tracking\.uri=http://127\.0\.0\.1:1: .* the server does not answer: .*refused$"
    ):
        mlflow_store.prepare("http://127.0.0.1:1", "tests")
    assert time.monotonic() - began < 20, "by default MLflow tries for more than a minute"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ, "later writes are patient"


@pytest.mark.parametrize(
    ("patient", "own", "retries"), [(False, None, "1"), (True, None, None), (False, "3", "3")]
)
def test_how_often_the_first_contact_is_tried(
    patient: bool, own: str | None, retries: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    key, seen = "MLFLOW_HTTP_REQUEST_MAX_RETRIES", []
    monkeypatch.delenv(key, raising=False)
    if own is not None:
        monkeypatch.setenv(key, own)
    monkeypatch.setattr(mlflow_client, "_make_experiment", lambda *_: seen.append(os.environ.get(key)))
    mlflow_store.prepare("http://127.0.0.1:1", "tests", patient)
    assert seen == [retries] and os.environ.get(key) == own


def test_a_server_that_is_gone_is_waited_for_once_and_not_by_each_write(
    tracker: Tracker, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(mlflow_store, "LONG", 0.2)
    tried: list[int] = []

    def gone(number: int) -> None:
        tried.append(number)
        time.sleep(0.3)
        raise ConnectionError("refused")

    for number in range(50):
        tracker._write(lambda number=number: gone(number))
    tracker._writer.submit(lambda: None).result()
    assert tried == [0], "the others waited behind it"
    tracker.log_metrics({"train/loss": 1.0}, 7)  # it is there again
    tracker.end("FINISHED")
    assert stored(tracker).info.status == "FINISHED" and stored(tracker).data.metrics == {"train/loss": 1.0}
    assert "50 writes to MLflow" in capsys.readouterr().err
