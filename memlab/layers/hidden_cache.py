"""Transformer-XL's memory (arXiv 1901.02860, section 3.2): the last inputs of a layer, detached, and projected anew for each segment.

Shapes: B batch, C cached rows, n tokens in a piece, D width; heads as in `layers/blocks.py`.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor

from memlab.layers import windows
from memlab.layers.attention import KeyValues
from memlab.layers.blocks import Block
from memlab.layers.positions import Rotation
from memlab.layers.state import State, state


@state
class HiddenPast(State):
    """Of one layer, while a segment is read: keys and values of [cache ; what was read], and the inputs that were read."""

    seen: KeyValues
    hidden_BnD: Tensor


def begin(block: Block, cache_BCD: Tensor, turn: Rotation | None) -> HiddenPast:
    """The cache's keys and values, before anything of the segment is read. `turn` is the rotation of its rows."""
    return HiddenPast(KeyValues(*block.keys_values(cache_BCD, turn)), cache_BCD[:, :0])


def read(block: Block, before: HiddenPast, x_BnD: Tensor, turn: Rotation | None) -> tuple[Tensor, HiddenPast]:
    """Queries of n more rows, turned, and all that is seen with them."""
    q, k, v = block.project(x_BnD, turn)
    keys = torch.cat([before.seen.keys_BHPK, k], dim=2)
    values = torch.cat([before.seen.values_BHPK, v], dim=2)
    return q, HiddenPast(KeyValues(keys, values), torch.cat([before.hidden_BnD, x_BnD], dim=1))


def keep(caches: Iterable[Tensor], read: Iterable[Tensor], size: int) -> tuple[Tensor, ...]:
    """Each layer's cache after these rows were read: the last `size`, cut from the graph."""
    return tuple(windows.fit(torch.cat([old, new.detach()], dim=1), size) for old, new in zip(caches, read, strict=True))
