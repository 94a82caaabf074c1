"""The comparison page: one self-contained HTML file, without scripts, which needs no network and no server.

It is readable on a phone (rows of a table become cards), on paper, and on a dark screen, and never relies on
colour alone.
"""

from __future__ import annotations

import html
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path

from memlab.reports.comparison import figures
from memlab.reports.comparison.canvas import swatch
from memlab.reports.comparison.groups import Comparison, Table, metric_name, score
from memlab.reports.comparison.page_style import STYLE
from memlab.reports.comparison.tables import SAID, cells, columns, heading
from memlab.terminal.plain import printable


def write(comparison: Comparison, directory: Path, made: str) -> Path:
    """Draw the figures and write `index.html`.

    Args:
        made: a sentence about when and with what the page was made.
    """
    sections = [
        _table_section(table, directory / "figures", f"{n}_" if len(comparison.tables) > 1 else "")
        for n, table in enumerate(comparison.tables, 1)
    ]
    body = [
        f"<header><h1>{escape(comparison.name)}</h1>",
        (
            f"<p>{_count(len(comparison.runs), 'run')}, {_count(len(comparison.tables), 'test')}. "
            f"{escape(made)}</p></header>"
        ),
        *sections,
        _left_out(comparison),
        _reproduce(comparison),
    ]
    target = directory / "index.html"
    target.write_text(_whole(comparison.name, "\n".join(body)), encoding="utf-8")
    return target


def escape(text: str) -> str:
    """Text that HTML shows as it is, and that holds no invisible characters."""
    return html.escape(printable(text))


def _whole(title: str, body: str) -> str:
    nothing_from_outside = "default-src 'none'; style-src 'unsafe-inline'; img-src data:"
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta name="viewport" content="width=device-width,initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="{nothing_from_outside}">
<title>{escape(title)}: comparison by memlab</title><style>{STYLE}</style></head>
<body>
{body}
</body></html>
"""


def _table_section(table: Table, directory: Path, prefix: str) -> str:
    drawn, missing = figures.draw(table, directory, prefix)
    legend = "".join(f"<li>{swatch(i)} {escape(group.label)}</li>" for i, group in enumerate(table.groups))
    shown = "".join(
        f'<figure role="img" aria-label="{escape(f.caption)}">{f.svg}'
        f"<figcaption>{escape(f.caption)}</figcaption></figure>"
        for f in drawn
    )
    rows = [cells(table, group) for group in table.groups]
    return f"""<section>
<h2>{escape(heading(table))}</h2>
<p class="verdict">{escape(table.verdict)}</p>
{"".join(f'<p class="note">{escape(said)}</p>' for said in table.notes)}
{_grid(columns(table), rows, text={"model", "each seed", "not as the others"})}
<p class="note">{escape(SAID)}{_pareto_note(table)}</p>
<ul class="legend" aria-label="groups of the figures">{legend}</ul>
<div class="figures">{shown}</div>
{"".join(f'<p class="note">{escape(said)}</p>' for said in missing)}
{_pairs(table)}
</section>"""


def _pareto_note(table: Table) -> str:
    if len(table.groups) == 1:
        return ""
    front = escape("; ".join(table.front))
    return f" On the Pareto front of state and {escape(metric_name(table.metric))}: {front}."


def _pairs(table: Table) -> str:
    if not table.pairs:
        return ""
    rows = [
        [
            p.better,
            p.worse,
            f"{p.difference:+.4f}".replace("-", "−"),
            f"{p.p:.3g}",
            f"{p.adjusted:.3g}",
            "yes" if p.significant else "not shown",
        ]
        for p in table.pairs
    ]
    how = (
        "with the same seed, signs of differences permuted"
        if table.paired
        else "scores dealt to two groups in all ways"
    )
    said = (
        f"Permutation test of the means ({how}), two-sided; p among all {_count(len(rows), 'pair')} by Holm. "
        "Different: at most 0.05."
    )
    grid = _grid(
        ["better mean", "other", "difference", "p of the pair", "p among all", "different"],
        rows,
        text={"better mean", "other", "different"},
    )
    return f"<h3>Can it be chance?</h3><p class='note'>{said}</p>{grid}"


def _left_out(comparison: Comparison) -> str:
    if not comparison.left_out:
        return ""
    items = "".join(
        f"<li><code>{escape(run.name)}</code> {escape(run.reason)}</li>" for run in comparison.left_out
    )
    return f"<section><h2>Left out ({len(comparison.left_out)})</h2><ul class='plain'>{items}</ul></section>"


def _reproduce(comparison: Comparison) -> str:
    rows = [
        [
            group.label,
            str(run.seed),
            score(run.score, table.metric),
            str(run.result.get("commit") or "–"),
            str(run.result.get("command") or "not recorded"),
            run.name,
        ]
        for table in comparison.tables
        for group in table.groups
        for run in group.runs
    ]
    grid = _grid(
        ["model", "seed", "score", "commit", "command", "run"],
        rows,
        text={"model", "commit", "command", "run"},
        code={"command", "run"},
    )
    made = _most_common(_versions(run.result.get("versions") or {}) for run in comparison.runs)
    machines = _most_common(_hardware(run.result.get("hardware") or {}) for run in comparison.runs)
    return f"""<section><h2>Make it again</h2>
<p>This page, from the runs:</p><pre>{escape(comparison.command)}</pre>
<p>Each run, in a checkout of its commit (a + after it: with uncommitted changes):</p>
{grid}
<h3>Versions and machines</h3><ul class="plain">{made}{machines}</ul></section>"""


def _count(number: int, what: str) -> str:
    return f"{number} {what}{'s' * (number != 1)}"


def _most_common(said: Iterable[str]) -> str:
    return "".join(
        f"<li>{escape(text)} ({_count(count, 'run')})</li>" for text, count in Counter(said).most_common()
    )


def _versions(found: dict[str, object]) -> str:
    return ", ".join(f"{name} {version}" for name, version in found.items()) or "versions not recorded"


def _hardware(found: dict[str, object]) -> str:
    if not found:
        return "machine not recorded"
    gpus = found.get("gpus")
    named = ", ".join(map(str, gpus)) if isinstance(gpus, list) and gpus else "no GPU"
    return f"{found.get('processor')}, {found.get('cores')} cores, {found.get('threads')} threads, {named}"


def _grid(
    heads: Sequence[str], rows: Sequence[Sequence[str]], text: set[str], code: set[str] | None = None
) -> str:
    """A table whose rows become cards on narrow screens: every cell carries its column's head."""

    def cell(head: str, value: str) -> str:
        shown = f"<code>{escape(value)}</code>" if code and head in code else escape(value)
        return f'<td data-head="{escape(head)}"{"" if head in text else " class=number"}>{shown}</td>'

    head = "".join(f"<th scope=col{'' if h in text else ' class=number'}>{escape(h)}</th>" for h in heads)
    lines = "".join(
        "<tr>" + "".join(cell(h, v) for h, v in zip(heads, row, strict=True)) + "</tr>" for row in rows
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{lines}</tbody></table></div>'
