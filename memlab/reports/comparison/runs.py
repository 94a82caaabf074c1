"""Sort runs for a comparison: into groups over seeds, and the groups into one table per test.

A group's name is its model, and what else distinguishes it from other groups of that model (`infini,
memory=off`). Budgets that differ between groups are no reason to leave a run out, but they are reported next
to its name.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from typing import Any

from memlab.reports.comparison import names
from memlab.reports.comparison.groups import Comparison, Group, Table
from memlab.reports.comparison.identity import frozen, setting, test_of
from memlab.tracking.stored_runs import LeftOut, StoredRun


def sort(name: str, command: str, found: Iterable[StoredRun | LeftOut]) -> Comparison:
    """Sort runs into tables and groups.

    If several runs have the same configuration and seed, the newest is used and the others are reported.
    """
    runs, left_out = [], []
    for run in found:
        if isinstance(run, StoredRun):
            runs.append(run)
        else:
            left_out.append(run)
    newest: dict[tuple[Any, ...], StoredRun] = {}
    for run in sorted(runs, key=lambda r: r.ended):
        key = (setting(run.config), run.seed)
        if before := newest.get(key):
            left_out.append(
                LeftOut(before.name, f"is older than {run.name}, which has the same configuration and seed")
            )
        newest[key] = run
    by_test: dict[Any, list[StoredRun]] = {}
    for run in newest.values():
        by_test.setdefault((run.metric, frozen(test_of(run))), []).append(run)
    titles = names.titles([members[0] for members in by_test.values()])
    tables = [
        _table(title, members, left_out) for title, members in zip(titles, by_test.values(), strict=True)
    ]
    return Comparison(name, command, tuple(sorted(tables, key=lambda t: t.title)), tuple(left_out))


def _table(title: str, runs: Sequence[StoredRun], left_out: Sequence[LeftOut]) -> Table:
    by_setting: dict[Any, list[StoredRun]] = {}
    for run in sorted(runs, key=lambda r: r.seed):
        by_setting.setdefault(setting(run.config), []).append(run)
    members = list(by_setting.values())
    labels, differing = names.labels([m[0] for m in members]), names.budgets([m[0] for m in members])
    groups = []
    read = names.data(members)
    for (same, group), label, *differs in zip(by_setting.items(), labels, differing, read, strict=True):
        seeds = {run.seed for run in group}
        failed = {
            lost.config["seed"]: lost for lost in left_out if lost.failed and setting(lost.config) == same
        }
        groups.append(
            Group(
                label,
                tuple(group),
                tuple(lost for seed, lost in failed.items() if seed not in seeds),
                tuple(itertools.chain(*differs)),
            )
        )
    metric = runs[0].metric
    sign = -1 if metric == "accuracy" else 1
    groups.sort(key=lambda g: (sign * g.scores.mean, g.label))
    chance = runs[0].result.get("chance")
    return Table(title, metric, tuple(groups), chance if metric == "accuracy" else None)
