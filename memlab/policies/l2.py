"""Key norms (Devoto et al., EMNLP 2024, arXiv 2406.11430): keys of small L2 norm stay.

    stays    the n rows with the smallest ||k||_2

A key with a small norm tends to receive much attention, so nothing but the keys is needed. Rotary positions
do not change a norm. The authors leave some of the first layers whole (`skip_layers`): counted from 1, layers
1 and 2 in their README, 1, 2 and 13 for passkeys and needles, 1 for language modelling. Their code begins to
drop after 2,048 tokens: `after`.

Here a share is one of all tokens so far. The released code takes a share of what is in the cache at each
call, which shrinks again and again.
"""

from __future__ import annotations

from memlab.bounds import NonNegative, Positive, Share
from memlab.errors import ConfigError
from memlab.layers.description import Description
from memlab.policies.base import Decision, Rows
from memlab.policies.budgets import Budgeted


class L2(Budgeted):
    """Keys of small norm.

    Args:
        budget, sinks, recent, after, every: see `Budgeted`.
        skip_layers: layers that keep everything, counted from 1.

    Raises:
        ConfigError: there is no such layer.
    """

    def __init__(
        self,
        description: Description,
        *,
        budget: Positive | Share = 32,
        sinks: NonNegative = 0,
        recent: NonNegative = 0,
        after: NonNegative = 0,
        skip_layers: list[Positive] = [],  # noqa: B006
        every: Positive | None = None,
    ) -> None:
        super().__init__(description, budget=budget, sinks=sinks, recent=recent, after=after, every=every)
        if wrong := [layer for layer in skip_layers if layer > description.layers]:
            raise ConfigError(
                f"policy.skip_layers={list(skip_layers)}: the model has model.layers={description.layers}, "
                f"counted from 1, and no layer {wrong[0]}"
            )
        self.skipped = description.layer in skip_layers

    @property
    def capacity(self) -> int | None:
        return None if self.skipped else super().capacity

    @property
    def keeps_everything(self) -> bool:
        return self.skipped

    def decide(self, rows: Rows) -> Decision:
        keep_BGR = rows.filled
        if not self.skipped:
            keep_BGR = self.choose(rows, -rows.keys_BGRK.float().norm(dim=-1))
        return Decision(keep_BGR, rows.of_rows, rows.of_document)
