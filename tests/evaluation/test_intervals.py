"""Confidence intervals against their definitions, and against how often they hold."""

from __future__ import annotations

import numpy as np
import pytest

from memlab.evaluation.intervals import Z, ratio_of_sums, token_share, wilson


@pytest.mark.parametrize(("right", "samples"), [(0, 7), (1, 7), (7, 7), (80, 100), (2047, 2048), (1, 1)])
def test_wilson_bounds_are_where_the_score_test_just_rejects(right: int, samples: int) -> None:
    low, high = wilson(right, samples)
    share = right / samples
    assert 0 <= low <= share <= high <= 1 and low < high
    for bound in (low, high):
        if bound not in (0.0, 1.0):
            assert abs(share - bound) == pytest.approx(Z * (bound * (1 - bound) / samples) ** 0.5, rel=1e-9)


def test_wilson_holds_about_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    for p in (0.5, 0.9, 0.99):
        hits = [
            low <= p <= high
            for low, high in (wilson(int(k), 100) for k in generator.binomial(100, p, size=2000))
        ]
        assert np.mean(hits) == pytest.approx(0.95, abs=0.035)


def test_the_bootstrap_of_tokens_is_that_of_samples() -> None:
    """Tokens of a sample that are right together make the interval as wide as that of whole samples."""
    generator = np.random.default_rng(0)
    whole = (generator.random(400) < 0.7).astype(int)
    low, high = token_share((whole * 8).tolist(), 8)
    expected = wilson(int(whole.sum()), 400)
    assert low == pytest.approx(expected[0], abs=0.01) and high == pytest.approx(expected[1], abs=0.01)
    independent = generator.binomial(8, 0.7, size=400)
    narrow = token_share(independent.tolist(), 8)
    assert (narrow[1] - narrow[0]) * 8**0.5 == pytest.approx(high - low, rel=0.15)


def test_one_token_is_a_share_and_certainty_is_never_claimed() -> None:
    assert token_share([1, 0, 1, 1], 1) == wilson(3, 4)
    assert token_share([5] * 20, 5) == wilson(20, 20)
    assert token_share([0] * 20, 5) == wilson(0, 20)


def test_ratio_of_sums_resamples_pairs() -> None:
    generator = np.random.default_rng(0)
    tokens = generator.integers(50, 500, size=60)
    nats = 2.0 * tokens
    assert ratio_of_sums(nats.tolist(), tokens.tolist()) == (2.0, 2.0)
    noisy = nats + generator.normal(size=60) * tokens * 0.3
    found = ratio_of_sums(noisy.tolist(), tokens.tolist())
    assert found is not None
    share = noisy.sum() / tokens.sum()
    # the delta method's standard error
    linear = np.sqrt(((noisy - share * tokens) ** 2).sum()) / tokens.sum()
    assert found[0] < share < found[1] and (found[1] - found[0]) == pytest.approx(2 * Z * linear, rel=0.1)
    assert ratio_of_sums([3.0], [2.0]) is None
