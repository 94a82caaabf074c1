"""NAMM's network: its size, what its tokens see, and several candidates at once."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from memlab.ops.backward_network import backward_scores, count, parts

FEATURES, HIDDEN = 7, 4


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize(
    ("features", "hidden", "parameters"), [(25, 32, 4172), (13, 16, 1128), (9, 8, 412)], ids=str
)
def test_the_published_size(features: int, hidden: int, parameters: int) -> None:
    """17 frequencies and 8 numbers of the age: the released configuration has 4,172 parameters."""
    assert count(features, hidden) == parameters


def test_parts_of_a_vector_are_all_of_it_in_order() -> None:
    vectors = normal(3, count(FEATURES, HIDDEN))
    together = torch.cat([part.flatten(1) for part in parts(vectors, FEATURES, HIDDEN)], dim=1)
    assert torch.equal(together, vectors)


def test_a_token_sees_itself_and_newer_ones() -> None:
    vector, x = normal(1, count(FEATURES, HIDDEN)), normal(1, 1, 6, FEATURES, seed=1)
    there = torch.ones(1, 1, 6, dtype=torch.bool)
    scores = backward_scores(vector, x, there, HIDDEN)[0, 0]
    for token in range(6):
        changed = x.clone()
        changed[:, :, token] += 1
        differs = backward_scores(vector, changed, there, HIDDEN)[0, 0] != scores
        assert differs.tolist() == [i <= token for i in range(6)]


def test_a_token_that_is_not_there_is_seen_by_none() -> None:
    vector, x = normal(1, count(FEATURES, HIDDEN)), normal(1, 2, 5, FEATURES, seed=1)
    there = torch.ones(1, 2, 5, dtype=torch.bool)
    there[:, 0, 1] = there[:, 0, 4] = False
    scores = backward_scores(vector, x, there, HIDDEN)
    alone = backward_scores(vector, x[:, :1, [0, 2, 3]], there[:, :1, [0, 2, 3]], HIDDEN)
    torch.testing.assert_close(scores[:, :1, [0, 2, 3]], alone, rtol=0, atol=1e-12)
    assert not scores[~there].any()


def test_candidates_together_score_as_each_alone() -> None:
    vectors, x = normal(3, count(FEATURES, HIDDEN)), normal(6, 2, 5, FEATURES, seed=1)
    there = normal(6, 2, 5, seed=2) > -1
    together = backward_scores(vectors, x, there, HIDDEN)
    for candidate in range(3):
        rows = slice(2 * candidate, 2 * candidate + 2)
        alone = backward_scores(vectors[[candidate]], x[rows], there[rows], HIDDEN)
        torch.testing.assert_close(together[rows], alone, rtol=0, atol=1e-12)


def test_all_zero_scores_zero() -> None:
    x = normal(2, 3, 4, FEATURES)
    scores = backward_scores(
        torch.zeros(1, count(FEATURES, HIDDEN)).double(), x, torch.ones(2, 3, 4) > 0, HIDDEN
    )
    assert not scores.any()
