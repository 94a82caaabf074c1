"""Pages about claims in Markdown: one for each, and a table of all."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path

from memlab.reports.claims.book import Claim, Series
from memlab.reports.claims.evidence import Evidence
from memlab.reports.claims.verdict import Finding, Verdict, judge
from memlab.reports.drawing import new_figure, save

_SIGNS = {None: "–", True: "yes", False: "no"}


def write(evidence: Evidence, folder: Path) -> Path:
    """Write a claim's page and its figure; returns the page."""
    verdict, findings = judge(evidence)
    folder.mkdir(parents=True, exist_ok=True)
    target = folder / f"{evidence.claim.name}.md"
    image = None
    if evidence.claim.figure is not None and evidence.finished:
        image = folder / "img" / f"{evidence.claim.name}.png"
        image.parent.mkdir(exist_ok=True)
        draw(evidence, image)
    target.write_text(text(evidence, verdict, findings, image is not None), encoding="utf-8")
    return target


def text(evidence: Evidence, verdict: Verdict, findings: Sequence[Finding], drawn: bool) -> str:
    """A claim's page."""
    claim = evidence.claim
    parts = [
        f"# {claim.claim}",
        f"**{verdict.capitalize()}.** {claim.source}",
        f"Made by `python -m memlab.claims claim={claim.name}` from its runs; nothing on this page is typed.",
    ]
    if claim.untestable is not None:
        return "\n\n".join([*parts, claim.untestable]) + "\n"
    if drawn:
        parts.append(f"![{claim.claim}](img/{claim.name}.png)")
    parts += [f"Scale: {claim.scale}", _values(evidence)]
    rows = [[f.condition.says, f.found, _SIGNS[f.true]] for f in findings]
    parts += [
        "## The rule",
        "It holds if every line is true, and in part if some are. Lines on controls come first; if one of "
        "them is not true, nothing follows.",
        _table(["condition", "found", "true"], rows),
    ]
    if claim.differs:
        parts += ["## What differs from the paper", "\n".join(f"- {line}" for line in claim.differs)]
    if claim.tries:
        parts += ["## What else was tried", "\n".join(f"- {line}" for line in claim.tries)]
    if evidence.missing:
        parts += ["## Missing", "\n".join(f"- {line}" for line in evidence.missing)]
    parts += ["## The runs", _commands(evidence)]
    return "\n\n".join(parts) + "\n"


def overview(all_: Sequence[Evidence], folder: str = "claims") -> str:
    """The table of all claims.

    Args:
        folder: of their pages, as a link.
    """
    rows = []
    for evidence in all_:
        claim = evidence.claim
        runs = sum(len(runs.seeds) for runs in claim.runs.values())
        rows.append(
            [
                f"[{claim.name}]({folder}/{claim.name}.md)",
                claim.claim,
                str(judge(evidence)[0]),
                f"{evidence.finished}/{runs}" if runs else "–",
                claim.source,
            ]
        )
    return (
        "# Published claims, put to the test\n\n"
        "Each verdict is computed from the runs by the rule of the claim's file in `configs/claim/`. "
        "`python -m memlab.claims claim=NAME` runs what is missing, and goes on after a kill; "
        "`python -m memlab.claims report=true` writes these pages.\n\n"
        f"{_table(['', 'claim', 'verdict', 'runs', 'source'], rows)}\n"
    )


def _values(evidence: Evidence) -> str:
    """Every seed of every line of the figure, with the published values."""
    claim = evidence.claim
    assert claim.figure is not None
    places = sorted({x for s in claim.series for x in s.points} | _published_places(claim))
    heads = [claim.figure.label, *(f"{x:,g}" for x in places)]
    rows = [[series.label, *(_seeds(evidence, series, x) for x in places)] for series in claim.series]
    rows += [
        [f"published: {label}", *(f"{points[x]:g}" if x in points else "" for x in places)]
        for label, points in claim.figure.published.items()
    ]
    return f"{claim.figure.values}; mean, and in brackets each seed.\n\n{_table(heads, rows)}"


def _published_places(claim: Claim) -> set[float]:
    assert claim.figure is not None
    return {x for points in claim.figure.published.values() for x in points}


def _seeds(evidence: Evidence, series: Series, place: float) -> str:
    quantity = series.points.get(place)
    values = [] if quantity is None else list(evidence.values(quantity).values())
    if not values:
        return "" if quantity is None else "–"
    mean = f"{statistics.fmean(values):.3f}"
    return mean if len(values) == 1 else f"{mean} ({', '.join(f'{v:.3f}' for v in values)})"


def _commands(evidence: Evidence) -> str:
    """What was run, and with what."""
    claim = evidence.claim
    lines = []
    for name, runs in claim.runs.items():
        seeds = ",".join(map(str, runs.seeds))
        lines.append(f"python -m memlab.train --multirun {' '.join(runs.train)} seed={seeds}    # {name}")
    for evaluation in claim.evaluations:
        lines.append(
            f"python -m memlab.evaluate run=DIR {' '.join(evaluation.words)}    "
            f"# each of {', '.join(evaluation.runs)}"
        )
    seconds = sum(r["timing"].get("total_seconds", 0) for r in evidence.results)
    commits = sorted({str(r.get("commit")) for r in evidence.results if r.get("commit")})
    versions = sorted({f"torch {r['versions'].get('torch')}" for r in evidence.results if r.get("versions")})
    machines = sorted({str(r["hardware"].get("processor")) for r in evidence.results if r.get("hardware")})
    facts = "; ".join(
        part for part in (", ".join(machines), ", ".join(versions), "commit " + ", ".join(commits)) if part
    )
    said = f"{evidence.finished} runs, {seconds:,.0f} s of training. {facts}." if evidence.results else ""
    return "```bash\n" + "\n".join(lines) + f"\n```\n\n{said}".rstrip()


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)


def draw(evidence: Evidence, target: Path) -> None:
    """Our lines with every seed, and the published ones dashed, on one axis."""
    figure = evidence.claim.figure
    assert figure is not None
    image, (axes,) = new_figure(1)
    for number, series in enumerate(evidence.claim.series):
        colour = f"C{number}"
        found = {x: list(evidence.values(q).values()) for x, q in sorted(series.points.items())}
        shown = {x: values for x, values in found.items() if values}
        for x, values in shown.items():
            axes.plot([x] * len(values), values, ".", color=colour, alpha=0.5, markersize=5)
        means = [statistics.fmean(values) for values in shown.values()]
        axes.plot(list(shown), means, "-o", color=colour, markersize=3, label=series.label)
    for number, (label, points) in enumerate(figure.published.items()):
        places = sorted(points)
        values = [points[x] for x in places]
        style = {"linestyle": "--", "marker": "s", "markersize": 3, "alpha": 0.7, "color": f"C{number}"}
        axes.plot(places, values, label=f"published: {label}", **style)
    if figure.logarithmic:
        axes.set_xscale("log", base=2)
    axes.set(xlabel=figure.label, ylabel=figure.values)
    axes.legend(fontsize=8)
    save(image, target)
