"""Exact attention over the k nearest keys of a large memory.

Shapes: B batch, G key-value heads, H query heads (H / G of them share a key-value head), T queries, P rows of memory, k neighbours,
K head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from memlab.layers import observing

_SCORES = 1 << 22  # most scores held at once: 16 MB in fp32, so that they stay in a processor's cache from the product to the choice
_ROWS = 1 << 12  # rows that are searched at once, if the memory has so many; then queries are taken in pieces


@torch.no_grad()
def nearest(q_BGTK: Tensor, keys_BGPK: Tensor, low_BT: Tensor, high_BT: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k keys with the largest products with each query, among the rows low <= p < high that the query may see.

    Queries and memory are taken in pieces, so that no more than some 16 MB of scores exist at a time; and a piece of the queries is not
    compared with rows that none of them may see.

    Returns:
        Rows [B, G, T, k'], k' = min(k, P), and their products with the query [B, G, T, k'], -inf where it may see fewer rows than that.
    """
    b, g, t, _ = q_BGTK.shape
    rows = keys_BGPK.shape[2]
    piece = max(1, _SCORES // (b * g * min(max(rows, 1), _ROWS)))
    if t > piece:
        least, most = low_BT.amin(0).tolist(), high_BT.amax(0).tolist()
        parts = []
        for start in range(0, t, piece):
            own = slice(start, start + piece)
            first, end = min(least[own]), max(most[own])
            keys = keys_BGPK[:, :, first : max(first, end)]
            found, score = nearest(q_BGTK[:, :, own], keys, low_BT[:, own] - first, high_BT[:, own] - first, k)
            missing = (0, min(k, rows) - found.shape[-1])
            parts.append((F.pad(found + first, missing), F.pad(score, missing, value=-torch.inf)))
        return torch.cat([found for found, _ in parts], dim=2), torch.cat([score for _, score in parts], dim=2)
    chunk = max(k, _SCORES // max(1, b * g * t))
    best = q_BGTK.new_empty(b, g, t, 0)
    found = torch.empty(b, g, t, 0, dtype=torch.long, device=q_BGTK.device)
    for start in range(0, rows, chunk):
        keys_BGcK = keys_BGPK[:, :, start : start + chunk]
        row_c = torch.arange(start, start + keys_BGcK.shape[2], device=q_BGTK.device)
        sees_BTc = (row_c >= low_BT[..., None]) & (row_c < high_BT[..., None])
        score = (q_BGTK @ keys_BGcK.transpose(-1, -2)).masked_fill_(~sees_BTc[:, None], -torch.inf)
        score, at = score.topk(min(k, score.shape[-1]), dim=-1, sorted=False)
        if start:
            score, at = torch.cat([best, score], dim=-1), torch.cat([found, at + start], dim=-1)
            score, among = score.topk(min(k, score.shape[-1]), dim=-1, sorted=False)
            at = at.gather(-1, among)
        best, found = score, at
    return found, best


class _Products(torch.autograd.Function):
    """Products of queries with the keys found. The search has computed them; what is added here is the gradient of the queries."""

    @staticmethod
    def forward(ctx: Any, q_BGTK: Tensor, keys_BGPK: Tensor, found_BGTk: Tensor, score_BGTk: Tensor) -> Tensor:
        ctx.save_for_backward(keys_BGPK, found_BGTk)
        ctx.dtype = q_BGTK.dtype
        return score_BGTk.clone()

    @staticmethod
    def backward(ctx: Any, gradient_BGTk: Tensor) -> tuple[Tensor, None, None, None]:
        return weighted(gradient_BGTk, *ctx.saved_tensors).to(ctx.dtype), None, None, None


def weighted(weight_BGTk: Tensor, rows_BGPK: Tensor, found_BGTk: Tensor) -> Tensor:
    """Sums of the rows found, [B, G, T, K], each row with its weight, without a copy of the rows for each query."""
    b, g, p, width = rows_BGPK.shape
    first = torch.arange(b * g, device=rows_BGPK.device).view(b, g, 1, 1) * p
    bags = (found_BGTk + first).flatten(0, 2)
    weights = weight_BGTk.flatten(0, 2).to(rows_BGPK.dtype)
    y = F.embedding_bag(bags, rows_BGPK.reshape(-1, width), mode="sum", per_sample_weights=weights)
    return y.unflatten(0, found_BGTk.shape[:3])


def attend_nearest(q_BHTK: Tensor, keys_BGPK: Tensor, values_BGPK: Tensor, low_BT: Tensor, high_BT: Tensor, k: int) -> Tensor:
    """Softmax attention of each query over its k nearest keys, with the gradient of the queries alone.

    Args:
        q_BHTK: queries, already scaled.
        keys_BGPK, values_BGPK: the memory; cut from the graph here.
        low_BT, high_BT: each query may see the rows low <= p < high.

    Returns:
        [B, H, T, K]; 0 for a query that may see nothing.
    """
    _, h, t, _ = q_BHTK.shape
    g, shared = keys_BGPK.shape[1], h // keys_BGPK.shape[1]
    if not keys_BGPK.shape[2]:
        return torch.zeros_like(q_BHTK)
    # Queries that share a memory are searched for together, in the order of time: a piece of them then sees about the same rows.
    q = q_BHTK.unflatten(1, (g, shared)).transpose(2, 3).flatten(2, 3)
    low_BT, high_BT = low_BT.repeat_interleave(shared, dim=1), high_BT.repeat_interleave(shared, dim=1)
    keys_BGPK, values_BGPK = keys_BGPK.detach(), values_BGPK.detach()
    found, product = nearest(q.detach(), keys_BGPK, low_BT, high_BT, k)
    seen = product > -torch.inf
    score = _Products.apply(q, keys_BGPK, found, product).masked_fill(~seen, torch.finfo(product.dtype).min)
    weight = score.softmax(-1) * seen  # a query that sees nothing gets nothing
    observing.offer("nearest", found=found, seen=seen, weight=weight, rows=keys_BGPK.shape[2], shared=shared)
    return weighted(weight, values_BGPK, found).unflatten(2, (t, shared)).transpose(2, 3).flatten(1, 2)
