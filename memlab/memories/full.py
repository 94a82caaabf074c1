"""Attention over the whole document: a token sees all earlier ones, and the state grows with them.

The ceiling of every comparison. Positions continue over segments. In the parallel form, the S segments are
one long segment.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from memlab.layers import windows
from memlab.layers.attention import KeyValues
from memlab.layers.state import State, state
from memlab.memories.base import LayerMemory, Where


@state
class FullState(State):
    """Keys and values of the P tokens read so far; the last length_B belong to each batch row's document."""

    rows: KeyValues
    length_B: Tensor

    def reset(self, rows_B: Tensor, initial: State) -> FullState:
        """A new document sees none of the P tokens before it and counts its positions from 0."""
        return dataclasses.replace(self, length_B=self.length_B.masked_fill(rows_B, 0))


@state
class FullOpen(State):
    """What is remembered so far, and what the segment's rows see, including memory tokens."""

    remembered: FullState
    seen: KeyValues


class Full(LayerMemory):
    """A layer whose memory is everything."""

    positions_go_on = True

    @property
    def keeps_everything(self) -> bool:
        return True

    def init_state(self, batch_size: int) -> FullState:
        length_B = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return FullState(self.no_rows(batch_size), length_B)

    def offset(self, state: FullState) -> Tensor:
        return state.length_B

    def begin(self, state: FullState, where: Where) -> FullOpen:
        return FullOpen(state, state.rows)

    def extend(self, x_BTD: Tensor, open: FullOpen, where: Where) -> tuple[Tensor, FullOpen]:
        q, k, v = self.project(x_BTD, where.turn(where.start, where.count, x_BTD.dtype))
        seen = open.seen.then(k, v)
        # remembered rows
        before = seen.keys_BGLK.shape[2] - (where.start - where.first) - where.count
        mask = None  # a first segment is plain causal attention, which costs half of the same with a mask
        if before:
            filled_BC = windows.filled(before, self._offset(where))
            mask = where.once(("full", before), lambda: where.look(filled_BC))
        y = self.attend(q, seen.keys_BGLK, seen.values_BGLK, where, mask, remembered=before)
        if where.first == 0 and where.only_tokens:
            rows = seen
        else:
            rows = open.remembered.rows.then(self.stored(k, where, 2), self.stored(v, where, 2))
        read = rows.keys_BGLK.shape[2] - open.remembered.rows.keys_BGLK.shape[2]
        return self.merge(y), FullOpen(FullState(rows, open.remembered.length_B + read), seen)

    def close(self, open: FullOpen) -> FullState:
        return open.remembered

    def parallel(self, x_BTD: Tensor, state: FullState, where: Where) -> tuple[Tensor, FullState]:
        return self.segment(x_BTD, state, dataclasses.replace(where, count=x_BTD.shape[1], segments=1))

    def _offset(self, where: Where) -> Tensor:
        assert where.offset_B is not None  # `positions_go_on`
        return where.offset_B
