"""Variable tracking in symbols: follow a chain of assignments (RULER, arXiv 2404.06654, section 3).

    x1 value, .. x2 x1, .. x3 x2, ..; the last variable of a chain, value   tokens 2C(H + 1) + D + 1, answer 1

`x2 x1` means x2 = x1. First, each of the C chains assigns a value to its first variable; then the H hops of
all chains follow, shuffled together, but in order within each chain. D distractors, as pairs of noise tokens,
stand anywhere among the assignments. No variable or value is in two chains.

A model that has not seen the context scores 1 / values. A model that knows the C values that occurred but
cannot follow hops scores 1 / C: the order of the values is independent of that of the hops, so positions do
not help.

Departures: RULER asks for all variables that have a given value, one token each; here one answer token is the
end of the same chain, followed in the other direction. RULER's noise is text, and its values are not all
given first.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from memlab.bounds import NonNegative, Positive
from memlab.errors import ConfigError
from memlab.tasks.context import ContextTask, even
from memlab.tasks.draws import Ints, RandomNumbers, choose, choose_distinct

NOISE = 16  # different distractors, tokens 0 .. 15; values and then variables follow


class VariableTracking(ContextTask):
    """Variable tracking.

    Args:
        length: H, hops of each chain (RULER: 4). `sizes` are `SyntheticTask`'s arguments.
        chains: C, at most `values` (RULER: 1, which with a single answer would need no tracking).
        variables: number of different variables, C(H + 1) or more.
        values: number of different values.
        distractors: D, noise tokens among the assignments; even.
    """

    unit_name = "assignments and pairs of distractors"

    def __init__(
        self,
        *,
        chains: Positive,
        variables: Positive,
        values: Positive,
        distractors: NonNegative,
        **sizes: Any,
    ) -> None:
        needed = chains * (sizes["length"] + 1)
        if needed > variables:
            raise ConfigError(
                f"task.variables={variables}: {chains} chains of {sizes['length']} hops need {needed} or "
                "more, all different"
            )
        if chains > values:
            raise ConfigError(
                f"task.values={values}: {chains} chains need {chains} or more, since values do not repeat"
            )
        self.chains, self.variables, self.values = chains, variables, values
        self.distractors = even("distractors", distractors)
        self.vocab_size = NOISE + values + variables
        self.chance = 1 / values
        super().__init__(**sizes)

    def facts(self, length: int) -> int:
        return 2 * self.chains * (length + 1)

    def question(self, length: int) -> int:
        return 1

    @property
    def answer_tokens(self) -> int:
        return 1

    @property
    def distinct(self) -> int:
        hops, assignments, pairs = (
            self.chains * self.length,
            self.facts(self.length) // 2,
            self.distractors // 2,
        )
        names = math.perm(self.variables, assignments) * math.perm(self.values, self.chains)
        # orders of the hops; the order of the values is in `names`
        orders = math.factorial(hops) // math.factorial(self.length) ** self.chains
        return int(
            names * orders * self.chains * math.comb(assignments + pairs, pairs) * NOISE**self.distractors
        )

    @property
    def random_numbers(self) -> int:
        return sum(self._random_numbers())

    def _random_numbers(self) -> list[int]:
        """How many choose variables, values, order of hops, places of distractors, distractors, chain."""
        return [
            self.variables,
            self.values,
            self.chains * self.length,
            self.context(self.length) // 2,
            self.distractors,
            1,
        ]

    def options(self) -> dict[str, Any]:
        return {
            "chains": self.chains,
            "variables": self.variables,
            "values": self.values,
            "distractors": self.distractors,
        }

    def options_at(self, length: int) -> dict[str, Any]:
        return {"distractors": self.noise(length)}

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        of_names, of_values, of_order, of_places, of_noise, of_asked = np.split(
            random_BW, np.cumsum(self._random_numbers())[:-1], axis=1
        )
        rows, chains, hops = len(random_BW), self.chains, self.length
        names_BHC = (
            NOISE
            + self.values
            + choose_distinct(of_names, chains * (hops + 1)).reshape(rows, hops + 1, chains)
        )
        values_BC = NOISE + choose_distinct(of_values, chains)
        # which chain's hop comes next; within each chain, hops are in order
        chain_BA = choose_distinct(of_order, chains * hops) % chains
        hop_BA = np.zeros_like(chain_BA)
        for chain in range(chains):
            own_BA = chain_BA == chain
            hop_BA[own_BA] = np.cumsum(own_BA, axis=1)[own_BA]
        row_B1 = np.arange(rows)[:, None]
        hops_BA2 = np.stack(
            [names_BHC[row_B1, hop_BA, chain_BA], names_BHC[row_B1, hop_BA - 1, chain_BA]], axis=2
        )
        facts_BA2 = np.concatenate([np.stack([names_BHC[:, 0], values_BC], axis=2), hops_BA2], axis=1)
        is_noise_BU = choose_distinct(of_places, of_places.shape[1]) < self.distractors // 2
        context_BU2 = np.empty((*is_noise_BU.shape, 2), dtype=np.int64)
        context_BU2[~is_noise_BU] = facts_BA2.reshape(-1, 2)
        context_BU2[is_noise_BU] = choose(of_noise, NOISE).reshape(-1, 2)
        asked_B1 = choose(of_asked, chains)
        question_B2 = np.concatenate([names_BHC[row_B1, hops, asked_B1], values_BC[row_B1, asked_B1]], axis=1)
        return np.concatenate([context_BU2.reshape(rows, -1), question_B2], axis=1)
