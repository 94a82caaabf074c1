"""Recurrent Memory Transformer, encoder (Bulatov, Kuratov, Burtsev 2023, arXiv 2304.11062, section 3).

    [ class token | memory (M) | segment (N) ]        every row looks at every row

Memory tokens only stand in front of the segment. The top layer's output for them is the memory of the next
segment, and its output for the class token in the last segment is the answer, one per sample. There is no
parallel form, for the same reason as in the decoder.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memlab.bounds import Positive
from memlab.memory_tokens.base import MemoryTokens
from memlab.memory_tokens.rmt import RMTState, similarity


class RMTEncoder(MemoryTokens):
    """A class token and memory before each segment.

    Args:
        width: D.
        memory_tokens: M (published: 10).
    """

    bidirectional = True
    carries = True

    def __init__(self, width: int, *, memory_tokens: Positive = 10) -> None:
        super().__init__()
        self.class_token_D = nn.Parameter(torch.randn(width))
        self.initial_memory_MD = nn.Parameter(torch.randn(memory_tokens, width))

    @property
    def reads(self) -> int:
        """1 + M: the class token stands first."""
        return 1 + self.initial_memory_MD.shape[0]

    @torch.no_grad()
    def begin_beside(self, embed_VD: Tensor, class_token: int | None = None) -> None:
        """As in the base; the class token begins as the model's own."""
        super().begin_beside(embed_VD)
        if class_token is not None:
            self.class_token_D.copy_(embed_VD[class_token])

    def init_state(self, batch_size: int) -> RMTState:
        return RMTState(self.initial_memory_MD.expand(batch_size, -1, -1))

    def before(self, state: RMTState, batch_size: int) -> Tensor:
        return torch.cat([self.class_token_D.expand(batch_size, 1, -1), state.memory_BMD], dim=1)

    def written(self, state: RMTState, top_BWD: Tensor) -> RMTState:
        return RMTState(top_BWD[:, 1:])

    def diagnose(self, before: RMTState, after: RMTState) -> dict[str, Tensor]:
        return similarity(before.memory_BMD, after.memory_BMD)
