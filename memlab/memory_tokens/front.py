"""Memory Transformer (Burtsev et al. 2020, arXiv 2006.11527), the control of the RMT paper.

    [ memory (M) | segment (N) ]

M learned vectors stand before every segment, and nothing is carried. The model has RMT's read memory and its
extra computation but no memory of earlier segments, so it must stay at chance on a task that needs one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from memlab.bounds import Positive
from memlab.layers.state import Empty
from memlab.memory_tokens.base import MemoryTokens


class Front(MemoryTokens):
    """Learned vectors at the front of each segment.

    Args:
        width: D.
        memory_tokens: M.
    """

    def __init__(self, width: int, *, memory_tokens: Positive = 12) -> None:
        super().__init__()
        self.memory_MD = nn.Parameter(torch.randn(memory_tokens, width))

    @property
    def reads(self) -> int:
        return self.memory_MD.shape[0]

    def init_state(self, batch_size: int) -> Empty:
        return Empty()

    def before(self, state: Empty, batch_size: int) -> Tensor:
        return self.memory_MD.expand(batch_size, -1, -1)
