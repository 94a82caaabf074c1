"""What every text task must keep, for every file in configs/task/ that is one, on a few small files.

There is no list to edit. A task that reads other files than a directory of documents says how they are made,
in tests/tasks/texts/NAME.py.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import pytest

from memlab.splits import SPLITS, Held
from memlab.tasks.base import SyntheticTask
from memlab.tasks.text import TextTask
from memlab.text.batches import StreamBatch
from tests.conformance.tasks import FILES, TESTS, Case, beside, is_generated
from tests.text.naive import same, take

TEXTS = [file for file in FILES if not is_generated(file)]
SMALL = {"batch_size": 3, "segment_length": 5, "num_segments": 3}
HELD: tuple[Held, ...] = ("validation", "test")


@pytest.fixture(params=TEXTS, ids=lambda file: file.stem)
def case(request: pytest.FixtureRequest) -> Case:
    return Case(request.param)


@pytest.fixture
def task(case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> TextTask:
    return prepared(case, tmp_path, monkeypatch)


def prepared(case: Case, place: Path, monkeypatch: pytest.MonkeyPatch) -> TextTask:
    texts = TESTS / "tasks" / "texts"
    module = beside(texts, case.file.stem) or beside(texts, "default")
    assert module is not None
    task: TextTask = case.make(**SMALL, **module.make(place, monkeypatch))
    task.prepare()
    return task


def documents(task: TextTask, split: str) -> list[list[int]]:
    """Token ids of what a split holds, file after file."""
    files = task.corpus.files[split]  # type: ignore[index]
    found = [task.tokenizer.encode(text).tolist() for file in files for text in task.corpus.documents(file)]
    return [ids for ids in found if ids]


def read(batches: Iterable[StreamBatch], row: int) -> list[tuple[list[int], list[int]]]:
    """Tokens and targets of each document that a row reads, the last perhaps not to its end."""
    found: list[tuple[list[int], list[int]]] = []
    for batch in batches:
        length = batch.segment_lengths[0]
        arrays = (
            array[row].reshape(-1, length) for array in (batch.tokens_BT, batch.targets_BT, batch.counts_BT)
        )
        for tokens, targets, counts, begins, offset in zip(
            *arrays, batch.begins_BS[row], batch.offset_BS[row], strict=True
        ):
            size = int(counts.sum())
            assert counts[:size].all(), "padding stands at the end of a segment"
            if begins:
                found.append(([], []))
            if size:
                assert offset == len(found[-1][0]), "a document goes on where it was left"
                found[-1][0].extend(tokens[:size].tolist())
                found[-1][1].extend(targets[:size].tolist())
    return found


def evaluated(task: TextTask, split: Held) -> Iterator[tuple[list[int], list[int]]]:
    rows = range(task.evaluation_rows(split))
    batches = list(task.evaluation(split, rows))
    return itertools.chain.from_iterable(read(batches, row) for row in rows)


def test_there_is_a_text_task() -> None:
    assert TEXTS and not any(issubclass(Case(file).kind, SyntheticTask) for file in TEXTS)


def test_the_file_says_how_a_row_is_cut(case: Case) -> None:
    task = case.make()
    assert isinstance(task, TextTask)
    assert task.segment_lengths == (case.values["segment_length"],) * case.values["num_segments"]


def test_targets_are_the_next_tokens_of_documents(task: TextTask) -> None:
    """Each document begins with BEGIN, the last id, and each of its tokens is predicted once."""
    batches = take(task.training(0, range(3)), 20)
    rows = [read(batches, row) for row in range(3)]
    for tokens, targets in itertools.chain(*rows, evaluated(task, "validation"), evaluated(task, "test")):
        assert tokens == [task.begin, *targets][:-1]
        assert task.begin == task.vocab_size - 1 and min(targets) >= 0 and max(targets) < task.begin
    for batch in batches:
        assert batch.segment_lengths == task.segment_lengths == (5, 5, 5)
        assert batch.tokens_BT.dtype == batch.targets_BT.dtype == np.int64
        padding = ~batch.counts_BT
        assert (batch.tokens_BT[padding] == task.begin).all() and (batch.targets_BT[padding] == 0).all()


def test_an_evaluation_reads_every_document_once(task: TextTask) -> None:
    for split in HELD:
        wanted = documents(task, split)
        assert sorted(targets for _, targets in evaluated(task, split)) == sorted(wanted)
        amounts = task.amounts(split)
        assert (amounts.documents, amounts.tokens) == (len(wanted), sum(map(len, wanted)))


def test_splits_are_disjoint(task: TextTask) -> None:
    """Training reads documents of its own, whatever the seed, and none of validation and test."""
    held = [tuple(ids) for split in HELD for ids in documents(task, split)]
    own = {tuple(ids) for ids in documents(task, "train")}
    assert len({*held, *own}) == sum(len(documents(task, split)) for split in SPLITS), "all are different"
    for seed in range(3):
        batches = take(task.training(seed, range(3)), 40)
        for row in range(3):
            *ended, last = read(batches, row)
            assert {tuple(targets) for _, targets in ended} <= own
            assert any(ids[: len(last[1])] == tuple(last[1]) for ids in own)


def test_rows_do_not_depend_on_each_other(task: TextTask) -> None:
    """Whichever rows a process makes, they are the same; and in an evaluation there are as many batches."""
    whole = take(task.training(1, range(3)), 30)
    for rows in (range(1), range(1, 3), range(2, 3)):
        own = take(task.training(1, rows), 30)
        for batch, part in zip(whole, own, strict=True):
            for name in ("tokens_BT", "targets_BT", "counts_BT", "begins_BS", "offset_BS"):
                assert (getattr(batch, name)[list(rows)] == getattr(part, name)).all()
    for split in HELD:
        rows = range(task.evaluation_rows(split))
        count = len(list(task.evaluation(split, rows)))
        assert {len(list(task.evaluation(split, range(row, row + 1)))) for row in rows} == {count}


def test_a_stream_goes_on_from_a_position_and_is_made_again(
    task: TextTask, case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = take(task.training(1, range(3)), 30)
    assert same(take(task.training(1, range(3), whole[11].position), 18), whole[12:])
    again = tmp_path / "again"
    again.mkdir()
    assert same(take(prepared(case, again, monkeypatch).training(1, range(3)), 30), whole)


def test_the_seed_moves_training(task: TextTask) -> None:
    streams = [take(task.training(seed, range(3)), 10) for seed in range(4)]
    files = len(task.corpus.files["train"])
    assert any(not same(streams[0], other) for other in streams[1:]) == (files > 1)


def test_another_number_of_segments_reads_the_same_text(task: TextTask) -> None:
    """As a curriculum does: row by row, what is read is the same."""
    one, three = task.at(1), task
    assert one.num_segments == 1 and one.vocab_size == three.vocab_size
    short, long = take(one.training(0, range(3)), 30), take(three.training(0, range(3)), 10)
    for row in range(3):
        assert read(short, row) == read(long, row)
