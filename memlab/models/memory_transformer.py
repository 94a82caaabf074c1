"""Memory Transformer (Burtsev et al. 2020, arXiv 2006.11527), as the control that the RMT paper compares with.

    [ memory (M) | segment (N) ]

M learned vectors stand before every segment and nothing is carried over. It has RMT's read memory and its extra computation but
no memory of earlier segments, so on a task that needs one it must stay at chance.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from memlab.bounds import Positive
from memlab.layers import memory_tokens as layout
from memlab.layers.state import Empty
from memlab.models.base import Decoder, Open, Output


class MemoryTransformer(Decoder):
    """Memory tokens at the front of each segment.

    Args:
        memory_tokens: M, the number of memory tokens. `backbone` are `Model`'s arguments.
    """

    def __init__(self, *, memory_tokens: Positive, **backbone: Any) -> None:
        super().__init__(**backbone)
        self.memory_MD = nn.Parameter(torch.randn(memory_tokens, self.width))

    @property
    def carries(self) -> bool:
        return False

    def init_state(self, batch_size: int) -> Empty:
        return Empty()

    def segment(self, tokens_BN: Tensor, state: Empty) -> Output:
        b, n = tokens_BN.shape
        m = self.memory_MD.shape[0]
        x = torch.cat([self.memory_MD.expand(b, -1, -1), self.embed(tokens_BN)], dim=1)
        y, _ = self.stack(x, layout.positions(m, n, 0, self.device), layout.mask(m, n, 0, self.device), rows=slice(m, None))
        return Output(self.head(y), state)

    def parallel(self, tokens_BSN: Tensor, state: Empty) -> Output:
        """Segments are independent: fold them into the batch."""
        output = self.segment(tokens_BSN.flatten(0, 1), state)
        return Output(output.logits.unflatten(0, tokens_BSN.shape[:2]), state)

    def begin(self, state: Empty) -> Open:
        m = self.memory_MD.shape[0]
        _, past = self.stack(self.memory_MD[None], layout.positions(m, 0, 0, self.device), layout.mask(m, 0, 0, self.device))
        return Open(state, past, read=0)  # the same for every document: one row, until the first tokens tell how many there are

    def extend(self, tokens_Bn: Tensor, open: Open) -> tuple[Tensor, Open]:
        b = tokens_Bn.shape[0]
        past = tuple(kv.map(lambda t: t.expand(b, -1, -1, -1)) for kv in open.past)
        return super().extend(tokens_Bn, Open(open.state, past, open.read))

    def close(self, open: Open) -> Empty:
        return Empty()
