"""SnapKV (Li et al., NeurIPS 2024, arXiv 2404.14469, section 4): what the last queries look at, in clusters.

    s      = pool(sum over the last w queries q of A[q, :])      along the rows before the window
    stays    the last w tokens (the observation window), and of the others those with the largest s

A is the mean over the query heads that share a key-value head; the released code repeats keys and values for
all query heads first, and each chooses for itself. Pooling goes over neighbours in the cache: a row that
stays brings its neighbours with it. The paper decides once, when the whole prompt has been read, and needs
room for the full prompt until then. Here each decision is as the paper's, and there is one at the end of each
segment, with the queries of this segment.

So what an early segment loses, it loses before the question is read (query-agnostic). With `after` set to the
length of the prompt, nothing is dropped before the whole prompt is there: as published, and query-aware if
the prompt ends with the question.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from memlab.bounds import NonNegative, Positive, Share
from memlab.errors import ConfigError
from memlab.layers.description import Description
from memlab.policies.base import Decision, Rows
from memlab.policies.budgets import Budgeted


class SnapKV(Budgeted):
    """An observation window's attention, pooled.

    Args:
        budget, sinks, after, every: see `Budgeted`.
        window: w, queries that choose, and tokens that always stay.
        kernel: rows that are pooled, an odd number; 1 = no pooling.
        pooling: of the attention of neighbouring rows, with zeros beyond the ends.

    Raises:
        ConfigError: the kernel is even, or the budget has no room for window and sinks.
    """

    def __init__(
        self,
        description: Description,
        *,
        budget: Positive | Share = 32,
        sinks: NonNegative = 0,
        window: Positive = 8,
        kernel: Positive = 5,
        pooling: Literal["avg", "max"] = "avg",
        after: NonNegative = 0,
        every: Positive | None = None,
    ) -> None:
        if isinstance(budget, int) and budget < sinks + window:
            raise ConfigError(
                f"policy.budget={budget} has no room for policy.window={window} and policy.sinks={sinks}, "
                "which always stay"
            )
        if kernel % 2 == 0:
            raise ConfigError(f"policy.kernel={kernel} is even: it needs a middle, as in 1, 3, 5")
        super().__init__(description, budget=budget, sinks=sinks, recent=window, after=after, every=every)
        self.window, self.kernel, self.pooling = window, kernel, pooling

    @property
    def queries(self) -> int:
        return self.window

    def decide(self, rows: Rows) -> Decision:
        a_BHwR = rows.attention.last(self.window)
        a_BGR = a_BHwR.sum(2).unflatten(1, (rows.position_BGR.shape[1], -1)).mean(2)
        a_BGR = a_BGR.masked_fill(~rows.filled | (rows.age < self.window), 0)
        keep_BGR = self.choose(rows, self._pooled(a_BGR, rows.filled))
        return Decision(keep_BGR, rows.of_rows, rows.of_document)

    def _pooled(self, a_BGR: Tensor, filled_BGR: Tensor) -> Tensor:
        """Pooled along the filled rows: empty ones in between separate no neighbours."""
        order = (~filled_BGR).to(torch.uint8).argsort(dim=-1, stable=True)
        pool = F.avg_pool1d if self.pooling == "avg" else F.max_pool1d
        pooled = pool(a_BGR.gather(-1, order), self.kernel, stride=1, padding=self.kernel // 2)
        return torch.empty_like(a_BGR).scatter_(-1, order, pooled)
