"""Statistics over seeds against values worked out by hand."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from memlab.evaluation.statistics import Spread, holm, pareto_front, permutation_p, seeds_needed, smallest_p


def test_spread_by_hand() -> None:
    spread = Spread((0.9, 0.99, 1.0))
    assert spread.mean == pytest.approx(2.89 / 3)
    assert spread.std == pytest.approx(
        math.sqrt(((0.9 - 2.89 / 3) ** 2 + (0.99 - 2.89 / 3) ** 2 + (1 - 2.89 / 3) ** 2) / 2)
    )
    assert (spread.n, spread.solved) == (3, 2)
    assert Spread((0.5,)).std is None


def test_three_seeds_can_give_a_tenth_at_best() -> None:
    """20 ways to deal 3 + 3, two of them as far apart as can be."""
    assert smallest_p(3, 3) == pytest.approx(2 / 20) == permutation_p([1.0, 0.99, 0.98], [0.1, 0.2, 0.3])
    assert smallest_p(2, 3) == pytest.approx(1 / 10) == permutation_p([1.0, 0.9], [0.1, 0.2, 0.3])
    assert (
        smallest_p(3, 3, paired=True)
        == pytest.approx(2 / 8)
        == permutation_p([1.0, 0.9, 0.8], [0.5, 0.6, 0.7], paired=True)
    )


def test_permutation_by_hand() -> None:
    """{3, 4} against {1, 2}: six ways, distances 2, 1, 0, 0, 1, 2. {2, 4} against {1, 3}: distance 1,
    which four of the six reach.
    """
    assert permutation_p([3, 4], [1, 2]) == pytest.approx(2 / 6)
    assert permutation_p([2, 4], [1, 3]) == pytest.approx(4 / 6)
    assert permutation_p([1, 1], [1, 1]) == 1
    assert permutation_p([2, 3, 1], [1, 1, 1], paired=True) == pytest.approx(4 / 8), (
        "differences 1, 2, 0: the sign of 0 does not matter"
    )
    assert permutation_p([0.3, 0.2], [0.1]) == permutation_p([0.1], [0.3, 0.2])


def test_p_is_the_share_of_ways_and_drawn_where_there_are_many() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(size=5), random.normal(size=4) + 0.5
    both = np.concatenate([a, b])
    far = [
        abs(both[list(rows)].mean() - np.delete(both, list(rows)).mean()) >= abs(a.mean() - b.mean()) - 1e-12
        for rows in itertools.combinations(range(9), 5)
    ]
    assert permutation_p(list(a), list(b)) == pytest.approx(np.mean(far))
    many = list(random.normal(size=12)), list(random.normal(size=12) + 0.5)
    assert permutation_p(*many) == permutation_p(*many), "the draw is always the same"


def test_nothing_to_compare() -> None:
    with pytest.raises(ValueError, match="0 and 1"):
        permutation_p([], [1.0])
    with pytest.raises(ValueError, match="pairs"):
        permutation_p([1.0], [1.0, 2.0], paired=True)


def test_holm_by_hand() -> None:
    """0.01 * 3, then at least that and 0.03 * 2, then at least that and 0.04."""
    assert holm([0.03, 0.01, 0.04]) == pytest.approx([0.06, 0.03, 0.06])
    assert holm([0.6, 0.5]) == [1.0, 1.0]
    assert holm([]) == []


def test_seeds_needed() -> None:
    assert seeds_needed(1) == 4, "2 / 70 for 4 + 4, 2 / 20 for 3 + 3"
    assert seeds_needed(10) == 6, "10 * 2 / 924"
    assert seeds_needed(1, paired=True) == 6, "2 / 64"


def test_pareto_front_by_hand() -> None:
    points = [(0, 0.1), (10, 0.9), (20, 0.8), (10, 0.5), (40, 1.0), (40, 1.0)]
    assert pareto_front(points) == [0, 1, 4, 5], (
        "(20, 0.8) and (10, 0.5) are beaten by (10, 0.9); equal points do not beat each other"
    )
    assert pareto_front([(0, 2.5), (5, 2.4), (9, 2.6)], higher_is_better=False) == [0, 1]


@pytest.mark.parametrize("paired", [False, True])
@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e4, 1e9, 1e15])
def test_p_does_not_depend_on_the_unit_of_the_scores(paired: bool, scale: float) -> None:
    """The observed deal is always among those that lie at least as far apart."""
    a, b = [0.11, 0.22, 0.33], [0.71, 0.82, 0.93]
    p = permutation_p([scale * x for x in a], [scale * x for x in b], paired)
    assert p == permutation_p(a, b, paired) == pytest.approx(0.25 if paired else 0.1)
