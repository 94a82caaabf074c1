"""H2O, the heavy-hitter oracle (Zhang et al., NeurIPS 2023, arXiv 2306.14048, section 4).

    F_k    = sum over queries q of A[q, k]        attention that key k received while it was in the cache
    stays    the last n / 2 tokens, and of the others those with the largest F

A is attention after softmax, of one key-value head: the mean over the query heads that share it (the paper
has no shared heads). The paper decides after every token: `every: 1`. Otherwise the tokens of a segment come
together: all of its queries count before the decision.

F favours old tokens, since more queries have seen them. The paper found the mean over these queries worse
than the sum; `normalise` is that mean. With `decay` below 1, each query counts less by this factor for every
token after it.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memlab.bounds import NonNegative, Positive, Share
from memlab.layers.description import Description
from memlab.layers.state import State, state
from memlab.policies.base import Decision, Rows, Zeros
from memlab.policies.budgets import Budgeted


@state
class Received(State):
    """F of each row."""

    sum_BGC: Tensor


class H2O(Budgeted):
    """Heavy hitters and recent tokens.

    Args:
        budget, sinks, recent, every: see `Budgeted`; recent=None is half of the budget, as published.
        decay: by which a query counts less for every token after it; 1 = all count the same, as published.
        normalise: whether F is divided by the number of queries that have seen the row.
    """

    def __init__(
        self,
        description: Description,
        *,
        budget: Positive | Share = 32,
        sinks: NonNegative = 0,
        recent: NonNegative | None = None,
        decay: Share = 1.0,
        normalise: bool = False,
        every: Positive | None = None,
    ) -> None:
        super().__init__(description, budget=budget, sinks=sinks, recent=recent or 0, every=every)
        self.keeps_half, self.decay, self.normalise = recent is None, decay, normalise

    @property
    def queries(self) -> None:
        return None

    def init_rows(self, zeros: Zeros) -> Received:
        return Received(zeros())

    def decide(self, rows: Rows) -> Decision:
        sum_BGR = rows.of_rows.sum_BGC
        after_T = torch.arange(rows.new - 1, -1, -1, device=sum_BGR.device)  # tokens after each query
        sum_BGR = self.decay**rows.new * sum_BGR + rows.attention.received(
            self.decay ** after_T.to(sum_BGR.dtype)
        )
        score_BGR = sum_BGR / self._seen(rows.age.to(sum_BGR.dtype)) if self.normalise else sum_BGR
        recent_B = None
        if self.keeps_half:
            room_B = self.room(rows.length_B)
            recent_B = (room_B // 2).minimum(room_B - self.sinks)
        return Decision(self.choose(rows, score_BGR, recent_B), Received(sum_BGR), rows.of_document)

    def _seen(self, age: Tensor) -> Tensor:
        """How many queries have seen a row of this age, each by its weight."""
        if self.decay == 1:
            return age + 1
        return (1 - self.decay ** (age + 1)) / (1 - self.decay)
