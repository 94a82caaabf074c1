"""Rotary position embedding (RoFormer, arXiv 2104.09864, eq. 15). Positions are explicit integers; no module counts a cache.

Shapes: B batch, H heads, T tokens, K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and sines, [T, K] or [B, 1, T, K]


def rotation(positions: Tensor, head_width: int, base: float = 10_000.0, dtype: torch.dtype = torch.float32) -> Rotation:
    """Cosines and sines for integer `positions`, [T] (shared by the batch) or [B, T], computed in float64 and then cast."""
    frequency = base ** (-torch.arange(0, head_width, 2, device=positions.device, dtype=torch.float64) / head_width)
    angle = positions[..., None].to(torch.float64) * frequency
    angle = torch.cat([angle, angle], dim=-1)
    if positions.dim() == 2:
        angle = angle[:, None]  # [B, 1, T, K]: one rotation for all heads
    return angle.cos().to(dtype), angle.sin().to(dtype)


def rotate(x_BHTK: Tensor, by: Rotation) -> Tensor:
    """Turn each pair (k, k + K/2) of the head by its position's angle."""
    cos, sin = by
    first, second = x_BHTK.chunk(2, dim=-1)
    return (x_BHTK * cos + torch.cat([-second, first], dim=-1) * sin).to(x_BHTK.dtype)
