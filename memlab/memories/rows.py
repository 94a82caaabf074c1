"""Memories that are rows: a segment attends to remembered rows in addition to its own.

    [ remembered rows (C) | segment ]

Remembered rows have the width of hidden states. Each segment projects them to keys and values again, at the
positions just before its first row. A subclass defines which rows they are, and what a segment makes of them.

Shapes: B batch, C remembered rows, T rows of a call, N tokens of the segment, D width.
"""

from __future__ import annotations

import abc
from typing import Any

import torch
from torch import Tensor

from memlab.layers.attention import KeyValues
from memlab.layers.state import State, state
from memlab.memories.base import LayerMemory, Where


@state
class OpenRows(State):
    """The state before the segment, keys and values of [remembered ; so far], and the tokens' inputs."""

    before: Any
    seen: KeyValues
    hidden_BnD: Tensor


class RowMemory(LayerMemory):
    """Base of memories that are rows. A subclass gives `init_state`, `rows` and `remember`.

    Attributes:
        reach: how many rows back a token looks, including itself; None = all.
    """

    reach: int | None = None

    @abc.abstractmethod
    def rows(self, state: Any) -> tuple[Tensor, Tensor]:
        """The remembered rows [B, C, D], and bool [B, C]: which belong to each batch row's document."""

    @abc.abstractmethod
    def remember(self, state: Any, hidden_BND: Tensor) -> Any:
        """The state after a segment with these inputs of the layer."""

    def begin(self, state: Any, where: Where) -> OpenRows:
        rows_BCD, _ = self.rows(state)
        size = rows_BCD.shape[1]
        turn = where.turn(where.first - size, size, rows_BCD.dtype)
        return OpenRows(state, KeyValues(*self.keys_values(rows_BCD, turn)), rows_BCD[:, :0])

    def extend(self, x_BTD: Tensor, open: OpenRows, where: Where) -> tuple[Tensor, OpenRows]:
        q, k, v = self.project(x_BTD, where.turn(where.start, where.count, x_BTD.dtype))
        seen = open.seen.then(k, v)
        size = seen.keys_BGLK.shape[2] - (where.start - where.first) - where.count
        mask = where.once((type(self), size), lambda: where.look(self.rows(open.before)[1], self.reach))
        y = self.attend(q, seen.keys_BGLK, seen.values_BGLK, where, mask, remembered=size)
        new_BnD = self.stored(x_BTD, where, 1)
        hidden_BnD = torch.cat([open.hidden_BnD, new_BnD], dim=1) if open.hidden_BnD.shape[1] else new_BnD
        return self.merge(y), OpenRows(open.before, seen, hidden_BnD)

    def close(self, open: OpenRows) -> Any:
        return self.remember(open.before, open.hidden_BnD)
