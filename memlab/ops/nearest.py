"""Exact attention over the k nearest keys of a large memory.

Shapes: B batch, G key-value heads, H query heads (H / G of them share a key-value head), T queries in S parts
of equal length, P rows of memory, c rows searched at once, k neighbours, K head width.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

# maximum of scores held at once: 16 MB in fp32, which stay in a processor's cache until the choice
_SCORES = 1 << 22
_ROWS = 1 << 12  # rows searched at once, if the memory has that many; queries are then taken in pieces
_SIEVE = 8  # scores in a group, represented by the largest in the first comparison


@torch.no_grad()
def nearest(
    q_BGTK: Tensor, keys_BGPK: Tensor, low_BS: Tensor, high_BS: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """The k keys with the largest products with each query, among rows low <= p < high of its part.

    Queries and memory are taken in pieces, so that no more than about 16 MB of scores exist at a time.
    Queries are not compared with rows that no query of their part may see.

    Returns:
        Rows [B, G, T, k'], k' = min(k, P), and their products with the query, [B, G, T, k']; -inf where a
        query may see fewer.
    """
    b, g, t, _ = q_BGTK.shape
    rows, parts = keys_BGPK.shape[2], low_BS.shape[1]
    seen = _seen(low_BS, high_BS, rows)
    pieces = []
    for part, queries in enumerate(q_BGTK.split(max(1, t // parts), dim=2)):
        first, end, by_all = seen[part]
        low_B, high_B = low_BS[:, part] - first, high_BS[:, part] - first
        piece = max(1, _SCORES // (b * g * min(max(end - first, 1), _ROWS)))
        for q in queries.split(piece, dim=2):
            score, found = _search(q, keys_BGPK[:, :, first:end], low_B, high_B, k, by_all)
            missing = (0, min(k, rows) - found.shape[-1])
            pieces.append((F.pad(found + first, missing), F.pad(score, missing, value=-torch.inf)))
    return torch.cat([found for found, _ in pieces], dim=2), torch.cat([score for _, score in pieces], dim=2)


def _seen(low_BS: Tensor, high_BS: Tensor, rows: int) -> list[tuple[int, int, bool]]:
    """For each part, the range of rows that any document sees, and whether each document sees all of it.

    All parts at once, since reading a value waits for the GPU.
    """
    if low_BS.is_meta:  # there are no values
        return [(0, rows, False)] * low_BS.shape[1]
    bounds = zip(low_BS.T.tolist(), high_BS.T.tolist(), strict=True)
    return [
        (min(low), max(min(low), *high), max(low) == min(low) and min(high) == max(high))
        for low, high in bounds
    ]


def _search(
    q_BGTK: Tensor, keys_BGPK: Tensor, low_B: Tensor, high_B: Tensor, k: int, by_all: bool
) -> tuple[Tensor, Tensor]:
    """The largest products and their rows, [B, G, T, k'] each; `by_all`: each document sees all rows."""
    b, g, t, _ = q_BGTK.shape
    chunk = max(k, _SCORES // max(1, b * g * t))
    best = q_BGTK.new_empty(b, g, t, 0)
    found = torch.empty(b, g, t, 0, dtype=torch.long, device=q_BGTK.device)
    for start in range(0, keys_BGPK.shape[2], chunk):
        keys_BGcK = keys_BGPK[:, :, start : start + chunk]
        score = q_BGTK @ keys_BGcK.transpose(-1, -2)
        if not by_all:
            row_c = torch.arange(start, start + keys_BGcK.shape[2], device=q_BGTK.device)
            hidden_Bc = (row_c < low_B[:, None]) | (row_c >= high_B[:, None])
            score.masked_fill_(hidden_Bc[:, None, None], -torch.inf)
        score, at = _largest(score, k)
        if start:
            score, at = torch.cat([best, score], dim=-1), torch.cat([found, at + start], dim=-1)
            score, among = score.topk(min(k, score.shape[-1]), dim=-1, sorted=False)
            at = at.gather(-1, among)
        best, found = score, at
    return best, found


def _largest(score: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k largest of the last dimension, and where they are.

    If there are many scores, the k groups with the largest maxima are chosen first: none of the k largest
    scores is in another group. Maxima are found quickly, and few scores are left to choose from.
    """
    groups, rest = divmod(score.shape[-1], _SIEVE)
    if groups < 4 * k:
        return score.topk(min(k, score.shape[-1]), dim=-1, sorted=False)
    grouped = score[..., : groups * _SIEVE].unflatten(-1, (_SIEVE, groups))  # each column is a group
    group = grouped.amax(-2).topk(k, dim=-1, sorted=False).indices
    where = (group.unsqueeze(-2) + torch.arange(_SIEVE, device=score.device)[:, None] * groups).flatten(-2)
    if rest:
        last = torch.arange(groups * _SIEVE, score.shape[-1], device=score.device)
        where = torch.cat([where, last.expand(*where.shape[:-1], -1)], dim=-1)
    largest, among = score.gather(-1, where).topk(k, dim=-1, sorted=False)
    return largest, where.gather(-1, among)


class _Products(torch.autograd.Function):
    """Products of queries with the keys found, as the search computed them; with the queries' gradient."""

    @staticmethod
    def forward(
        ctx: Any, q_BGTK: Tensor, keys_BGPK: Tensor, found_BGTk: Tensor, score_BGTk: Tensor
    ) -> Tensor:
        ctx.save_for_backward(keys_BGPK, found_BGTk)
        ctx.dtype = q_BGTK.dtype
        return score_BGTk.clone()

    @staticmethod
    def backward(ctx: Any, gradient_BGTk: Tensor) -> tuple[Tensor, None, None, None]:
        return weighted(gradient_BGTk, *ctx.saved_tensors).to(ctx.dtype), None, None, None


def weighted(weight_BGTk: Tensor, rows_BGPK: Tensor, found_BGTk: Tensor) -> Tensor:
    """Weighted sums of the rows found, [B, G, T, K], without copying the rows for each query."""
    b, g, p, width = rows_BGPK.shape
    if not found_BGTk.numel():  # no rows, or no queries
        return weight_BGTk.new_zeros(*found_BGTk.shape[:3], width)
    first = torch.arange(b * g, device=rows_BGPK.device).view(b, g, 1, 1) * p
    bags = (found_BGTk + first).flatten(0, 2)
    weights = weight_BGTk.flatten(0, 2).to(rows_BGPK.dtype)
    y = F.embedding_bag(bags, rows_BGPK.reshape(-1, width), mode="sum", per_sample_weights=weights)
    return y.unflatten(0, found_BGTk.shape[:3])


class Found(NamedTuple):
    """The rows that queries looked at, [B, G, T * H / G, k'] each."""

    rows: Tensor
    seen: Tensor  # bool: whether there is such a row
    weight: Tensor  # softmax


def attend_nearest(
    q_BHTK: Tensor, keys_BGPK: Tensor, values_BGPK: Tensor, low_BS: Tensor, high_BS: Tensor, k: int
) -> tuple[Tensor, Found]:
    """Softmax attention of each query over its k nearest keys. Only the queries receive a gradient.

    Args:
        q_BHTK: queries, already scaled.
        keys_BGPK, values_BGPK: the memory; cut from the graph here.
        low_BS, high_BS: the queries of each of S equal parts may see the rows low <= p < high.

    Returns:
        [B, H, T, K], 0 for a query that may see nothing; and the rows found.
    """
    _, h, t, _ = q_BHTK.shape
    g, shared = keys_BGPK.shape[1], h // keys_BGPK.shape[1]
    # Queries that share a memory are searched for together, in time order, so that their parts stay together.
    q = q_BHTK.unflatten(1, (g, shared)).transpose(2, 3).flatten(2, 3)
    keys_BGPK, values_BGPK = keys_BGPK.detach(), values_BGPK.detach()
    found, product = nearest(q.detach(), keys_BGPK, low_BS, high_BS, k)
    seen = product > -torch.inf
    score = _Products.apply(q, keys_BGPK, found, product).masked_fill(~seen, torch.finfo(product.dtype).min)
    weight = score.softmax(-1) * seen  # 0 for a query that sees nothing
    y = weighted(weight, values_BGPK, found).unflatten(2, (t, shared)).transpose(2, 3).flatten(1, 2)
    return y, Found(found, seen, weight)


def attend_nearest_naive(
    q_BHTK: Tensor, keys_BGPK: Tensor, values_BGPK: Tensor, low_BS: Tensor, high_BS: Tensor, k: int
) -> Tensor:
    """The output of `attend_nearest`, from all scores at once."""
    shared, t, rows = q_BHTK.shape[1] // keys_BGPK.shape[1], q_BHTK.shape[2], keys_BGPK.shape[2]
    keys, values = (x.detach().repeat_interleave(shared, dim=1) for x in (keys_BGPK, values_BGPK))
    row_P = torch.arange(rows, device=q_BHTK.device)
    may_BSP = (row_P >= low_BS[:, :, None]) & (row_P < high_BS[:, :, None])
    may_B1TP = may_BSP.repeat_interleave(t // low_BS.shape[1], dim=1)[:, None]
    score = (q_BHTK @ keys.transpose(-1, -2)).masked_fill(~may_B1TP, -torch.inf)
    least = score.detach().topk(min(k, rows), dim=-1).values[..., -1:]
    score = score.masked_fill(score < least, -torch.inf)
    weight = score.softmax(-1).nan_to_num(0.0)  # 0 for a query that sees nothing
    return weight @ values
