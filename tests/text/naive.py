"""The reading order, written down a second time as plainly as possible; and small corpora to read."""

from __future__ import annotations

import gzip
import itertools
import json
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from memlab.tasks.text import TextTask
from memlab.text.batches import StreamBatch
from memlab.text.streams import file_order

BEGIN = 256
LENGTH, SEGMENTS = 5, 3  # of the batches read here: a step is 15 tokens
SIZES = [1, 4, 5, 6, 10, 14, 15, 16, 30, 31, 2, 47, 5, 15, 1, 3, 77, 20]  # around a segment, a step, and more


def words(sizes: list[int], seed: int = 0) -> list[str]:
    """A document of each size, all different as far as their sizes allow."""
    rng = random.Random(seed)
    return ["".join(rng.choices("abcdefghij \n", k=size)) for size in sizes]


def write(place: Path, kind: str, files: list[list[str]]) -> None:
    """Files of documents of a kind."""
    place.mkdir(parents=True, exist_ok=True)
    for number, documents in enumerate(files):
        path = place / f"{number:03}.{kind}"
        lines = "".join(json.dumps({"id": i, "text": d}) + "\n" for i, d in enumerate(documents))
        if kind == "parquet":
            import pyarrow as pa
            import pyarrow.parquet as pq

            pq.write_table(pa.table({"id": range(len(documents)), "text": documents}), path, row_group_size=3)
        elif kind == "jsonl.gz":
            path.write_bytes(gzip.compress(lines.encode()))
        elif kind == "jsonl":
            path.write_text(lines, encoding="utf-8", newline="")
        else:
            (document,) = documents
            path.write_bytes(gzip.compress(document.encode()) if kind.endswith(".gz") else document.encode())


def make(data_dir: Path | None, cls: type[TextTask] = TextTask, **changes: Any) -> TextTask:
    """A task that is prepared."""
    task = cls(**(options(data_dir) | changes))
    task.prepare()
    return task


def options(data_dir: Path | None) -> dict[str, Any]:
    return {
        "data_dir": None if data_dir is None else str(data_dir),
        "source": None,
        "source_folder": None,
        "text_column": "text",
        "tokenizer": "bytes",
        "bpe_size": 300,
        "cache_dir": "never/used",
        "segment_length": LENGTH,
        "num_segments": SEGMENTS,
        "batch_size": 3,
        "validation_documents": None,
        "test_documents": None,
        "validation_bytes": None,
        "test_bytes": None,
        "workers": 0,
    }


def corpus(place: Path, kind: str = "txt", train: list[list[str]] | None = None, **changes: Any) -> TextTask:
    """A task on files made for it; validation and test are small."""
    write(place / "train", kind, train if train is not None else [[d] for d in words(SIZES)])
    write(place / "validation", "txt", [[d] for d in words([7, 1, 33, 15], 1)])
    write(place / "test", "txt", [[d] for d in words([40, 5], 2)])
    return make(place, **changes)


def sequence(files: list[list[str]], seed: int) -> Iterator[list[int]]:
    """D_0, D_1, ... as token ids."""
    for epoch in itertools.count():
        for number in file_order(seed, epoch, len(files)):
            yield from (list(document.encode()) for document in files[number] if document)


def segments_of(
    document: list[int], length: int = LENGTH
) -> Iterator[tuple[list[int], list[int], list[bool], bool, int]]:
    """Tokens, targets, counts, begins and offset of each segment of a document."""
    for offset in range(0, len(document), length):
        targets = document[offset : offset + length]
        tokens = [BEGIN, *document][offset : offset + len(targets)]
        padding = length - len(targets)
        counts = [True] * len(targets) + [False] * padding
        yield tokens + [BEGIN] * padding, targets + [0] * padding, counts, offset == 0, offset


def naive_row(files: list[list[str]], seed: int, rows: int, row: int, steps: int) -> list[list[Any]]:
    """For each step, the segments that a row reads."""
    own = itertools.islice(sequence(files, seed), row, None, rows)
    segments = (segment for document in own for segment in segments_of(document))
    return [list(itertools.islice(segments, SEGMENTS)) for _ in range(steps)]


def as_segments(batch: StreamBatch, row: int) -> list[Any]:
    """A row of a batch in the form of `naive_row`."""
    length = batch.segment_lengths[0]
    found = []
    for segment in range(len(batch.segment_lengths)):
        part = slice(segment * length, (segment + 1) * length)
        arrays = [array[row, part].tolist() for array in (batch.tokens_BT, batch.targets_BT, batch.counts_BT)]
        found.append((*arrays, bool(batch.begins_BS[row, segment]), int(batch.offset_BS[row, segment])))
    return found


def take(batches: Iterator[StreamBatch], count: int) -> list[StreamBatch]:
    return list(itertools.islice(batches, count))


def equal(one: StreamBatch, other: StreamBatch) -> bool:
    """Bit for bit, position included."""
    names = ("tokens_BT", "targets_BT", "counts_BT", "begins_BS", "offset_BS")
    arrays = all(np.array_equal(getattr(one, name), getattr(other, name)) for name in names)
    return arrays and one.segment_lengths == other.segment_lengths and one.position == other.position


def same(ones: list[StreamBatch], others: list[StreamBatch]) -> bool:
    return len(ones) == len(others) and all(map(equal, ones, others))
