"""Keep random tokens: the control of every comparison at the same budget.

Each token has a random number that only depends on the seed, layer, head and its position in the document,
and those with the largest numbers stay. At any time, the tokens that stay are a uniform sample of all tokens
so far, without replacement. There is no generator whose state would have to be saved.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memlab.bounds import NonNegative, Positive, Seed, Share
from memlab.layers.description import Description
from memlab.policies.base import Decision, Rows
from memlab.policies.budgets import Budgeted


class Random(Budgeted):
    """A random sample.

    Args:
        budget, sinks, recent, every: see `Budgeted`.
        seed: of the numbers.
    """

    def __init__(
        self,
        description: Description,
        *,
        budget: Positive | Share = 32,
        sinks: NonNegative = 0,
        recent: NonNegative = 0,
        seed: Seed = 0,
        every: Positive | None = None,
    ) -> None:
        super().__init__(description, budget=budget, sinks=sinks, recent=recent, every=every)
        self.seed = seed

    def decide(self, rows: Rows) -> Decision:
        heads = torch.arange(rows.position_BGR.shape[1], device=rows.position_BGR.device)
        place_G1 = (self.description.layer * self.description.kv_heads + heads)[:, None]
        number_BGR = mixed(mixed(mixed(place_G1) + self.seed) + rows.position_BGR)
        return Decision(self.choose(rows, number_BGR), rows.of_rows, rows.of_document)


def mixed(x: Tensor) -> Tensor:
    """For each integer one of 0 .. 2^32 - 1 that looks random: two rounds of xor, shift and multiply."""
    x = x.long() & 0xFFFFFFFF
    for _ in range(2):
        x = ((x ^ (x >> 16)) * 0x45D9F3B) & 0xFFFFFFFF
    return x ^ (x >> 16)
