"""One projection for rows that are used twice: as they are, and with the rows cut from the graph.

    y = x W^T + b            again = SG(x) W^T + b, only the columns from `first`

Transformer-XL needs both: a segment's keys and values for itself, and the same ones for later segments, whose
gradient reaches W and b but not x. The numbers are equal, so one product serves both.

Shapes: `x` is [B, T, D], `weight` [P, D], `bias` [P]; y is [B, T, P], again [B, T, P - first].
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def project_twice_naive(x: Tensor, weight: Tensor, bias: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """Two products."""
    return F.linear(x, weight, bias), F.linear(x.detach(), weight[first:], bias[first:])


def project_twice(x: Tensor, weight: Tensor, bias: Tensor, first: int) -> tuple[Tensor, Tensor]:
    """As `project_twice_naive`, with one product in the forward pass and one for the weights' gradient."""
    y, again = _ProjectTwice.apply(x, weight, bias, first)
    return y, again


class _ProjectTwice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, first: int) -> tuple[Tensor, Tensor]:
        y = F.linear(x, weight, bias)
        ctx.save_for_backward(x.to(y.dtype), weight.to(y.dtype))  # narrower under autocast
        ctx.first = first
        return y, y[..., first:].detach()

    @staticmethod
    def backward(
        ctx: Any, dy: Tensor, dagain: Tensor
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None, None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias, _ = ctx.needs_input_grad  # weights may be frozen
        parts = [d.flatten(0, 1) for d in (dy[..., : ctx.first], dy[..., ctx.first :] + dagain)]
        return (
            dy @ weight if needs_x else None,
            torch.cat([d.t() @ x.flatten(0, 1) for d in parts]) if needs_weight else None,
            torch.cat([d.sum(0) for d in parts]) if needs_bias else None,
            None,
        )
