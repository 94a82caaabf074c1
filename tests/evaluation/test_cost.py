"""Operations and memory: counted by torch, held here to the closed forms."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memlab.evaluation import cost
from tests import small

LAYERS, WIDTH, FFN, V = 2, 8, 3, 11
SIZES: dict[str, Any] = {
    "vocab_size": V,
    "layers": LAYERS,
    "width": WIDTH,
    "heads": 2,
    "ffn_multiple": FFN,
    "dropout": 0.1,
}


@pytest.mark.parametrize("n", [1, 5, 16])
def test_operations_of_a_transformer(n: int) -> None:
    """2 for each weight of a matrix, and for each pair of tokens 2 for the score and 2 for the sum of
    values, in each of D numbers.
    """
    model = small.build("segment", **SIZES)
    weights = LAYERS * (4 * WIDTH * WIDTH + 2 * FFN * WIDTH * WIDTH) + WIDTH * V
    found = cost.flops_per_token(model, [n, n, n])
    assert found["inference"] == 2 * weights + LAYERS * 4 * WIDTH * n
    # backward: twice the products of the forward pass, once for each factor
    assert found["training"] == 3 * found["inference"]
    assert all(p.grad is None for p in model.parameters()) and model.training


def test_an_encoder_is_trained_on_its_last_segment() -> None:
    model = small.build("rmt_encoder", memory_tokens=2, **SIZES)
    found = cost.flops_per_token(model, [6, 6])
    assert 0 < found["inference"] < found["training"] <= 3 * found["inference"]
    assert cost.of(model, [6])["parameters"] == sum(p.numel() for p in model.parameters())


def test_peak_memory_begins_anew() -> None:
    def held(megabytes: int) -> int:
        peak = cost.PeakMemory(torch.device("cpu"))
        torch.ones(megabytes << 18).sum()
        assert peak.kind == "rss"
        return peak.read()

    much, little = held(300), held(1)
    assert much - little > 200 << 20
