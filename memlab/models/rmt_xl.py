"""RMT with a Transformer-XL cache (Bulatov, Kuratov, Burtsev, NeurIPS 2022, arXiv 2207.06881, section 3.2 and table 5, "Tr-XL + RMT").

    [ cache (C, in each layer) | read memory (M) | segment (N) | write memory (M) ]

Memory tokens carry a summary with gradient, the cache the last C tokens' hidden states in each layer without (`transformer_xl.py`).

    who looks at    cache    read   segment   write
    read            option   all    -         -
    segment         all      all    causal    -
    write           option   all    all       all

The cache holds segment tokens alone (the published code also caches the write memory's rows, which takes room from tokens). It stands
in front of the read memory, at positions -M-C .. -M-1.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from memlab.bounds import NonNegative, Positive
from memlab.layers import hidden_cache
from memlab.layers import memory_tokens as layout
from memlab.layers.attention import ALL, causal_mask
from memlab.layers.blocks import Attend, Block
from memlab.layers.hidden_cache import HiddenPast
from memlab.layers.state import State, state
from memlab.models.base import Decoder, Open, Output
from memlab.models.rmt import diagnose


@state
class RMTXLState(State):
    """M memory vectors, the last C inputs of each layer (detached), and how many of those are of each row's document."""

    memory_BMD: Tensor
    hidden: tuple[Tensor, ...]  # [B, C, D]
    filled_B: Tensor


class RMTXL(Decoder):
    """RMT decoder with a Transformer-XL cache.

    Args:
        memory_tokens: M, the number of read and of write memory tokens.
        mem_len: C, rows of cache in each layer.
        read_mem_from_cache: whether memory tokens look at the cache. `backbone` are `Model`'s arguments.
    """

    def __init__(self, *, memory_tokens: Positive, mem_len: NonNegative, read_mem_from_cache: bool, **backbone: Any) -> None:
        super().__init__(**backbone)
        self.mem_len, self.read_mem_from_cache = mem_len, read_mem_from_cache
        self.initial_memory_MD = nn.Parameter(torch.randn(memory_tokens, self.width))

    def init_state(self, batch_size: int) -> RMTXLState:
        nothing = self.embed.weight.new_zeros(batch_size, self.mem_len, self.width)
        filled_B = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return RMTXLState(self.initial_memory_MD.expand(batch_size, -1, -1), tuple(nothing for _ in self.stack.blocks), filled_B)

    def segment(self, tokens_BN: Tensor, state: RMTXLState) -> Output:
        m, n = state.memory_BMD.shape[1], tokens_BN.shape[1]
        x = torch.cat([state.memory_BMD, self.embed(tokens_BN), state.memory_BMD], dim=1)
        positions = layout.positions(m, n, m, self.device)
        is_token = (positions >= 0) & (positions < n)
        y, past = self._read(x, positions, layout.mask(m, n, m, self.device), is_token, state, (), rows=slice(m, None))
        after = self._after(state, y[:, n:], [kept.hidden_BnD[:, m : m + n] for kept in past], n)
        return Output(self.head(y[:, :n]), after, diagnose(state.memory_BMD, after.memory_BMD))

    def begin(self, state: RMTXLState) -> Open:
        m = state.memory_BMD.shape[1]
        positions = layout.positions(m, 0, 0, self.device)
        _, past = self._read(state.memory_BMD, positions, layout.mask(m, 0, 0, self.device), positions >= 0, state, ())
        return Open(state, tuple(HiddenPast(kept.seen, kept.hidden_BnD[:, :0]) for kept in past), read=0)

    def extend(self, tokens_Bn: Tensor, open: Open) -> tuple[Tensor, Open]:
        m, n = open.state.memory_BMD.shape[1], tokens_Bn.shape[1]
        positions = torch.arange(open.read, open.read + n, device=self.device)
        sees = causal_mask(n, m + open.read + n, self.device)
        y, past = self._read(self.embed(tokens_Bn), positions, sees, positions >= 0, open.state, open.past)
        return self.head(y), Open(open.state, past, open.read + n)

    def close(self, open: Open) -> RMTXLState:
        m, n = open.state.memory_BMD.shape[1], open.read
        positions = torch.arange(n, n + m, device=self.device)
        sees = torch.ones(m, m + n + m, dtype=torch.bool, device=self.device)
        y, _ = self._read(open.state.memory_BMD, positions, sees, positions < n, open.state, open.past)
        return self._after(open.state, y, [kept.hidden_BnD for kept in open.past], n)

    def _read(
        self,
        x_BTD: Tensor,
        positions: Tensor,
        sees_TL: Tensor,
        is_token_T: Tensor,
        state: RMTXLState,
        past: tuple[HiddenPast, ...],
        rows: slice = ALL,
    ) -> tuple[Tensor, tuple[HiddenPast, ...]]:
        """T more rows of a segment: top-layer outputs, and what each layer keeps.

        Args:
            positions: of the rows.
            sees_TL: what they may look at of [read ; own].
            is_token_T: which of them are no memory tokens.
            past: of the rows read before; () = none, and the cache is read first.
            rows: whose output is wanted.
        """
        first = -state.memory_BMD.shape[1] - self.mem_len
        turn = self.stack.turn(positions, x_BTD.dtype)
        turn_cache = self.stack.turn(torch.arange(first, first + self.mem_len, device=self.device), x_BTD.dtype)
        filled_BC = torch.arange(-self.mem_len, 0, device=self.device) >= -state.filled_B[:, None]
        cache_BTC = filled_BC[:, None] & (is_token_T | self.read_mem_from_cache)[:, None]
        mask = torch.cat([cache_BTC, sees_TL.expand(len(x_BTD), -1, -1)], dim=2)[:, None]

        def layer(i: int) -> Attend[HiddenPast]:
            def attend(block: Block, x_BTD: Tensor) -> tuple[Tensor, HiddenPast]:
                before = past[i] if past else hidden_cache.begin(block, state.hidden[i], turn_cache)
                q, after = hidden_cache.read(block, before, x_BTD, turn)
                keys, values = after.seen.tensors()
                y = block.attention.attend(q, keys, values, mask, self.stack.relative(i), ahead=True, rows=self.stack.rows(i, rows))
                return block.attention.merge(y), after

            return attend

        return self.stack.through(x_BTD, map(layer, range(len(self.stack.blocks))), rows)

    def _after(self, state: RMTXLState, memory_BMD: Tensor, read: list[Tensor], tokens: int) -> RMTXLState:
        """The state behind a segment whose layers had these inputs."""
        hidden = hidden_cache.keep(state.hidden, read, self.mem_len)
        return RMTXLState(memory_BMD, hidden, (state.filled_B + tokens).clamp(max=self.mem_len))
