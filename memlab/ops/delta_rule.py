"""The gated delta rule: a matrix that each token reads, decays and corrects (arXiv 2412.06464, equation 10).

    S_t = a_t (S_{t-1} - b_t k_t (k_t^T S_{t-1})) + b_t k_t v_t^T,   o_t = q_t^T S_t        delta
    S_t = a_t S_{t-1} + b_t k_t v_t^T                                                       without delta

The fast form computes C tokens at once (section 3.3; arXiv 2406.06484, section 3). Within a chunk, with
g_i = a_1 .. a_i and S_0 the state before it, every token adds k_i u_i^T to the decayed state:

    S_i = g_i S_0 + sum_{j <= i} (g_i / g_j) k_j u_j^T
    u_i = b_i (v_i - g_i S_0^T k_i - sum_{j < i} (g_i / g_j) (k_i . k_j) u_j)

So (I + L) U = diag(b) (V - diag(g) K S_0), where L is strictly lower triangular, with L_ij = b_i (g_i / g_j)
(k_i . k_j). One triangular solve gives U = U' - W S_0 for all chunks together (the UT transform), and the
state after a chunk is linear in the one before: S_C = A S_0 + B, with A [K, K]. Only these T / C products
are sequential.

Shapes: `q_BHTK` is [B, H, T, K], `k_BGTK` [B, G, T, K], `v_BGTV` [B, G, T, V]; `log_decay_BGT`, log a <= 0,
and `beta_BGT` are [B, G, T]; `state_BGKV` is [B, G, K, V]. H / G neighbouring queries share a state. The
results are o [B, H, T, V] and the state after the last token.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from memlab.precision import accurate

_CHUNK = 32  # C; 16 to 64 cost about the same


def gated_delta_rule_naive(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    log_decay_BGT: Tensor,
    beta_BGT: Tensor,
    state_BGKV: Tensor,
    delta: bool,
) -> tuple[Tensor, Tensor]:
    """One token after another."""
    state, outputs = state_BGKV, []
    rows = (x.unbind(2) for x in (q_BHTK, k_BGTK, v_BGTV, log_decay_BGT.exp(), beta_BGT))
    for q_BHK, k_BGK, v_BGV, decay_BG, beta_BG in zip(*rows, strict=True):
        state = state * decay_BG[..., None, None]
        new_BGV = v_BGV
        if delta:
            new_BGV = new_BGV - (k_BGK.unsqueeze(-2) @ state).squeeze(-2)
        state = state + k_BGK.unsqueeze(-1) * (beta_BG.unsqueeze(-1) * new_BGV).unsqueeze(-2)
        outputs.append((q_BHK.unflatten(1, (k_BGK.shape[1], -1)) @ state).flatten(1, 2))
    if not outputs:
        return (q_BHTK.unflatten(1, (k_BGTK.shape[1], -1)) @ state.unsqueeze(2)).flatten(1, 2), state
    return torch.stack(outputs, dim=2), state


def gated_delta_rule(
    q_BHTK: Tensor,
    k_BGTK: Tensor,
    v_BGTV: Tensor,
    log_decay_BGT: Tensor,
    beta_BGT: Tensor,
    state_BGKV: Tensor,
    delta: bool,
) -> tuple[Tensor, Tensor]:
    """As `gated_delta_rule_naive`, in chunks and at least in fp32."""
    (b, _, t, _), (groups, width) = q_BHTK.shape, v_BGTV.shape[1::2]
    size = max(1, min(_CHUNK, t))

    def chunks(x: Tensor) -> Tensor:
        """[B, G, T, ..] to [chunks, B G, C, ..]. Rows of zeros at the end neither decay nor write."""
        x = x.to(torch.promote_types(x.dtype, torch.float32))
        if missing := -t % size:
            x = F.pad(x, [0, 0] * (x.dim() - 3) + [0, missing])
        return x.flatten(0, 1).unflatten(1, (-1, size)).transpose(0, 1)

    with accurate(q_BHTK):
        k, v, log_decay, beta = (chunks(x) for x in (k_BGTK, v_BGTV, log_decay_BGT, beta_BGT))
        q = chunks(q_BHTK).unflatten(1, (b * groups, -1))  # [chunks, B G, H / G, C, K]
        log_g = log_decay.cumsum(2)
        g, beta = log_g.exp().unsqueeze(-1), beta.unsqueeze(-1)
        # g_i / g_j where j <= i, else 0: never more than 1
        later = torch.ones(size, size, dtype=torch.bool, device=q.device).triu(1)
        ratio = (log_g.unsqueeze(-1) - log_g.unsqueeze(-2)).masked_fill(later, -torch.inf).exp()
        to_end = ratio[:, :, -1, :, None] * k  # what is left of each k_j at the end of the chunk
        if delta:
            L = beta * ratio * (k @ k.transpose(-1, -2))
            both = torch.linalg.solve_triangular(
                L, torch.cat([beta * v, beta * g * k], dim=-1), upper=False, unitriangular=True
            )
            u, w = both.split([width, k.shape[-1]], dim=-1)
            eye = torch.eye(k.shape[-1], dtype=k.dtype, device=k.device)
            A = g[:, :, -1:] * eye - to_end.transpose(-1, -2) @ w
        else:
            u, A = beta * v, g[:, :, -1:]
        states = _scan(A, to_end.transpose(-1, -2) @ u, state_BGKV.flatten(0, 1).to(u.dtype), delta)
        before = states[:-1]
        if delta:
            u = u - w @ before
        seen = ratio.unsqueeze(2) * (q @ k.transpose(-1, -2).unsqueeze(2))
        o = (q * g.unsqueeze(2)) @ before.unsqueeze(2) + seen @ u.unsqueeze(2)
        o = o.permute(1, 2, 0, 3, 4).flatten(2, 3)[:, :, :t].unflatten(0, (b, groups)).flatten(1, 2)
        return o.to(v_BGTV.dtype), states[-1].unflatten(0, (b, groups)).to(state_BGKV.dtype)


def _scan(A: Tensor, B: Tensor, start: Tensor, matrix: bool) -> Tensor:
    """S_n = A_n S_{n-1} + B_n from S_0: the states before each chunk and after the last."""
    states = [start]
    for factor, added in zip(A.unbind(), B.unbind(), strict=True):
        before = states[-1]
        states.append(
            torch.baddbmm(added, factor, before) if matrix else torch.addcmul(added, factor, before)
        )
    return torch.stack(states)
