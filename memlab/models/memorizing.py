"""Memorizing Transformer (Wu, Rabe, Hutchins, Szegedy, ICLR 2022, arXiv 2203.08913, section 3).

One layer has an external memory: the keys and values of everything it has read, first in first out. Each query looks at the k
nearest keys of its head; what it finds and what local attention finds are mixed by a gate.

    V = g V_memory + (1 - g) V_local,   g = sigmoid(b)     one learned b for each head; two softmaxes

Every layer also has a Transformer-XL cache of keys and values, for local attention over a segment's border. Nothing of the cache or
the memory carries gradient. In the memory's layer queries and keys are normalised, so that keys stay comparable while training
changes the layers below; a learned scale for each head takes the place of their length (the scale is of the authors' code).
Keys in memory are without positions. Left open by the paper, decided here: a token whose document has nothing in memory yet takes
V_local alone (g = 0).

The nearest keys are found exactly, in chunks. Parallel form: the memory of segment s is the carried one and the rows of this layer in
earlier segments; all queries search [carried ; all rows] at once, each in the range that it may see.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.bounds import NonNegative, Positive, PositiveFloat
from memlab.errors import ConfigError
from memlab.layers import observing, windows
from memlab.layers.attention import KeyValues
from memlab.layers.blocks import Block
from memlab.layers.nearest import attend_nearest
from memlab.layers.positions import rotate
from memlab.layers.state import State, state
from memlab.models.base import Open
from memlab.models.layered import LayeredDecoder


@state
class MemorizingState(State):
    """The cache of each layer [C rows], the memory [P rows], both without positions, and how many rows are of each row's document."""

    caches: tuple[KeyValues, ...]
    memory: KeyValues
    tokens_B: Tensor  # tokens of the document so far; the last rows of cache and memory are its

    def reset(self, rows_B: Tensor, initial: State) -> MemorizingState:
        """A new document owns none of the rows."""
        return dataclasses.replace(self, tokens_B=self.tokens_B.masked_fill(rows_B, 0))


@state
class MemorizingPast(State):
    """Of one layer, while a segment is read: turned keys and values of [cache ; own], and its own keys without positions."""

    seen: KeyValues
    keys_BHnK: Tensor


class Memorizing(LayeredDecoder):
    """Memorizing Transformer decoder.

    Args:
        mem_len: C, rows of each layer's cache.
        memory_layer: the layer with the external memory, counted from 1 (published: 9 of 12).
        memory_size: rows of the external memory at most; the oldest are dropped (published: up to 262,144).
        top_k: k, how many keys a query looks at (published: 32).
        scale_init: what products of normalised queries and keys are multiplied with, to begin with.
        gate_init: b to begin with; 0 = half memory, half local.
        memory: on; off = gates fixed to 0, the control without memory (the caches stay); shuffled = each document of a batch reads the
            memory of the one before it.
            `backbone` are `Model`'s arguments.

    Raises:
        ConfigError: `memory_layer` is not among the layers.
    """

    def __init__(
        self,
        *,
        mem_len: NonNegative,
        memory_layer: Positive,
        memory_size: Positive,
        top_k: Positive,
        scale_init: PositiveFloat,
        gate_init: float,
        memory: Literal["on", "off", "shuffled"],
        **backbone: Any,
    ) -> None:
        super().__init__(**backbone)
        if memory_layer > len(self.stack.blocks):
            raise ConfigError(f"model.memory_layer={memory_layer}: the model has model.layers={len(self.stack.blocks)}")
        self.mem_len, self.memory_layer, self.memory_size, self.top_k = mem_len, memory_layer - 1, memory_size, top_k
        self.memory = memory
        self.scale_H = nn.Parameter(torch.full((self.stack.heads,), float(scale_init)))
        self.gate_H = nn.Parameter(torch.full((self.stack.heads,), float(gate_init)))

    @property
    def carries(self) -> bool:
        return self.memory != "off" or self.mem_len > 0

    @property
    def state_grows(self) -> bool:
        """Until the memory is full."""
        return True

    def init_state(self, batch_size: int) -> MemorizingState:
        weight = self.embed.weight
        rows = weight.new_zeros(batch_size, self.stack.kv_heads, self.mem_len, self.stack.head_width)
        cache, memory = KeyValues(rows, rows), KeyValues(rows[:, :, :0], rows[:, :, :0])
        tokens_B = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return MemorizingState(tuple(cache for _ in self.stack.blocks), memory, tokens_B)

    def attend(self, layer: int, open: Open, block: Block, x_BnD: Tensor) -> tuple[Tensor, MemorizingPast]:
        state, n = open.state, x_BnD.shape[1]
        if open.past:
            before: MemorizingPast = open.past[layer]
        else:
            cache = state.caches[layer]
            turn = self.stack.turn(torch.arange(-self.mem_len, 0, device=self.device), cache.keys_BHPK.dtype)
            seen = KeyValues(rotate(cache.keys_BHPK, turn), cache.values_BHPK)
            before = MemorizingPast(seen, cache.keys_BHPK[:, :, :0])
        q, k, v = self._project(layer, block, x_BnD)
        turn = self.stack.turn(torch.arange(open.read, open.read + n, device=self.device), q.dtype)
        seen_k = torch.cat([before.seen.keys_BHPK, rotate(k, turn)], dim=2)
        seen_v = torch.cat([before.seen.values_BHPK, v], dim=2)
        mask = windows.visible(self.mem_len, state.tokens_B, open.read, n)
        y = block.attention.attend(rotate(q, turn), seen_k, seen_v, mask, self.stack.relative(layer))
        if layer == self.memory_layer:
            stored = state.memory.keys_BHPK.shape[2]
            low_B1 = (stored - state.tokens_B).clamp(min=0)[:, None]
            y = self._mix(q, y, state.memory, low_B1, torch.full_like(low_B1, stored))
        return block.attention.merge(y), MemorizingPast(KeyValues(seen_k, seen_v), torch.cat([before.keys_BHnK, k], dim=2))

    def close(self, open: Open) -> MemorizingState:
        own = (KeyValues(past.keys_BHnK, past.seen.values_BHPK[:, :, self.mem_len :]) for past in open.past)
        return self.written(open.state, tuple(own), open.read)

    def attend_all(self, layer: int, state: MemorizingState, block: Block, x_BTD: Tensor, segments: int) -> tuple[Tensor, KeyValues]:
        t = x_BTD.shape[1]
        n = t // segments
        q, k, v = self._project(layer, block, x_BTD)
        own, cache = KeyValues(k, v), state.caches[layer]
        turn = self.stack.turn(torch.arange(t, device=self.device), q.dtype)
        k_before = torch.cat([cache.keys_BHPK, k[:, :, : t - n].detach()], dim=2)
        k_before = rotate(k_before, self.stack.turn(torch.arange(-self.mem_len, t - n, device=self.device), q.dtype))
        v_before = torch.cat([cache.values_BHPK, v[:, :, : t - n].detach()], dim=2)
        seen_k, seen_v = windows.cut(k_before, rotate(k, turn), segments), windows.cut(v_before, v, segments)
        mask = windows.visible_all(self.mem_len, state.tokens_B, segments, n)
        y = block.attention.attend(windows.fold(rotate(q, turn), segments), seen_k, seen_v, mask, self.stack.relative(layer))
        y = windows.unfold(y, segments)
        if layer == self.memory_layer:
            memory = KeyValues(*(torch.cat(pair, dim=2) for pair in zip(state.memory.tensors(), own.detach().tensors(), strict=True)))
            stored = state.memory.keys_BHPK.shape[2]
            high_S = stored + torch.arange(segments, device=self.device) * n
            low_BS = (stored - state.tokens_B).clamp(min=0)[:, None].maximum(high_S - self.memory_size)
            y = self._mix(q, y, memory, low_BS, high_S.expand_as(low_BS))
        return block.attention.merge(y), own

    def written(self, state: MemorizingState, layers: tuple[KeyValues, ...], tokens: int) -> MemorizingState:
        def longer(old: KeyValues, new: KeyValues, size: int) -> KeyValues:
            pairs = zip(old.tensors(), new.detach().tensors(), strict=True)
            return KeyValues(*(torch.cat(pair, dim=2)[:, :, -size:] if size else pair[0] for pair in pairs))

        caches = tuple(longer(old, new, self.mem_len) for old, new in zip(state.caches, layers, strict=True))
        memory = longer(state.memory, layers[self.memory_layer], self.memory_size)
        return MemorizingState(caches, memory, state.tokens_B + tokens)

    def _project(self, layer: int, block: Block, x_BTD: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values without positions; in the memory's layer, queries and keys of length 1 and the learned scale."""
        q, k, v = block.project(x_BTD)
        if layer != self.memory_layer:
            return q, k, v
        scale = self.scale_H.to(q.dtype).view(-1, 1, 1) * self.stack.head_width**0.5  # attention divides by this root
        return F.normalize(q, dim=-1) * scale, F.normalize(k, dim=-1), v

    def _mix(self, q: Tensor, local: Tensor, memory: KeyValues, low_BS: Tensor, high_BS: Tensor) -> Tensor:
        """What the memory gives to the queries of S segments, which may see its rows low <= p < high, and local attention, by the gate."""
        if self.memory == "off":
            return local
        if self.memory == "shuffled":
            memory, low_BS = memory.map(lambda t: t.roll(1, dims=0)), low_BS.roll(1, dims=0)
        q = q * self.stack.head_width**-0.5
        remembered = attend_nearest(q, memory.keys_BHPK, memory.values_BHPK, low_BS, high_BS, self.top_k)
        written_BT = (low_BS < high_BS).repeat_interleave(q.shape[2] // low_BS.shape[1], dim=1)
        gate_BHT1 = self.gate_H.sigmoid().view(-1, 1, 1) * written_BT[:, None, :, None]
        observing.offer("mix", layer=self.memory_layer, gate=gate_BHT1, remembered=remembered, local=local)
        return (gate_BHT1 * remembered + (1 - gate_BHT1) * local).to(local.dtype)

    @torch.no_grad()
    def diagnose(self) -> dict[str, Tensor]:
        """The gates: share of the memory in each head's output."""
        return {f"gate/layer{self.memory_layer}_head{head}": gate for head, gate in enumerate(self.gate_H.sigmoid())}
