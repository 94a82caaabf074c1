"""StreamingLLM (Xiao et al., ICLR 2024, arXiv 2309.17453): the first tokens and the last ones.

    stays    tokens 1 .. sinks of the document, and the last n - sinks

Attention gathers on the first tokens of a text whatever they say ("attention sinks"), and a window alone
breaks as soon as they leave it. The paper gives a token its position within the cache, so that positions
never exceed the budget (section 3.2): `positions: cache`. Keys are then stored before their rotation.
"""

from __future__ import annotations

from typing import Literal

from memlab.bounds import NonNegative, Positive, Share
from memlab.errors import ConfigError
from memlab.layers.description import Description
from memlab.policies.base import Decision, Rows
from memlab.policies.budgets import Budgeted


class Streaming(Budgeted):
    """Sinks and a window.

    Args:
        budget, sinks, every: see `Budgeted`.
        positions: document = rotary positions are those in the document; cache = those within the cache, as
            published.

    Raises:
        ConfigError: the budget has no room for the sinks, or the model has no rotary positions to change.
    """

    by_head = False

    def __init__(
        self,
        description: Description,
        *,
        budget: Positive | Share = 32,
        sinks: NonNegative = 4,
        positions: Literal["document", "cache"] = "document",
        every: Positive | None = None,
    ) -> None:
        super().__init__(description, budget=budget, sinks=sinks, every=every)
        if positions == "cache" and description.positions != "rope":
            raise ConfigError(
                "policy.positions=cache rotates keys to their places in the cache, and "
                f"model.positions={description.positions} has no rotations; use policy.positions=document"
            )
        self.rerotates = positions == "cache"

    def decide(self, rows: Rows) -> Decision:
        keep_BGR = self.choose(rows, -rows.age)
        return Decision(keep_BGR, rows.of_rows, rows.of_document)
