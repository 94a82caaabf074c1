"""A memory that each of S segments adds to:  m_s = m_{s-1} + b_s,  or  m_s = A_s m_{s-1} + b_s.

Shapes: `start` is [B, G, K, ..], `added` (b) [B, G, S, K, ..], `factor` (A) [B, G, S, K, K] or None;
the result is [B, G, S + 1, K, ..] and begins with `start`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def segment_recurrence_naive(start: Tensor, added: Tensor, factor: Tensor | None = None) -> Tensor:
    """Segment after segment."""
    memories = [start]
    for s in range(added.shape[2]):
        before = memories[-1] if factor is None else factor[:, :, s] @ memories[-1]
        memories.append(before + added[:, :, s])
    return torch.stack(memories, dim=2)


def segment_recurrence(start: Tensor, added: Tensor, factor: Tensor | None = None) -> Tensor:
    """As `segment_recurrence_naive`, with one small operation for each segment, forwards and backwards."""
    y: Tensor = _SegmentRecurrence.apply(start, added, factor)
    return y


class _SegmentRecurrence(torch.autograd.Function):
    """Autograd would need four to six operations for each segment."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, added: Tensor, factor: Tensor | None) -> Tensor:
        segments = added.shape[2]
        m = added.new_empty(*start.shape[:2], segments + 1, *start.shape[2:])
        m[:, :, 0] = start
        for s in range(segments):
            _step(m, s, s + 1, added[:, :, s], None if factor is None else factor[:, :, s])
        ctx.save_for_backward(m if factor is not None else None, factor)
        return m

    @staticmethod
    def backward(ctx: Any, dm: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        m, factor = ctx.saved_tensors
        # the gradient of each memory, with what comes through later segments
        total = torch.empty_like(dm, memory_format=torch.contiguous_format)
        total[:, :, -1] = dm[:, :, -1]
        for s in reversed(range(dm.shape[2] - 1)):
            transposed = None if factor is None else factor[:, :, s].transpose(-1, -2)
            _step(total, s + 1, s, dm[:, :, s], transposed)
        dfactor = None if factor is None else total[:, :, 1:] @ m[:, :, :-1].transpose(-1, -2)
        return total[:, :, 0], total[:, :, 1:], dfactor


def _step(m: Tensor, source: int, target: int, added: Tensor, factor: Tensor | None) -> None:
    """m_target = factor m_source + added."""
    if factor is None:
        torch.add(m[:, :, source], added, out=m[:, :, target])
    else:
        flat = (t.flatten(0, 1) for t in (added, factor, m[:, :, source]))
        torch.baddbmm(*flat, out=m[:, :, target].flatten(0, 1))
