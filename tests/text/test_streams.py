"""Reading order against a plain description, and what resuming and splitting may not change."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from memlab.errors import UserError
from memlab.text import streams
from memlab.text.batches import StreamBatch
from memlab.text.streams import file_order
from tests.text.naive import (
    BEGIN,
    LENGTH,
    SEGMENTS,
    SIZES,
    as_segments,
    corpus,
    make,
    naive_row,
    same,
    segments_of,
    take,
    words,
    write,
)

DOCUMENTS = words(SIZES)
ONE_EACH = [[d] for d in DOCUMENTS]
# empty documents are not read
GROUPED = [DOCUMENTS[:7], ["", *DOCUMENTS[7:8], "", ""], [""], DOCUMENTS[8:12], DOCUMENTS[12:]]
LAYOUTS = [
    ("txt", ONE_EACH),
    ("txt.gz", ONE_EACH),
    ("jsonl", GROUPED),
    ("jsonl.gz", GROUPED),
    ("parquet", GROUPED),
]


@pytest.mark.parametrize(("kind", "files"), LAYOUTS)
@pytest.mark.parametrize("rows", [1, 3, 7, 41])
def test_each_row_reads_every_rth_document_whole(
    tmp_path: Path, kind: str, files: list[list[str]], rows: int
) -> None:
    """Through some epochs; 41 rows are more than documents."""
    task = corpus(tmp_path, kind, files, batch_size=rows)
    steps = 150 // rows
    batches = take(task.training(5, range(rows)), steps)
    for row in range(rows):
        assert [as_segments(batch, row) for batch in batches] == naive_row(files, 5, rows, row, steps)
    assert all(batch.segment_lengths == (LENGTH,) * SEGMENTS for batch in batches)
    assert (
        batches[0].tokens_BT.dtype == batches[0].targets_BT.dtype == np.int64
        and batches[0].counts_BT.dtype == np.bool_
    )


def test_the_shape_of_a_begin_and_of_an_end(tmp_path: Path) -> None:
    """By hand: a document of 7 tokens, then one of 1, in segments of 5."""
    task = corpus(tmp_path, "jsonl", [["abcdefg", "x"]], batch_size=1)
    (batch,) = take(task.training(0, range(1)), 1)
    a, x = ord("a"), ord("x")
    assert batch.tokens_BT.tolist() == [
        [BEGIN, a, a + 1, a + 2, a + 3, a + 4, a + 5, BEGIN, BEGIN, BEGIN, BEGIN, BEGIN, BEGIN, BEGIN, BEGIN]
    ]
    assert batch.targets_BT.tolist() == [
        [a, a + 1, a + 2, a + 3, a + 4, a + 5, a + 6, 0, 0, 0, x, 0, 0, 0, 0]
    ]
    assert batch.counts_BT.tolist() == [[True] * 7 + [False] * 3 + [True] + [False] * 4]
    assert batch.begins_BS.tolist() == [[True, False, True]] and batch.offset_BS.tolist() == [[0, 5, 0]]
    assert task.vocab_size == BEGIN + 1


@pytest.mark.parametrize(("kind", "files"), LAYOUTS)
def test_every_document_is_read_once_in_each_epoch(tmp_path: Path, kind: str, files: list[list[str]]) -> None:
    rows, count = 3, len(DOCUMENTS)
    task = corpus(tmp_path, kind, files, batch_size=rows)
    read: list[list[bytes]] = [[] for _ in range(rows)]
    for batch in take(task.training(1, range(rows)), 90):
        for row in range(rows):
            for segment in as_segments(batch, row):
                if segment[3]:
                    read[row].append(b"")
                read[row][-1] += bytes(t for t, counts in zip(segment[1], segment[2], strict=True) if counts)
    sequence = [read[i % rows][i // rows] for i in range(3 * count)]
    wanted = sorted(d.encode() for d in DOCUMENTS)
    epochs = [sequence[i * count : (i + 1) * count] for i in range(3)]
    assert all(sorted(epoch) == wanted for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2] != epochs[0]


def test_the_same_documents_make_the_same_stream_from_any_kind_of_file(tmp_path: Path) -> None:
    runs = []
    for kind in ("txt", "txt.gz", "md", "tex", "text", "jsonl", "jsonl.gz", "parquet"):
        task = corpus(tmp_path / kind, kind, ONE_EACH[:6])
        runs.append(take(task.training(2, range(3)), 6))
    assert all(same(runs[0], run) for run in runs)


def test_the_order_of_files_is_a_permutation_drawn_from_seed_and_epoch() -> None:
    orders = {(seed, epoch): tuple(file_order(seed, epoch, 40)) for seed in range(5) for epoch in range(5)}
    assert all(sorted(order) == list(range(40)) for order in orders.values())
    assert len(set(orders.values())) == 25
    assert file_order(3, 1, 6) == file_order(3, 1, 6)
    assert file_order(0, 0, 8) == PINNED, "a resumed run would read other documents than the run before it"
    counts = np.zeros((4, 4))
    for seed in range(2000):
        counts[np.arange(4), file_order(seed, 7, 4)] += 1
    assert (abs(counts / 2000 - 0.25) < 0.05).all()


PINNED = [0, 2, 1, 5, 4, 3, 6, 7]


def test_the_seed_changes_the_order(tmp_path: Path) -> None:
    task = corpus(tmp_path)
    first, second, again = (take(task.training(seed, range(3)), 5) for seed in (0, 1, 0))
    assert same(first, again) and not same(first, second)


@pytest.mark.parametrize(("kind", "files"), [LAYOUTS[0], LAYOUTS[2], LAYOUTS[4]])
@pytest.mark.parametrize("split", [[range(0, 4), range(4, 7)], [range(0, 1), range(1, 2), range(2, 7)]])
def test_processes_that_share_the_rows_make_the_single_process_batches(
    tmp_path: Path, kind: str, files: list[list[str]], split: list[range]
) -> None:
    task = corpus(tmp_path, kind, files, batch_size=7)
    whole = take(task.training(3, range(7)), 25)
    parts = [take(task.training(3, rows), 25) for rows in split]
    assert same([StreamBatch.joined(batch) for batch in zip(*parts, strict=True)], whole)


@pytest.mark.parametrize(("kind", "files"), LAYOUTS)
@pytest.mark.parametrize("rows", [range(0, 3), range(1, 2), range(0, 20)])
def test_a_run_goes_on_exactly_from_behind_every_batch(
    tmp_path: Path, kind: str, files: list[list[str]], rows: range
) -> None:
    task = corpus(tmp_path, kind, files, batch_size=max(3, len(rows)))
    whole = take(task.training(4, rows), 30)
    for at in range(0, 24, 1 if kind == "txt" or rows == range(0, 3) else 8):
        position = json.loads(json.dumps(whole[at].position))
        assert same(take(task.training(4, rows, position), 4), whole[at + 1 : at + 5]), at
    assert all(type(number) is int for row in whole[7].position for number in row)


def test_a_position_is_of_the_batch_itself_and_not_of_what_was_read_ahead(tmp_path: Path) -> None:
    task = corpus(tmp_path)
    batches = task.training(0, range(3))
    first = next(batches)
    kept = json.dumps(first.position)
    take(batches, 10)
    assert json.dumps(first.position) == kept


def test_a_position_of_other_rows_is_refused(tmp_path: Path) -> None:
    task = corpus(tmp_path)
    (batch,) = take(task.training(0, range(3)), 1)
    with pytest.raises(ValueError, match="a position of 3 rows for 2 rows"):
        task.training(0, range(2), batch.position)


@pytest.mark.parametrize("kind", ["jsonl", "parquet"])
@pytest.mark.parametrize("budget", [0, 50])
def test_documents_beyond_what_may_be_kept_are_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, budget: int
) -> None:
    """A row with a long document falls behind rows with short ones; memory stays bounded and the stream
    the same.
    """
    files = [[*words([900]), *words([3] * 30, 1)], [*words([2] * 11, 2), "", *words([40, 1], 3)]]
    task = corpus(tmp_path, kind, files, batch_size=4)
    again = []
    monkeypatch.setattr(streams, "WAITING_BYTES", budget)
    reader = streams.TrainingReader(task.corpus, task.tokenizer, 4, 0, range(4))
    read_again = reader._again
    monkeypatch.setattr(reader, "_again", lambda place: again.append(place) or read_again(place))
    batches = []
    for batch in reader.batches(task.segment_lengths):
        batches.append(batch)
        most = max(
            [len(document) for row in reader.waiting.values() for _, document in row if document] or [0]
        )
        assert reader.waiting_bytes == sum(
            len(document) for row in reader.waiting.values() for _, document in row if document
        )
        assert reader.waiting_bytes <= budget + 4 * most
        if len(batches) == 70:
            break
    assert again
    for row in range(4):
        assert [as_segments(batch, row) for batch in batches] == naive_row(files, 0, 4, row, 70)
    position = batches[33].position
    assert same(take(task.training(0, range(4), position), 20), batches[34:54])


def test_a_document_without_tokens_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer may make no token of what has bytes."""
    task = corpus(tmp_path, "jsonl", [["abc", "   ", "de", " ", "fghijk"]], batch_size=1)
    task.tokenizer = NoSpaces()
    batches = take(task.training(0, range(1)), 4)
    assert [as_segments(b, 0) for b in batches] == naive_row([["abc", "de", "fghijk"]], 0, 1, 0, 4)
    monkeypatch.setattr(streams, "_MANY", 100)
    task = corpus(tmp_path / "spaces", "jsonl", [["  ", " "]], batch_size=1)
    task.tokenizer = NoSpaces()
    with pytest.raises(UserError, match=r"task\.tokenizer makes no token of 100 documents"):
        next(task.training(0, range(1)))


class NoSpaces:
    size = begin = 256

    def encode(self, document: bytes) -> Any:
        return np.frombuffer(document.replace(b" ", b""), dtype=np.uint8)

    def decode(self, ids: list[int]) -> str:
        return bytes(ids).decode()


def test_a_training_split_that_turns_out_empty_does_not_search_for_ever(tmp_path: Path) -> None:
    task = corpus(tmp_path, "jsonl", [["a"]])
    write(tmp_path / "train", "jsonl", [["", ""]])
    with pytest.raises(UserError, match="the training split has no text"):
        next(task.training(0, range(3)))


@pytest.mark.parametrize("rows", [1, 2, 3, 4, 9])
def test_evaluation_reads_every_document_once_and_in_full(tmp_path: Path, rows: int) -> None:
    task = corpus(tmp_path, batch_size=rows)
    for split, texts in (("validation", words([7, 1, 33, 15], 1)), ("test", words([40, 5], 2))):
        number = task.evaluation_rows(split)
        assert number == min(rows, len(texts))
        batches = list(task.evaluation(split, range(number)))
        segments = [[s for batch in batches for s in as_segments(batch, row)] for row in range(number)]
        read = []
        for row in segments:
            padding = ([BEGIN] * LENGTH, [0] * LENGTH, [False] * LENGTH, False, 0)
            while row and row[-1] == padding:
                row.pop()
            starts = [i for i, segment in enumerate(row) if segment[3]]
            for start, end in zip(starts, [*starts[1:], len(row)], strict=True):
                document = [t for s in row[start:end] for t, counts in zip(s[1], s[2], strict=True) if counts]
                assert row[start:end] == list(segments_of(document))
                read.append(bytes(document).decode())
        assert sorted(read) == sorted(texts)
        assert sum(len(batch.counts_BT) for batch in batches) == len(batches) * number
        assert any(batch.counts_BT[:, -LENGTH * SEGMENTS :].any() for batch in batches[-1:]), (
            "no batch of padding alone at the end"
        )
        assert same(batches, list(task.evaluation(split, range(number)))) and batches[0].position == []


def test_processes_that_share_an_evaluation_make_as_many_batches(tmp_path: Path) -> None:
    """One has only short documents, and must still take part in every step of the others."""
    task = corpus(tmp_path, batch_size=4)
    whole = list(task.evaluation("validation", range(4)))
    parts = [list(task.evaluation("validation", rows)) for rows in (range(0, 1), range(1, 2), range(2, 4))]
    assert {len(part) for part in parts} == {len(whole)} == {3}
    assert same([StreamBatch.joined(batch) for batch in zip(*parts, strict=True)], whole)


def test_a_free_row_takes_the_next_document(tmp_path: Path) -> None:
    write(tmp_path / "train", "txt", [["a"]])
    write(tmp_path / "test", "txt", [["a"]])
    write(tmp_path / "validation", "txt", [[d] for d in words([150, 15, 15, 15, 15, 15, 15, 15, 15, 15, 15])])
    task = make(tmp_path, batch_size=2)
    assert len(list(task.evaluation("validation", range(2)))) == 10
