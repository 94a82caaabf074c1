"""Attention with a term for the distance of key and query (Transformer-XL, arXiv 1901.02860, section 3.3).

    score_ij = ((q_i + u) . k_j + (q_i + v) . r_{i-j}) / sqrt(K),   r_d = W_r R_d

Unlike a fused kernel, this needs the scores of every query and key in memory. So they are computed in pieces
that fit into a processor's cache, and a piece of queries is not compared with keys that come after all of
them.

Shapes: B batch, H heads, T queries, L keys (the queries' own are the last T), W distances, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

_SCORES = 1 << 19  # scores per piece, roughly: 2 MB in fp32


def distances(queries: int, keys: int, ahead: bool, device: torch.device) -> Tensor:
    """int [W]: the distances of keys before a query, largest first; negative = after the query."""
    return torch.arange(keys - 1, -max(queries, 1) if ahead else -1, -1, device=device)


def distance_attention_naive(
    q: Tensor, k: Tensor, v: Tensor, r_HWK: Tensor, u_HK: Tensor, v_HK: Tensor, mask: Tensor, ahead: bool
) -> Tensor:
    """Each score by its formula; the arguments are those of `distance_attention`."""
    queries, keys, width = q.shape[2], k.shape[2], r_HWK.shape[1]
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)  # [T, L]
    # where that distance stands in r; keys ahead may have none and are masked
    column = (keys - 1 - distance).clamp(max=width - 1)
    by_content = torch.einsum("bhtk,bhlk->bhtl", q + u_HK[:, None], k)
    by_distance = torch.einsum("bhtk,htlk->bhtl", q + v_HK[:, None], r_HWK[:, column])
    score = (by_content + by_distance) * q.shape[3] ** -0.5
    return score.masked_fill(~mask, -math.inf).softmax(-1) @ v


def distance_attention(
    q: Tensor, k: Tensor, v: Tensor, r_HWK: Tensor, u_HK: Tensor, v_HK: Tensor, mask: Tensor, ahead: bool
) -> Tensor:
    """Softmax attention with the scores above.

    Args:
        q, k, v: [B, H, T, K], [B, H, L, K] twice.
        r_HWK: W_r R for each of `distances`.
        u_HK, v_HK: u and v.
        mask: bool, True = may look, broadcastable to [B, 1, T, L].
        ahead: whether the mask lets a query look at keys that come after its own.

    Returns:
        [B, H, T, K].
    """
    device = q.device.type
    autocast = torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device)
    dtype = torch.get_autocast_dtype(device) if autocast else q.dtype  # as the fused kernel's inputs
    tensors = (t.to(dtype) for t in (q, k, v, r_HWK, u_HK, v_HK))
    y: Tensor = _DistanceAttention.apply(*tensors, mask, ahead, torch.is_grad_enabled())
    return y


class _DistanceAttention(torch.autograd.Function):
    """Autograd would store a tensor for every operation of a piece, and one of full size for each gradient.

    One row of zeros after those of the distances makes each row of scores longer by one, so that `by_key`
    needs no copy.
    """

    @staticmethod
    def forward(
        ctx: Any,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        r: Tensor,
        u_HK: Tensor,
        v_HK: Tensor,
        mask: Tensor,
        ahead: bool,
        keep: bool,
    ) -> Tensor:
        r = F.pad(r, (0, 0, 0, 1))
        r_HKW = r.transpose(1, 2).contiguous()
        may_look = mask.expand(-1 if mask.dim() == 4 else 1, 1, *mask.shape[-2:])
        # adding is faster than masking
        unseen = torch.zeros_like(may_look, dtype=q.dtype).masked_fill_(~may_look, -math.inf)
        y = q.new_empty(len(q), q.shape[2], q.shape[1], v.shape[3]).transpose(1, 2)
        weights = []
        for rows, queries, end in _pieces(q, k, ahead):
            by_content, by_distance = _with_biases(q[rows, :, queries], u_HK, v_HK)
            score = by_distance @ r_HKW[:, :, q.shape[2] - queries.stop :]
            score = by_key(score, end) + unseen[rows if len(unseen) > 1 else slice(None), :, queries, :end]
            score.flatten(0, 1).baddbmm_(
                by_content.flatten(0, 1), k[rows, :, :end].transpose(2, 3).flatten(0, 1)
            )
            weight = score.softmax(-1, dtype=torch.promote_types(score.dtype, torch.float32)).to(v.dtype)
            y[rows, :, queries] = weight @ v[rows, :, :end]
            weights.append(weight)
        ctx.ahead = ahead
        ctx.save_for_backward(q, k, v, r, u_HK, v_HK, *(weights if keep else ()))
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        q, k, v, r, u_HK, v_HK, *weights = ctx.saved_tensors
        scale = q.shape[3] ** -0.5
        dq, dk, dv, dr, du, dv_HK = torch.empty_like(q), *(torch.zeros_like(t) for t in (k, v, r, u_HK, v_HK))
        for (rows, queries, end), weight in zip(_pieces(q, k, ctx.ahead), weights, strict=True):
            by_content, by_distance = _with_biases(q[rows, :, queries], u_HK, v_HK)
            first = q.shape[2] - queries.stop
            dy_ = dy[rows, :, queries]
            dweight = dy_ @ v[rows, :, :end].transpose(2, 3)
            dscore = torch._softmax_backward_data(dweight, weight, -1, dweight.dtype)
            dpadded = dscore.new_zeros(*dscore.shape[:3], r.shape[1] - first)
            by_key(dpadded, end).copy_(dscore)
            dcontent, ddistance = dscore @ k[rows, :, :end], dpadded @ r[:, first:]
            dq[rows, :, queries] = (dcontent + ddistance).mul_(scale)
            dk[rows, :, :end] += dscore.transpose(2, 3) @ by_content
            dv[rows, :, :end] += weight.transpose(2, 3) @ dy_
            dr[:, first:] += (dpadded.transpose(2, 3) @ by_distance).sum(0)
            du += dcontent.sum((0, 2)) * scale
            dv_HK += ddistance.sum((0, 2)) * scale
        return dq, dk, dv, dr[:, :-1], du, dv_HK, None, None, None


def _with_biases(q: Tensor, u_HK: Tensor, v_HK: Tensor) -> tuple[Tensor, Tensor]:
    """The scaled queries for keys, q + u, and for distances, q + v."""
    q, scale = q.contiguous(), q.shape[3] ** -0.5
    return (q + u_HK[:, None]).mul_(scale), (q + v_HK[:, None]).mul_(scale)


def _pieces(q: Tensor, k: Tensor, ahead: bool) -> Iterator[tuple[slice, slice, int]]:
    """Batch rows and queries of each piece, and the first key that none of them sees."""
    b, h, queries, _ = q.shape
    keys = k.shape[2]
    rows = max(1, _SCORES // max(1, h * queries * keys))
    together = max(1, queries if ahead or rows > 1 else _SCORES // (h * keys))
    for row in range(0, b, rows):
        for start in range(0, max(1, queries), together):
            stop = min(start + together, queries)
            yield slice(row, row + rows), slice(start, stop), keys if ahead else keys - queries + stop


def by_key(padded: Tensor, keys: int) -> Tensor:
    """From scores by distance to scores by key: a view [.., T, L] of scores [.., T, W + 1] (appendix B).

    Column w is the distance L - 1 - w. Query i is row L - T + i, so key j lies L - T + i - j before it, and
    its score is in column T - 1 - i + j. With the column of padding, that is a regular view of the flat
    tensor. Without distances ahead, the entries of keys after their query are meaningless and have to be
    masked.
    """
    t, w = padded.shape[-2], padded.shape[-1] - 1
    return padded.flatten(-2)[..., t - 1 : t - 1 + t * w].unflatten(-1, (t, w))[..., :keys]
