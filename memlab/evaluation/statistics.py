"""Statistics over seeds, and the Pareto front.

No distribution is assumed: there are few seeds, and accuracies end at 1.

A difference between two groups of seeds is tested by permutation: of all ways to deal the same scores to two
groups of these sizes, the share whose means lie at least as far apart (Fisher 1935; two-sided; if there are
too many ways, some are drawn). Several pairs are tested together, so p values are adjusted after Holm (1979).
With few seeds, no data can be significant: see `smallest_p`.
"""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

SOLVED = 0.99
LEVEL = 0.05
_EXACT = 50_000  # up to this many ways of dealing are all counted; of more, this many are drawn


@dataclass(frozen=True)
class Spread:
    """A number over seeds. `std` is the sample standard deviation (n - 1), None for one seed."""

    values: tuple[float, ...]

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values)

    @property
    def std(self) -> float | None:
        return statistics.stdev(self.values) if self.n > 1 else None

    @property
    def solved(self) -> int:
        """Number of seeds with at least 0.99."""
        return sum(value >= SOLVED for value in self.values)


def ways(a: int, b: int, paired: bool) -> int:
    """Number of ways to deal `a + b` scores to two groups; paired: to swap within `a` pairs."""
    return 2**a if paired else math.comb(a + b, a)


def is_exact(a: int, b: int, paired: bool = False) -> bool:
    """Whether all ways of dealing are counted; otherwise some are drawn."""
    return ways(a, b, paired) <= _EXACT


def smallest_p(a: int, b: int, paired: bool = False) -> float:
    """The smallest possible p for groups of these sizes: the observed way, and its mirror image if any."""
    mirrored = paired or a == b
    return (2 if mirrored else 1) / ways(a, b, paired)


def permutation_p(a: Sequence[float], b: Sequence[float], paired: bool = False) -> float:
    """Two-sided p of the difference of the means.

    Args:
        a, b: the scores of each group's seeds.
        paired: whether a[i] and b[i] belong together (one seed), so that signs of differences are permuted.

    Raises:
        ValueError: a group is empty, or the sizes differ although `paired`.
    """
    if not a or not b or (paired and len(a) != len(b)):
        raise ValueError(f"cannot compare {len(a)} and {len(b)} seeds{' in pairs' if paired else ''}")
    count = ways(len(a), len(b), paired)
    exact = is_exact(len(a), len(b), paired)
    draw = np.random.Generator(np.random.Philox(key=0))  # the same scores always give the same p
    if paired:
        difference_N = np.subtract(a, b)
        signs_WN = (
            np.array(list(itertools.product((1, -1), repeat=len(a))))
            if exact
            else draw.choice((1, -1), size=(_EXACT, len(a)))
        )
        distance_W = np.abs((signs_WN * difference_N).mean(1))
        observed = abs(difference_N.mean())
    else:
        scores_N = np.array([*a, *b], dtype=np.float64)
        if exact:
            chosen_WA = np.array(list(itertools.combinations(range(len(scores_N)), len(a))))
        else:
            chosen_WA = draw.permuted(np.tile(np.arange(len(scores_N)), (_EXACT, 1)), axis=1)[:, : len(a)]
        sum_W = scores_N[chosen_WA].sum(1)
        distance_W = np.abs(sum_W / len(a) - (scores_N.sum() - sum_W) / len(b))
        observed = abs(np.mean(a) - np.mean(b))
    # sums in another order differ by rounding, which grows with the scores
    rounding = 1e-12 * float(np.abs([*a, *b]).max())
    far = int((distance_W >= observed - rounding).sum())
    return far / count if exact else (far + 1) / (_EXACT + 1)


def holm(p_values: Sequence[float]) -> list[float]:
    """p values adjusted for testing them together, in the same order."""
    adjusted = [0.0] * len(p_values)
    highest = 0.0
    for rank, at in enumerate(sorted(range(len(p_values)), key=lambda i: p_values[i])):
        highest = max(highest, min(1.0, (len(p_values) - rank) * p_values[at]))
        adjusted[at] = highest
    return adjusted


def seeds_needed(pairs: int, paired: bool = False) -> int:
    """Seeds per group that are needed for a difference to be significant among this many pairs."""
    return next(n for n in itertools.count(2) if smallest_p(n, n, paired) * pairs <= LEVEL)


def pareto_front(points: Sequence[tuple[float, float]], higher_is_better: bool = True) -> list[int]:
    """The points (cost, score) that no other point beats, by being better in one and no worse in the other.

    Returns:
        Their indices in `points`, by cost.
    """
    sign = 1 if higher_is_better else -1

    def beaten(i: int) -> bool:
        cost, score = points[i][0], sign * points[i][1]
        return any(c <= cost and sign * s >= score and (c, sign * s) != (cost, score) for c, s in points)

    return sorted((i for i in range(len(points)) if not beaten(i)), key=lambda i: points[i])
