"""Worker processes make the batches that one process makes."""

from __future__ import annotations

import gc
import json
import multiprocessing
from pathlib import Path

import pytest

from memlab.errors import UserError
from memlab.training.text_loading import joined
from tests.text.naive import SIZES, corpus, same, take, words

DOCUMENTS = words(SIZES)


@pytest.mark.parametrize("kind", ["txt", "jsonl", "parquet"])
def test_any_number_of_workers_makes_the_same_batches(tmp_path: Path, kind: str) -> None:
    files = [[d] for d in DOCUMENTS] if kind == "txt" else [DOCUMENTS[:7], DOCUMENTS[7:]]
    task = corpus(tmp_path, kind, files, batch_size=4)
    rows = range(1, 4)
    whole = take(task.training(6, rows), 12)
    for workers in (0, 1, 3, 8) if kind == "txt" else (3,):
        assert same(take(joined(task, 6, rows, None, workers), 12), whole), workers
    position = json.loads(json.dumps(whole[4].position))
    assert same(take(joined(task, 6, rows, position, 2), 7), whole[5:])
    position = take(joined(task, 6, rows, None, 2), 9)[-1].position  # workers are ahead of what was taken
    assert same(take(joined(task, 6, rows, position, 1), 3), whole[9:])


def test_bpe_in_workers(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task = corpus(tmp_path, tokenizer="bpe", bpe_size=260, cache_dir=str(tmp_path / "cache"))
    whole = take(task.training(0, range(3)), 6)
    capfd.readouterr()
    assert same(take(joined(task, 0, range(3), None, 2), 6), whole)
    assert capfd.readouterr() == ("", "")


def test_workers_end_with_the_iterator(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    task = corpus(tmp_path)
    gc.collect()
    before = {process.pid for process in multiprocessing.active_children()}
    batches = joined(task, 0, range(3), None, 2)
    next(batches)
    started = [process for process in multiprocessing.active_children() if process.pid not in before]
    assert len(started) == 2
    del batches
    gc.collect()
    for process in started:
        process.join(5)
        assert not process.is_alive()
    assert capfd.readouterr() == ("", "")


def test_a_broken_file_is_one_clear_error_from_a_worker_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("memlab.tasks.text._CHECKED_BYTES", 0)
    task = corpus(tmp_path)
    (tmp_path / "train/005.txt").write_bytes(b"a\xff")
    with pytest.raises(UserError, match=r"train/005\.txt is not UTF-8: byte 0xff at position 1") as caught:
        take(joined(task, 0, range(3), None, 2), 60)
    assert "\n" not in str(caught.value)
