"""Groups of runs, tables of groups, and their statistics.

A group has all seeds of one configuration; a table has groups with the same test.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from memlab.evaluation.statistics import (
    LEVEL,
    Spread,
    holm,
    is_exact,
    pareto_front,
    permutation_p,
    seeds_needed,
    smallest_p,
)
from memlab.tracking.stored_runs import LeftOut, StoredRun


@dataclass(frozen=True)
class Group:
    """All seeds of one configuration.

    Attributes:
        label: unique within its table.
        runs: one per seed, ordered by seed.
        failed: further seeds that ended with an error; they count as not solved.
        differs: settings that differ from most other groups, such as "max_steps=300, others 600".
    """

    label: str
    runs: tuple[StoredRun, ...]
    failed: tuple[LeftOut, ...] = ()
    differs: tuple[str, ...] = ()

    @property
    def scores(self) -> Spread:
        return Spread(tuple(run.score for run in self.runs))

    @property
    def solve_rate(self) -> str:
        """Seeds with at least 0.99, as "solved/all"."""
        return f"{self.scores.solved}/{len(self.runs) + len(self.failed)}"

    @property
    def state_bytes(self) -> int:
        return int(self.runs[0].result["memory"]["state_bytes"])

    def ratio(self, name: str) -> float | None:
        """compression_carry or compression_peak; None if nothing is held."""
        found = self.runs[0].result["memory"].get(name)
        return None if found is None else float(found)

    def mean(self, get: Callable[[StoredRun], Any]) -> float | None:
        """The mean of a number over the seeds; None if a run does not have it."""
        values = [get(run) for run in self.runs]
        return None if any(v is None for v in values) else sum(values) / len(values)

    @property
    def saturated(self) -> int:
        """Seeds whose last validations were all about 1.000."""
        return sum(bool(run.result.get("saturated")) for run in self.runs)

    @property
    def parameters(self) -> int:
        return int(self.runs[0].result.get("parameters", 0))


@dataclass(frozen=True)
class Pair:
    """Two groups, and whether their difference may be chance.

    Attributes:
        p: of the permutation test of this pair.
        adjusted: p after Holm's correction over all pairs.
        possible: the smallest p that groups of these sizes can give.
        exact: whether all ways of dealing the scores were counted, and none drawn.
    """

    better: str
    worse: str
    difference: float
    p: float
    adjusted: float
    possible: float
    exact: bool = True

    @property
    def significant(self) -> bool:
        return self.adjusted <= LEVEL


@dataclass(frozen=True)
class Table:
    """Groups with the same test, the best mean first.

    Attributes:
        metric: accuracy, or bits_per_byte (lower is better).
        paired: whether scores are compared seed by seed, since on text the seed decides what is read.
    """

    title: str
    metric: str
    groups: tuple[Group, ...]
    chance: float | None = None

    @property
    def higher_is_better(self) -> bool:
        return self.metric == "accuracy"

    @property
    def paired(self) -> bool:
        return not self.higher_is_better

    @cached_property
    def front(self) -> list[str]:
        """Labels of the groups that no other group beats in both state bytes and score."""
        points = [(float(g.state_bytes), g.scores.mean) for g in self.groups]
        return [self.groups[i].label for i in pareto_front(points, self.higher_is_better)]

    @cached_property
    def pairs(self) -> list[Pair]:
        """All pairs of groups that can be compared, the best first."""
        found = []
        for a, b in itertools.combinations(self.groups, 2):
            x, y = _scores(a, b, self.paired)
            if x:
                p = permutation_p(x, y, self.paired)
                found.append(
                    (
                        a.label,
                        b.label,
                        sum(x) / len(x) - sum(y) / len(y),
                        p,
                        smallest_p(len(x), len(y), self.paired),
                        is_exact(len(x), len(y), self.paired),
                    )
                )
        adjusted = holm([p for *_, p, _, _ in found])
        return [Pair(a, b, d, p, q, s, e) for (a, b, d, p, s, e), q in zip(found, adjusted, strict=True)]

    @cached_property
    def verdict(self) -> str:
        """What follows about the order of the groups, in sentences."""
        best = self.groups[0]
        n = best.scores.n
        seeds = f"{n} seed{'s' * (n > 1)}"
        if len(self.groups) == 1:
            return (
                f"{best.label}: {score(best.scores.mean, self.metric)}, {seeds}. There is nothing to compare "
                "it with."
            )
        said = (
            f"{best.label} has the best mean {metric_name(self.metric)}, "
            f"{score(best.scores.mean, self.metric)} ({seeds})."
        )
        mine = [pair for pair in self.pairs if best.label == pair.better]
        ahead = [pair.worse for pair in mine if pair.significant]
        level = [pair.worse for pair in mine if not pair.significant]
        exact = all(pair.exact for pair in self.pairs)
        kind = "exact permutation test" if exact else "permutation test by drawn deals"
        test = f"{kind}{' by seed' * self.paired}, Holm over {len(self.pairs)} pairs"
        if ahead:
            said += f" It is better than {listed(ahead)} (p ≤ {LEVEL}, {test})."
        if level:
            said += (
                f" Its lead over {listed(level)} is not significant "
                f"({'p > ' + str(LEVEL) if ahead else test})."
            )
        if self.pairs and not any(pair.significant for pair in self.pairs):
            least = min(pair.possible for pair in self.pairs)
            if least * len(self.pairs) > LEVEL:
                among = min(1, least * len(self.pairs))
                said += (
                    f" This few seeds cannot show more: the smallest p they can give is {least:.2g} for one "
                    f"pair and {among:.2g} among all; {seeds_needed(len(self.pairs), self.paired)} seeds of "
                    "each could."
                )
        return said

    @cached_property
    def notes(self) -> tuple[str, ...]:
        """What a reader of the scores should know, in sentences."""
        saturated = [f"{g.label} ({g.saturated} of {len(g.runs)})" for g in self.groups if g.saturated]
        if not saturated:
            return ()
        return (
            f"Validation is saturated (about 1.000 in its last validations) in runs of {listed(saturated)}: "
            "it no longer distinguishes their checkpoints. Equal scores here may differ on longer samples; "
            "trainer.val_segments=[..] validates on those.",
        )


@dataclass(frozen=True)
class Comparison:
    """Everything that a report needs.

    Attributes:
        name: of the experiment, or of the selection.
        command: the command that makes the report again.
    """

    name: str
    command: str
    tables: tuple[Table, ...]
    left_out: tuple[LeftOut, ...] = ()

    @property
    def runs(self) -> list[StoredRun]:
        return [run for table in self.tables for group in table.groups for run in group.runs]


def _scores(a: Group, b: Group, paired: bool) -> tuple[list[float], list[float]]:
    """The scores of two groups; if paired, those of the seeds that both have."""
    if not paired:
        return list(a.scores.values), list(b.scores.values)
    x, y = ({run.seed: run.score for run in group.runs} for group in (a, b))
    shared = sorted(x.keys() & y.keys())
    return [x[s] for s in shared], [y[s] for s in shared]


def score(value: float, metric: str) -> str:
    return f"{value:.4f}" if metric == "accuracy" else f"{value:.3f}"


def metric_name(metric: str) -> str:
    return {"accuracy": "accuracy", "bits_per_byte": "bits per byte"}[metric]


def listed(names: Sequence[str]) -> str:
    """The names joined as "a, b and c", with names that have commas in quotation marks."""
    names = [f"“{name}”" if "," in name else name for name in names]
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
