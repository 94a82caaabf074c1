"""Recurrent Memory Transformer, decoder (Bulatov, Kuratov, Burtsev, NeurIPS 2022, arXiv 2207.06881, section 3.2).

    [ read memory (M) | segment (N) | write memory (M) ]

The same M vectors go in at both ends (with write_memory=learned, learned ones of their own go in behind). Read memory tells the segment
what came before; write memory, which sees read memory and the whole segment, leaves the top layer as the M vectors that the next segment
begins with.

    who looks at    read   segment   write
    read            all    -         -
    segment         all    causal    -
    write           all    all       all

The memory of segment s is made by the top layer and enters the first layer of segment s + 1, so there is no parallel form.
Positions are explicit (the published code takes memory's from a shift that is invalid above the diagonal): `layers/memory_tokens.py`.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.bounds import Positive
from memlab.layers import memory_tokens as layout
from memlab.layers.state import State, state
from memlab.models.base import Decoder, Open, Output


@state
class RMTState(State):
    """What RMT carries: M vectors for each document."""

    memory_BMD: Tensor


class RMT(Decoder):
    """RMT decoder.

    Args:
        memory_tokens: M, the number of read and of write memory tokens.
        write_memory: what write memory is made from: the carried vectors, as in the paper, or learned ones, the same in each segment.
            `backbone` are `Model`'s arguments.
    """

    def __init__(self, *, memory_tokens: Positive, write_memory: Literal["carried", "learned"] = "carried", **backbone: Any) -> None:
        super().__init__(**backbone)
        # Distinct vectors of a token embedding's size; the published code repeats one vector M times.
        self.initial_memory_MD = nn.Parameter(torch.randn(memory_tokens, self.width))
        self.write_memory_MD = nn.Parameter(torch.randn(memory_tokens, self.width)) if write_memory == "learned" else None

    def init_state(self, batch_size: int) -> RMTState:
        return RMTState(self.initial_memory_MD.expand(batch_size, -1, -1))

    def written_from(self, state: RMTState) -> Tensor:
        """What stands behind a segment, [B, M, D]."""
        return state.memory_BMD if self.write_memory_MD is None else self.write_memory_MD.expand_as(state.memory_BMD)

    def segment(self, tokens_BN: Tensor, state: RMTState) -> Output:
        m, n = state.memory_BMD.shape[1], tokens_BN.shape[1]
        x = torch.cat([state.memory_BMD, self.embed(tokens_BN), self.written_from(state)], dim=1)
        y, _ = self.stack(x, layout.positions(m, n, m, self.device), layout.mask(m, n, m, self.device), rows=slice(m, None))
        written = RMTState(y[:, n:])
        return Output(self.head(y[:, :n]), written, diagnose(state.memory_BMD, written.memory_BMD))

    def begin(self, state: RMTState) -> Open:
        m = state.memory_BMD.shape[1]
        _, past = self.stack(state.memory_BMD, layout.positions(m, 0, 0, self.device), layout.mask(m, 0, 0, self.device))
        return Open(state, past, read=0)

    def close(self, open: Open) -> RMTState:
        memory_BMD = self.written_from(open.state)
        m = memory_BMD.shape[1]
        positions = open.read + torch.arange(m, device=self.device)
        sees_all = torch.ones(m, m + open.read + m, dtype=torch.bool, device=self.device)
        y, _ = self.stack(memory_BMD, positions, sees_all, open.past)
        return RMTState(y)


@torch.no_grad()
def diagnose(before_BMD: Tensor, after_BMD: Tensor) -> dict[str, Tensor]:
    """How far one segment moved a memory: mean cosine similarity of each slot with itself."""
    return {"memory/similarity": F.cosine_similarity(before_BMD, after_BMD, dim=-1).mean()}
