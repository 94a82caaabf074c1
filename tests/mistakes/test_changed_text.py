"""A run that was interrupted does not go on with other text."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import tokenizers
import torch
from tokenizers import models

from memlab.config import cli
from memlab.config.checks import check
from memlab.config.sections import Config
from memlab.evaluation import trained
from memlab.text import fingerprint
from memlab.tracking import data_record
from memlab.tracking.finished_runs import Found
from tests.mistakes.small_text import LINE, data, message, saved
from tests.text.naive import make
from tests.training import resuming

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once


@pytest.fixture(scope="module")
def begun(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`data`, and a `run` that has read it with the tokenizer `made.json` and has not finished."""
    place = tmp_path_factory.mktemp("begun")
    data(place / "data", train__a_txt=b"some text " * 40, train__b_jsonl=LINE * 9, train__c_txt=b"c" * 99)
    saved(place, tokenizers.Tokenizer(models.BPE({chr(i): i for i in range(128)}, [])))
    resuming.train(unfinished(place))
    (place / "run/result.json").unlink()
    return place


def unfinished(place: Path, *changed: str) -> Config:
    words = [
        "task=text",
        f"task.data_dir={place}/data",
        f"task.tokenizer={place}/made.json",
        *("task.segment_length=8", "task.num_segments=2", "task.batch_size=2"),
        *("model.width=16", "model.heads=2", "model.layers=1", "model=transformer"),
        *("trainer.max_steps=2", "trainer.val_every=1", "trainer.checkpoint_every=1", "trainer.threads=1"),
        *("tracking=off", f"run_dir={place}/run", *changed),
    ]
    config: Config = cli.compose_checked("train", words, check)
    return config


def replaced(file: Path, old: bytes, new: bytes) -> None:
    time = file.stat()
    file.write_bytes(file.read_bytes().replace(old, new))
    os.utime(file, ns=(time.st_atime_ns, time.st_mtime_ns))


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a new file": (lambda p: (p / "train/d.txt").write_text("d"), "{0}/train/d.txt is new"),
    "a file is gone": (lambda p: (p / "train/c.txt").unlink(), "{0}/train/c.txt is gone"),
    "a new name": (
        lambda p: (p / "train/c.txt").rename(p / "train/0.txt"),
        "{0}/train/c.txt is gone; {0}/train/0.txt is new",
    ),
    "a longer file": (
        lambda p: (p / "train/c.txt").write_bytes(b"c" * 1234),
        "{0}/train/c.txt has 1,234 bytes, it had 99",
    ),
    "another letter, at the same time": (
        lambda p: replaced(p / "train/a.txt", b"some", b"Some"),
        "{0}/train/a.txt has other text of the same size",
    ),
    "another validation": (
        lambda p: replaced(p / "validation/a.txt", b"some", b"Some"),
        "{0}/validation/a.txt has other text of the same size",
    ),
    "another tokenizer": (
        lambda p: replaced(p.parent / "made.json", b'"a": 97,', b'"\\u00e9": 97,'),
        "task.tokenizer is another one",
    ),
    "many": (
        lambda p: [(p / f"train/{i}.txt").write_text("d") for i in range(7)],
        "{0}/train/0.txt is new; {0}/train/1.txt is new; {0}/train/2.txt is new, and 4 more changes",
    ),
}


@pytest.mark.parametrize("case", CHANGES)
def test_a_run_does_not_go_on_with_other_text(begun: Path, tmp_path: Path, case: str) -> None:
    change, said = CHANGES[case]
    shutil.copytree(begun, tmp_path / "kept")
    try:
        change(begun / "data")
        before = {path: path.read_bytes() for path in sorted((begun / "run").rglob("*")) if path.is_file()}
        found = message(lambda: resuming.train(unfinished(begun, f"resume={begun}/run")))
        assert found == (
            f"the text has changed since the run in {begun}/run began: {said.format(begun / 'data')}. "
            "Put it back as it was, or start a new run"
        )
        after = {path: path.read_bytes() for path in sorted((begun / "run").rglob("*")) if path.is_file()}
        assert after == before
    finally:
        shutil.rmtree(begun)
        shutil.copytree(tmp_path / "kept", begun)


def test_a_run_goes_on_with_the_same_text_whenever_it_was_written(
    begun: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for file in (begun / "data").rglob("*.txt"):
        os.utime(file, (1, 1))
    record = begun / "run/data.json"
    noted = json.loads(record.read_text())
    assert sorted(noted) == ["files", "revision", "tokenizer"] and len(noted["files"]) == 5
    resuming.train(unfinished(begun, f"resume={begun}/run"))
    assert "continues from step 2" in capsys.readouterr().err
    (begun / "run/result.json").unlink()
    record.write_text("{")
    assert message(lambda: resuming.train(unfinished(begun, f"resume={begun}/run"))) == (
        f"{record} cannot be read, which says what files the run reads. Remove it if they are as they were"
    )
    record.unlink()
    resuming.train(unfinished(begun, f"resume={begun}/run"))
    assert "does not say which files it read (data.json is missing)" in capsys.readouterr().err
    assert record.exists()
    (begun / "run/result.json").unlink()


def test_an_evaluation_says_that_it_reads_other_text(
    begun: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(begun, tmp_path / "kept")
    found = Found(begun / "run", begun / "run/checkpoints/last.ckpt", best=False)
    try:
        trained.load(found, torch.device("cpu"))
        assert capsys.readouterr().err == ""
        (begun / "data/test/b.txt").write_text("more")
        trained.load(found, torch.device("cpu"), {"test_bytes": 3})
        assert capsys.readouterr().err == (
            f"memlab: warning: the text has changed since the run in {begun}/run began: "
            f"{begun}/data/test/b.txt is new; figures may be of another text\n"
        )
        trained.load(found, torch.device("cpu"), {"data_dir": f"{tmp_path}/kept/data"})  # asked for
        assert capsys.readouterr().err == ""
    finally:
        shutil.rmtree(begun)
        shutil.copytree(tmp_path / "kept", begun)


def test_large_files_are_told_apart_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fingerprint, "_HASHED_BYTES", 10)
    task = make(data(tmp_path / "data"))
    before = task.data()["files"]
    os.utime(tmp_path / "data/train/a.txt", (1, 1))
    again = make(tmp_path / "data").data()["files"]
    assert fingerprint.changes(before, before) == []
    assert fingerprint.changes(before, again) == [f"{tmp_path}/data/train/a.txt has been written to"]


def test_a_dataset_on_the_hub_is_read_at_the_revision_that_the_run_began_with(tmp_path: Path) -> None:
    began = {
        "files": {"hf://datasets/o/n@abc/train.jsonl": [3, "abc", None]},
        "revision": "abc",
        "tokenizer": None,
    }
    later = {
        "files": {"hf://datasets/o/n@def/train.jsonl": [3, "def", None]},
        "revision": "def",
        "tokenizer": None,
    }
    data_record.write(tmp_path, began)
    data_record.check(tmp_path, began)
    assert message(lambda: data_record.check(tmp_path, later)) == (
        f"the dataset has changed since the run in {tmp_path} began: it is at revision def. Give "
        "task.source_revision=abc"
    )
