"""Continuous-space attention against integrals computed by quadrature."""

from __future__ import annotations

import functools
import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from memlab.layers.continuous import Basis, contracted, quantiles, regression, share

BASIS = Basis(6, (0.07, 0.2))
DENSITIES = pytest.mark.parametrize("density", ["gaussian", "parabola"])
MEANS, VARIANCES = (0.0, 0.31, 0.97), (0.0004, 0.02, 0.5)


def looks() -> tuple[Tensor, Tensor]:
    """Means and variances in all combinations, [3, 3] each."""
    both = torch.meshgrid(*(torch.tensor(t, dtype=torch.float64) for t in (MEANS, VARIANCES)), indexing="ij")
    return both[0].clone(), both[1].clone()


NODES, WEIGHTS = (torch.from_numpy(a) for a in np.polynomial.legendre.leggauss(200))


def reach(variance: float, density: str) -> float:
    """How far from its mean a density is not 0."""
    return 12 * math.sqrt(variance) if density == "gaussian" else (1.5 * variance) ** (1 / 3)


def p(t: Tensor, mean: float, variance: float, density: str) -> Tensor:
    """A density by its definition."""
    if density == "gaussian":
        return torch.exp(-((t - mean) ** 2) / (2 * variance)) / math.sqrt(2 * math.pi * variance)
    # [-(t - mean)^2 / (2 variance) - A]_+ with the A that normalises it (arXiv 2006.07214)
    A = -0.5 * (3 / (2 * math.sqrt(variance))) ** (2 / 3)
    return (-((t - mean) ** 2) / (2 * variance) - A).clamp_min(0)


def integral(function: Any, low: float, high: float) -> float:
    """By Gauss-Legendre quadrature on 8 parts."""
    edges = np.linspace(low, high, 9)
    total = 0.0
    for a, b in itertools.pairwise(edges.tolist()):
        total += float((WEIGHTS * function((a + b) / 2 + (b - a) / 2 * NODES)).sum()) * (b - a) / 2
    return total


def psi(t: Tensor, j: int) -> Tensor:
    centre, width = (0.0, 0.5, 1.0)[j % 3], (0.07, 0.2)[j // 3]
    return torch.exp(-0.5 * ((t - centre) / width) ** 2) / (width * math.sqrt(2 * math.pi))


def test_basis_functions_are_gaussians_of_each_width_at_each_centre() -> None:
    t = torch.linspace(-0.3, 1.2, 7, dtype=torch.float64)
    expected = torch.stack([psi(t, j) for j in range(6)], dim=-1)
    torch.testing.assert_close(BASIS.values(t), expected, rtol=1e-12, atol=1e-12)


@DENSITIES
def test_expected_basis_functions(density: Any) -> None:
    """E_p[psi_j(t)]; the density itself integrates to 1."""
    found = BASIS.expected(*looks(), density)
    for i, mean in enumerate(MEANS):
        for k, variance in enumerate(VARIANCES):
            size = reach(variance, density)

            def seen(t: Tensor, j: int, own: tuple[float, float] = (mean, variance)) -> Tensor:
                return p(t, *own, density) * psi(t, j)

            edges = mean - size, mean + size
            assert integral(lambda t, m=mean, v=variance: p(t, m, v, density), *edges) == pytest.approx(1)
            integrals = [integral(functools.partial(seen, j=j), *edges) for j in range(6)]
            assert found[i, k].tolist() == pytest.approx(integrals, rel=1e-9, abs=1e-9)


@DENSITIES
def test_gradients_of_expected_basis_functions(density: Any) -> None:
    """Against finite differences, and second derivatives too: the parabola's edges move with its variance."""
    mean, variance = (t.requires_grad_() for t in looks())
    torch.autograd.gradcheck(lambda m, v: BASIS.expected(m, v, density), (mean, variance), atol=1e-5)
    torch.autograd.gradgradcheck(lambda m, v: BASIS.expected(m, v, density), (mean, variance), atol=1e-3)


@DENSITIES
def test_expected_basis_functions_in_single_precision(density: Any) -> None:
    mean, variance = looks()
    rough = BASIS.expected(mean.float(), variance.float(), density)
    torch.testing.assert_close(rough.double(), BASIS.expected(mean, variance, density), rtol=1e-3, atol=1e-4)


@DENSITIES
def test_shares_of_bins(density: Any) -> None:
    edges = torch.tensor([-5.0, 0.0, 0.3, 0.35, 1.0, 6.0], dtype=torch.float64)
    mean, variance = looks()
    found = share(edges, mean, variance, density)
    for i, k in np.ndindex(3, 3):
        mean, variance = MEANS[i], VARIANCES[k]
        size = reach(variance, density)
        for e, (low, high) in enumerate(itertools.pairwise(edges.tolist())):
            low, high = max(low, mean - size), min(high, mean + size)
            right = 0.0
            if low < high:
                right = integral(lambda t, m=mean, v=variance: p(t, m, v, density), low, high)
            assert float(found[i, k, e]) == pytest.approx(right, abs=1e-9)


def test_quantiles_divide_the_bins() -> None:
    """By walking over the bins; the first row is even, the second has empty bins."""
    shares = torch.tensor([[1.0, 1, 1, 1], [0, 3, 0, 1], [0, 0, 0, 2]], dtype=torch.float64)
    found = quantiles(shares, 5)
    for b, row in enumerate(shares.tolist()):
        for m in range(5):
            left = (m + 0.5) / 5 * sum(row)
            for e, size in enumerate(row):
                if left <= size and size:
                    assert float(found[b, m]) == pytest.approx((e + left / size) / 4)
                    break
                left -= size


def test_regression_is_the_minimum() -> None:
    """Of |X - F^T B|^2 + ridge |B|^2: its gradient there is 0."""
    t = torch.tensor([0.1, 0.25, 0.6, 0.9], dtype=torch.float64)
    X = torch.randn(4, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    B = (regression(BASIS, t, 0.3).T @ X).requires_grad_()
    F = torch.stack([psi(t, j) for j in range(6)])
    loss = (X - F.T @ B).square().sum() + 0.3 * B.square().sum()
    (gradient,) = torch.autograd.grad(loss, B)
    assert gradient.abs().max() < 1e-10


def test_contracted_positions() -> None:
    """Old samples on (0, tau], new tokens on (tau, 1]; and a constant that inference may ask for first."""
    arguments = (6, (0.07, 0.2), 0.3, 0.4)
    with torch.inference_mode():
        found = contracted(*arguments, 2, 3, torch.device("cpu"), torch.float64)
    positions = torch.tensor([0.2, 0.4, 0.6, 0.8, 1.0], dtype=torch.float64)
    torch.testing.assert_close(found, regression(BASIS, positions, 0.3))
    assert not found.is_inference()
    alone = contracted(*arguments[:3], 0.0, 0, 4, torch.device("cpu"), torch.float64)
    torch.testing.assert_close(alone, regression(BASIS, torch.arange(1, 5, dtype=torch.float64) / 4, 0.3))
