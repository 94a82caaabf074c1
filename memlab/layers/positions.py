"""Two ways to say where tokens stand. Positions are explicit integers; no module counts a cache.

    rope             RoFormer (arXiv 2104.09864, eq. 15): queries and keys are turned by their positions
    transformer_xl   Transformer-XL (arXiv 1901.02860, section 3.3): a term for each distance is added to the scores: `distances.py`

Shapes: B batch, H heads, T tokens, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and sines, [T, K] or [B, 1, T, K]


def rotation(positions: Tensor, head_width: int, base: float = 10_000.0, dtype: torch.dtype = torch.float32) -> Rotation:
    """Cosines and sines for integer `positions`, [T] (shared by the batch) or [B, T], computed in float64 and then cast."""
    angle = angles(positions, head_width, base)
    angle = torch.cat([angle, angle], dim=-1)
    if positions.dim() == 2:
        angle = angle[:, None]  # [B, 1, T, K]: one rotation for all heads
    return angle.cos().to(dtype), angle.sin().to(dtype)


def angles(positions: Tensor, width: int, base: float) -> Tensor:
    """Integer positions times width / 2 falling frequencies, [.., width / 2], in float64."""
    frequency = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width)
    return positions[..., None].to(torch.float64) * frequency


def rotate(x_BHTK: Tensor, by: Rotation | None) -> Tensor:
    """Turn each pair (k, k + K/2) of the head by its position's angle; None = positions are not told by turning."""
    return x_BHTK if by is None else _Turn.apply(x_BHTK, *by)


class _Turn(torch.autograd.Function):
    """A rotation; its gradient is turned back. Written out, because autograd would keep and add up six tensors of that size."""

    @staticmethod
    def forward(ctx: Any, x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x_BHTK, cos, sin)

    @staticmethod
    def backward(ctx: Any, gradient_BHTK: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradient_BHTK, cos, -sin), None, None


def _turned(x_BHTK: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x_BHTK.chunk(2, dim=-1)
    sin = sin.chunk(2, dim=-1)[0]  # both halves are the same
    y = x_BHTK * cos
    y_first, y_second = y.chunk(2, dim=-1)
    y_first.addcmul_(second, sin, value=-1)
    y_second.addcmul_(first, sin)
    return y.to(x_BHTK.dtype)
