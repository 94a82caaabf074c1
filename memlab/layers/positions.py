"""Two ways to say where tokens stand. Positions are explicit integers; no module counts a cache.

    rope             RoFormer (arXiv 2104.09864, eq. 15): queries and keys are turned by their positions
    transformer_xl   Transformer-XL (arXiv 1901.02860, section 3.3): a term for each distance is added to the scores

Shapes: B batch, H heads, T queries, L keys (the queries' own are the last T), W distances, D width, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

Rotation = tuple[Tensor, Tensor]  # cosines and sines, [T, K] or [B, 1, T, K]


def rotation(positions: Tensor, head_width: int, base: float = 10_000.0, dtype: torch.dtype = torch.float32) -> Rotation:
    """Cosines and sines for integer `positions`, [T] (shared by the batch) or [B, T], computed in float64 and then cast."""
    angle = _angles(positions, head_width, base)
    angle = torch.cat([angle, angle], dim=-1)
    if positions.dim() == 2:
        angle = angle[:, None]  # [B, 1, T, K]: one rotation for all heads
    return angle.cos().to(dtype), angle.sin().to(dtype)


def _angles(positions: Tensor, width: int, base: float) -> Tensor:
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


def distances(queries: int, keys: int, ahead: bool, device: torch.device) -> Tensor:
    """int [W]: how far a key may be behind a query, from the farthest down to 0, or down to the nearest ahead of it (negative)."""
    return torch.arange(keys - 1, -max(queries, 1) if ahead else -1, -1, device=device)


def sinusoids(distances_W: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """R [W, D] of Transformer-XL: sines, then cosines, of each distance at D/2 frequencies ("Attention Is All You Need", 3.5)."""
    angle = _angles(distances_W, width, 10_000.0)
    return torch.cat([angle.sin(), angle.cos()], dim=-1)[:, :width].to(dtype)


def shift(score_BHTW: Tensor, keys: int) -> Tensor:
    """From scores by distance to scores by key: [B, H, T, W] to [B, H, T, L] (Transformer-XL, appendix B).

    Column w of the input is the distance L - 1 - w; query i is the (L - T + i)-th token, so that key j is L - T + i - j behind it and its
    score stands in column T - 1 - i + j. With a column of padding, that is a regular view of the flat tensor.
    Without distances ahead, what comes out for keys ahead of their query is of no meaning and has to be masked.
    """
    y: Tensor = _Shift.apply(score_BHTW, keys)
    return y


class _Shift(torch.autograd.Function):
    """The same view of the flat tensor takes the gradient back. Written out, because autograd would make every step of it a tensor."""

    @staticmethod
    def forward(ctx: Any, score_BHTW: Tensor, keys: int) -> Tensor:
        *front, w = ctx.shape = score_BHTW.shape
        ctx.keys = keys
        padded = score_BHTW.new_empty(*front, w + 1)
        padded[..., :w], padded[..., w] = score_BHTW, 0
        return _by_key(padded, keys)

    @staticmethod
    def backward(ctx: Any, gradient_BHTL: Tensor) -> tuple[Tensor, None]:
        *front, t, w = ctx.shape
        padded = gradient_BHTL.new_zeros(*front, t, w + 1)
        _by_key(padded, ctx.keys).copy_(gradient_BHTL)
        return padded[..., :w], None


def _by_key(padded: Tensor, keys: int) -> Tensor:
    t, w = padded.shape[-2], padded.shape[-1] - 1
    return padded.flatten(-2)[..., t - 1 : t - 1 + t * w].unflatten(-1, (t, w))[..., :keys]
