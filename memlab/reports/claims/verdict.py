"""What follows from the evidence, by the claim's own rule. Verdicts are computed, never typed."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from memlab.evaluation.statistics import permutation_p
from memlab.reports.claims.book import Condition
from memlab.reports.claims.evidence import Evidence


class Verdict(StrEnum):
    HOLDS = "holds"
    IN_PART = "holds in part"
    FAILS = "does not hold at this scale"
    NOT_TESTABLE = "not testable here"
    NOT_RUN = "not run yet"
    CONTROL_FAILED = "nothing follows: a control failed"


@dataclass(frozen=True)
class Finding:
    """A condition, and what was found.

    Attributes:
        true: None = not all runs have finished.
        found: the numbers that decided.
    """

    condition: Condition
    true: bool | None
    found: str


def judge(evidence: Evidence) -> tuple[Verdict, list[Finding]]:
    """The verdict, and each condition: those of the controls first."""
    claim = evidence.claim
    if claim.untestable is not None:
        return Verdict.NOT_TESTABLE, []
    controls = [find(condition, evidence) for condition in claim.control]
    found = [find(condition, evidence) for condition in claim.holds]
    if any(finding.true is None for finding in [*controls, *found]):
        verdict = Verdict.NOT_RUN
    elif not all(finding.true for finding in controls):
        verdict = Verdict.CONTROL_FAILED
    elif all(finding.true for finding in found):
        verdict = Verdict.HOLDS
    elif any(finding.true for finding in found):
        verdict = Verdict.IN_PART
    else:
        verdict = Verdict.FAILS
    return verdict, [*controls, *found]


def find(condition: Condition, evidence: Evidence) -> Finding:
    """Whether a condition is true."""
    other = condition.above or condition.near
    if not all(evidence.complete(q) for q in (condition.value, other) if q is not None):
        return Finding(condition, None, "not all of its runs have finished")
    mine = evidence.values(condition.value)
    if other is None:
        values = list(mine.values())
        bound = condition.at_least if condition.at_least is not None else condition.at_most
        assert bound is not None
        sign = 1 if condition.at_least is not None else -1
        true = _enough([sign * (value - bound) for value in values], condition.over)
        return Finding(condition, true, f"{_listed(values)}; bound {bound:g}")
    theirs = evidence.values(other)
    paired = sorted(mine.keys() & theirs.keys())
    said = f"{_listed(list(mine.values()))}; other {_listed(list(theirs.values()))}"
    if condition.over == "mean":
        difference = statistics.fmean(mine.values()) - statistics.fmean(theirs.values())
        differences = [difference]
    else:
        differences = [mine[seed] - theirs[seed] for seed in paired]
    if condition.near is not None:
        return Finding(
            condition, _enough([condition.margin - abs(d) for d in differences], condition.over), said
        )
    true = _enough([d - condition.margin for d in differences], condition.over, strictly=True)
    if condition.p is not None:
        p = permutation_p(list(mine.values()), list(theirs.values()))
        said += f"; p = {p:.3g} of at most {condition.p:g}"
        true = true and p <= condition.p
    return Finding(condition, true, said)


def _enough(surpluses: Sequence[float], over: str, strictly: bool = False) -> bool:
    """Whether the mean, each or most of some numbers are positive, or zero unless `strictly`."""

    def passes(surplus: float) -> bool:
        return surplus > 0 if strictly else surplus >= -1e-12

    if over == "mean":
        return passes(statistics.fmean(surpluses))
    passed = sum(map(passes, surpluses))
    return passed == len(surpluses) if over == "each" else 2 * passed > len(surpluses)


def _listed(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4g}"
    return f"{statistics.fmean(values):.4g} ({', '.join(f'{value:.4g}' for value in values)})"
