"""s(x) = ELU(x) + 1, the feature map of linear attention (Katharopoulos 2020, arXiv 2006.16236, eq. 7)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def elu_plus_one_naive(x: Tensor) -> Tensor:
    """The formula as it stands."""
    return F.elu(x) + 1


def elu_plus_one(x: Tensor) -> Tensor:
    """As `elu_plus_one_naive`: exp(x) below 0, x + 1 above. Only s(x) is saved: the slope is min(s(x), 1)."""
    y: Tensor = _EluPlusOne.apply(x)
    return y


class _EluPlusOne(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)  # for the matrix products that follow
        torch.clamp(x, max=0, out=y).exp_().add_(x.clamp(min=0))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return y.clamp(max=1).mul_(dy)
