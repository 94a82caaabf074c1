"""A layer memory with an auxiliary loss, of a user's own; see test_auxiliary_loss.py."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from memlab.bounds import NonNegativeFloat
from memlab.layers.description import Description
from memlab.memories.base import Where
from memlab.memories.infini import Infini, InfiniState


class Penalised(Infini):
    """Infini-attention whose memory costs the mean square of its numbers after each segment.

    Args:
        update, gate_init: of Infini-attention.
        loss_weight: of the auxiliary loss.
    """

    has_auxiliary_loss = True

    def __init__(
        self,
        description: Description,
        *,
        update: Literal["linear", "delta"] = "linear",
        gate_init: float = 0.0,
        loss_weight: NonNegativeFloat = 0.5,
    ) -> None:
        super().__init__(description, update=update, gate_init=gate_init)
        self.loss_weight = loss_weight

    def segment(self, x_BTD: Tensor, state: InfiniState, where: Where) -> tuple[Tensor, InfiniState]:
        y_BTD, after = super().segment(x_BTD, state, where)
        where.add_loss(lambda: self.loss_weight * after.memory_BGKV.square().mean((1, 2, 3)))
        return y_BTD, after

    def parallel(self, x_BTD: Tensor, state: InfiniState, where: Where) -> tuple[Tensor, InfiniState]:
        y_BTD, after = super().parallel(x_BTD, state, where)
        k, v = (t.unflatten(2, (where.segments, -1)) for t in self.project(x_BTD)[1:])
        after_BGSKV = self._memories(k, v, state.memory_BGKV)[:, :, 1:]
        where.add_loss(lambda: self.loss_weight * after_BGSKV.square().mean((1, 3, 4)))
        return y_BTD, after
