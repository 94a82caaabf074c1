"""Nats of predictions: the loss for training and evaluation."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def nats(logits_BnV: Tensor, targets_Bn: Tensor) -> Tensor:
    """Negative log-likelihood of each target, [B, n].

    At least in float32, since half precision is too coarse; in float64 for float64 logits.
    """
    logits = logits_BnV.flatten(0, 1)
    exact = logits.to(torch.promote_types(logits.dtype, torch.float32))
    return F.cross_entropy(exact, targets_Bn.flatten(), reduction="none").view_as(targets_Bn)
