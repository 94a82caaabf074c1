"""Continuous-space attention: a signal on [0, 1] as a sum of basis functions, and densities that look at it.

    x(t) = B^T psi(t)       psi_j(t) = N(t; c_j, w_j^2), Gaussian radial basis functions

A density p(t) with mean m and variance v sees the signal through its expected basis functions,
r_j = E_p[psi_j(t)], since E_p[x(t)] = B^T r. Both densities have a closed form (Martins et al. 2020,
arXiv 2006.07214): the Gaussian, and the truncated parabola, which is 0 beyond a = (3/2 v)^(1/3) from its
mean:

    p(t) = max(0, a^2 - (t - m)^2) / (2 v)

Shapes: J basis functions, L positions; m and v of any shape [..].
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

Density = Literal["gaussian", "parabola"]


class Basis:
    """Gaussian basis functions: centres evenly spaced on [0, 1], and at each of them one of every width.

    Attributes:
        size: J, a multiple of the number of widths.
        widths: standard deviations.
    """

    def __init__(self, size: int, widths: Sequence[float]) -> None:
        self.size, self.widths = size, tuple(widths)

    def functions(self, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
        """Centres and widths, [J] each."""
        each = self.size // len(self.widths)
        centres_J = torch.linspace(0, 1, each, device=device, dtype=dtype).repeat(len(self.widths))
        widths = torch.tensor(self.widths, device=device, dtype=dtype)
        return centres_J, widths.repeat_interleave(each)

    def values(self, t: Tensor) -> Tensor:
        """psi at positions [..]: [.., J]."""
        centres_J, widths_J = self.functions(t.device, t.dtype)
        return _normal((t[..., None] - centres_J) / widths_J) / widths_J

    def expected(self, mean: Tensor, variance: Tensor, density: Density) -> Tensor:
        """r, the expected basis functions under a density for each mean and variance [..]: [.., J]."""
        centres_J, widths_J = self.functions(mean.device, mean.dtype)
        off = mean[..., None] - centres_J
        if density == "gaussian":
            width = (variance[..., None] + widths_J.square()).sqrt()
            return _normal(off / width) / width
        a = _reach(variance)[..., None]
        low, high = (off - a) / widths_J, (off + a) / widths_J  # of the support, in units of the function
        inside, edge_low, edge_high = _below(high) - _below(low), _normal(low), _normal(high)
        first = edge_low - edge_high  # first and second moment of the standard normal within the support
        second = inside + low * edge_low - high * edge_high
        square = widths_J.square() * second - 2 * off * widths_J * first + off.square() * inside
        return (a.square() * inside - square) / (2 * variance[..., None])


def share(edges_E: Tensor, mean: Tensor, variance: Tensor, density: Density) -> Tensor:
    """How much of a density lies between neighbouring edges: [.., E - 1]."""
    off = edges_E - mean[..., None]
    if density == "gaussian":
        below = _below(off / variance[..., None].sqrt())
    else:
        u = (off / _reach(variance)[..., None]).clamp(-1, 1)
        below = (2 + 3 * u - u**3) / 4
    return below.diff(dim=-1)


def quantiles(share_BE: Tensor, count: int) -> Tensor:
    """Positions on [0, 1] that divide a density into equal parts: the middles of `count` parts, [B, M].

    Args:
        share_BE: the density's share of each of E equal bins, up to a factor; even within a bin.
    """
    bins = share_BE.shape[1]
    total_BE = share_BE.cumsum(1)
    wish_M = (torch.arange(count, device=share_BE.device, dtype=share_BE.dtype) + 0.5) / count
    wish_BM = wish_M * total_BE[:, -1:]
    bin_BM = torch.searchsorted(total_BE, wish_BM).clamp(max=bins - 1)
    in_bin_BM, up_to_BM = share_BE.gather(1, bin_BM), total_BE.gather(1, bin_BM)
    within_BM = 1 - (up_to_BM - wish_BM) / in_bin_BM.clamp_min(torch.finfo(share_BE.dtype).tiny)
    return (bin_BM + within_BM.clamp(0, 1)) / bins


def regression(basis: Basis, positions_L: Tensor, ridge: float) -> Tensor:
    """G [L, J] of a ridge regression: B = G^T X fits x(t_l) to the rows of X, with penalty ridge |B|^2.

    G = F^T (F F^T + ridge I)^-1 with F = psi(t_l), [J, L].
    """
    psi_LJ = basis.values(positions_L)
    penalty_JJ = ridge * torch.eye(basis.size, device=psi_LJ.device, dtype=psi_LJ.dtype)
    return torch.linalg.solve(psi_LJ.T @ psi_LJ + penalty_JJ, psi_LJ.T).T


@functools.lru_cache(maxsize=64)
def contracted(
    size: int,
    widths: tuple[float, ...],
    ridge: float,
    contraction: float,
    samples: int,
    tokens: int,
    device: torch.device,
    dtype: torch.dtype,
) -> Tensor:
    """`regression` for `samples` evenly spaced on (0, contraction] and `tokens` on (contraction, 1]."""
    with torch.inference_mode(False), torch.no_grad():  # a constant, whoever asks for it first
        old, new = (
            torch.arange(1, n + 1, device=device, dtype=torch.float64) / max(n, 1) for n in (samples, tokens)
        )
        positions_L = torch.cat([contraction * old, contraction + (1 - contraction) * new])
        return regression(Basis(size, widths), positions_L, ridge).to(dtype)


def _reach(variance: Tensor) -> Tensor:
    """a, the half width of a truncated parabola."""
    return (1.5 * variance) ** (1 / 3)


def _normal(z: Tensor) -> Tensor:
    """Density of the standard normal."""
    return torch.exp(-0.5 * z.square()) / math.sqrt(2 * math.pi)


def _below(z: Tensor) -> Tensor:
    """Its cumulative distribution."""
    return 0.5 * (1 + torch.erf(z / math.sqrt(2)))
