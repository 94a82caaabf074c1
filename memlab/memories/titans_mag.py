"""Titans, memory as a gate (Behrouz, Zhong, Mirrokni 2024, arXiv 2501.00663, section 4.2).

    x~ = [ p_1 .. p_P | x ]                                                (26)   p: persistent rows, learned
    y = Attn(x~)                                                           (27)
    o = y * M(x)                                                           (28)

The neural memory of `neural.py` reads and writes the layer's inputs next to attention, and what it returns
gates the output of attention: both are normalised, with learned weights, and the memory's passes a sigmoid.
The paper's attention has a sliding window; here it has the segment. Persistent rows are not written to the
memory.

Parallel form: the memory only depends on this layer's inputs, so a layer reads all segments at once, after a
loop over chunks that updates the weights. For a linear memory (depth 1), this loop is a fold of products of
[K, K] matrices that are all known at once (`ops/surprise.py`).
"""

from __future__ import annotations

import torch
from torch import Tensor

from memlab.layers import windows
from memlab.layers.attention import KeyValues
from memlab.layers.positions import rotate
from memlab.layers.state import State, state
from memlab.memories.base import Where
from memlab.memories.neural import NeuralMemory, NeuralState, Written
from memlab.ops.surprise import linear_memories


@state
class GateOpen(State):
    """An open segment: the memory before the present chunk, the chunk so far, and [persistent ; own rows]."""

    before: NeuralState
    pending: Written
    seen: KeyValues


class TitansMAG(NeuralMemory):
    """One layer of Titans (MAG). Options are those of the neural memory."""

    def begin(self, state: NeuralState, where: Where) -> GateOpen:
        batch = where.batch_size
        return GateOpen(self.opened(state), self.nothing(batch), self.persistent(batch, where))

    def extend(self, x_BTD: Tensor, open: GateOpen, where: Where) -> tuple[Tensor, GateOpen]:
        hidden_BTD = self.normed(x_BTD)
        q, k, v = self.attention.project(hidden_BTD)
        turn = where.turn(where.start, where.count, q.dtype)
        seen = open.seen.then(rotate(k, turn), v)
        y_BTD = self._attend(rotate(q, turn), seen, where)
        remembered_BTD, before, pending = self.walk(hidden_BTD, open.before, open.pending, where)
        return self.gated(y_BTD, remembered_BTD[:, where.wanted]), GateOpen(before, pending, seen)

    def close(self, open: GateOpen) -> NeuralState:
        return self.closed(self.update(open.before, open.pending))

    def parallel(self, x_BTD: Tensor, state: NeuralState, where: Where) -> tuple[Tensor, NeuralState]:
        s, n = where.segments, where.count
        hidden_BTD = self.normed(x_BTD)
        q, k, v = (windows.fold(t, s) for t in self.attention.project(hidden_BTD))
        turn = where.turn(0, n, q.dtype)
        seen = self.persistent(len(q), where).then(rotate(k, turn), v)
        y_BTD = self._attend(rotate(q, turn), seen, where).unflatten(0, (-1, s)).flatten(1, 2)
        asks, new = self.queries(hidden_BTD), self.writes(hidden_BTD)
        size = min(self.chunk or n, n)
        if n % size == 0 and len(self.shapes) == 1:
            remembered_BTD, after = self._linear(asks, new, self.opened(state), size)
        else:
            parts, after = [], self.opened(state)
            for at in range(0, s * n, n):
                for begin in range(at, at + n, size):
                    rows = slice(begin, min(begin + size, at + n))
                    parts.append(self.retrieve(asks[:, :, rows], after.weights_BHF))
                    after = self.update(after, new.rows(rows))
            remembered_BTD = torch.cat(parts, dim=1)
        return self.gated(y_BTD, remembered_BTD), self.closed(after)

    def _attend(self, q: Tensor, seen: KeyValues, where: Where) -> Tensor:
        """Eq. 27, normalised: [B, T, D]."""
        count = len(self.persistent_PD)
        own_TL = self.own(seen.keys_BGLK.shape[2] - count, where)
        look_TL = torch.cat([own_TL.new_ones(where.count, count), own_TL], dim=1)
        y = self.attend(q, seen.keys_BGLK, seen.values_BGLK, where, look_TL, remembered=count)
        return self.local(self.merge(y))

    def _linear(
        self, asks: Tensor, new: Written, before: NeuralState, size: int
    ) -> tuple[Tensor, NeuralState]:
        """What queries retrieve from a linear memory in all segments at once, and the state after them."""
        width = self.description.head_width
        weights = before.weights_BHF.unflatten(-1, (width, width))
        surprise = before.surprise_BHF.unflatten(-1, (-1, width)) if self.has_momentum else 0 * weights
        k, v, keep, momentum, step = (t.unflatten(2, (-1, size)) for t in new.tensors())
        memories, surprise = linear_memories(k, v, keep, momentum, step / size, weights, surprise)
        weights_BCHF = memories[:, :, :-1].transpose(1, 2).flatten(3)
        asks_BCHbK = asks.unflatten(2, (-1, size)).transpose(1, 2)
        found = self.retrieve(asks_BCHbK.flatten(0, 1), weights_BCHF.flatten(0, 1))
        after = NeuralState(
            memories[:, :, -1].flatten(2), surprise.flatten(2) if self.has_momentum else before.surprise_BHF
        )
        return found.unflatten(0, (len(asks), -1)).flatten(1, 2), after
