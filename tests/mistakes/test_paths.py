"""Names of files and directories: too long, of somebody else's, of something else, beginning with `~`."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from memlab.config import overrides
from memlab.config.sections import Config, Section, typed
from memlab.config.sections import Place as PathKey
from memlab.errors import ConfigError, UserError
from memlab.files import check_place, exists
from memlab.tracking import mlflow_client
from tests.mistakes.starting import Start

LONG = "a" * 300
TOO_LONG = {
    ("train", f"run_dir={LONG}"): f"run_dir={LONG} cannot be used: File name too long",
    ("train", f"resume={LONG}"): f"resume={LONG}: there is no run (no config.yaml)",
    ("train", f"experiment_file={LONG}"): f"experiment_file={LONG}: File name too long",
    ("train", f"--config-dir {LONG}"): f"--config-dir {LONG}: there is no such folder",
    ("train", f"model={LONG}"): f"no model is named '{LONG}'",
    ("train", f"task={LONG}"): f"no task is named '{LONG}'",
    ("evaluate", f"run={LONG}"): f"run={LONG}: there is no such directory or file",
    ("generate", f"run={LONG}"): f"run={LONG}: there is no such directory or file",
    ("compare", f"runs=[{LONG}]"): f"{LONG} is neither a directory nor an MLflow run id",
    ("sweep", f"sweep={LONG}"): f"no sweep is named '{LONG}'",
    ("sweep", f"sweep={LONG}.yaml"): f"sweep={LONG}.yaml: there is no such file",
    ("bench", f"run_dir={LONG}"): f"run_dir={LONG} cannot be used: File name too long",
    ("train", f"task=text task.tokenizer={LONG}"): f"task.tokenizer={LONG}: it cannot be read",
}


@pytest.mark.parametrize("given", TOO_LONG, ids=lambda given: given[1].replace(LONG, "LONG"))
def test_a_name_that_is_too_long(given: tuple[str, str], start: Start) -> None:
    command, words = given
    assert TOO_LONG[given] in start.message(command, *words.split(), job=True)


@pytest.mark.parametrize("use", [mlflow_client.prepare, lambda uri, _: mlflow_client.existing(uri)])
def test_a_store_whose_name_is_too_long(use: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=r"File name too long|there is no MLflow store"):
        use(f"sqlite:///{LONG}.db", "x")  # type: ignore[operator]
    assert list(tmp_path.iterdir()) == []


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    for good in ("empty", "new", "new/deeper", "empty/new"):
        check_place(good, tmp_path / good)
    wrong = {
        "file": "x is a file; give a directory",
        "file/run": "x cannot be used: Not a directory",
        LONG: "x cannot be used: File name too long",
        f"new/{LONG}": "x cannot be used: File name too long",
        "a\0b": "x cannot be used: ",
    }
    for name, message in wrong.items():
        with pytest.raises(UserError) as caught:
            check_place("x", tmp_path / name)
        assert str(caught.value).startswith(message), caught.value
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # root may write anywhere
    with pytest.raises(UserError, match=r"x cannot be made: .* is not yours to write to"):
        check_place("x", tmp_path / "new" / "run")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "file"]


def test_what_exists(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").touch()
    assert exists("x", tmp_path / "file")
    for name in ("none", "file/none", LONG, "a\0b", f"none/{LONG}"):
        assert not exists("x", tmp_path / name)

    def refused(path: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", refused)
    with pytest.raises(UserError) as caught:
        exists("run=theirs", Path("theirs"))
    monkeypatch.undo()
    assert str(caught.value) == "run=theirs: Permission denied (theirs)"


class Keys(Section):
    """A section with a path."""

    run_dir: PathKey


def test_home_directories(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert typed({"run_dir": "~/x"}, Keys).run_dir == f"{tmp_path}/x"
    assert typed({"run_dir": "a/~/x"}, Keys).run_dir == "a/~/x"
    assert mlflow_client.absolute_uri("sqlite:///~/mlflow.db") == f"sqlite:///{tmp_path}/mlflow.db"
    with pytest.raises(ConfigError) as caught:
        typed({"run_dir": "~no.such.user/x"}, Keys)
    assert str(caught.value) == "run_dir='~no.such.user/x': no home directory is known for ~no.such.user"
    (tmp_path / "~there").mkdir()
    assert typed({"run_dir": "~there"}, Keys).run_dir == "~there"
    (tmp_path / "own").mkdir()
    assert overrides.check_folder("~/own") == str(tmp_path / "own")


def test_a_quoted_home_is_where_the_run_goes(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(start.place))
    config = start.begun("train", 'run_dir="~/my run (1)"').config
    assert isinstance(config, Config) and config.run_dir == f"{start.place}/my run (1)"


def test_a_run_directory_that_holds_a_run(start: Start) -> None:
    """Known before torch is imported."""
    (start.place / "run").mkdir()
    (start.place / "run" / "config.yaml").write_text("seed: 0\n")
    message = start.message("train", "run_dir=run", job=True)
    assert message == (
        f"run_dir=run already holds a run ({start.place / 'run' / 'config.yaml'}); give another run_dir, or "
        "resume=auto to continue it"
    )


def test_a_run_directory_that_is_a_file(start: Start) -> None:
    (start.place / "run").touch()
    assert start.message("train", "run_dir=run", job=True) == "run_dir=run is a file; give a directory"


def test_a_directory_that_was_deleted_under_ones_feet(tmp_path: Path) -> None:
    program = (
        "import os, sys; os.mkdir('gone'); os.chdir('gone'); os.rmdir('../gone'); "
        "sys.argv[1:] = ['model=rmt']; from memlab.train import main; main()"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(os.path.abspath, sys.path))}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "memlab.train: error: the current directory has been deleted; change to one that exists\n"
    )
