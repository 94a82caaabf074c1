"""Multi-query associative recall (Zoology, Arora et al. 2023, arXiv 2312.04927, section 3).

    k1 v1 .. kK vK, D distractors, then Q times key, value        tokens 2K + D + 2Q - 1, answer Q

Keys do not repeat in a sample, values may. The queries are Q of the K keys in random order, and each value is
read before the next key. A model that has not seen the pairs scores 1 / values. A model that only knows the
values, and guesses one of them, is right in 1 / K of the cases and in 1 / values of the rest.

Departures: the paper spreads queries over the sequence with gaps from a power law and fills the gaps with
noise; here all noise is between pairs and queries, so that the distance is a number in the configuration. The
authors' code also draws values without repetition, so that answers can be found by elimination.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memlab.bounds import NonNegative, Positive
from memlab.errors import ConfigError
from memlab.tasks.context import PairsTask, even
from memlab.tasks.draws import Ints, RandomNumbers, choose, choose_distinct

NOISE = 16  # different distractors, tokens 0 .. 15; values and then keys follow


class MQAR(PairsTask):
    """Multi-query associative recall.

    Args:
        length: K, the number of pairs. `sizes` are `SyntheticTask`'s arguments.
        keys: number of different keys, K or more.
        values: number of different values.
        queries: Q, the number of different keys to ask for, at most K.
        distractors: D, noise tokens between the pairs and the queries; even.
    """

    def __init__(
        self, *, keys: Positive, values: Positive, queries: Positive, distractors: NonNegative, **sizes: Any
    ) -> None:
        if sizes["length"] > keys:
            raise ConfigError(
                f"task.keys={keys}: {sizes['length']} pairs need {sizes['length']} keys or more, since keys "
                "do not repeat"
            )
        if queries > sizes["length"]:
            raise ConfigError(
                f"task.queries={queries}: at most task.length={sizes['length']}, since the keys of the "
                "queries differ"
            )
        self.keys, self.values, self.queries = keys, values, queries
        self.distractors = even("distractors", distractors)
        self.vocab_size = NOISE + values + keys
        self.chance = 1 / values
        super().__init__(**sizes)

    @property
    def distinct(self) -> int:
        pairs = math.perm(self.keys, self.length) * self.values**self.length
        return int(pairs * NOISE**self.distractors * math.perm(self.length, self.queries))

    @property
    def random_numbers(self) -> int:
        return self.keys + self.length + self.distractors + self.length

    def options(self) -> dict[str, Any]:
        return {
            "keys": self.keys,
            "values": self.values,
            "queries": self.queries,
            "distractors": self.distractors,
        }

    def options_at(self, length: int) -> dict[str, Any]:
        return {"queries": min(self.queries, length), "distractors": self.noise(length)}

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        of_keys, of_values, of_noise, of_order = np.split(
            random_BW, np.cumsum([self.keys, self.length, self.distractors]), axis=1
        )
        keys_BK = NOISE + self.values + choose_distinct(of_keys, self.length)
        values_BK = NOISE + choose(of_values, self.values)
        pairs_BK2 = np.stack([keys_BK, values_BK], axis=2)
        asked_BQ = choose_distinct(of_order, self.queries)
        asked_BQ2 = np.take_along_axis(pairs_BK2, asked_BQ[:, :, None], axis=1)
        rows = len(random_BW)
        return np.concatenate(
            [pairs_BK2.reshape(rows, -1), choose(of_noise, NOISE), asked_BQ2.reshape(rows, -1)], axis=1
        )
