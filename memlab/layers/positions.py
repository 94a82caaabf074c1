"""Positions of rows: explicit integers, never inferred from the length of a cache.

    rope             RoFormer (arXiv 2104.09864, eq. 15): queries and keys are rotated by their positions
    transformer_xl   Transformer-XL (arXiv 1901.02860, section 3.3): scores get a term for each distance,
                     `ops/distance_attention.py`
    learned          GPT-2, BERT: a learned vector for each position is added to the embedding
    none             only the mask gives an order

Shapes: B batch, T rows, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.ops.rotate import rotate as _rotate

Rotation = tuple[Tensor, Tensor]  # cosines and sines, [T, K] or [B, 1, T, K]


@dataclass(frozen=True)
class Rotary:
    """Rotary positions of one backbone.

    Attributes:
        head_width: K.
        base: of the decreasing frequencies, base^(-2k / K).
        scaling: of a model that was trained on short contexts and then on longer ones; None = none.
    """

    head_width: int
    base: float = 10_000.0
    scaling: Scaling | None = None

    @classmethod
    def of(cls, head_width: int, base: float, scaling: Mapping[str, Any] | None) -> Rotary:
        """With a scaling as in the `config.json` of pretrained models."""
        return cls(head_width, base, None if scaling is None else Scaling.of(scaling))

    def rotation(self, positions: Tensor, dtype: torch.dtype = torch.float32) -> Rotation:
        """Cosines and sines of integer `positions`, [T] or [B, T] within documents, computed in float64."""
        angle = angles(positions, self.head_width, self.base, self.scaling)
        angle = torch.cat([angle, angle], dim=-1)
        if positions.dim() == 2:
            angle = angle[:, None]  # [B, 1, T, K]: one rotation for all heads
        return angle.cos().to(dtype), angle.sin().to(dtype)


@dataclass(frozen=True)
class Scaling:
    """Slower rotation, so that more positions fit into the angles that a model knows.

    linear: all frequencies are divided by `factor` (arXiv 2306.15595).
    llama3 (arXiv 2407.21783, section 3.4; formula of Meta's code): those whose wavelength is longer than
    original / low are divided by `factor`, those shorter than original / high stay, and between the two they
    are interpolated.

    Attributes:
        factor: how many times longer contexts become.
        low, high: low_freq_factor and high_freq_factor; 0 = linear.
        original: the longest context before.
    """

    factor: float
    low: float = 0.0
    high: float = 0.0
    original: float = 0.0

    @classmethod
    def of(cls, scaling: Mapping[str, Any]) -> Scaling:
        """From `rope_scaling`.

        Raises:
            ConfigError: it is of another kind, or lacks a number.
        """
        names = ["factor"]
        if scaling.get("rope_type") == "llama3":
            names += ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"]
        numbers = [scaling.get(name) for name in names]
        if scaling.get("rope_type") not in ("linear", "llama3") or not all(
            isinstance(n, int | float) and n > 0 for n in numbers
        ):
            raise ConfigError(
                f"model.rope_scaling={dict(scaling)}: there are rope_type linear, with factor, and llama3, "
                "also with low_freq_factor, high_freq_factor and original_max_position_embeddings"
            )
        return cls(*(float(n) for n in numbers if n is not None))

    def of_frequencies(self, frequency: Tensor) -> Tensor:
        """Scaled frequencies, radians per position."""
        slow = frequency / self.factor
        if not self.high:
            return slow
        turns = self.original * frequency / (2 * math.pi)  # in the original context
        share = ((turns - self.low) / (self.high - self.low)).clamp(0, 1)
        return torch.lerp(slow, frequency, share)


def angles(positions: Tensor, width: int, base: float, scaling: Scaling | None = None) -> Tensor:
    """Integer positions times width / 2 decreasing frequencies, [.., width / 2], in float64."""
    frequency = base ** (-torch.arange(0, width, 2, device=positions.device, dtype=torch.float64) / width)
    if scaling is not None:
        frequency = scaling.of_frequencies(frequency)
    return positions[..., None].to(torch.float64) * frequency


def sinusoids(positions: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """[T, width]: sines, then cosines, of each position ("Attention Is All You Need", section 3.5)."""
    angle = angles(positions, width, 10_000.0)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)[:, :width].to(dtype)


def rotate(x_BHTK: Tensor, by: Rotation | None) -> Tensor:
    """Queries or keys rotated to their positions; None = positions are not rotary."""
    return x_BHTK if by is None else _rotate(x_BHTK, *by)
