"""Associative retrieval (RMT paper, arXiv 2207.06881, appendix A.1): read K key-value pairs, then the value of one of the keys.

    k1 v1 k2 v2 .. kK vK, query key, separator, value        tokens 2K + 2, answer 1

Keys are 26 letters, values 10 digits, both without repetition in a sample. Who knows which values occurred but not which belongs to
the query scores 1 / K. The published segment counts of this task are wrong (`torch.chunk` rounds); here lengths are explicit.
"""

from __future__ import annotations

import math

import numpy as np

from memlab.errors import ConfigError
from memlab.schema import Positive
from memlab.tasks.base import Ints, SyntheticTask, Words, choose, choose_distinct

VALUES, SEPARATOR, FIRST_KEY, KEYS = 10, 10, 11, 26


class AssociativeRetrieval(SyntheticTask):
    """Associative retrieval.

    Args:
        length: K, the number of pairs, at most 10 (published: 4). The others are `SyntheticTask`'s.
    """

    vocab_size = FIRST_KEY + KEYS
    chance = 1 / VALUES

    def __init__(
        self,
        length: Positive,
        num_segments: Positive,
        segment_lengths: list[Positive] | None,
        batch_size: Positive,
        validation_size: Positive,
        test_size: Positive,
    ) -> None:
        if length > VALUES:
            raise ConfigError(f"task.length={length}: at most {VALUES} pairs, since values do not repeat")
        super().__init__(length, num_segments, segment_lengths, batch_size, validation_size, test_size)

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
        return KEYS + VALUES + 1

    def options(self) -> dict[str, int]:
        return {}

    def sequences(self, words_BW: Words) -> Ints:
        rows = np.arange(len(words_BW))
        keys = FIRST_KEY + choose_distinct(words_BW[:, :KEYS], self.length)
        values = choose_distinct(words_BW[:, KEYS : KEYS + VALUES], self.length)
        asked = choose(words_BW[:, -1], self.length)
        pairs = np.stack([keys, values], axis=2).reshape(len(rows), -1)
        separator = np.full(len(rows), SEPARATOR)
        return np.column_stack([pairs, keys[rows, asked], separator, values[rows, asked]])
