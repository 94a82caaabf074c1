"""Rotary positions: pair (k, k + K/2) of a head turns by its position's angle (arXiv 2104.09864, eq. 34).

Shapes: `x` is [.., T, K]; `cos` and `sin` are broadcastable to it, and both halves of their last dimension
are equal.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def rotate_naive(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x cos + (-x_2, x_1) sin, the formula as it stands."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-second, first], dim=-1) * sin).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """As `rotate_naive`. The gradient is the inverse rotation, so only the angles are saved for it."""
    y: Tensor = _Rotate.apply(x, cos, sin)
    return y


class _Rotate(torch.autograd.Function):
    """Autograd would save and add up six tensors of the size of `x`."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotated(x, cos, sin)

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotated(dy, cos, -sin), None, None


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    sin = sin.chunk(2, dim=-1)[0]
    y = x * cos
    y_first, y_second = y.chunk(2, dim=-1)
    y_first.addcmul_(second, sin, value=-1)
    y_second.addcmul_(first, sin)
    return y.to(x.dtype)
