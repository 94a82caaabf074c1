"""The feed-forward sub-layer of a block."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn

FeedForwardKind = Literal["gelu", "gelu_tanh", "swiglu"]


class FeedForward(nn.Module):
    """down(act(up(x))).

    Args:
        width, hidden: D, and the width between the two linear layers.
        kind: `gelu` (arXiv 1606.08415; BERT), `gelu_tanh` (its approximation; GPT-2), or `swiglu` (arXiv
            2002.05202; Llama), where `up` has two halves, and SiLU of the first half gates the second.
        bias: whether both linear layers have a bias.
    """

    def __init__(self, width: int, hidden: int, kind: FeedForwardKind, bias: bool) -> None:
        super().__init__()
        self.kind = kind
        self.up = nn.Linear(width, 2 * hidden if kind == "swiglu" else hidden, bias=bias)
        self.down = nn.Linear(hidden, width, bias=bias)

    def forward(self, x_BTD: Tensor) -> Tensor:
        y = self.up(x_BTD)
        if self.kind == "swiglu":
            gate, y = y.chunk(2, dim=-1)
            y = F.silu(gate) * y
        else:
            y = F.gelu(y, approximate="tanh" if self.kind == "gelu_tanh" else "none")
        out: Tensor = self.down(y)
        return out
