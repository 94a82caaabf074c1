"""Low-rank adapters (Hu et al. 2021, arXiv 2106.09685, section 4.1): W' = W + (alpha / r) B A.

W stays as it is; only A and B are trained. B begins as zeros, so that W' begins as W, and A as N(0, 1/D).

Projections that are stored as one matrix, such as queries, keys and values, have an A and a B each, over
their own rows. The adapter works on the matrix instead of on the input (`torch.nn.utils.parametrize`), so
that every use of the matrix sees it, also those that read some of its rows. That leaves no place for a
dropout of the adapter's input.

Shapes: P outputs and D inputs of a linear layer, C adapted projections of it, r the rank.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from memlab.precision import accurate


class LowRank(nn.Module):
    """W to W + (alpha / r) B A, in some of its rows.

    Args:
        weight: W, [P, D].
        parts: consecutive rows of W that have an adapter, C of them in ascending order.
        rank: r.
        alpha: the product is multiplied by alpha / r.
    """

    def __init__(self, weight: Tensor, parts: Sequence[range], rank: int, alpha: float) -> None:
        super().__init__()
        self.parts, self.scale = tuple(parts), alpha / rank
        inputs = weight.shape[1]
        dtype = torch.promote_types(weight.dtype, torch.float32)
        A_CrD = torch.randn(len(parts), rank, inputs, device=weight.device, dtype=dtype)
        self.A_CrD = nn.Parameter(A_CrD * inputs**-0.5)
        self.B_Pr = nn.Parameter(A_CrD.new_zeros(sum(map(len, parts)), rank))

    def forward(self, weight: Tensor) -> Tensor:
        """W'."""
        pieces, before = [], 0
        with accurate(weight):  # the same numbers under autocast, and after `merge`
            both = zip(self.parts, self.A_CrD, self.B_Pr.split([len(p) for p in self.parts]), strict=True)
            for part, A_rD, B_Pr in both:
                added = (B_Pr @ A_rD * self.scale).to(weight.dtype)
                pieces += [weight[before : part.start], weight[part.start : part.stop] + added]
                before = part.stop
        return torch.cat([*pieces, weight[before:]])


def adapt(linear: nn.Linear, parts: Sequence[range], rank: int, alpha: float) -> None:
    """Give a linear layer an adapter; arguments as for `LowRank`."""
    adapter = LowRank(linear.weight, parts, rank, alpha)
    parametrize.register_parametrization(linear, "weight", adapter)


def adapted(module: nn.Module) -> Iterator[nn.Linear]:
    """The linear layers of a module that have an adapter."""
    for child in module.modules():
        if isinstance(child, nn.Linear) and parametrize.is_parametrized(child, "weight"):
            yield child


@contextmanager
def computed_once(module: nn.Module) -> Iterator[None]:
    """Compute each W' once for all its uses in a `with` block; otherwise each use computes its own.

    Segments that are read one after another would keep a W' each for the gradient. Not for a forward pass
    whose activations are recomputed: the second pass would be outside of the block.
    """
    layers = list(adapted(module))
    if not layers:
        yield
        return
    with parametrize.cached():
        for linear in layers:
            _ = linear.weight  # here, since the first use may be one without a gradient
        yield


def parameters(module: nn.Module) -> list[nn.Parameter]:
    """The parameters of all adapters, and of the weights under them."""
    lists: list[Any] = [linear.parametrizations for linear in adapted(module)]
    return [parameter for one in lists for parameter in one.parameters()]


def merge(module: nn.Module) -> None:
    """Replace each W by its W', and remove the adapters."""
    for linear in list(adapted(module)):
        parametrize.remove_parametrizations(linear, "weight", leave_parametrized=True)
