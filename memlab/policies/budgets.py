"""Policies with a budget: a score for each row, and the rows with the largest ones stay.

    n        the budget: a number of tokens, or a share of the tokens that the document has so far, rounded up
    stays    the sinks, the recent tokens, and of the others those with the largest scores, n rows in all

Sinks and recent tokens count in the budget. Of equal scores, the older row stays.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memlab.bounds import NonNegative, Positive, Share
from memlab.errors import ConfigError
from memlab.layers.description import Description
from memlab.policies.base import Policy, Rows, rank


class Budgeted(Policy):
    """Base of policies with a budget. A subclass gives `decide`, which calls `choose`.

    Args:
        budget: n, rows that stay in each head: a number of tokens, or a share of those read so far (a
            fraction, 0 < share <= 1; never fewer than sinks and recent tokens).
        sinks: the first tokens of a document, which always stay.
        recent: the last tokens read, which always stay.
        after: nothing is dropped until a document has more than this many tokens.
        every: see `Policy`.

    Raises:
        ConfigError: the budget has no room for sinks and recent tokens.
    """

    def __init__(
        self,
        description: Description,
        *,
        budget: Positive | Share,
        sinks: NonNegative = 0,
        recent: NonNegative = 0,
        after: NonNegative = 0,
        every: Positive | None = None,
    ) -> None:
        super().__init__(description, every=every)
        if isinstance(budget, int) and budget < sinks + recent:
            raise ConfigError(
                f"policy.budget={budget} has no room for policy.sinks={sinks} and policy.recent={recent}, "
                "which always stay"
            )
        self.budget, self.sinks, self.recent, self.after = budget, sinks, recent, after

    @property
    def capacity(self) -> int | None:
        return self.budget if isinstance(self.budget, int) and not self.after else None

    def room(self, length_B: Tensor) -> Tensor:
        """n of documents with this many tokens: int [B]."""
        if isinstance(self.budget, int):
            room_B = torch.full_like(length_B, self.budget)
        else:  # what rounding adds to a whole number is no further row
            wished_B = (length_B.double() * self.budget - 1e-9).ceil().long()
            room_B = wished_B.clamp(min=self.sinks + self.recent)
        return torch.where(length_B > self.after, room_B, length_B)

    def choose(self, rows: Rows, score_BGR: Tensor, recent_B: Tensor | None = None) -> Tensor:
        """bool [B, G, R]: the rows that stay.

        Args:
            score_BGR: larger = stays.
            recent_B: how many recent tokens stay in any case; None = `recent`.
        """
        recent = self.recent if recent_B is None else recent_B[:, None, None]
        always = (rows.position_BGR < self.sinks) | (rows.age < recent)
        score_BGR = score_BGR.float().masked_fill(always, math.inf).masked_fill(~rows.filled, -math.inf)
        return rows.filled & (rank(score_BGR) < self.room(rows.length_B)[:, None, None])
