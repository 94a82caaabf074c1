"""The claims on a terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.markup import escape
from rich.table import Table

from memlab.reports.claims.evidence import Evidence
from memlab.reports.claims.verdict import judge
from memlab.terminal import tables


def show(all_: Sequence[Evidence]) -> None:
    """Print a row for each."""
    table = Table()
    for name in ("name", "claim", "verdict", "runs", "minutes"):
        table.add_column(name, justify="right" if name in ("runs", "minutes") else "left")
    for evidence in all_:
        claim = evidence.claim
        runs = sum(len(runs.seeds) for runs in claim.runs.values())
        table.add_row(
            escape(claim.name),
            escape(claim.claim),
            str(judge(evidence)[0]),
            f"{evidence.finished}/{runs}" if runs else "–",
            f"{claim.minutes:g}" if claim.minutes else "–",
        )
    tables.show(tables.console(), table, caption="memlab claims claim=NAME runs what is missing of one")
