"""Numbers that have to stay accurate under every precision: sums over a whole document stall in bf16 and overflow in fp16."""

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
