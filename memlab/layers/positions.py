"""Positions of rows: explicit integers, never inferred from the length of a cache.

    rope             RoFormer (arXiv 2104.09864, eq. 15): queries and keys are rotated by their positions
    transformer_xl   Transformer-XL (arXiv 1901.02860, section 3.3): scores get a term for each distance,
                     `ops/distance_attention.py`
    learned          GPT-2, BERT: a learned vector for each position is added to the embedding
    none             only the mask gives an order

Shapes: B batch, T rows, K head width.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from memlab.ops.rotate import rotate as _rotate

Rotation = tuple[Tensor, Tensor]  # cosines and sines, [T, K] or [B, 1, T, K]


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of one backbone.

    Attributes:
        head_width: K.
        base: of the decreasing frequencies, base^(-2k / K).
    """

    head_width: int
    base: float = 10_000.0

    def rotation(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Rotation:
        """Cosines and sines of integer `positions`, [T] or [B, T] within documents, computed in float64."""
        angle = angles(positions, self.head_width, self.base)
        angle = torch.cat([angle, angle], dim=-1)
        if positions.dim() == 2:
            angle = angle[:, None]  # [B, 1, T, K]: one rotation for all heads
        return angle.cos().to(dtype), angle.sin().to(dtype)


def angles(positions: Tensor, width: int, base: float) -> Tensor:
    """Integer positions times width / 2 decreasing frequencies, [.., width / 2], in float64."""
    frequency = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width)
    return positions[..., None].to(torch.float64) * frequency


def sinusoids(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """[T, width]: sines, then cosines, of each position ("Attention Is All You Need", section 3.5)."""
    angle = angles(positions, width, 10_000.0)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)[:, :width].to(dtype)


def rotate(x_BHTK: Tensor, by: Rotation | None) -> Tensor:
    """Queries or keys rotated to their positions; None = positions are not rotary."""
    return x_BHTK if by is None else _rotate(x_BHTK, *by)
