"""An adapter against the formula W + (alpha / r) B A, in values, gradients and types."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from memlab.layers import low_rank
from memlab.layers.low_rank import LowRank

P, D, RANK, ALPHA = 11, 5, 3, 7.0
PARTS = {
    "all rows": [range(P)],
    "two projections side by side": [range(4), range(4, 11)],
    "first and last, with rows between": [range(3), range(7, 11)],
    "in the middle": [range(2, 6)],
}
each_cut = pytest.mark.parametrize("parts", PARTS.values(), ids=PARTS)


def linear(dtype: torch.dtype = torch.float64) -> nn.Linear:
    return nn.Linear(D, P, dtype=dtype)


def trained(parts: list[range]) -> nn.Linear:
    """A layer whose adapter is no longer at its beginning."""
    layer = linear()
    low_rank.adapt(layer, parts, RANK, ALPHA)
    adapter = own(layer)
    with torch.no_grad():
        adapter.B_Pr.normal_()
    return layer


def own(layer: nn.Linear) -> LowRank:
    found = layer.get_submodule("parametrizations.weight.0")
    assert isinstance(found, LowRank)
    return found


def formula(layer: nn.Linear, parts: list[range]) -> Tensor:
    """Row by row: what its projection's A and B add, and nothing outside of all projections."""
    original = layer.get_parameter("parametrizations.weight.original")
    A_CrD, B_Pr = own(layer).A_CrD, own(layer).B_Pr
    rows, b = list(original), 0
    for part, A_rD in zip(parts, A_CrD, strict=True):
        for row in part:
            rows[row] = rows[row] + ALPHA / RANK * sum(B_Pr[b, r] * A_rD[r] for r in range(RANK))
            b += 1
    assert b == len(B_Pr)
    return torch.stack(rows)


@each_cut
def test_values_and_gradients_are_those_of_the_formula(parts: list[range]) -> None:
    layer, x = trained(parts), torch.randn(4, D, dtype=torch.float64)
    inputs = [own(layer).A_CrD, own(layer).B_Pr]
    weight = formula(layer, parts)
    torch.testing.assert_close(layer.weight, weight, rtol=1e-12, atol=1e-12)
    actual = torch.autograd.grad(layer(x).square().sum(), inputs)
    expected = torch.autograd.grad((x @ weight.T + layer.bias).square().sum(), inputs)
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)


@each_cut
def test_it_begins_as_the_layer_was(parts: list[range]) -> None:
    """Bit for bit; A has the variance 1/D, and B its first gradient."""
    torch.manual_seed(0)
    layer, x = linear(), torch.randn(4, D, dtype=torch.float64)
    before = layer(x)
    low_rank.adapt(layer, parts, RANK, ALPHA)
    after = layer(x)
    assert torch.equal(before, after)
    a, b = torch.autograd.grad(after.square().sum(), [own(layer).A_CrD, own(layer).B_Pr])
    assert not a.any() and b.any()
    assert 0.5 < own(layer).A_CrD.var() * D < 1.6


@each_cut
def test_merged_weights_are_the_adapted_ones(parts: list[range]) -> None:
    layer, x = trained(parts), torch.randn(4, D, dtype=torch.float64)
    before = layer(x)
    low_rank.merge(layer)
    assert torch.equal(layer(x), before)
    assert {name for name, _ in layer.named_parameters()} == {"weight", "bias"}
    assert not parametrize.is_parametrized(layer) and type(layer) is nn.Linear


def test_half_precision() -> None:
    """A narrow weight stays narrow, and its adapter is trained in single precision; automatic casts change
    neither W' nor what is merged.
    """
    layer = linear(torch.bfloat16)
    low_rank.adapt(layer, [range(P)], RANK, ALPHA)
    with torch.no_grad():
        own(layer).B_Pr.normal_()
    assert own(layer).A_CrD.dtype == torch.float32 and layer.weight.dtype == torch.bfloat16
    wide = linear(torch.float32)
    low_rank.adapt(wide, [range(P)], RANK, ALPHA)
    with torch.no_grad():
        own(wide).B_Pr.normal_()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        under = wide.weight
    assert torch.equal(under, wide.weight) and under.dtype == torch.float32


def count(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Notes each computation of a W'."""
    calls: list[int] = []
    forward = LowRank.forward

    def counted(self: LowRank, weight: Tensor) -> Tensor:
        calls.append(1)
        return forward(self, weight)

    monkeypatch.setattr(LowRank, "forward", counted)
    return calls


def test_computed_once_for_all_uses(monkeypatch: pytest.MonkeyPatch) -> None:
    """With the same gradients, also if the first use is one without; and anew in the next block."""
    layer, x = trained([range(P)]), torch.randn(4, D, dtype=torch.float64)
    inputs = [own(layer).A_CrD, own(layer).B_Pr]
    expected = torch.autograd.grad(layer(layer(x)[:, :D]).square().sum(), inputs)
    calls = count(monkeypatch)
    for _ in range(2):
        calls.clear()
        with low_rank.computed_once(layer):
            with torch.no_grad():
                layer(x)
            loss = layer(layer(x)[:, :D]).square().sum()
        assert len(calls) == 1
        for a, e in zip(torch.autograd.grad(loss, inputs), expected, strict=True):
            torch.testing.assert_close(a, e, rtol=1e-12, atol=1e-12)
    with torch.no_grad():
        own(layer).B_Pr.zero_()
    with low_rank.computed_once(layer):
        assert torch.equal(layer.weight, layer.get_parameter("parametrizations.weight.original"))


def test_a_copy_has_adapters_of_its_own() -> None:
    layer = trained([range(P)])
    other = copy.deepcopy(layer)
    with torch.no_grad():
        own(other).B_Pr.zero_()
    assert not torch.equal(other.weight, layer.weight)
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other.weight, layer.weight)
