"""Reading order: which row of a batch reads what, as a reader reads, document after document.

All documents stand in one endless sequence D_0, D_1, ...: epoch after epoch, the files of each in an order
drawn from (seed, epoch), the documents of a file in the file's own. Row r of a batch of R rows reads D_r,
D_(r+R), D_(r+2R), ..., each whole. So a row does not depend on the other rows, and it makes no difference
which process or worker makes it. A document that ends within a segment is padded to the segment's end, and
the row's next document begins with the next segment. Where a row stands is five integers; nothing is shuffled
in a buffer, whose content would be lost when a run is resumed.

Shapes: B rows of one batch, S segments, N tokens in a segment, T = S * N.
"""

from __future__ import annotations

import heapq
from collections import deque
from collections.abc import Iterator
from contextlib import closing
from itertools import islice
from typing import Any

import numpy as np

from memlab.errors import UserError
from memlab.text.batches import Place, Row, StreamBatch
from memlab.text.corpus import Corpus
from memlab.text.files import File
from memlab.text.tokenizers import Ids, Tokenizer

# Bytes of documents that a process keeps for rows that will read them later. What is beyond is read again
# from its file in its turn.
WAITING_BYTES = 256 << 20
_MANY = 10_000  # documents without a token, one after another, at which a row gives up


class TrainingReader:
    """Rows of the endless training stream.

    The files are gone through once, in order, by one reader for all rows of this process. Documents that a
    row will read later are kept until then, up to `WAITING_BYTES`; of the others, and of files that are one
    document each, only the place is kept.

    Args:
        batch_size: R, rows in all processes together.
        rows: those of this process.
        position: of the batch to continue after, or None = from the beginning.
    """

    def __init__(
        self,
        corpus: Corpus,
        tokenizer: Tokenizer,
        batch_size: int,
        seed: int,
        rows: range,
        position: list[Any] | None = None,
    ) -> None:
        if position is not None and len(position) != len(rows):
            raise ValueError(f"a position of {len(position)} rows for {len(rows)} rows")
        self.corpus = corpus
        self.files = corpus.files["train"]
        self.tokenizer = tokenizer
        self.batch_size = batch_size
        self.seed = seed
        self.waiting: dict[int, deque[tuple[Place, bytes | None]]] = {row: deque() for row in rows}
        self.waiting_bytes = 0
        places = [Place(*p[:4]) for p in position] if position else [Place(row, 0, 0, 0) for row in rows]
        self.first = {row: place.number for row, place in zip(rows, places, strict=True)}
        self.sequence = self._sequence(min(places) if position else Place(0, 0, 0, 0))
        offsets = [p[4] for p in position] if position else [0] * len(rows)
        self.rows = [Row(self._documents(row), offset) for row, offset in zip(rows, offsets, strict=True)]

    def batches(self, segment_lengths: tuple[int, ...]) -> Iterator[StreamBatch]:
        """Batch after batch, without end."""
        while True:
            batch = StreamBatch.empty(len(self.rows), segment_lengths, self.tokenizer.begin)
            for at, row in enumerate(self.rows):
                row.fill(batch, at)
            batch.position.extend(row.position for row in self.rows)
            yield batch

    def _documents(self, row: int) -> Iterator[tuple[Place, Ids]]:
        """What a row reads."""
        waiting = self.waiting[row]
        without = 0
        while True:
            while not waiting:
                self._advance()
            place, document = waiting.popleft()
            if document is None:
                document = self._again(place)
            else:
                self.waiting_bytes -= len(document)
            ids = self.tokenizer.encode(document)
            without = 0 if len(ids) else without + 1
            if without == _MANY:
                raise UserError(
                    f"task.tokenizer makes no token of {_MANY:,} documents one after another, last in "
                    f"{self._file(place).name}"
                )
            if len(ids):
                yield place, ids

    def _advance(self) -> None:
        """Move to the next document of the sequence, and keep it if a row of this process will read it."""
        place, document = next(self.sequence)
        row = place.number % self.batch_size
        if row not in self.waiting or place.number < self.first[row]:
            return
        if document is not None:
            if self.waiting[row] and self.waiting_bytes + len(document) > WAITING_BYTES:
                document = None
            else:
                self.waiting_bytes += len(document)
        self.waiting[row].append((place, document))

    def _sequence(self, start: Place) -> Iterator[tuple[Place, bytes | None]]:
        """D_i from some place on, without those of zero bytes; without its content where the file is one
        document.
        """
        index, epoch, first, skip = start
        while True:
            order = file_order(self.seed, epoch, len(self.files))
            before = index if (first, skip) == (0, 0) else -1
            for at in range(first, len(order)):
                file = self.files[order[at]]
                if self.corpus.is_one_document(file):
                    yield Place(index, epoch, at, 0), None
                    index += 1
                    continue
                with closing(self.corpus.documents(file)) as documents:
                    for row, document in enumerate(documents):
                        if row >= skip and document:
                            yield Place(index, epoch, at, row), document
                            index += 1
                skip = 0
            if index == before:
                raise UserError(
                    f"the training split has no text: all documents of its {len(order)} files are empty"
                )
            epoch, first, skip = epoch + 1, 0, 0

    def _again(self, place: Place) -> bytes:
        """The document at a place, from its file."""
        file = self._file(place)
        with closing(self.corpus.documents(file)) as documents:
            document = next(islice(documents, place.row, None), None)
        if document is None:
            raise UserError(
                f"{file.name} has changed while it was read: it has no document {place.row} any more"
            )
        return document

    def _file(self, place: Place) -> File:
        return self.files[file_order(self.seed, place.epoch, len(self.files))[place.file]]


def file_order(seed: int, epoch: int, files: int) -> list[int]:
    """The order of the files in an epoch: a permutation, from raw words, which numpy promises to keep the
    same in all versions.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(files)
    return [int(i) for i in np.argsort(words, kind="stable")]


def evaluation_batches(
    documents: list[Ids], rows: range, number: int, segment_lengths: tuple[int, ...], begin: int
) -> Iterator[StreamBatch]:
    """Every document once; each goes to the row that is free first.

    A row that has no document left is padding. Whatever `rows` are, there are as many batches: processes stay
    in step.

    Args:
        documents: token ids.
        rows: which of the `number` rows this process makes.
        begin: the id of BEGIN.
    """
    segments, length = len(segment_lengths), segment_lengths[0]
    free = [(0, row) for row in range(number)]
    reads: list[list[Ids]] = [[] for _ in range(number)]
    for ids in documents:
        used, row = heapq.heappop(free)
        reads[row].append(ids)
        heapq.heappush(free, (used + -(-len(ids) // length), row))
    own = [Row(iter([(None, ids) for ids in reads[row]])) for row in rows]
    for _ in range(-(-max((used for used, _ in free), default=0) // segments)):
        batch = StreamBatch.empty(len(own), segment_lengths, begin)
        for at, reader in enumerate(own):
            reader.fill(batch, at)
        yield batch
