"""Sums over a whole document stay accurate under every precision: bf16 stalls, fp16 overflows."""

from __future__ import annotations

import contextlib

import torch
from torch import Tensor


def accumulator(dtype: torch.dtype) -> torch.dtype:
    """The type in which sums are kept: fp32, or wider if `dtype` is."""
    return torch.promote_types(dtype, torch.float32)


def accurate(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """Within it, nothing is cast to a narrower type automatically."""
    device = x.device.type
    if not torch.amp.is_autocast_available(device):
        return contextlib.nullcontext()
    return torch.autocast(device, enabled=False)
