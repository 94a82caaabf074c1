"""A user's own task: read N bits, then say whether the number of ones is odd.

b1 b2 .. bN, ?, parity        tokens N + 1, answer 1
"""

from __future__ import annotations

from typing import Any

import numpy as np

from memlab.tasks.base import SyntheticTask
from memlab.tasks.draws import Ints, Words, choose

ASK = 2  # after the bits 0 and 1


class Parity(SyntheticTask):
    """Parity. `length` is N; the other arguments are `SyntheticTask`'s."""

    vocab_size = 3
    chance = 1 / 2
    answer_tokens = 1

    def tokens_for(self, length: int) -> int:
        return length + 1

    @property
    def words(self) -> int:
        return self.length

    @property
    def distinct(self) -> int:
        return int(2**self.length)

    def options(self) -> dict[str, Any]:
        return {}

    def sequences(self, words_BW: Words, member_B: Ints) -> Ints:
        bits_BN = choose(words_BW, 2)
        ask_B = np.full(len(bits_BN), ASK)
        return np.column_stack([bits_BN, ask_B, bits_BN.sum(axis=1) % 2])
