"""Copy (RMT paper, arXiv 2207.06881, appendix A.1): read N symbols, then write them twice.

    X, start, X, X        tokens 3N, answer 2N

Everything has to be remembered: the answer repeats it once while the source is near, and once more when it is
farther away.
"""

from __future__ import annotations

import string
from typing import Any

import numpy as np

from memlab.bounds import Positive
from memlab.tasks.base import SyntheticTask
from memlab.tasks.draws import Ints, RandomNumbers, choose

START, FIRST_SYMBOL = 1, 2


class Copy(SyntheticTask):
    """Copy.

    Args:
        length: N, symbols to remember (published: 24, 120, 240, 360).
        symbols: size of the alphabet (published: 10, and 8 for 120 symbols and more). `sizes` are
            `SyntheticTask`'s arguments.
    """

    def __init__(self, *, symbols: Positive, **sizes: Any) -> None:
        self.symbols = symbols
        super().__init__(**sizes)
        self.vocab_size = FIRST_SYMBOL + symbols
        self.chance = 1 / symbols

    def tokens_for(self, length: int) -> int:
        return 3 * length

    @property
    def answer_tokens(self) -> int:
        return 2 * self.length

    @property
    def distinct(self) -> int:
        return int(self.symbols**self.length)

    @property
    def random_numbers(self) -> int:
        return self.length

    def word(self, token: int) -> str:
        symbol = token - FIRST_SYMBOL
        return ">" if token == START else string.ascii_lowercase[symbol] if 0 <= symbol < 26 else f"#{symbol}"

    def options(self) -> dict[str, Any]:
        return {"symbols": self.symbols}

    def answer(self, source: Ints) -> Ints:
        """The answer after `source` [B, N]."""
        return np.concatenate([source, source], axis=1)

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        source = FIRST_SYMBOL + choose(random_BW, self.symbols)
        start = np.full((len(source), 1), START)
        return np.concatenate([source, start, self.answer(source)], axis=1)
