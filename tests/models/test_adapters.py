"""Models with low-rank adapters: for every model of the conformance suite, in all its forms."""

from __future__ import annotations

from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.layers import low_rank
from memlab.models import adapters
from memlab.models.base import Model
from memlab.models.choices import Target
from memlab.training import truncation
from tests.conformance.test_contract import VOCAB, build, files
from tests.small import read_in_pieces

TARGETS: list[Any] = list(get_args(Target))
RANK, ALPHA = 2, 5.0
every_model = pytest.mark.parametrize("name", files())


def tokens() -> Tensor:
    return torch.randint(VOCAB, (2, 3, 4), generator=torch.Generator().manual_seed(2))


def adapted(name: str, targets: list[Any] | None = None) -> Model:
    """With adapters that are no longer at their beginning."""
    model = build(name, {})
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    adapters.adapt(model, RANK, ALPHA, targets or TARGETS)
    torch.manual_seed(3)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("B_Pr"):
            with torch.no_grad():
                parameter.normal_(std=0.3)
    return model


@every_model
def test_it_begins_as_the_base(name: str) -> None:
    """Bit for bit."""
    base, model = build(name, {}), build(name, {})
    adapters.adapt(model, RANK, ALPHA, TARGETS)
    assert torch.equal(model(tokens()).logits, base(tokens()).logits)


@every_model
def test_merged_weights_give_the_adapted_outputs(name: str) -> None:
    """And a plain model takes them: their names are those of a model without adapters."""
    model = adapted(name)
    expected = model(tokens())
    low_rank.merge(model)
    plain = build(name, {})
    before = plain(tokens()).logits
    plain.load_state_dict(model.state_dict())
    output = plain(tokens())
    torch.testing.assert_close(output.logits, expected.logits, rtol=1e-12, atol=1e-12)
    for one, other in zip(output.state.tensors(), expected.state.tensors(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)
    assert not torch.allclose(output.logits, before, atol=1e-4)


def gradients(model: Model, logits: Tensor) -> dict[str, Tensor | None]:
    named = {name: p for name, p in model.named_parameters() if p.requires_grad}
    weights = torch.linspace(-1, 1, logits.numel(), dtype=logits.dtype).view_as(logits)
    found = torch.autograd.grad((logits * weights).sum(), list(named.values()), allow_unused=True)
    return dict(zip(named, found, strict=True))


def assert_equal(one: dict[str, Tensor | None], other: dict[str, Tensor | None]) -> None:
    for name in one.keys() | other.keys():
        torch.testing.assert_close(one[name], other[name], rtol=1e-9, atol=1e-11, msg=lambda m, n=name: n + m)


@every_model
def test_all_ways_to_read_are_one(name: str) -> None:
    """Fold, parallel form and pieces; recomputed or not, and W' computed once or for each use: values, and
    the gradients of all adapters. No other parameter has one.
    """
    model, x = adapted(name), tokens()
    whole = model.recurrent(x, model.init_state(2)).logits
    expected = gradients(model, whole)
    assert all(n.endswith(("A_CrD", "B_Pr")) for n in expected)
    assert sum(found is not None and bool(found.any()) for found in expected.values()) > len(expected) / 2
    with low_rank.computed_once(model):
        logits = model(x).logits  # in the parallel form, if there is one
        for depth, part in ((None, logits), (1, truncation.read(model, x.flatten(1), [4] * 3).logits)):
            torch.testing.assert_close(
                part.flatten(1, -2), whole.flatten(1, -2), rtol=1e-11, atol=1e-11, msg=f"{depth}"
            )
    assert_equal(gradients(model, logits), expected)
    part = truncation.read(model, x.flatten(1), [4] * 3, recompute=2).logits
    assert_equal(gradients(model, part.view_as(whole)), expected)
    model.backbone.recompute = True
    assert_equal(gradients(model, model(x).logits), expected)
    if not model.answers_once:
        with torch.no_grad():
            pieces, _ = read_in_pieces(model, x, [1, 2, 1])
        torch.testing.assert_close(pieces, whole.flatten(1, 2), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("target", TARGETS)
def test_a_target_is_adapted_alone(target: Any) -> None:
    """Rows of the matrices of other projections stay as they were."""
    base, model = build("rmt_llama", {}), adapted("rmt_llama", [target])
    low_rank.merge(model)
    attention = model.backbone.blocks[0].memory.attention
    width, q = attention.head_width, attention.heads * attention.head_width
    kv = attention.kv_heads * width
    rows = {"q": range(q), "k": range(q, q + kv), "v": range(q + kv, q + 2 * kv)}
    changed = {
        "q": {"qkv"}, "k": {"qkv"}, "v": {"qkv"}, "out": {"attention.out"}, "ffn": {"ffn.up", "ffn.down"}
    }[target]  # fmt: skip
    for name, parameter in model.named_parameters():
        moved = (parameter != base.get_parameter(name)).flatten(1).any(1) if parameter.dim() == 2 else None
        if moved is None or not moved.any():
            assert not any(f"{part}.weight" in name for part in changed), name
        else:
            assert any(f"{part}.weight" in name for part in changed), name
            assert set(moved.nonzero().flatten().tolist()) == set(rows.get(target, range(len(moved))))


def test_halves_of_a_gated_layer_have_adapters_of_their_own() -> None:
    """As if each were a matrix of its own, in which pretrained models store them."""
    model = adapted("rmt_llama", ["ffn"])
    up = model.backbone.blocks[0].ffn.up
    original = up.parametrizations.weight.original
    change = (up.weight - original).unflatten(0, (2, -1))
    assert [int(torch.linalg.matrix_rank(half)) for half in change] == [RANK, RANK]
    assert int(torch.linalg.matrix_rank(change.flatten(0, 1))) == 2 * RANK


def test_a_rank_that_does_not_fit() -> None:
    with pytest.raises(ConfigError, match=r"lora.rank=9: the smaller side of k in layer 1 is 8"):
        adapters.adapt(build("rmt_llama", {"kv_heads": 1}), 9, 1.0, ["q", "k"])
    adapters.adapt(build("rmt_llama", {"kv_heads": 1}), 9, 1.0, ["q"])
