"""Attention that keys receive: in blocks of queries of any size, and as torch's own attention gives it."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from memlab.ops import received
from tests.ops.test_fast_and_naive import normal


@pytest.mark.parametrize("weights", [1, 50, 100, 1 << 20])
def test_blocks_of_any_size(weights: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(received, "_WEIGHTS", weights)
    q, k, by_query = normal(2, 4, 7, 6), normal(2, 2, 9, 6, seed=1), normal(7, seed=2)
    look = torch.ones(7, 9, dtype=torch.bool).tril(2)[None, None]
    found = received.received(q, k, look, by_query)
    torch.testing.assert_close(found, received.received_naive(q, k, look, by_query), rtol=1e-12, atol=1e-12)


def test_weights_are_those_of_attention() -> None:
    """Attention to one-hot values returns its weights."""
    q, k = normal(2, 4, 5, 6), normal(2, 2, 8, 6, seed=1)
    look = torch.ones(5, 8, dtype=torch.bool).tril(3)
    one_hot = torch.eye(8, dtype=torch.float64).expand(2, 4, 8, 8)
    expected = F.scaled_dot_product_attention(q, k.repeat_interleave(2, 1), one_hot, attn_mask=look)
    torch.testing.assert_close(received.weights(q, k, look[None, None]), expected, rtol=1e-12, atol=1e-12)


def test_sums_are_wide_under_every_precision() -> None:
    q, k = normal(1, 2, 5, 6).bfloat16(), normal(1, 1, 8, 6, seed=1).bfloat16()
    look = torch.ones(1, 1, 5, 8, dtype=torch.bool)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = received.received(q, k, look)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, received.received(q.float(), k.float(), look), rtol=1e-6, atol=1e-6)
