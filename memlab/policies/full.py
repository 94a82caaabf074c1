"""Keep everything: full attention, read through the cache. The ceiling of every comparison of policies."""

from __future__ import annotations

from memlab.layers.description import Description
from memlab.policies.base import Decision, Policy, Rows


class Full(Policy):
    """Keep every row."""

    by_head = False

    def __init__(self, description: Description) -> None:
        super().__init__(description)

    @property
    def keeps_everything(self) -> bool:
        return True

    def decide(self, rows: Rows) -> Decision:
        return Decision(rows.filled, rows.of_rows, rows.of_document)
