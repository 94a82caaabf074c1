"""Normalisation against its formulas, and taken into the linear layer after it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.layers.norms import build_norm, fold_norm

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def by_formula(kind: str, x_BTD: Tensor, eps: float, gain_D: Tensor, bias_D: Tensor | None) -> Tensor:
    """Row by row, as the papers have it."""
    rows = []
    for x_D in x_BTD.flatten(0, 1):
        if kind == "layer":  # arXiv 1607.06450, eq. 3
            centred = x_D - x_D.sum() / len(x_D)
            assert bias_D is not None
            rows.append(centred / ((centred**2).sum() / len(x_D) + eps) ** 0.5 * gain_D + bias_D)
        else:  # arXiv 1910.07467, eq. 4
            rows.append(x_D / ((x_D**2).sum() / len(x_D) + eps) ** 0.5 * gain_D)
    return torch.stack(rows).view_as(x_BTD)


@pytest.mark.parametrize("eps", [1e-5, 0.3])
@pytest.mark.parametrize("kind", ["layer", "rms"])
def test_values_and_gradients_are_those_of_the_formula(kind: Any, eps: float) -> None:
    norm, x_BTD = build_norm(kind, 6, eps).double(), normal(2, 3, 6).requires_grad_()
    for n, parameter in enumerate(norm.parameters()):
        with torch.no_grad():
            parameter.copy_(normal(6).roll(n))
    bias_D = norm.bias if isinstance(norm, nn.LayerNorm) else None
    y, expected = norm(x_BTD), by_formula(kind, x_BTD, eps, norm.weight, bias_D)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    leaves = [x_BTD, *norm.parameters()]
    wanted = normal(*y.shape).flip(0)
    for a, e in zip(
        *(torch.autograd.grad((wanted * out).sum(), leaves) for out in (y, expected)), strict=True
    ):
        torch.testing.assert_close(a, e, **TOLERANCE)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["layer", "rms", None])
def test_folded_into_a_linear_layer_it_is_the_layer_after_the_norm(kind: Any, bias: bool) -> None:
    """Values and all gradients, at an epsilon that matters."""
    norm, linear = (
        None if kind is None else build_norm(kind, 6, 0.2).double(),
        nn.Linear(6, 5, bias=bias).double(),
    )
    parameters = [*(() if norm is None else norm.parameters()), *linear.parameters()]
    for n, parameter in enumerate(parameters):
        with torch.no_grad():
            parameter.copy_(normal(*parameter.shape).roll(n))
    x_BTD = normal(2, 3, 6).requires_grad_()
    rows, weight, b = fold_norm(norm, x_BTD, linear.weight, linear.bias)
    y, expected = F.linear(rows, weight, b), linear(x_BTD if norm is None else norm(x_BTD))
    torch.testing.assert_close(y, expected, **TOLERANCE)
    wanted = normal(*y.shape).flip(0)
    found = (torch.autograd.grad((wanted * out).sum(), [x_BTD, *parameters]) for out in (y, expected))
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e, **TOLERANCE)
