"""Global memory (GMAT: Gupta, Berant 2020, arXiv 2006.03274; ETC: Ainslie et al. 2020, arXiv 2004.08483).

    [ class token | global (M) | segment (N) ]          an encoder; nothing is carried

    looks at        global   segment
    global          all      all               global-to-global, global-to-long
    segment         all      |i - j| <= r      long-to-global, and long-to-long within a radius

Attention within the segment is local, so tokens that are further apart can only reach each other through the
learned global vectors, in at least two layers. It is a control for what vectors do that are learned and not
carried: on a task that needs an earlier segment the model must stay at chance.

The answer is the top layer's output for the class token, which is a global one too. As in GMAT, global
vectors and tokens share all projections (ETC may give each their own), and what is local is a radius, as in
ETC (GMAT's tokens see those of their chunk). ETC's contrastive loss is left out. Both papers are about
encoders: in a decoder, global vectors that see the segment would show each token those after it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memlab.bounds import NonNegative, Positive
from memlab.layers.state import Empty
from memlab.memory_tokens.base import MemoryTokens


class GlobalMemory(MemoryTokens):
    """A class token and global vectors before each segment.

    Args:
        width: D.
        memory_tokens: M.
        radius: r, how many tokens away a token looks, in both directions (published: 84 in ETC); None = all.
    """

    bidirectional = True

    def __init__(self, width: int, *, memory_tokens: Positive = 10, radius: NonNegative | None = 4) -> None:
        super().__init__()
        self.class_token_D = nn.Parameter(torch.randn(width))
        self.global_MD = nn.Parameter(torch.randn(memory_tokens, width))
        self.radius = radius

    @property
    def reads(self) -> int:
        """1 + M: the class token stands first."""
        return 1 + self.global_MD.shape[0]

    def init_state(self, batch_size: int) -> Empty:
        return Empty()

    def before(self, state: Empty, batch_size: int) -> Tensor:
        vectors_MD = torch.cat([self.class_token_D[None], self.global_MD])
        return vectors_MD.expand(batch_size, -1, -1)

    def mask(self, tokens: int, device: torch.device) -> Tensor:
        """bool [1 + M + N, 1 + M + N], True = may look: the table above."""
        if self.radius is None:
            return super().mask(tokens, device)
        at_L = torch.arange(self.reads + tokens, device=device) - self.reads
        near_LL = (at_L[:, None] - at_L).abs() <= self.radius
        return near_LL | (at_L < 0) | (at_L[:, None] < 0)
