"""A bounded cache: a segment looks at what is cached and at itself, then a policy says what stays.

    [ cache (C) | segment ]      attention, with rows at their positions in the document
    policy(cache ; segment)      bool for each row and key-value head: what the next segment finds in the cache

Weights are those of `full.py`, so that a model trained with full attention can be read with any policy
(`memlab/policies`), or trained under it: gradient passes through the rows that stay, not through the choice.

The cache holds keys, values and the position of each row; EMPTY marks a row that stands for no token. Each
batch row and each head has a set of its own, so sets of different sizes are padded with empty rows to the
largest; a policy with a number of rows (`capacity`) has room for exactly these from the beginning, and the
size of its state is known without a look at values. Masks are made of positions, never of lengths. While a
segment is read, it is held in addition to the cache, and no more than that.

With `policy.every`, the policy also decides within a segment, at the same positions whether the segment is
read at once or in pieces.

Shapes: B batch, H heads, G key-value heads, C rows of the cache, M memory tokens before the segment, T rows of
a call, n tokens since the last decision, R rows to decide on, L keys, K head width.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils import _pytree as pytree

from memlab.errors import ConfigError
from memlab.layers.attention import ALL, KeyValues
from memlab.layers.description import Description
from memlab.layers.positions import rotate
from memlab.layers.state import State, state
from memlab.memories.base import LayerMemory, Where
from memlab.policies.base import EMPTY, Attention, Policy, Rows


@state
class CachedState(State):
    """What stays of each document; EMPTY positions mark rows that stand for no token."""

    rows: KeyValues
    position_BGC: Tensor
    length_B: Tensor  # tokens of each document so far
    of_rows: Any  # the policy's numbers of each row, [B, G, C, ..]
    of_document: Any  # the policy's numbers of each document

    def reset(self, rows_B: Tensor, initial: CachedState) -> CachedState:  # type: ignore[override]
        """No row belongs to a new document."""
        return dataclasses.replace(
            self,
            position_BGC=self.position_BGC.masked_fill(rows_B[:, None, None], EMPTY),
            length_B=self.length_B.masked_fill(rows_B, 0),
            of_document=self.of_document.reset(rows_B, initial.of_document),
        )

    @property
    def used_nbytes(self) -> int:
        """Bytes without empty rows: of the logical sets, which differ in size between heads and documents."""
        of_rows = [*self.rows.tensors(), self.position_BGC, *self.of_rows.tensors()]
        used = int((self.position_BGC != EMPTY).sum())
        each = sum(t.shape[3:].numel() * t.element_size() for t in of_rows)
        return self.nbytes - (self.position_BGC.numel() - used) * each


@state
class CachedOpen(State):
    """An open segment: the cache, and the segment's rows since the last decision.

    Attributes:
        own: keys and values of memory tokens before the segment, of n tokens, and of memory tokens after it.
        read: n.
        q_BHwK: queries of the tokens whose attention the policy wants.
        look_wR: bool, which of the `own` rows these looked at.
    """

    cache: CachedState
    own: KeyValues
    read: int
    q_BHwK: Tensor
    look_wR: Tensor


class Cached(LayerMemory):
    """One layer with a bounded cache.

    Args:
        policy: says what stays.

    Raises:
        ConfigError: positions are Transformer-XL's, which need keys at consecutive positions.
    """

    positions_go_on = True

    def __init__(self, description: Description, *, policy: Policy) -> None:
        super().__init__(description)
        if description.positions == "transformer_xl":
            raise ConfigError(
                "model.positions=transformer_xl: its distances need keys at consecutive positions, and "
                "layer_memory=cached drops some; use model.positions=rope, learned or none"
            )
        self.policy = policy

    @property
    def keeps_everything(self) -> bool:
        return self.policy.keeps_everything

    @property
    def state_grows(self) -> bool:
        return self.policy.capacity is None

    def init_state(self, batch_size: int) -> CachedState:
        size = self.policy.capacity or 0
        shape = batch_size, self.description.kv_heads, size
        position_BGC = torch.full(shape, EMPTY, dtype=torch.int32, device=self.device)
        length_B = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        of_document = self.policy.init_document(lambda *more: self.zeros(batch_size, *more, accumulate=True))
        rows = self.no_rows(batch_size, size)
        return CachedState(rows, position_BGC, length_B, self._new_rows(batch_size, size), of_document)

    def offset(self, state: CachedState) -> Tensor:
        return state.length_B

    def begin(self, state: CachedState, where: Where) -> CachedOpen:
        q_BHwK = self.zeros(where.batch_size, self.description.heads, 0, self.description.head_width)
        look_wR = torch.ones(0, 0, dtype=torch.bool, device=self.device)
        return CachedOpen(state, self.no_rows(where.batch_size), 0, q_BHwK, look_wR)

    def extend(self, x_BTD: Tensor, open: CachedOpen, where: Where) -> tuple[Tensor, CachedOpen]:
        turn = None if self.policy.rerotates else where.turn(where.start, where.count, x_BTD.dtype)
        q, k, v = self.project(x_BTD, turn)
        parts = list(self._parts(where))
        if len(parts) == 1:
            y, open = self._read(q, k, v, open, where)
            return self.merge(y), self._decide(open) if parts[0][1] else open
        outputs = []
        for (begin, end), decides in parts:
            part = _part(where, begin, end)
            y, open = self._read(*(t[:, :, begin:end] for t in (q, k, v)), open, part)
            open = self._decide(open) if decides else open
            outputs.append(y)
        return self.merge(torch.cat(outputs, dim=2)[:, :, where.wanted]), open

    def close(self, open: CachedOpen) -> CachedState:
        return self._decide(open).cache

    def _parts(self, where: Where) -> Iterator[tuple[tuple[int, int], bool]]:
        """The rows of a call up to each decision within the segment, and whether there is one after them."""
        begin, every = 0, self.policy.every
        tokens = range(where.count)[where.tokens]
        for row in tokens if every is not None else ():
            if (where.start + row + 1) % every == 0:
                yield (begin, row + 1), True
                begin = row + 1
        if begin < where.count or not where.count:
            yield (begin, where.count), False

    def _read(
        self, q: Tensor, k: Tensor, v: Tensor, open: CachedOpen, where: Where
    ) -> tuple[Tensor, CachedOpen]:
        """Attention over [cache ; own rows], which now include these."""
        cache = open.cache
        if self.policy.rerotates:  # tokens since the last decision stand at 0, 1, .. and the cache before them
            ...
        own = open.own.then(k, v)
        ...


def _part(where: Where, begin: int, end: int) -> Where:
    """`where` of some rows of a call."""
