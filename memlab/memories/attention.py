"""Attention within the segment (Vaswani et al. 2017, arXiv 1706.03762, section 3.2): nothing is remembered.

The floor of every comparison: a task that needs an earlier segment stays at chance, unless memory tokens
carry what it needs.
"""

from __future__ import annotations

from torch import Tensor

from memlab.layers.attention import KeyValues
from memlab.layers.state import Empty
from memlab.memories.base import LayerMemory, Where


class Attention(LayerMemory):
    """A layer without a memory."""

    @property
    def carries(self) -> bool:
        return False

    def init_state(self, batch_size: int) -> Empty:
        return Empty()

    def segment(self, x_BTD: Tensor, state: Empty, where: Where) -> tuple[Tensor, Empty]:
        q, k, v = self.project(x_BTD, where.turn(where.start, where.count, x_BTD.dtype))
        return self.merge(self.attend(q, k, v, where)), state

    def parallel(self, x_BTD: Tensor, state: Empty, where: Where) -> tuple[Tensor, Empty]:
        """Segments are independent: they are folded into the batch."""
        x_FND = x_BTD.unflatten(1, (where.segments, -1)).flatten(0, 1)
        y_FND, _ = self.segment(x_FND, state, where)
        return y_FND.unflatten(0, (-1, where.segments)).flatten(1, 2), state

    def begin(self, state: Empty, where: Where) -> KeyValues:
        return self.no_rows(where.batch_size)

    def extend(self, x_BTD: Tensor, open: KeyValues, where: Where) -> tuple[Tensor, KeyValues]:
        q, k, v = self.project(x_BTD, where.turn(where.start, where.count, x_BTD.dtype))
        seen = open.then(k, v)
        return self.merge(self.attend(q, seen.keys_BGLK, seen.values_BGLK, where)), seen

    def close(self, open: KeyValues) -> Empty:
        return Empty()
