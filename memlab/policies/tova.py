"""TOVA, token omission via attention (Oren et al. 2024, arXiv 2401.06104, section 3.2).

    s_k    = mean over all heads of A[last query, k]
    stays    the n rows with the largest s, the same in every head

The paper drops one row after each token, the one that this token looked at least: `every: 1`. Otherwise the
last token of a segment decides once for all tokens of the segment. No token is protected, not even the last.
"""

from __future__ import annotations

from memlab.bounds import NonNegative, Positive, Share
from memlab.layers.description import Description
from memlab.policies.base import Decision, Rows
from memlab.policies.budgets import Budgeted


class TOVA(Budgeted):
    """What the last token looks at.

    Args:
        budget, sinks, recent, every: see `Budgeted`.
    """

    by_head = False

    def __init__(
        self,
        description: Description,
        *,
        budget: Positive | Share = 32,
        sinks: NonNegative = 0,
        recent: NonNegative = 0,
        every: Positive | None = None,
    ) -> None:
        super().__init__(description, budget=budget, sinks=sinks, recent=recent, every=every)

    @property
    def queries(self) -> int:
        return 1

    def decide(self, rows: Rows) -> Decision:
        score_BR = rows.attention.last(1).mean(dim=(1, 2))
        keep_BGR = self.choose(rows, score_BR[:, None].expand_as(rows.position_BGR))
        return Decision(keep_BGR, rows.of_rows, rows.of_document)
