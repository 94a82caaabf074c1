"""What a chunk of surprises does to a memory with momentum and forgetting (arXiv 2501.00663, eq. 13 to 18).

    S_t = eta_t S_{t-1} - theta_t u_t        u_t: gradient at the memory before the chunk
    M_t = (1 - alpha_t) M_{t-1} + S_t

As all u_t of a chunk are taken at the same memory, M and S after the chunk are weighted sums:

    M = a M_0 + f S_0 - sum_j g_j u_j        S = m S_0 - sum_j n_j u_j

`chunk_weights` gives a, f, m, g and n. For a linear memory, u_j = 2 k_j^T (k_j M_0 - v_j) is linear in M_0
too. So M and S of a chunk are a linear map of those before it, and `linear_memories` computes all of these
maps at once; a fold of [K, K] products remains of the recurrence.

Shapes: b tokens of a chunk, C chunks, K head width; leading dimensions [..] are the same everywhere.
"""

from __future__ import annotations

import torch
from torch import Tensor


def chunk_weights_naive(
    keep: Tensor, momentum: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The recurrence, token by token.

    Args:
        keep, momentum: logits of 1 - alpha and of eta, [.., b].
        step: theta, [.., b].

    Returns:
        a, f and m, [..]; g and n, [.., b].
    """
    keep, momentum = keep.sigmoid(), momentum.sigmoid()
    a = m = torch.ones_like(step[..., 0])
    f = torch.zeros_like(a)
    g: list[Tensor] = []
    n: list[Tensor] = []
    for kept, eta, theta in zip(keep.unbind(-1), momentum.unbind(-1), step.unbind(-1), strict=True):
        m, n = eta * m, [*(eta * old for old in n), theta]
        a, f = kept * a, kept * f + m
        g = [kept * old + added for old, added in zip([*g, torch.zeros_like(a)], n, strict=True)]
    return a, f, m, torch.stack(g, dim=-1), torch.stack(n, dim=-1)


def chunk_weights(
    keep: Tensor, momentum: Tensor, step: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """As `chunk_weights_naive`, from [b, b] products of decays, which are differences of logarithms."""
    dtype = step.dtype
    wide = torch.promote_types(dtype, torch.float32)
    keep_to = torch.nn.functional.logsigmoid(keep.to(wide)).cumsum(-1)
    momentum_to = torch.nn.functional.logsigmoid(momentum.to(wide)).cumsum(-1)
    after = (keep_to[..., -1:] - keep_to).exp()  # of M, from after token i to the end
    b = step.shape[-1]
    later = torch.ones(b, b, dtype=torch.bool, device=step.device).tril()
    # of S, from token j to token i; what would be before j is 0
    between = momentum_to[..., :, None] - momentum_to[..., None, :]
    between = between.masked_fill(~later, -torch.inf).exp()
    from_start = momentum_to.exp()
    g = step * (after[..., None, :] @ between).squeeze(-2)
    n = step * between[..., -1, :]
    f = (after * from_start).sum(-1)
    a, m = keep_to[..., -1].exp(), from_start[..., -1]
    return a.to(dtype), f.to(dtype), m.to(dtype), g.to(dtype), n.to(dtype)


def linear_memories_naive(
    keys: Tensor,
    values: Tensor,
    keep: Tensor,
    momentum: Tensor,
    step: Tensor,
    memory: Tensor,
    surprise: Tensor,
) -> tuple[Tensor, Tensor]:
    """The recurrence, token by token.

    Args:
        keys, values: [.., C, b, K].
        keep, momentum, step: as for `chunk_weights`, [.., C, b].
        memory, surprise: M and S before the first chunk, [.., K, K].

    Returns:
        M before each chunk and after the last, [.., C + 1, K, K], and S after the last.
    """
    keep, momentum = keep.sigmoid(), momentum.sigmoid()
    memories = [memory]
    for c in range(keys.shape[-3]):
        start = memory
        for t in range(keys.shape[-2]):
            k, v = keys[..., c, t, :], values[..., c, t, :]
            off = (k[..., None, :] @ start).squeeze(-2) - v
            gradient = 2 * k[..., :, None] * off[..., None, :]
            surprise = momentum[..., c, t, None, None] * surprise - step[..., c, t, None, None] * gradient
            memory = keep[..., c, t, None, None] * memory + surprise
        memories.append(memory)
    return torch.stack(memories, dim=-3), surprise


def linear_memories(
    keys: Tensor,
    values: Tensor,
    keep: Tensor,
    momentum: Tensor,
    step: Tensor,
    memory: Tensor,
    surprise: Tensor,
) -> tuple[Tensor, Tensor]:
    """As `linear_memories_naive`: M' = A M + f S + B and S' = m S - D M + E, for all chunks at once."""
    a, f, m, g, n = (t[..., None, None] for t in chunk_weights(keep, momentum, step))
    by_g, by_n = ((2 * w.squeeze(-1) * keys).transpose(-1, -2) for w in (g, n))  # [.., C, K, b]
    eye = torch.eye(keys.shape[-1], dtype=keys.dtype, device=keys.device)
    A, B = a * eye - by_g @ keys, by_g @ values
    D, E = by_n @ keys, by_n @ values
    memories = [memory]
    for c in range(keys.shape[-3]):
        memory, surprise = (
            A[..., c, :, :] @ memory + f[..., c, :, :] * surprise + B[..., c, :, :],
            m[..., c, :, :] * surprise - D[..., c, :, :] @ memory + E[..., c, :, :],
        )
        memories.append(memory)
    dtype = keys.dtype
    return torch.stack(memories, dim=-3).to(dtype), surprise.to(dtype)
