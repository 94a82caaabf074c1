"""Memorizing Transformer (Wu, Rabe, Hutchins, Szegedy, ICLR 2022, arXiv 2203.08913, section 3).

One layer has an external memory: the keys and values of everything it has read, first in, first out. Each
query looks at the k nearest keys of its head; what it retrieves and local attention are mixed by a gate.

    V = g V_memory + (1 - g) V_local,   g = sigmoid(b)     one learned b for each head; two softmaxes

Every layer also has a Transformer-XL cache of keys and values, for local attention across segment boundaries.
Neither the cache nor the memory carries gradient. In the memory's layer, queries and keys are normalised, so
that keys stay comparable while training changes the layers below; a learned scale per head takes the place of
their length (as in the authors' code). Keys in memory have no positions. Left open by the paper, decided
here: a token whose document has nothing in memory yet only takes V_local (g = 0).

The nearest keys are found exactly, in chunks. Parallel form: the memory of segment s is the carried one and
the rows of this layer in earlier segments; all queries search [carried ; all rows] at once, each in the range
that it may see.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.bounds import NonNegative, Positive, PositiveFloat
from memlab.errors import ConfigError
from memlab.layers import observing, windows
from memlab.layers.attention import KeyValues
from memlab.layers.description import Description
from memlab.layers.positions import rotate
from memlab.layers.state import State, state
from memlab.memories.base import LayerMemory, Where
from memlab.ops.nearest import attend_nearest


@state
class MemorizingState(State):
    """Cache [C rows] and memory [P rows], both without positions, and the length of each document so far."""

    cache: KeyValues
    memory: KeyValues
    tokens_B: Tensor  # this many of the last rows of cache and memory belong to the document

    def reset(self, rows_B: Tensor, initial: State) -> MemorizingState:
        """None of the rows belongs to a new document."""
        return dataclasses.replace(self, tokens_B=self.tokens_B.masked_fill(rows_B, 0))


@state
class MemorizingOpen(State):
    """An open segment: the state before it, keys and values of [cache ; own rows], and own keys unrotated."""

    before: MemorizingState
    seen: KeyValues
    keys_BGnK: Tensor  # of the tokens
    first: int  # their place in `seen`


class Memorizing(LayerMemory):
    """One layer of a Memorizing Transformer.

    Args:
        mem_len: C, rows of the layer's cache.
        memory_layer: the layer with the external memory, counted from 1 (published: 9 of 12); None = all.
        memory_size: maximum number of rows in the external memory, the oldest are dropped (published: up to
            262,144); 0 = only the cache.
        top_k: k, how many keys a query looks at (published: 32).
        scale_init: initial scale of the products of normalised queries and keys.
        gate_init: initial b; 0 = half memory, half local.

    Raises:
        ConfigError: `memory_layer` is not among the layers, or that layer has another memory.
    """

    sends_gradient = False

    def __init__(
        self,
        description: Description,
        *,
        mem_len: NonNegative = 24,
        memory_layer: Positive | None = None,
        memory_size: NonNegative = 65536,
        top_k: Positive = 32,
        scale_init: PositiveFloat = 10.0,
        gate_init: float = 0.0,
    ) -> None:
        super().__init__(description)
        if memory_layer is not None and memory_layer > description.layers:
            raise ConfigError(
                f"model.memory_layer={memory_layer}: the model has model.layers={description.layers}"
            )
        self.mem_len, self.memory_size, self.top_k = mem_len, memory_size, top_k
        self.memory_layer, self.memorizes = memory_layer, memory_layer in (None, description.layer)
        if self.memorizes:
            self.scale_H = nn.Parameter(torch.full((description.heads,), float(scale_init)))
            self.gate_H = nn.Parameter(torch.full((description.heads,), float(gate_init)))

    def check_among(self, memories: Sequence[LayerMemory]) -> None:
        at = self.memory_layer
        if at is not None and not isinstance(memories[at - 1], Memorizing):
            ours = [str(i) for i, memory in enumerate(memories, 1) if isinstance(memory, Memorizing)]
            raise ConfigError(
                f"model.memory_layer={at}: layer {at} is {type(memories[at - 1]).__name__}, which has no "
                f"external memory; layers with Memorizing: {', '.join(ours)}"
            )

    @property
    def carries(self) -> bool:
        return self.mem_len > 0 or self.state_grows

    @property
    def state_grows(self) -> bool:
        """Until the memory is full."""
        return self.memorizes and self.memory_size > 0

    def init_state(self, batch_size: int) -> MemorizingState:
        tokens_B = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return MemorizingState(self.no_rows(batch_size, self.mem_len), self.no_rows(batch_size), tokens_B)

    def begin(self, state: MemorizingState, where: Where) -> MemorizingOpen:
        keys, values = state.cache.keys_BGLK, state.cache.values_BGLK
        turn = where.turn(where.first - self.mem_len, self.mem_len, keys.dtype)
        return MemorizingOpen(
            state, KeyValues(rotate(keys, turn), values), keys[:, :, :0], self.mem_len - where.first
        )

    def extend(self, x_BTD: Tensor, open: MemorizingOpen, where: Where) -> tuple[Tensor, MemorizingOpen]:
        before = open.before
        q, k, v = self._project(x_BTD)
        turn = where.turn(where.start, where.count, q.dtype)
        seen = open.seen.then(rotate(k, turn), v)
        mask = where.once(
            ("cache", self.mem_len), lambda: where.look(windows.filled(self.mem_len, before.tokens_B))
        )
        y = self.attend(
            rotate(q, turn), seen.keys_BGLK, seen.values_BGLK, where, mask, remembered=self.mem_len
        )
        if self.state_grows:
            stored = before.memory.keys_BGLK.shape[2]
            low_B1 = (stored - before.tokens_B).clamp(min=0)[:, None]
            y = self._read(
                q[:, :, where.wanted], y, before.memory, low_B1, torch.full_like(low_B1, stored), where
            )
        keys = torch.cat([open.keys_BGnK, self.stored(k, where, 2)], dim=2)
        return self.merge(y), MemorizingOpen(before, seen, keys, open.first)

    def close(self, open: MemorizingOpen) -> MemorizingState:
        values = open.seen.values_BGLK[:, :, open.first : open.first + open.keys_BGnK.shape[2]]
        return self._after(open.before, KeyValues(open.keys_BGnK, values))

    def parallel(self, x_BTD: Tensor, state: MemorizingState, where: Where) -> tuple[Tensor, MemorizingState]:
        size, n, s, t = self.mem_len, where.count, where.segments, x_BTD.shape[1]
        q, k, v = self._project(x_BTD)
        own, cache = KeyValues(k, v), state.cache
        turn, turn_before = where.turn(0, t, q.dtype), where.turn(-size, size + t - n, q.dtype)
        k_before = rotate(torch.cat([cache.keys_BGLK, k[:, :, : t - n].detach()], dim=2), turn_before)
        v_before = torch.cat([cache.values_BGLK, v[:, :, : t - n].detach()], dim=2)
        seen_k, seen_v = windows.cut(k_before, rotate(k, turn), s), windows.cut(v_before, v, s)
        mask = where.once(("cache", size, s), lambda: windows.visible_all(size, state.tokens_B, s, n))
        y = self.attend(windows.fold(rotate(q, turn), s), seen_k, seen_v, where, mask, remembered=size)
        y = windows.unfold(y, s)
        if self.state_grows:
            stored = state.memory.keys_BGLK.shape[2]
            high_S = stored + torch.arange(s, device=x_BTD.device) * n
            low_BS = (stored - state.tokens_B).clamp(min=0)[:, None].maximum(high_S - self.memory_size)
            memory = state.memory.then(k.detach(), v.detach())
            y = self._read(q, y, memory, low_BS, high_S.expand_as(low_BS), where)
        return self.merge(y), self._after(state, own)

    def _after(self, state: MemorizingState, new: KeyValues) -> MemorizingState:
        """The state after reading tokens with these keys and values."""
        if not self.carries:
            return state
        new = new.detach()

        def longer(old: KeyValues, size: int) -> KeyValues:
            return old.then(new.keys_BGLK, new.values_BGLK).rows(slice(-size, None)) if size else old

        memory = longer(state.memory, self.memory_size if self.memorizes else 0)
        return MemorizingState(
            longer(state.cache, self.mem_len), memory, state.tokens_B + new.keys_BGLK.shape[2]
        )

    def _project(self, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values without positions, in the memory's layer normalised and scaled."""
        q, k, v = self.project(x_BTD)
        if not self.memorizes:
            return q, k, v
        root = self.description.head_width**0.5  # attention divides by this
        scale = self.scale_H.to(q.dtype).view(-1, 1, 1) * root
        return F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1), v

    def _read(
        self, q: Tensor, local: Tensor, memory: KeyValues, low_BS: Tensor, high_BS: Tensor, where: Where
    ) -> Tensor:
        """V_memory of the queries of S segments, which may see rows low <= p < high, mixed with V_local."""
        remembered = torch.zeros_like(local)
        if rows := memory.keys_BGLK.shape[2]:
            keys, values, scaled = *memory.tensors(), q * self.description.head_width**-0.5
            remembered, found = attend_nearest(scaled, keys, values, low_BS, high_BS, self.top_k)
            observing.offer("nearest", memory=self, where=where, found=found, rows=rows)
        written_BT = (low_BS < high_BS).repeat_interleave(q.shape[2] // low_BS.shape[1], dim=1)
        gate_BHT1 = self.gate_H.sigmoid().view(-1, 1, 1) * written_BT[:, None, :, None]
        return self.mix(local, remembered, gate_BHT1, where)

    @torch.no_grad()
    def diagnose(self) -> dict[str, Tensor]:
        """The gates: share of the memory in each head's output."""
        return {"gate": self.gate_H.sigmoid()} if self.memorizes else {}
