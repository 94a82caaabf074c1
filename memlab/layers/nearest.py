"""Exact attention over the k nearest keys of a large memory.

Shapes: B batch, G key-value heads, H query heads (H / G of them share a key-value head), T queries, P rows of memory, k neighbours,
K head width.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SCORES = 1 << 24  # most scores held at once: 64 MB in fp32
_ROWS = 1 << 13  # rows that are searched at once, if the memory has so many; then queries are taken in pieces


@torch.no_grad()
def nearest(q_BGTK: Tensor, keys_BGPK: Tensor, low_BT: Tensor, high_BT: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k keys with the largest products with each query, among the rows low <= p < high that the query may see.

    Queries and memory are taken in pieces, so that no more than some 64 MB of scores exist at a time.

    Returns:
        Rows [B, G, T, k'], k' = min(k, P), and bool [B, G, T, k'], False where a query may see fewer rows than that.
    """
    b, g, t, _ = q_BGTK.shape
    rows = keys_BGPK.shape[2]
    piece = max(1, _SCORES // (b * g * min(max(rows, 1), _ROWS)))
    if t > piece:
        split = zip(*(tensor.split(piece, dim=dim) for tensor, dim in ((q_BGTK, 2), (low_BT, 1), (high_BT, 1))), strict=True)
        parts = [nearest(q, keys_BGPK, low, high, k) for q, low, high in split]
        return torch.cat([found for found, _ in parts], dim=2), torch.cat([seen for _, seen in parts], dim=2)
    chunk = max(k, _SCORES // max(1, b * g * t))
    best = q_BGTK.new_empty(b, g, t, 0)
    found = torch.empty(b, g, t, 0, dtype=torch.long, device=q_BGTK.device)
    for start in range(0, rows, chunk):
        keys_BGcK = keys_BGPK[:, :, start : start + chunk]
        row_c = torch.arange(start, start + keys_BGcK.shape[2], device=q_BGTK.device)
        sees_BTc = (row_c >= low_BT[..., None]) & (row_c < high_BT[..., None])
        score = (q_BGTK @ keys_BGcK.transpose(-1, -2)).masked_fill(~sees_BTc[:, None], -torch.inf)
        score, at = score.topk(min(k, score.shape[-1]), dim=-1, sorted=False)
        if start:
            score, at = torch.cat([best, score], dim=-1), torch.cat([found, at + start], dim=-1)
            score, among = score.topk(min(k, score.shape[-1]), dim=-1, sorted=False)
            at = at.gather(-1, among)
        best, found = score, at
    return found, best > -torch.inf


def attend_nearest(q_BHTK: Tensor, keys_BGPK: Tensor, values_BGPK: Tensor, low_BT: Tensor, high_BT: Tensor, k: int) -> Tensor:
    """Softmax attention of each query over its k nearest keys, with the gradient of the queries alone.

    Args:
        q_BHTK: queries, already scaled.
        keys_BGPK, values_BGPK: the memory; cut from the graph here.
        low_BT, high_BT: each query may see the rows low <= p < high.

    Returns:
        [B, H, T, K]; 0 for a query that may see nothing.
    """
    _, h, t, width = q_BHTK.shape
    g, shared = keys_BGPK.shape[1], h // keys_BGPK.shape[1]
    q = q_BHTK.unflatten(1, (g, shared)).flatten(2, 3)  # queries that share a memory are searched for together
    low_BT, high_BT = low_BT.repeat(1, shared), high_BT.repeat(1, shared)
    keys_BGPK, values_BGPK = keys_BGPK.detach(), values_BGPK.detach()
    if not keys_BGPK.shape[2]:
        return torch.zeros_like(q_BHTK)
    found, seen = nearest(q.detach(), keys_BGPK, low_BT, high_BT, k)

    def pick(rows_BGPK: Tensor) -> Tensor:
        return rows_BGPK.gather(2, found.flatten(2).unsqueeze(-1).expand(-1, -1, -1, width)).unflatten(2, found.shape[2:])

    score = (pick(keys_BGPK) @ q.unsqueeze(-1)).squeeze(-1)
    score = score.masked_fill(~seen, torch.finfo(score.dtype).min)  # autocast may have made it narrower than the queries
    weight = score.softmax(-1) * seen  # a query that sees nothing gets nothing
    y = (weight.unsqueeze(-2) @ pick(values_BGPK)).squeeze(-2)
    return y.unflatten(2, (shared, t)).flatten(1, 2)
