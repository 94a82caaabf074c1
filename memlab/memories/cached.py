"""A bounded cache: a segment looks at what is cached and at itself, then a policy says what stays.

    [ cache (C) | segment ]      attention, with rows at their positions in the document
    policy(cache ; segment)      for each key-value head, the rows that the next segment finds in its cache

Weights are those of `full.py`, so that a model trained with full attention can be read with any policy
(`memlab/policies`), or trained under it: gradient passes through the rows that stay, not through the choice.

The cache holds keys, values and the position of each row; EMPTY marks a row that stands for no token. Each
batch row and each head has a set of its own, so sets of different sizes are padded with empty rows to the
largest; a policy with a number of rows (`capacity`) has room for exactly these from the beginning, and the
size of its state is known without a look at values. Masks are made of positions, never of lengths. While a
segment is read, it is held in addition to the cache, and no more than that.

With `policy.every`, the policy also decides within a segment, at the same positions whether the segment is
read at once or in pieces.

Shapes: B batch, H heads, G key-value heads, C rows of the cache, M memory tokens before the segment, T rows
of a call, n tokens since the last decision, R rows to decide on, L keys, K head width.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memlab.errors import ConfigError
from memlab.layers import ragged
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

    def reset(self, rows_B: Tensor, initial: CachedState) -> CachedState:
        """No row belongs to a new document."""
        return dataclasses.replace(
            self,
            position_BGC=self.position_BGC.masked_fill(rows_B[:, None, None], EMPTY),
            length_B=self.length_B.masked_fill(rows_B, 0),
            of_document=self.of_document.reset(rows_B, initial.of_document),
        )

    @property
    def used_nbytes(self) -> int:
        """Bytes without empty rows: of the logical sets, which differ in size between heads and documents.

        On the meta device, where it isn't known which rows are empty, all bytes.
        """
        if self.position_BGC.is_meta:
            return self.nbytes
        of_rows = [*self.rows.tensors(), self.position_BGC, *self.of_rows.tensors()]
        used = int((self.position_BGC != EMPTY).sum())
        each = sum(t.shape[3:].numel() * t.element_size() for t in of_rows)
        return self.nbytes - (self.position_BGC.numel() - used) * each


@state
class CachedOpen(State):
    """An open segment: the cache, and the segment's rows since the last decision.

    Attributes:
        own: keys and values of M memory tokens, then of n tokens, then of memory tokens after the segment.
        first: M.
        read: n.
        q_BHwK: the tokens' queries whose attention the policy asks for.
        look_wR: bool, which of the `own` rows each of them looked at.
    """

    cache: CachedState
    own: KeyValues
    first: int
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
                "model.positions=transformer_xl needs keys at consecutive positions, and layer_memory=cached "
                "drops some; use model.positions=rope, learned or none"
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
        rows = self.no_rows(batch_size, size).map(torch.clone)  # keys and values in memory of their own
        return CachedState(rows, position_BGC, length_B, self._numbers(batch_size, size), of_document)

    def offset(self, state: CachedState) -> Tensor:
        return state.length_B

    def begin(self, state: CachedState, where: Where) -> CachedOpen:
        return self._open(state, self.no_rows(where.batch_size), -where.first)

    def extend(self, x_BTD: Tensor, open: CachedOpen, where: Where) -> tuple[Tensor, CachedOpen]:
        turn = None if self.policy.rerotates else where.turn(where.start, where.count, x_BTD.dtype)
        q, k, v = self.project(x_BTD, turn)
        parts = self._parts(where)
        if parts == [(ALL, False)]:
            y, open = self._read(q, k, v, open, where)
            return self.merge(y), open
        outputs = []
        for rows, decides in parts:
            y, open = self._read(q[:, :, rows], k[:, :, rows], v[:, :, rows], open, where.part(rows))
            outputs.append(y)
            if decides:
                open = self._decide(open)
        return self.merge(torch.cat(outputs, dim=2)[:, :, where.wanted]), open

    def close(self, open: CachedOpen) -> CachedState:
        return self._decide(open).cache

    def _parts(self, where: Where) -> list[tuple[slice, bool]]:
        """The rows of a call, divided after each row that is followed by a decision; whether one follows."""
        every, tokens = self.policy.every, range(where.count)[where.tokens]
        ends = [] if every is None else [row + 1 for row in tokens if (where.start + row + 1) % every == 0]
        parts = [(slice(begin, end), True) for begin, end in zip([0, *ends], ends, strict=False)]
        if not parts:
            return [(ALL, False)]
        return parts if ends[-1] == where.count else [*parts, (slice(ends[-1], where.count), False)]

    def _read(
        self, q: Tensor, k: Tensor, v: Tensor, open: CachedOpen, where: Where
    ) -> tuple[Tensor, CachedOpen]:
        """Attention of some rows over [cache ; the segment's rows since the last decision, and these]."""
        cache, size, own = open.cache, open.cache.position_BGC.shape[2], open.own.then(k, v)
        look_TR = _look_within(where, open.own.keys_BGLK.shape[2])
        mask = None  # plainly causal
        if size or where.mask is not None or look_TR.shape[1] > where.count:
            back_BGTC = _look_back(cache, where)
            back_BGTC = back_BGTC if self.policy.by_head else back_BGTC[:, :1]
            mask = torch.cat([back_BGTC, look_TR.expand(*back_BGTC.shape[:2], -1, -1)], dim=-1)
            if 1 < mask.shape[1] < (heads := self.description.heads):
                mask = mask.repeat_interleave(heads // mask.shape[1], dim=1)
        seen = cache.rows.then(*own.tensors())
        keys_BGLK = seen.keys_BGLK
        turned, keys_BGLK = (
            self._rerotated(q, keys_BGLK, open, where) if self.policy.rerotates else (q, keys_BGLK)
        )
        y = self.attend(turned, keys_BGLK, seen.values_BGLK, where, mask, remembered=size)
        q_BHwK, look_wR = open.q_BHwK, open.look_wR
        if (wanted := self.policy.queries) != 0:
            q_BHwK = torch.cat([q_BHwK, self.stored(q, where, 2)], dim=2)
            look_wR = F.pad(look_wR, (0, look_TR.shape[1] - look_wR.shape[1]))
            look_wR = torch.cat([look_wR, self.stored(look_TR, where, 0)])
            if wanted is not None and len(look_wR) > wanted:  # copies, so that the others are freed
                q_BHwK, look_wR = q_BHwK[:, :, -wanted:].clone(), look_wR[-wanted:].clone()
        read = open.read + len(range(where.count)[where.tokens])
        return y, CachedOpen(cache, own, open.first, read, q_BHwK, look_wR)

    def _rerotated(
        self, q: Tensor, keys_BGLK: Tensor, open: CachedOpen, where: Where
    ) -> tuple[Tensor, Tensor]:
        """Queries and keys at positions within the cache.

        The tokens since the last decision stand at 0, 1, .., and the cached ones right before them, close
        together. This is the cache counted from its first row, shifted by a number that rotations do not see.
        """
        assert where.rotary is not None
        filled_BGC = open.cache.position_BGC != EMPTY
        size, own = filled_BGC.shape[2], keys_BGLK.shape[2] - filled_BGC.shape[2]
        place_BGC = filled_BGC.cumsum(-1) - 1 - filled_BGC.sum(-1, keepdim=True)
        dtype = torch.promote_types(q.dtype, torch.float32)
        cos, sin = where.rotary.rotation(place_BGC.flatten(0, 1), dtype)
        shape = (*place_BGC.shape, cos.shape[-1])  # named: of an empty cache, -1 could be any number
        cached = rotate(keys_BGLK[:, :, :size], (cos.view(shape), sin.view(shape)))
        turn = dataclasses.replace(where, offset_B=None).turn(-open.first, own, q.dtype)
        assert turn is not None
        cos, sin = turn
        last = slice(own - q.shape[2], None)
        return rotate(q, (cos[last], sin[last])), torch.cat(
            [cached, rotate(keys_BGLK[:, :, size:], turn)], dim=2
        )

    def _decide(self, open: CachedOpen) -> CachedOpen:
        """Let the policy decide on the tokens since the last decision, and drop what it does not keep."""
        if not open.read:
            return open
        cache, first, n = open.cache, open.first, open.read
        rows = cache.rows.then(*open.own.rows(slice(first, first + n)).tensors())
        new_Bn = cache.length_B[:, None] + torch.arange(n, device=self.device)
        new_BGn = new_Bn[:, None].expand(-1, self.description.kv_heads, -1).to(cache.position_BGC.dtype)
        position_BGR = torch.cat([cache.position_BGC, new_BGn], dim=2)
        with torch.no_grad():
            decision = self.policy.decide(
                Rows(
                    keys_BGRK=rows.keys_BGLK.detach(),
                    values_BGRK=rows.values_BGLK.detach(),
                    position_BGR=position_BGR,
                    length_B=cache.length_B + n,
                    new=n,
                    of_rows=ragged.joined(cache.of_rows, self._numbers(len(new_Bn), n)),
                    of_document=cache.of_document,
                    attention=_attention(open, rows.keys_BGLK),
                )
            )
        keep_BGR = decision.keep_BGR & (position_BGR != EMPTY)
        order_BGC = ragged.order(keep_BGR, self.policy.capacity)
        after = CachedState(
            rows=rows.map(lambda t: ragged.gather(t, order_BGC)),
            position_BGC=position_BGR.masked_fill(~keep_BGR, EMPTY).gather(-1, order_BGC),
            length_B=cache.length_B + n,
            of_rows=decision.of_rows.map(lambda t: ragged.gather(t, order_BGC)),
            of_document=decision.of_document,
        )
        # memory tokens before the segment stay until its end; copies, so that the others are freed
        return self._open(after, open.own.rows(slice(0, first)).map(torch.clone), first)

    def _open(self, cache: CachedState, own: KeyValues, first: int) -> CachedOpen:
        """An open segment without tokens since the last decision."""
        description = self.description
        q_BHwK = self.zeros(len(cache.length_B), description.heads, 0, description.head_width)
        look_wR = torch.ones(0, own.keys_BGLK.shape[2], dtype=torch.bool, device=self.device)
        return CachedOpen(cache, own, first, 0, q_BHwK, look_wR)

    def _numbers(self, batch_size: int, rows: int) -> Any:
        """The policy's numbers of rows that it has not decided on yet."""
        shape = batch_size, self.description.kv_heads, rows
        return self.policy.init_rows(lambda *more: self.zeros(*shape, *more, accumulate=True))


def _attention(open: CachedOpen, keys_BGRK: Tensor) -> Attention:
    """What the tokens since the last decision looked at: the cache, memory tokens, and each other."""
    size, first = open.cache.position_BGC.shape[2], open.first
    only_tokens = open.own.keys_BGLK.shape[2] == open.read
    keys_BGLK = keys_BGRK if only_tokens else open.cache.rows.then(*open.own.tensors()).keys_BGLK
    within_wR = F.pad(open.look_wR, (0, keys_BGLK.shape[2] - size - open.look_wR.shape[1]))
    back_BGwC = (open.cache.position_BGC != EMPTY)[:, :, None].expand(-1, -1, len(within_wR), -1)
    look = torch.cat([back_BGwC, within_wR.expand(*back_BGwC.shape[:2], -1, -1)], dim=-1)
    tokens = slice(size + first, size + first + open.read)

    def of_rows(x: Tensor) -> Tensor:
        return torch.cat([x[..., :size], x[..., tokens]], dim=-1)

    return Attention(open.q_BHwK.detach(), keys_BGLK.detach(), look, of_rows)


def _look_within(where: Where, before: int) -> Tensor:
    """bool [T, R]: which of `before` rows of the segment and of its own T rows each row of a call looks at.

    Rows that are in the cache already are between the memory tokens and the rest of these rows.
    """
    if where.mask is None:
        look = torch.ones(where.count, before + where.count, dtype=torch.bool, device=where.device)
        return look.tril(before)
    memory, gone = -where.first, where.start - where.first - before
    return where.mask if not gone else torch.cat([where.mask[:, :memory], where.mask[:, memory + gone :]], 1)


def _look_back(cache: CachedState, where: Where) -> Tensor:
    """bool [B, G, T, C]: which rows of the cache each row of a call looks at.

    Memory tokens that do not look at what the layer remembers still look at the tokens of their own segment,
    of which some may be in the cache already.
    """
    position_BG1C = cache.position_BGC[:, :, None]
    look = position_BG1C != EMPTY
    if where.only_tokens or where.memory_tokens_read:
        return look.expand(-1, -1, where.count, -1)
    assert where.offset_B is not None
    of_segment = position_BG1C >= where.offset_B.view(-1, 1, 1, 1)
    return look & (where.readers()[:, None] | of_segment)
