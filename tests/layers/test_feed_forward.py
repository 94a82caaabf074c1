"""The feed-forward sub-layer against the formulas of its kinds."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.layers.feed_forward import FeedForward

TOLERANCE = {"rtol": 1e-10, "atol": 1e-10}


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def gelu(x: Tensor) -> Tensor:
    """x P(Z <= x) (arXiv 1606.08415, eq. 1)."""
    return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))


def gelu_tanh(x: Tensor) -> Tensor:
    """Its approximation (section 2), which GPT-2 computes."""
    return 0.5 * x * (1 + torch.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def silu(x: Tensor) -> Tensor:
    return x / (1 + torch.exp(-x))


def by_formula(module: FeedForward, x_D: Tensor) -> Tensor:
    """Of one row."""
    up_P = module.up.weight @ x_D + (0 if module.up.bias is None else module.up.bias)
    if module.kind == "swiglu":  # W_2 (SiLU(W x) * V x), arXiv 2002.05202, eq. 6
        half = len(up_P) // 2
        hidden = silu(up_P[:half]) * up_P[half:]
    else:
        hidden = gelu(up_P) if module.kind == "gelu" else gelu_tanh(up_P)
    return module.down.weight @ hidden + (0 if module.down.bias is None else module.down.bias)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", ["gelu", "gelu_tanh", "swiglu"])
def test_values_and_gradients_are_those_of_the_formula(kind: Any, bias: bool) -> None:
    torch.manual_seed(0)
    module, x_BTD = FeedForward(5, 7, kind, bias).double(), normal(2, 3, 5).requires_grad_()
    assert (module.up.bias is not None) == (module.down.bias is not None) == bias
    assert module.up.weight.shape == (14 if kind == "swiglu" else 7, 5) and module.down.weight.shape == (5, 7)
    y = module(x_BTD)
    expected = torch.stack([by_formula(module, x_D) for x_D in x_BTD.flatten(0, 1)]).view_as(y)
    torch.testing.assert_close(y, expected, **TOLERANCE)
    leaves, wanted = [x_BTD, *module.parameters()], normal(*y.shape).flip(0)
    found = (torch.autograd.grad((wanted * out).sum(), leaves) for out in (y, expected))
    for a, e in zip(*found, strict=True):
        torch.testing.assert_close(a, e, **TOLERANCE)
