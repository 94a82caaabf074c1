"""Sorting by frequency (infinity-former, Martins et al. 2021, arXiv 2109.00301, section 4.1).

    N symbols, separator, all V symbols by decreasing frequency        tokens N + V, answer V

The distribution of symbols changes along the sequence, from t = 0 to 1, from one random distribution to
another: p(t) = (1 - t) p_first + t p_last. So the end of the sequence is not enough: all of it has to be
counted.

No two symbols are equally frequent and none is absent, so the answer is always defined. To ensure this, the
counts are fixed first, as N times the mean of both distributions, with a difference of at least one between
neighbours in the order; then each occurrence gets a time from its symbol's own density, which gives the
sequence. (The authors draw token by token, and do not state how they resolve ties.)

Every order is equally likely: a model that has only seen the separator scores 1 / V. Teacher-forced, the
remaining symbols follow from the answer so far, and guessing scores (1 + 1/2 + .. + 1/V) / V.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.tasks.context import ContextTask
from memlab.tasks.draws import Ints, RandomNumbers, choose

SEPARATOR, FIRST_SYMBOL = 0, 1
# weights of symbols before normalising: 1000 .. 9000 (the authors': 1 .. 9, many of them equal)
LEAST, WEIGHTS = 1000, 8001


class SortingByFrequency(ContextTask):
    """Sorting by frequency.

    Args:
        length: N, symbols to count (published: 4000, 8000, 16000), at least V(V + 1) / 2. `sizes` are
            `SyntheticTask`'s arguments.
        symbols: V, size of the alphabet, at least 2 (published: 20).
    """

    unit, unit_name = 1, "symbols"
    answers = "symbols"

    def __init__(self, *, symbols: Positive, **sizes: Any) -> None:
        fewest = symbols * (symbols + 1) // 2
        if symbols < 2:
            raise ConfigError(f"task.symbols={symbols}: at least 2, since one symbol cannot be sorted")
        if sizes["length"] < fewest:
            raise ConfigError(
                f"task.length={sizes['length']}: at least {fewest}, for task.symbols={symbols} to have "
                "different frequencies"
            )
        self.symbols = symbols
        self.vocab_size = FIRST_SYMBOL + symbols
        self.chance = 1 / symbols
        super().__init__(**sizes)

    def facts(self, length: int) -> int:
        return length

    def question(self, length: int) -> int:
        return self.symbols

    @property
    def answer_tokens(self) -> int:
        return self.symbols

    @property
    def distinct(self) -> int:
        """A lower bound: the sequences in which the frequencies are as equal as they may be."""
        counts = self._counts(np.ones((1, self.symbols), dtype=np.int64))[0].tolist()
        return (
            math.factorial(self.symbols)
            * math.factorial(self.length)
            // math.prod(map(math.factorial, counts))
        )

    @property
    def random_numbers(self) -> int:
        return 2 * self.symbols + 2 * self.length

    def options(self) -> dict[str, Any]:
        return {"symbols": self.symbols}

    def _counts(self, share_BV: Ints) -> Ints:
        """Counts of the symbols from their increasing shares: all different, with sum N.

        The counts are at least 1 .. V, and the rest of N is divided in proportion to the shares.
        """
        least_V = np.arange(1, self.symbols + 1)
        rest = self.length - int(least_V.sum())
        more_BV = rest * share_BV // share_BV.sum(axis=1, keepdims=True)
        # lost by rounding down, fewer than V: one each goes to the most frequent
        lost_B1 = rest - more_BV.sum(axis=1, keepdims=True)
        return least_V + more_BV + (least_V > self.symbols - lost_B1)

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        of_first, of_last, of_side, of_time = np.split(
            random_BW, np.cumsum([self.symbols, self.symbols, self.length]), axis=1
        )
        first_BV, last_BV = LEAST + choose(of_first, WEIGHTS), LEAST + choose(of_last, WEIGHTS)
        # Both over one denominator, in whole numbers, which are the same on every machine.
        first_BV, last_BV = (
            first_BV * last_BV.sum(axis=1, keepdims=True),
            last_BV * first_BV.sum(axis=1, keepdims=True),
        )
        share_BV = first_BV + last_BV
        rising_BV = np.argsort(share_BV, axis=1, kind="stable")
        counts_BV = np.empty_like(share_BV)
        np.put_along_axis(
            counts_BV, rising_BV, self._counts(np.take_along_axis(share_BV, rising_BV, axis=1)), axis=1
        )
        rows = len(random_BW)
        symbol_BN = np.repeat(np.tile(np.arange(self.symbols), rows), counts_BV.ravel()).reshape(
            rows, self.length
        )
        # A density (1 - t) a + t b is 2(1 - t) with weight a and 2t with weight b: the lesser and the greater
        # of two even draws.
        first_BN, share_BN = (
            np.take_along_axis(a, symbol_BN, axis=1).astype(np.uint64) for a in (first_BV, share_BV)
        )
        is_early_BN = of_side % share_BN < first_BN
        one_BN, other_BN = of_time >> np.uint64(32), of_time & np.uint64(0xFFFFFFFF)
        time_BN = np.where(is_early_BN, np.minimum(one_BN, other_BN), np.maximum(one_BN, other_BN))
        source_BN = np.take_along_axis(symbol_BN, np.argsort(time_BN, axis=1, kind="stable"), axis=1)
        separator_B1 = np.full((rows, 1), SEPARATOR)
        return np.concatenate(
            [FIRST_SYMBOL + source_BN, separator_B1, FIRST_SYMBOL + rising_BV[:, ::-1]], axis=1
        )
