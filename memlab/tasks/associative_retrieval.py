"""Associative retrieval (RMT paper, arXiv 2207.06881, appendix A.1): read K key-value pairs, then the value of one of the keys.

    k1 v1 k2 v2 .. kK vK, query key, separator, value        tokens 2K + 2, answer 1

Keys are 26 letters, values 10 digits, both without repetition in a sample. Who knows which values occurred but not which belongs to
the query scores 1 / K.

Segments: the pairs are divided evenly among the first S - 1, and the query is alone in the last, so that no answer can be had without
memory. (In the published runs pairs straddle boundaries and share the query's segment, where a model without memory scores 0.5;
their segment counts are wrong too, since `torch.chunk` rounds. Any cut can be had with `segment_lengths`.)

The K queries of the same pairs are K consecutive samples. Each sample by itself is as likely as ever, but what the guesses among
the K values add to the gradient cancels within a batch, and what is left is the pairing that the task is about.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memlab.errors import ConfigError
from memlab.tasks.base import Ints, SyntheticTask, Words, choose_distinct

VALUES, SEPARATOR, FIRST_KEY, KEYS = 10, 10, 11, 26
QUERY = 2  # tokens of the last segment: the asked key and the separator


class AssociativeRetrieval(SyntheticTask):
    """Associative retrieval.

    Args:
        length: K, the number of pairs, at most 10 (published: 4). `sizes` are `SyntheticTask`'s arguments.
    """

    vocab_size = FIRST_KEY + KEYS
    chance = 1 / VALUES

    def __init__(self, **sizes: Any) -> None:
        if sizes["length"] > VALUES:
            raise ConfigError(f"task.length={sizes['length']}: at most {VALUES} pairs, since values do not repeat")
        super().__init__(**sizes)

    @staticmethod
    def tokens_for(length: int) -> int:
        return 2 * length + 2

    @property
    def answer_tokens(self) -> int:
        return 1

    @property
    def distinct(self) -> int:
        return math.perm(KEYS, self.length) * math.perm(VALUES, self.length) * self.length

    @property
    def words(self) -> int:
        return KEYS + VALUES

    def options(self) -> dict[str, int]:
        return {}

    @property
    def members(self) -> int:
        return self.length

    def sequences(self, words_BW: Words, member_B: Ints) -> Ints:
        rows = np.arange(len(words_BW))
        keys = FIRST_KEY + choose_distinct(words_BW[:, :KEYS], self.length)
        values = choose_distinct(words_BW[:, KEYS:], self.length)
        pairs = np.stack([keys, values], axis=2).reshape(len(rows), -1)
        separator = np.full(len(rows), SEPARATOR)
        return np.column_stack([pairs, keys[rows, member_B], separator, values[rows, member_B]])

    def at(self, num_segments: int) -> AssociativeRetrieval:
        """As many segments of pairs as are left when the last is the query's."""
        if num_segments == self.num_segments:
            return self
        pairs = (num_segments - 1) * self.segment_lengths[0] // 2
        if self.segment_lengths[-1] != QUERY or pairs < 1:
            raise ConfigError(f"task.num_segments={num_segments}: task.segment_lengths={list(self.segment_lengths)} do not say how to grow")
        return self.resized(pairs, self._context(pairs))

    def stages(self) -> tuple[AssociativeRetrieval, ...]:
        """Two pairs and the query in one segment, which teaches the pairing; then, with memory, one more pair at a time.

        One pair would teach that the query does not matter. Segments of pairs are as long as this task's.
        """
        if self.segment_lengths[-1] != QUERY or self.length < 2:
            return super().stages()
        with_memory = (self.resized(pairs, self._context(pairs)) for pairs in range(2, self.length + 1))
        return (self.resized(2, [2 * 2 + QUERY]), *with_memory)

    def _context(self, pairs: int) -> list[int]:
        longest = self.segment_lengths[0]
        return [min(longest, 2 * pairs - start) for start in range(0, 2 * pairs, longest)] + [QUERY]

    def _cut(self, num_segments: int, segment_lengths: list[int] | None) -> tuple[int, ...]:
        if segment_lengths is not None or num_segments == 1:
            return super()._cut(num_segments, segment_lengths)
        if self.length % (num_segments - 1):
            possible = [1, *(n + 1 for n in range(1, self.length + 1) if self.length % n == 0)]
            raise ConfigError(
                f"task.num_segments={num_segments}: the {self.length} pairs of task.length do not divide among {num_segments - 1} "
                f"segments (the last is the query's); possible numbers are {possible}, or give task.segment_lengths"
            )
        return (2 * self.length // (num_segments - 1),) * (num_segments - 1) + (QUERY,)
