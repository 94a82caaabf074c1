"""Associative retrieval with rewriting (ARMT, Rodkin et al. 2024, arXiv 2407.04841): the latest value wins.

    N times key, value; then Q times key, value        tokens 2N + 2Q - 1, answer Q

Every key is assigned n = N / keys times (the first N mod keys of them once more), at least twice, in random
order, each time with a random value. The queries are Q different keys, all equally likely. So a model that
has not seen the assignments scores 1 / values, and so does one that answers with the first value of the key.
A model that knows the key's values but not their order is right in 1 / n of the cases and in 1 / values of
the rest; the most frequent value is little better, since there is mostly a tie.

However many assignments there are, the right value stands on average fewer than `keys` assignments before
their end: N measures how often a memory can be rewritten, `keys` how much it has to hold.

Departures: keys and values are one token each, and there are no separators. In the paper, keys are drawn
independently, so that some are never rewritten and the first value is right more often.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.tasks.context import PairsTask
from memlab.tasks.draws import Ints, RandomNumbers, choose, choose_distinct


class AssociativeRewrite(PairsTask):
    """Associative retrieval with rewriting. Tokens: values first, then keys.

    Args:
        length: N, the number of assignments, at least 2 per key. `sizes` are `SyntheticTask`'s arguments.
        keys: number of different keys; all of them occur.
        values: number of different values.
        queries: Q, the number of different keys to ask for (published: 1).
    """

    unit_name = "assignments"

    def __init__(self, *, keys: Positive, values: Positive, queries: Positive, **sizes: Any) -> None:
        if sizes["length"] < 2 * keys:
            raise ConfigError(
                f"task.length={sizes['length']}: at least {2 * keys}, since each of task.keys={keys} is "
                "assigned twice"
            )
        if queries > keys:
            raise ConfigError(
                f"task.queries={queries}: at most task.keys={keys}, since the keys of the queries differ"
            )
        self.keys, self.values, self.queries = keys, values, queries
        self.vocab_size = values + keys
        self.chance = 1 / values
        super().__init__(**sizes)

    @property
    def distinct(self) -> int:
        times, more = divmod(self.length, self.keys)
        alike = math.factorial(times + 1) ** more * math.factorial(times) ** (self.keys - more)
        return int(
            math.factorial(self.length)
            // alike
            * self.values**self.length
            * math.perm(self.keys, self.queries)
        )

    @property
    def random_numbers(self) -> int:
        return self.length + self.length + self.keys

    def options(self) -> dict[str, Any]:
        return {"keys": self.keys, "values": self.values, "queries": self.queries}

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        of_order, of_values, of_queries = np.split(random_BW, [self.length, 2 * self.length], axis=1)
        keys_BN = choose_distinct(of_order, self.length) % self.keys
        values_BN = choose(of_values, self.values)
        asked_BQ = choose_distinct(of_queries, self.queries)
        is_asked_BQN = keys_BN[:, None, :] == asked_BQ[:, :, None]
        latest_BQ = self.length - 1 - is_asked_BQN[:, :, ::-1].argmax(axis=2)
        stream_BN2 = np.stack([self.values + keys_BN, values_BN], axis=2)
        asked_BQ2 = np.stack(
            [self.values + asked_BQ, np.take_along_axis(values_BN, latest_BQ, axis=1)], axis=2
        )
        return np.concatenate([stream_BN2, asked_BQ2], axis=1).reshape(len(random_BW), -1)
