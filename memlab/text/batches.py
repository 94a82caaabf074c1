"""Rows of a batch of text: each reads documents, one after another, and each document begins with a segment.

A document that ends within a segment is padded to the segment's end. Where a row stands is five integers.

Shapes: B rows of one batch, S segments, N tokens in a segment, T = S * N.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from memlab.text.tokenizers import Ids

Ints = NDArray[np.int64]


@dataclass(frozen=True)
class StreamBatch:
    """The next T tokens of some rows.

    Attributes:
        tokens_BT: what the model reads. A document's first token is BEGIN.
        targets_BT: the next token: each token of a document is predicted once, its first from BEGIN. There is
            no end token.
        counts_BT: True where the target counts; False in the padding after a document's end (token BEGIN,
            target 0).
        begins_BS: True where a document begins with the segment: the row's state is reset before it.
        offset_BS: place of the segment's first token in its document, 0 where it begins.
        segment_lengths: S times N.
        position: for each row plain integers that say where it stands after this batch; empty in evaluation.
    """

    tokens_BT: Ints
    targets_BT: Ints
    counts_BT: NDArray[np.bool_]
    begins_BS: NDArray[np.bool_]
    offset_BS: Ints
    segment_lengths: tuple[int, ...]
    position: list[Any]

    @classmethod
    def empty(cls, rows: int, segment_lengths: tuple[int, ...], begin: int) -> StreamBatch:
        """A batch of padding, to be filled."""
        shape, segments = (rows, sum(segment_lengths)), (rows, len(segment_lengths))
        return cls(
            np.full(shape, begin, dtype=np.int64),
            np.zeros(shape, dtype=np.int64),
            np.zeros(shape, dtype=np.bool_),
            np.zeros(segments, dtype=np.bool_),
            np.zeros(segments, dtype=np.int64),
            segment_lengths,
            [],
        )

    @classmethod
    def joined(cls, parts: Sequence[StreamBatch]) -> StreamBatch:
        """The rows of several batches as one batch."""
        return cls(
            np.concatenate([part.tokens_BT for part in parts]),
            np.concatenate([part.targets_BT for part in parts]),
            np.concatenate([part.counts_BT for part in parts]),
            np.concatenate([part.begins_BS for part in parts]),
            np.concatenate([part.offset_BS for part in parts]),
            parts[0].segment_lengths,
            [row for part in parts for row in part.position],
        )

    @classmethod
    def following(cls, parts: Sequence[StreamBatch]) -> StreamBatch:
        """What the same rows read in several batches, one after another, as one batch."""
        return cls(
            np.concatenate([part.tokens_BT for part in parts], axis=1),
            np.concatenate([part.targets_BT for part in parts], axis=1),
            np.concatenate([part.counts_BT for part in parts], axis=1),
            np.concatenate([part.begins_BS for part in parts], axis=1),
            np.concatenate([part.offset_BS for part in parts], axis=1),
            tuple(length for part in parts for length in part.segment_lengths),
            parts[-1].position,
        )


class Place(NamedTuple):
    """Where a document stands: `number` in the endless sequence; `row` of the file that comes as number
    `file` in the order of `epoch`.
    """

    number: int
    epoch: int
    file: int
    row: int


class Row:
    """One row of a batch: the document that it reads, and how far it has read.

    Args:
        documents: (place, token ids) of what it reads, none of them without tokens.
        offset: tokens of the first that were read before.
    """

    def __init__(self, documents: Iterator[tuple[Place | None, Ids]], offset: int = 0) -> None:
        self.documents = documents
        self.place: Place | None = None
        self.ids: Ids = np.zeros(0, dtype=np.uint8)
        self.offset = 0
        self._first = offset

    def fill(self, batch: StreamBatch, at: int) -> None:
        """Read the next T tokens into row `at` of a batch of padding.

        There is padding left if the documents end.
        """
        lengths = batch.segment_lengths
        segments, length = len(lengths), lengths[0]
        segment = 0
        while segment < segments:
            if self.offset >= len(self.ids):
                following = next(self.documents, None)
                if following is None:
                    return
                self.place, self.ids = following
                self.offset, self._first = self._first, 0
                continue
            offset, start = self.offset, segment * length
            size = min((segments - segment) * length, len(self.ids) - offset)
            read = slice(start, start + size)
            batch.targets_BT[at, read] = self.ids[offset : offset + size]
            batch.tokens_BT[at, start + 1 : start + size] = self.ids[offset : offset + size - 1]
            if offset:  # else BEGIN, which is there already
                batch.tokens_BT[at, start] = self.ids[offset - 1]
            batch.counts_BT[at, read] = True
            batch.begins_BS[at, segment] = offset == 0
            filled = -(-size // length)
            batch.offset_BS[at, segment : segment + filled] = offset + length * np.arange(filled)
            segment += filled
            self.offset = offset + size

    @property
    def position(self) -> list[int]:
        """Where it stands: the place of the document that it read last, and the tokens that it has read of
        it.
        """
        assert self.place is not None
        return [*self.place, self.offset]
