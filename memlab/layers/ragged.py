"""Rows of which each batch row and each head keeps its own: sets of different sizes, padded to the largest.

Shapes: B batch, G key-value heads, R rows, C rows that have room.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils import _pytree as pytree


def order(keep_BGR: Tensor, size: int | None) -> Tensor:
    """int [B, G, C]: the rows to keep, in their order, then as many others as there is room for.

    Args:
        size: C; None = the largest number of rows that one head keeps.
    """
    if size is None:  # on the meta device there are no values
        size = keep_BGR.shape[2] if keep_BGR.is_meta else int(keep_BGR.sum(-1).max())
    return (~keep_BGR).to(torch.uint8).argsort(dim=-1, stable=True)[..., :size]


def gather(x_BGR: Tensor, order_BGC: Tensor) -> Tensor:
    """Some rows of a tensor [B, G, R, ..], each head its own: [B, G, C, ..]."""
    b, g, rows = x_BGR.shape[:3]
    first_BG1 = torch.arange(b * g, device=x_BGR.device).view(b, g, 1) * rows
    chosen = x_BGR.flatten(0, 2).index_select(0, (order_BGC + first_BG1).flatten())
    return chosen.unflatten(0, order_BGC.shape)


def joined(before: Any, after: Any) -> Any:
    """Two states of rows, tensors [B, G, R, ..], one after the other."""
    return pytree.tree_map(lambda *both: torch.cat(both, dim=2), before, after)
