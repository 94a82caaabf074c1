"""Where memory tokens stand and who looks at whom, for models whose memory is a block of tokens beside the segment.

    [ read memory (M) | segment (N) | write memory (W) ]

W is M, or 0 for a model that writes nothing.
"""

from __future__ import annotations

import torch
from torch import Tensor


def positions(read: int, tokens: int, write: int, device: torch.device) -> Tensor:
    """int [M + N + W]: the segment is 0..N-1 whatever the memory's size; read memory stands before it, write memory behind."""
    return torch.arange(-read, tokens + write, device=device)


def mask(read: int, tokens: int, write: int, device: torch.device) -> Tensor:
    """bool [M + N + W, M + N + W], True = may look.

    Read memory sees read memory; a token sees read memory, earlier tokens and itself; write memory sees everything.
    """
    total = read + tokens + write
    may_look = torch.ones(total, total, dtype=torch.bool, device=device).tril()
    may_look[:read, :read] = True
    may_look[read + tokens :] = True
    return may_look
