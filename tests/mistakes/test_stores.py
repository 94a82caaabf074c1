"""MLflow stores that cannot be used as they are, and files of a run that did not survive a power cut."""

from __future__ import annotations

import json
import sqlite3
import threading
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from omegaconf import OmegaConf

from memlab.config import composing
from memlab.config.paths import config_dir
from memlab.errors import UserError
from memlab.evaluation import record
from memlab.files import DamagedFileError, read_lines, read_object
from memlab.tracking import finished_runs, mlflow_client, resume, sqlite_store, stored_runs
from memlab.tracking.run_directory import RunDirectory

# --- MLflow's store


def not_a_database(place: Path) -> None:
    (place / "mlflow.db").write_text("a diary\n" * 100)


def damaged(place: Path) -> None:
    (place / "mlflow.db").write_bytes(b"SQLite format 3\0" + bytes(range(256)))


def cut_off(place: Path) -> None:
    with sqlite3.connect(place / "mlflow.db") as store:
        store.execute("CREATE TABLE t AS SELECT zeroblob(100000)")
    store.close()
    whole = (place / "mlflow.db").read_bytes()
    (place / "mlflow.db").write_bytes(whole[:5000])


def directory(place: Path) -> None:
    (place / "mlflow.db").mkdir()


STORES: dict[Callable[[Path], None], str] = {
    not_a_database: "mlflow.db is not a SQLite database; give another file, or move it away",
    damaged: "mlflow.db is damaged (file is not a database); give another file, or restore it",
    cut_off: "mlflow.db is damaged (database disk image is malformed)",
    directory: "tracking.uri=sqlite:///mlflow.db is a directory; give the file of a SQLite database",
}


@pytest.mark.parametrize("make", STORES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("use", ["prepare", "existing"])
def test_a_store_that_is_none(
    make: Callable[[Path], None], use: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    make(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(UserError) as caught:
        if use == "prepare":
            mlflow_client.prepare("sqlite:///mlflow.db", "x")
        else:
            mlflow_client.existing("sqlite:///mlflow.db")
    assert STORES[make] in str(caught.value), caught.value
    assert sorted(tmp_path.rglob("*")) == before


def test_an_empty_file_is_a_store_to_be_made(tmp_path: Path) -> None:
    (tmp_path / "mlflow.db").touch()
    sqlite_store.check("tracking.uri=x", tmp_path / "mlflow.db")


def lock(database: Path, seconds: float) -> threading.Thread:
    """Have another connection hold a database for a time."""
    held = threading.Event()

    def hold() -> None:
        connection = sqlite3.connect(database, isolation_level=None)
        connection.execute("BEGIN EXCLUSIVE")
        held.set()
        time.sleep(seconds)
        connection.rollback()
        connection.close()

    thread = threading.Thread(target=hold)
    thread.start()
    held.wait()
    return thread


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """A SQLite file with something in it."""
    made = tmp_path / "mlflow.db"
    with sqlite3.connect(made) as connection:
        connection.execute("CREATE TABLE t (a TEXT)")
    connection.close()
    return made


def test_a_store_that_is_locked_is_waited_for(
    database: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sqlite_store, "_SAID_AFTER", 0.1)
    thread = lock(database, 1.0)
    sqlite_store.check("tracking.uri=x", database)
    assert f"{database} is locked by another process; waiting for it" in capsys.readouterr().err
    thread.join()


def test_a_store_that_stays_locked(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite_store, "PATIENCE", 0.1)
    thread = lock(database, 1.0)
    with pytest.raises(UserError, match=r"tracking\.uri=x: another process has had .*mlflow\.db locked"):
        sqlite_store.check("tracking.uri=x", database)
    thread.join()


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with an MLflow store that has a run with an artifact."""
    place = tmp_path_factory.mktemp("store")
    uri = f"sqlite:///{place}/mlflow.db"
    mlflow_client.prepare(uri, "mine")
    client = mlflow_client.existing(uri)
    run = client.create_run(client.get_experiment_by_name("mine").experiment_id)
    client.log_text(run.info.run_id, "hello", "note.txt")
    return place


def test_an_experiment_that_was_deleted(store: Path) -> None:
    uri = f"sqlite:///{store}/mlflow.db"
    mlflow_client.prepare(uri, "gone")
    client = mlflow_client.existing(uri)
    number = client.get_experiment_by_name("gone").experiment_id
    client.delete_experiment(number)
    with pytest.raises(UserError) as caught:
        mlflow_client.prepare(uri, "gone")
    assert str(caught.value) == (
        "the MLflow experiment 'gone' has been deleted, and keeps its name until `mlflow gc` removes "
        "it. Give another one, tracking.experiment=NAME, or bring it back with its runs: mlflow experiments "
        f"restore --experiment-id {number}"
    )


def test_a_folder_that_was_moved_keeps_its_artifacts(
    store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    moved = store.rename(tmp_path / "moved here")
    try:
        uri = f"sqlite:///{moved}/mlflow.db"
        mlflow_client.prepare(uri, "mine")
        assert f"was moved here from {store}, and its artifacts with it" in capsys.readouterr().err
        client = mlflow_client.existing(uri)
        number = client.get_experiment_by_name("mine").experiment_id
        new = client.create_run(number)
        client.log_text(new.info.run_id, "again", "note.txt")
        for run in client.search_runs([number]):
            assert (moved / "mlruns" / run.info.run_id / "artifacts" / "note.txt").is_file()
            assert Path(client.download_artifacts(run.info.run_id, "note.txt")).is_file()
        assert not store.exists(), "nothing is written to the old place"
        mlflow_client.prepare(uri, "mine")
        assert capsys.readouterr().err == ""
    finally:
        moved.rename(store)


def test_a_place_that_somebody_chose_stays(store: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{store}/mlflow.db"
    client = mlflow_client.existing(uri)
    places = {"far": "s3://bucket/mlruns", "other": (tmp_path / "other").as_uri()}
    (tmp_path / "mlruns").mkdir()
    places["there"] = (tmp_path / "mlruns").as_uri()
    for name, place in places.items():
        client.create_experiment(name, place)
        mlflow_client.prepare(uri, name)
        assert client.get_experiment_by_name(name).artifact_location == place


def test_the_environment_says_where_the_store_is(monkeypatch: pytest.MonkeyPatch) -> None:
    def tracking(*words: str) -> tuple[str, str]:
        with composing.composing():
            found = composing.compose_job("train", ["tracking=mlflow", *words]).tracking
        return found.uri, found.experiment

    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    assert tracking() == ("sqlite:///mlflow.db", "reverse")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://mine:5000")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "mine")
    assert tracking() == ("http://mine:5000", "mine")
    assert tracking("tracking.uri=sqlite:///x.db", "tracking.experiment=x") == ("sqlite:///x.db", "x")
    assert tracking("experiment=copy") == ("http://mine:5000", "copy")
    for command in ("compare", "evaluate", "generate"):
        composed = OmegaConf.load(Path(config_dir(), f"{command}.yaml"))
        assert composed.tracking.uri == "http://mine:5000"
    assert mlflow_client.named("http://mine:5000") == (
        "tracking.uri=http://mine:5000 (from MLFLOW_TRACKING_URI)"
    )


# --- files of a run

CONFIG: dict[str, Any] = {
    "seed": 0,
    "model": {"name": "rmt"},
    "task": {"name": "copy"},
    "trainer": {"max_steps": 5},
    "optim": {"schedule": "constant"},
}
RESULT = {"metrics": {"test/accuracy": 0.5}, "memory": {"state_bytes": 8}, "timing": {}, "steps": 5}


class Asked(SimpleNamespace):
    """As much of a typed configuration as `resume.find` reads."""

    def model_dump(self) -> dict[str, Any]:
        return CONFIG


def asked(run: Path, how: str = "auto") -> Any:
    return Asked(run_dir=str(run), resume=how)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A finished run, as far as its small files go."""
    place = tmp_path / "run"
    (place / "checkpoints").mkdir(parents=True)
    (place / "checkpoints" / "best.ckpt").touch()
    (place / "config.yaml").write_text(json.dumps(CONFIG))
    (place / "result.json").write_text(json.dumps(RESULT))
    (place / "run.json").write_text(json.dumps({"mlflow_run_id": "7"}))
    lines = [{"step": n, "val/loss": 1.0} for n in (1, 2)]
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return place


DAMAGE = {
    "empty": b"",
    "zeros": b"\0" * 200,
    "cut off": b'{"metrics": {"test/acc',
    "not Unicode": b'{"metrics": "\xff"}',
    "no object": b"[1, 2]",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_result_is_made_anew(how: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert resume.find(asked(run)).result == RESULT
    (run / "result.json").write_bytes(DAMAGE[how])
    origin = resume.find(asked(run))
    assert (origin.directory, origin.result) == (run, None)
    told = capsys.readouterr().err
    assert told == (
        f"memlab: {run / 'result.json'} is empty or damaged; it is made again from the run's last "
        "checkpoint\n"
    )
    directory = RunDirectory(run, asked(run), continues=True)
    directory.release()


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_result_is_not_evaluated_or_compared(how: str, run: Path) -> None:
    finished_runs.find(str(run), "sqlite:///none.db")
    (run / "result.json").write_bytes(DAMAGE[how])
    with pytest.raises(UserError) as caught:
        finished_runs.find(str(run), "sqlite:///none.db")
    assert "makes it again from the run's last checkpoint; or evaluate the checkpoint" in str(caught.value)
    left_out = stored_runs.from_directory(run)
    assert isinstance(left_out, stored_runs.LeftOut)
    assert left_out.reason == "has a damaged result.json"


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_run_json_costs_the_mlflow_run(
    how: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (run / "run.json").write_bytes(DAMAGE[how])
    directory = RunDirectory(run, asked(run), ours=False)
    for _ in range(2):
        assert directory.facts() == {"mlflow_run_id": None, "resumed_at": [], "command": None}
    told = capsys.readouterr().err
    assert told.count("\n") == 1 and "run.json is " in told and "a new MLflow run begins" in told
    directory.note(mlflow_run_id="8")
    assert RunDirectory(run, asked(run), ours=False).facts()["mlflow_run_id"] == "8"


def test_an_evaluation_of_a_run_with_a_damaged_run_json(
    run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert finished_runs.mlflow_run_id(run) == "7"
    (run / "run.json").write_bytes(b"")
    assert finished_runs.mlflow_run_id(run) is None
    assert "run.json is empty, as after a power cut; what is found is not" in capsys.readouterr().err


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_evaluation(how: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / "evaluation.json").write_bytes(DAMAGE[how])
    found = stored_runs.from_directory(run)
    assert isinstance(found, stored_runs.StoredRun) and found.lengths == {}
    assert "the run is compared without its other lengths" in capsys.readouterr().err
    if how != "no object":
        with pytest.raises(UserError, match=r"evaluation\.json .*what is in it is computed again"):
            record.read(run / "evaluation.json")


TAILS = {"half a line": b'{"step": 3, "val/', "zeros": b"\0" * 300, "a number": b"7\n", "junk": b"\xff\xfe\n"}


@pytest.mark.parametrize("tail", TAILS)
def test_lines_of_metrics_that_did_not_survive(tail: str, run: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(TAILS[tail])
    assert [line["step"] for line in read_lines(run / "metrics.jsonl")] == [1, 2]
    found = stored_runs.from_directory(run)
    assert isinstance(found, stored_runs.StoredRun) and len(found.lines) == 2


def test_metrics_that_a_checkpoint_counts_on(run: Path) -> None:
    directory = RunDirectory(run, asked(run), ours=False)
    size = directory.metrics.stat().st_size
    directory.forget_after(size - 1)
    with pytest.raises(UserError) as caught:
        directory.forget_after(size)
    assert f"metrics.jsonl has {size - 1} bytes, and had {size} when the checkpoint was written" in str(
        caught.value
    )


@pytest.mark.parametrize("content", [b"", b"seed: 0\nmodel: {na", b"- 1\n", b"\xff\xff"])
def test_a_damaged_configuration(content: bytes, run: Path) -> None:
    (run / "config.yaml").write_bytes(content)
    with pytest.raises(
        UserError, match=r"config\.yaml is empty or damaged, so what was trained there is not"
    ):
        resume.find(asked(run))
    assert isinstance(stored_runs.from_directory(run), stored_runs.LeftOut)


@pytest.mark.parametrize("how", DAMAGE)
def test_what_is_read_is_an_object(how: str, tmp_path: Path) -> None:
    (tmp_path / "x.json").write_bytes(DAMAGE[how])
    with pytest.raises(DamagedFileError, match=r"x\.json is (empty, as after a power cut|damaged \()"):
        read_object(tmp_path / "x.json")
