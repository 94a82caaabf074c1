"""Scores of some tokens are those of all tokens, in every form, and nothing else changes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.layers.attention import ALL
from memlab.models.base import NOTHING
from memlab.training import truncation
from tests.building import decoder, tokens

MODELS: list[dict[str, Any]] = [
    {"layer_memory": "attention"},  # segments apart
    {"layer_memory": "infini"},  # parallel
    {"layer_memory": "infini", "memory": "shuffled"},  # recurrent
    {"layer_memory": "attention", "tokens": "rmt", "memory_tokens": 2},
]
SCORED_SN = torch.tensor([[0, 0, 0, 0], [0, 1, 0, 1], [1, 1, 0, 0]], dtype=torch.bool)


def exact(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_several_segments(options: dict[str, Any]) -> None:
    model, tokens_BSN = decoder(**options), tokens(2, 3, 4)
    every, state = model(tokens_BSN), model.init_state(2)
    some = model(tokens_BSN, state, SCORED_SN)
    exact(some.logits, every.logits.flatten(1, 2)[:, SCORED_SN.flatten()])
    assert model(tokens_BSN, state, NOTHING).logits.shape == (2, 0, 13)
    for one, other in zip(some.state.tensors(), every.state.tensors(), strict=True):
        exact(one, other)
    assert some.diagnostics.keys() == every.diagnostics.keys()


@pytest.mark.parametrize("options", MODELS, ids=str)
def test_a_segment_a_piece_and_a_stream(options: dict[str, Any]) -> None:
    model, tokens_BN = decoder(**options), tokens(2, 5)
    state, last = model.init_state(2), slice(-1, None)
    every = model.segment(tokens_BN, state).logits
    exact(model.segment(tokens_BN, state, last).logits, every[:, -1:])
    scored_N = torch.tensor([True, False, True, True, False])
    exact(model.segment(tokens_BN, state, scored_N).logits, every[:, scored_N])
    piece, open = model.extend(tokens_BN[:, :3], model.begin(state), last)
    exact(piece, every[:, 2:3])
    exact(model.extend(tokens_BN[:, 3:], open, ALL)[0], every[:, 3:])
    pieces = [p.logits for p in model.stream(tokens_BN, segment_length=3, scored=last)]
    assert [p.shape[1] for p in pieces] == [1, 1]
    exact(
        torch.cat(pieces, 1),
        torch.cat([p.logits[:, -1:] for p in model.stream(tokens_BN, segment_length=3)], 1),
    )


@pytest.mark.parametrize("depth", [None, 0, 1])
@pytest.mark.parametrize("recompute", [0, 1])
def test_a_plan_keeps_the_scored_tokens(depth: int | None, recompute: int) -> None:
    """Values and gradients; segments of several lengths, windows that begin before what is kept."""
    model, tokens_BT, lengths = decoder("infini"), tokens(2, 14), (4, 4, 4, 2)
    scored_T = torch.zeros(14, dtype=torch.bool)
    scored_T[[2, 9, 10, 13]] = True
    every = truncation.read(model, tokens_BT, lengths, depth=depth, recompute=recompute).logits[:, scored_T]
    weight = torch.randn(every.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = torch.autograd.grad((every * weight).sum(), list(model.parameters()), allow_unused=True)
    some = truncation.read(
        model, tokens_BT, lengths, depth=depth, recompute=recompute, scored_T=scored_T
    ).logits
    exact(some, every)
    found = torch.autograd.grad((some * weight).sum(), list(model.parameters()), allow_unused=True)
    for one, other in zip(found, expected, strict=True):
        if one is not None and other is not None:
            exact(one, other)
        else:
            assert one is None and other is None
