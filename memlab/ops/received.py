"""How much attention each key receives: sums over queries of softmax weights, never all weights at once.

    received_j = sum_i c_i mean_h A_hij,   A_hij = softmax_j(q_hi . k_j / sqrt(K))

A fused attention kernel does not return its weights. Here they are computed a second time, for a block of
queries at a time, so that no more than about 16 MB of them exist. Everything is fp32, or wider if the inputs
are: sums over thousands of queries lose small weights in narrower types. No gradient.

Shapes: B batch, H query heads, of which H / G share each of G key-value heads, T queries, L keys, K head
width.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from memlab.precision import accurate

_WEIGHTS = 1 << 22  # maximum of weights held at once: 16 MB in fp32


@torch.no_grad()
def weights(q_BHTK: Tensor, k_BGLK: Tensor, look: Tensor) -> Tensor:
    """Softmax weights [B, H, T, L]; the arguments are those of `received`."""
    h, t, width = q_BHTK.shape[1:]
    g = k_BGLK.shape[1]
    wide = torch.promote_types(q_BHTK.dtype, torch.float32)
    with accurate(q_BHTK):
        q_BGsK = q_BHTK.to(wide).unflatten(1, (g, h // g)).flatten(2, 3)
        score = (q_BGsK @ k_BGLK.to(wide).transpose(-1, -2)).mul_(width**-0.5)
    score_BGsTL = score.unflatten(2, (h // g, t))
    return score_BGsTL.masked_fill_(~look.unsqueeze(2), -math.inf).softmax(-1).flatten(1, 2)


@torch.no_grad()
def received_naive(q_BHTK: Tensor, k_BGLK: Tensor, look: Tensor, weight_T: Tensor | None = None) -> Tensor:
    """From all weights; the arguments are those of `received`."""
    weights_BHTL = weights(q_BHTK, k_BGLK, look)
    if weight_T is not None:
        weights_BHTL = weights_BHTL * weight_T[:, None]
    return weights_BHTL.unflatten(1, (k_BGLK.shape[1], -1)).mean(2).sum(2)


@torch.no_grad()
def received(q_BHTK: Tensor, k_BGLK: Tensor, look: Tensor, weight_T: Tensor | None = None) -> Tensor:
    """Attention that each key receives, mean over the query heads that share it: [B, G, L].

    Args:
        q_BHTK, k_BGLK: as attention takes them, rotated.
        look: bool, True = may look, broadcastable to [B, G, T, L]; a query looks at one key at least.
        weight_T: c, how much each query counts; None = 1.
    """
    b, h, t, _ = q_BHTK.shape
    g, keys = k_BGLK.shape[1:3]
    look = look.expand(-1, -1, t, -1)
    sums_BGL = q_BHTK.new_zeros(b, g, keys, dtype=torch.promote_types(q_BHTK.dtype, torch.float32))
    together = max(1, _WEIGHTS // max(1, b * h * keys))
    for start in range(0, t, together):
        queries = slice(start, min(start + together, t))
        weights_BGsTL = weights(q_BHTK[:, :, queries], k_BGLK, look[:, :, queries]).unflatten(1, (g, -1))
        by_query = sums_BGL.new_ones(weights_BGsTL.shape[3]) if weight_T is None else weight_T[queries]
        with accurate(q_BHTK):
            sums_BGL += torch.einsum("bgstl,t->bgl", weights_BGsTL, by_query.to(sums_BGL.dtype)) / (h // g)
    return sums_BGL
