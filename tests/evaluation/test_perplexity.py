"""Sums of nats, in all and by position, against the definitions written out."""

from __future__ import annotations

import math

import pytest
import torch

from memlab.evaluation.perplexity import Tally


def test_against_the_definitions() -> None:
    nats, counts = torch.rand(3, 40) * 3, torch.rand(3, 40) < 0.7
    positions = torch.arange(40).expand(3, -1) + torch.tensor([[0], [5], [100]])
    tally = Tally(first=6)
    for part in range(0, 40, 8):  # in pieces, as it is used
        tally.add(*(t[:, part : part + 8] for t in (nats, counts, positions)))
    total = sum(nats[b, t].item() for b in range(3) for t in range(40) if counts[b, t])
    tokens = int(counts.sum())
    metrics = tally.metrics(text_bytes=90, words=17)
    assert metrics["loss"] == pytest.approx(total / tokens, rel=1e-12)
    assert metrics["perplexity"] == pytest.approx(math.exp(total / tokens))
    assert metrics["bits_per_byte"] == pytest.approx(total / math.log(2) / 90, rel=1e-12)
    assert metrics["word_perplexity"] == pytest.approx(math.exp(total / 17))

    ranges = tally.by_position()
    assert [r["from"] for r in ranges] == [0, 6, 12, 24, 96]
    for r, end in zip(ranges, [6, 12, 24, 48, 192], strict=True):
        inside = counts & (positions >= r["from"]) & (positions < end)
        assert r["tokens"] == int(inside.sum())
        assert r["loss"] == pytest.approx(nats[inside].double().mean().item(), rel=1e-12)
    assert sum(r["tokens"] for r in ranges) == tokens


def test_a_hopeless_model_is_still_a_number() -> None:
    """Word perplexity overflows floats early in training; what is written as JSON must not."""
    tally = Tally(4)
    tally.add(torch.full((1, 8), 900.0), torch.ones(1, 8, dtype=torch.bool), torch.arange(8)[None])
    assert all(math.isfinite(value) for value in tally.metrics(8, 1).values())
