"""Accurate sums over a whole document under every precision: in bf16 they would stall, in fp16 overflow."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type of accumulated sums: fp32, or `dtype` if that is wider."""
    return torch.promote_types(dtype, torch.float32)


def accurate(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """A context without automatic casts to narrower types."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
