"""A comparison as tables: for the terminal, as Markdown, and as CSV. Each shows every seed."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table as RichTable
from rich.text import Text

from memlab.reports.comparison.groups import Comparison, Group, Table, metric_name, score
from memlab.reports.summary import size
from memlab.terminal import tables
from memlab.terminal.plain import markdown, printable

SAID = (
    "± is the standard deviation over seeds. Solved: seeds with at least 0.99. State: what is carried for "
    "one document; carried and peak: a full cache over the state, and over all that is held while a segment "
    "is read."
)


def columns(table: Table) -> list[str]:
    """The column heads of `cells`."""
    solved = ["solved"] if table.metric == "accuracy" else []
    differs = ["not as the others"] if any(group.differs for group in table.groups) else []
    return [
        "model",
        metric_name(table.metric),
        "±",
        *solved,
        "n",
        "each seed",
        "state",
        "carried",
        "peak",
        "parameters",
        "steps",
        "seconds",
        *differs,
    ]


def cells(table: Table, group: Group) -> list[str]:
    """A row of a table."""
    scores, metric = group.scores, table.metric
    steps, seconds = (
        group.mean(lambda r: r.result["steps"]),
        group.mean(lambda r: r.result["timing"].get("train_seconds")),
    )
    solved = [group.solve_rate] if metric == "accuracy" else []
    differs = ["; ".join(group.differs)] if any(g.differs for g in table.groups) else []
    n = f"{scores.n}" + (f" (+{len(group.failed)} failed)" if group.failed else "")
    return [
        group.label,
        score(scores.mean, metric),
        "–" if scores.std is None else score(scores.std, metric),
        *solved,
        n,
        " ".join(score(value, metric) for value in scores.values),
        size(group.state_bytes) if group.state_bytes else "nothing",
        _times(group.ratio("compression_carry")),
        _times(group.ratio("compression_peak")),
        f"{group.parameters:,}",
        "–" if steps is None else f"{steps:,.0f}",
        "–" if seconds is None else f"{seconds:,.0f}",
        *differs,
    ]


def _times(value: float | None) -> str:
    return "–" if value is None else f"{value:,.1f} ×"


def heading(table: Table) -> str:
    return table.title if table.chance is None else f"{table.title} (chance {table.chance:.3f})"


def to_terminal(comparison: Comparison, console: Console) -> None:
    """Print what fits on a terminal; the page has the rest."""
    for table in comparison.tables:
        _print(table, console)
    if comparison.left_out:
        console.print(f"left out ({len(comparison.left_out)}):")
        for run in comparison.left_out:
            console.print(f"  {escape(run.name)} {escape(run.reason)}", soft_wrap=True)


def _print(table: Table, console: Console) -> None:
    """The most important columns, and the verdict."""
    heads = columns(table)
    shown = [
        head
        for head in ("model", metric_name(table.metric), "solved", "n", "each seed", "state")
        if head in heads
    ]
    grid = RichTable(title=escape(heading(table)), title_justify="left")
    for head in shown:
        grid.add_column(head, justify="left" if head in ("model", "each seed") else "right")
    for group in table.groups:
        row = dict(zip(heads, cells(table, group), strict=True))
        row["model"] += " *" if group.differs else ""
        row[metric_name(table.metric)] += f" ± {row['±']}"
        grid.add_row(*(escape(row[head]) for head in shown))
    notes = [f"* {group.label}: {'; '.join(group.differs)}" for group in table.groups if group.differs]
    tables.show(console, grid)
    console.print(Text("\n".join([*notes, table.verdict, *table.notes]) + "\n"))


def to_markdown(comparison: Comparison) -> str:
    """The tables in Markdown, for a README or an issue."""
    command = printable(comparison.command)
    parts = [f"# {markdown(comparison.name)}\n\n```bash\n{command}\n```\n"]
    for table in comparison.tables:
        grid = _markdown(columns(table), [cells(table, g) for g in table.groups])
        said = "\n\n".join(map(markdown, [table.verdict, *table.notes]))
        parts.append(f"## {markdown(heading(table))}\n\n{grid}\n\n{said}\n")
    parts.append(f"{SAID}\n")
    if comparison.left_out:
        parts.append(
            "Left out:\n\n"
            + "\n".join(
                f"- `{markdown(run.name).replace('`', chr(39))}` {markdown(run.reason)}"
                for run in comparison.left_out
            )
            + "\n"
        )
    return "\n".join(parts)


def _markdown(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [
        heads,
        ["---" if head in ("model", "each seed", "not as the others") else "---:" for head in heads],
        *rows,
    ]
    return "\n".join("| " + " | ".join(markdown(cell) for cell in line) + " |" for line in lines)


def groups_csv(comparison: Comparison) -> str:
    """One row per group, numbers at full precision."""
    heads = [
        "task",
        "model",
        "metric",
        "mean",
        "std",
        "n",
        "failed",
        "solved",
        "state_bytes",
        "compression_carry",
        "compression_peak",
    ]
    heads += ["parameters", "steps", "train_seconds", "on_pareto_front", "saturated", "differs"]
    rows = [
        [
            table.title,
            group.label,
            table.metric,
            group.scores.mean,
            group.scores.std,
            group.scores.n,
            len(group.failed),
            group.scores.solved,
            group.state_bytes,
            group.ratio("compression_carry"),
            group.ratio("compression_peak"),
            group.parameters,
            group.mean(lambda r: r.result["steps"]),
            group.mean(lambda r: r.result["timing"].get("train_seconds")),
            group.label in table.front,
            group.saturated,
            "; ".join(group.differs),
        ]
        for table in comparison.tables
        for group in table.groups
    ]
    return _csv(heads, rows)


def runs_csv(comparison: Comparison) -> str:
    """One row per run, including those that were left out."""
    heads = [
        "run",
        "task",
        "model",
        "seed",
        "metric",
        "score",
        "steps",
        "train_seconds",
        "commit",
        "command",
        "left_out",
    ]
    rows: list[list[object]] = []
    for table in comparison.tables:
        for group in table.groups:
            for run in group.runs:
                r = run.result
                rest = [r["steps"], r["timing"].get("train_seconds"), r.get("commit"), r.get("command"), None]
                rows.append([run.name, table.title, group.label, run.seed, table.metric, run.score, *rest])
    rows += [
        [run.name, *[run.config.get(k) for k in ("task.name", "model.name", "seed")], *[None] * 6, run.reason]
        for run in comparison.left_out
    ]
    return _csv(heads, rows)


def _cell(value: object) -> object:
    """A value that a spreadsheet does not take for a formula, whatever it is the name of."""
    if not isinstance(value, str):
        return value
    return printable(f"'{value}" if value.startswith(("=", "+", "-", "@")) else value)


def _csv(heads: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(heads)
    writer.writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()
