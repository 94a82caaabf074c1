"""Recurrent Memory Transformer, encoder (Bulatov, Kuratov, Burtsev 2023, arXiv 2304.11062, section 3): one answer for each sample.

    [ class token | memory (M) | segment (N) ]        every row looks at every row

Memory stands at the front only. What the top layer makes of its M rows is the memory of the next segment, and what it makes of the class
token after the last segment is the answer. There is no parallel form, for the reason that RMT has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from memlab.bounds import Positive
from memlab.models.base import Encoder, Output
from memlab.models.rmt import RMTState, diagnose


class RMTEncoder(Encoder):
    """RMT encoder with a classification head.

    Args:
        memory_tokens: M (published: 10). `backbone` are `Model`'s arguments; the classes are the token ids.
    """

    def __init__(self, *, memory_tokens: Positive, **backbone: Any) -> None:
        super().__init__(**backbone)
        self.class_token_D = nn.Parameter(torch.randn(self.width))
        self.initial_memory_MD = nn.Parameter(torch.randn(memory_tokens, self.width))

    def init_state(self, batch_size: int) -> RMTState:
        return RMTState(self.initial_memory_MD.expand(batch_size, -1, -1))

    def rows(self, tokens_BN: Tensor, state: RMTState) -> tuple[Tensor, Tensor, Tensor]:
        """Inputs [B, 1 + M + N, D], their positions (the segment is 0..N-1), and a mask under which all see all."""
        b, n = tokens_BN.shape
        m = state.memory_BMD.shape[1]
        x = torch.cat([self.class_token_D.expand(b, 1, -1), state.memory_BMD, self.embed(tokens_BN)], dim=1)
        everything = torch.ones(1, 1, dtype=torch.bool, device=self.device).expand(x.shape[1], x.shape[1])
        return x, torch.arange(-1 - m, n, device=self.device), everything

    def segment(self, tokens_BN: Tensor, state: RMTState) -> Output:
        m = state.memory_BMD.shape[1]
        y, _ = self.stack(*self.rows(tokens_BN, state), rows=slice(1 + m))
        after = RMTState(y[:, 1:])
        return Output(self.head(y[:, :1]), after, diagnose(state.memory_BMD, after.memory_BMD))

    def peak_bytes(self, tokens_BN: Tensor, state: RMTState) -> int:
        """An encoder needs no cache; the keys and values of a segment in all layers are counted as for decoders, on one ruler."""
        _, seen = self.stack(*self.rows(tokens_BN, state))
        return state.nbytes + sum(kv.nbytes for kv in seen)
