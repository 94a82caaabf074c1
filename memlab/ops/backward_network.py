"""The network that scores cached tokens (NAMM, arXiv 2410.13166), as a function of a vector of parameters.

    q, k, v = W_1 x + b_1                                   x: the F features of a token
    y_i     = sum_j softmax(q_i k_j / sqrt(h)) v_j          over token i itself and newer ones
    r, m    = W_2 y + b_2                                   F numbers each
    score   = w_3 (x (1 + m) + r) + b_3

The vector holds W_1, b_1, W_2, b_2, w_3, b_3 in this order. Several vectors, the candidates of an evolution,
are computed together: each scores the batch rows of its own part.

Shapes: P candidates, n parameters, B batch (a multiple of P; the rows of candidate 1 come first), G key-value
heads, L cached tokens, F features, h width of the attention.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

_HIDDEN = -1e4  # added to the score of a token that is not there


def shapes(features: int, hidden: int) -> list[tuple[int, ...]]:
    """Shapes of the parts of a parameter vector, in order."""
    return [
        (features, 3 * hidden),
        (3 * hidden,),
        (hidden, 2 * features),
        (2 * features,),
        (features, 1),
        (1,),
    ]


def count(features: int, hidden: int) -> int:
    """n, the length of a parameter vector."""
    return sum(math.prod(shape) for shape in shapes(features, hidden))


def parts(parameters_Pn: Tensor, features: int, hidden: int) -> Iterator[Tensor]:
    """The parts of each vector, [P, *shape]."""
    wanted = shapes(features, hidden)
    for part, shape in zip(parameters_Pn.split([math.prod(s) for s in wanted], dim=1), wanted, strict=True):
        yield part.unflatten(1, shape)


@torch.no_grad()
def backward_scores_naive(
    parameters_Pn: Tensor, features_BGLF: Tensor, there_BGL: Tensor, hidden: int
) -> Tensor:
    """The formulas as they stand, token by token."""
    b, g, length, f = features_BGLF.shape
    scores_BGL = torch.zeros_like(features_BGLF[..., 0])
    for row in range(b):
        w1, b1, w2, b2, w3, b3 = (p[row * len(parameters_Pn) // b] for p in parts(parameters_Pn, f, hidden))
        for head in range(g):
            x_LF, there = features_BGLF[row, head], [j for j in range(length) if there_BGL[row, head, j]]
            for i in there:
                newer = [j for j in there if j >= i]
                q = (x_LF[i] @ w1 + b1)[:hidden]
                logits = torch.stack([q @ (x_LF[j] @ w1 + b1)[hidden : 2 * hidden] for j in newer])
                weights = (logits / math.sqrt(hidden)).softmax(0)
                values = torch.stack([(x_LF[j] @ w1 + b1)[2 * hidden :] for j in newer])
                residual, factor = (weights @ values @ w2 + b2).chunk(2)
                scores_BGL[row, head, i] = ((x_LF[i] * (1 + factor) + residual) @ w3 + b3)[0]
    return scores_BGL


@torch.no_grad()
def backward_scores(parameters_Pn: Tensor, features_BGLF: Tensor, there_BGL: Tensor, hidden: int) -> Tensor:
    """The score of each token, [B, G, L]; 0 for those that are not there. Without gradient.

    With the newest token first the attention is causal, and needs no mask in memory. One more feature of the
    keys leaves out tokens that are not there.

    Args:
        parameters_Pn: one or several vectors; P divides B.
        features_BGLF: of the tokens, the oldest first.
        there_BGL: bool, whether there is a token at this place.
        hidden: h.
    """
    b, g, length, f = features_BGLF.shape
    p = len(parameters_Pn)
    w1, b1, w2, b2, w3, b3 = (
        part[:, None] if part.dim() == 2 else part for part in parts(parameters_Pn, f, hidden)
    )
    x = features_BGLF.reshape(p, b // p * g * length, f)
    q, k, v = (_newest_first(t, b * g, length) for t in (x @ w1 + b1).chunk(3, dim=-1))
    hidden_RL = (~there_BGL).reshape(b * g, length).flip(1) * _HIDDEN * math.sqrt(hidden)
    q = torch.cat([q, torch.ones_like(q[..., :1])], dim=-1)
    k = torch.cat([k, hidden_RL[:, None, :, None].to(k.dtype)], dim=-1)
    padding = (0, -(hidden + 1) % 8)  # widths that the fast kernels take
    q, k, v = F.pad(q, padding), F.pad(k, padding), F.pad(v, (0, padding[1] + 1))
    y = F.scaled_dot_product_attention(q, k, v, is_causal=True, scale=1 / math.sqrt(hidden))
    y = y[:, 0, :, :hidden].flip(1).reshape(p, -1, hidden)
    residual, factor = (y @ w2 + b2).chunk(2, dim=-1)
    scores = (x * (1 + factor) + residual) @ w3 + b3
    return scores.reshape(b, g, length).to(features_BGLF.dtype) * there_BGL


def _newest_first(t: Tensor, rows: int, length: int) -> Tensor:
    """[B G, 1, L, h], reversed in time."""
    return t.reshape(rows, length, -1).flip(1)[:, None]
