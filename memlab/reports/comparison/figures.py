"""The figures of a comparison, each drawn for the width of a phone, so that its text is readable there."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from memlab.reports.comparison.canvas import INK, look, paint, plain
from memlab.reports.comparison.groups import Table, metric_name


@dataclass(frozen=True)
class Drawn:
    """A figure.

    Attributes:
        name: of its files.
        caption: what it shows, and how to read it.
        svg: for the page, hidden from screen readers, which read the caption.
    """

    name: str
    caption: str
    svg: str


def draw(table: Table, directory: Path, prefix: str) -> tuple[list[Drawn], list[str]]:
    """Draw everything that the runs of a table have data for, as `directory/<prefix><name>.png` and for the
    page.

    Returns:
        The figures, and sentences about the figures that are missing and why.
    """
    wanted: list[tuple[str, str, str | None, Callable[[Table, Any], None]]] = [
        ("seeds", f"Test {metric_name(table.metric)} of every seed; the bar is the mean.", None, _seeds),
        (
            "pareto",
            f"{metric_name(table.metric).capitalize()} against the bytes that are carried for one document. "
            f"The line joins the groups that no other group beats in both ({_better(table)} is better).",
            None,
            _pareto,
        ),
    ]
    if table.metric == "accuracy":
        why = None if any(run.lengths for group in table.groups for run in group.runs) else _NOT_EVALUATED
        said = (
            "Free-running accuracy by number of segments; dashed: the number in training. Points are seeds, "
            "lines their means."
        )
        wanted.append(("segments", said, why, _segments))
    else:
        read = any(run.result.get("by_position") for group in table.groups for run in group.runs)
        why = None if read else "no run has its loss by position"
        said = (
            "Bits per byte by position in the test documents, mean over seeds; each range is as long as all "
            "ranges before it."
        )
        said += " All tokens count as having the same number of bytes."
        wanted.append(("position", said, why, _position))
    for axis in ("tokens", "seconds"):
        known = any(
            f"val/{axis}" in line for group in table.groups for run in group.runs for line in run.lines
        )
        why = (
            None
            if known
            else f"the runs were logged by a version of memlab that did not log {axis} with validations"
        )
        note = (
            " With a curriculum: only of the last stage, with samples of the full size."
            if table.metric == "accuracy"
            else ""
        )
        machine = (
            " Seconds are only comparable on one machine without other load." if axis == "seconds" else ""
        )
        said = f"Validation loss against {axis} of training, one line per seed.{note}{machine}"
        wanted.append((f"loss_by_{axis}", said, why, partial(_loss, axis=axis)))
    labels = [group.label for group in table.groups]
    drawn, missing = [], []
    for name, caption, why, fill in wanted:
        if why is None:
            svg = paint(labels, partial(fill, table), directory / f"{prefix}{name}.png")
            drawn.append(Drawn(name, caption, svg))
        else:
            missing.append(f"No figure {name}: {why}.")
    return drawn, missing


_NOT_EVALUATED = (
    "no run has been read at several lengths yet; python -m memlab.evaluate run=DIR lengths=[4,8,16] does "
    "that"
)


def _better(table: Table) -> str:
    return "up and left" if table.higher_is_better else "down and left"


def _seeds(table: Table, axes: Any) -> None:
    count = len(table.groups)
    for at, group in enumerate(table.groups):
        values, y = group.scores.values, count - 1 - at
        offsets = (
            [0.0] if len(values) == 1 else [0.18 - 0.36 * i / (len(values) - 1) for i in range(len(values))]
        )
        axes.plot(values, [y + o for o in offsets], linestyle="", markersize=6, alpha=0.9, **look(at))
        axes.plot([group.scores.mean] * 2, [y - 0.33, y + 0.33], color=look(at)["color"], linewidth=2)
    axes.set_yticks(range(count), [_shortened(group.label) for group in reversed(table.groups)])
    axes.set(ylim=(-0.6, count - 0.4), xlabel=f"test {metric_name(table.metric)}")
    _accuracy_axis(table, axes, "x")


def _shortened(label: str) -> str:
    return plain(textwrap.fill(label, 18, max_lines=3, placeholder=" …"))


def _accuracy_axis(table: Table, axes: Any, which: str) -> None:
    if table.metric == "accuracy":
        axes.set(**{f"{which}lim": (-0.03, 1.03)})
        if table.chance is not None:
            line = axes.axvline if which == "x" else axes.axhline
            line(table.chance, color=INK, linewidth=0.8, linestyle=":")


def _pareto(table: Table, axes: Any) -> None:
    sizes = [group.state_bytes for group in table.groups]
    least = min((s for s in sizes if s), default=1024)
    nothing = least / 8  # the place of groups that carry nothing, since a logarithmic axis has no zero
    place = {group.label: float(group.state_bytes or nothing) for group in table.groups}
    axes.set_xscale("log", base=2)
    front = [group for group in table.groups if group.label in table.front]
    front.sort(key=lambda g: place[g.label])
    axes.plot(
        [place[g.label] for g in front],
        [g.scores.mean for g in front],
        color=INK,
        linewidth=0.9,
        drawstyle="steps-post",
        zorder=1,
    )
    for at, group in enumerate(table.groups):
        x = place[group.label]
        axes.plot(
            [x, x], [min(group.scores.values), max(group.scores.values)], color=look(at)["color"], linewidth=1
        )
        axes.plot([x], [group.scores.mean], linestyle="", markersize=8, **look(at))
    low, high = min(place.values()), max(place.values())
    ticks = _powers(least, high)
    labels = [_bytes(t) for t in ticks]
    if 0 in sizes:
        ticks, labels = [nothing, *ticks], ["nothing", *labels]
    axes.set_xticks(ticks, labels)
    axes.minorticks_off()
    axes.set(
        xlim=(low / 2.5, high * 2.5),
        xlabel="carried state, bytes",
        ylabel=f"test {metric_name(table.metric)}",
    )
    _accuracy_axis(table, axes, "y")


def _powers(low: float, high: float) -> list[float]:
    """At most five powers of two that span the range."""
    first, last = int(low).bit_length() - 1, max(int(high).bit_length(), int(low).bit_length())
    step = max(1, -(-(last - first) // 4))
    return [float(2**p) for p in range(first, last + 1, step)]


def _bytes(count: float) -> str:
    for unit in ("B", "K", "M", "G"):
        if count < 1024 or unit == "G":
            return f"{count:.0f}{unit if unit != 'B' else ''}"
        count /= 1024
    raise AssertionError


def _segments(table: Table, axes: Any) -> None:
    tested: set[int] = set()
    for at, group in enumerate(table.groups):
        by_segments: dict[int, list[float]] = {}
        for run in group.runs:
            for segments, found in run.lengths.items():
                by_segments.setdefault(segments, []).append(found["accuracy"])
        points = sorted(by_segments.items())
        tested |= by_segments.keys()
        axes.plot(
            [s for s, _ in points],
            [sum(v) / len(v) for _, v in points],
            linewidth=1.4,
            markersize=5,
            **look(at),
        )
        seeds = [(s, v) for s, values in points for v in values]
        if seeds:
            axes.plot(*zip(*seeds, strict=True), linestyle="", markersize=2.5, alpha=0.6, **look(at))
    axes.set_xscale("log", base=2)
    ticks = (
        sorted(tested)
        if len(tested) <= 6
        else [float(2**p) for p in range(0, 25, -(-max(tested).bit_length() // 6)) if 2**p <= 2 * max(tested)]
    )
    axes.set_xticks(ticks, [f"{t:,.0f}" for t in ticks])
    axes.minorticks_off()
    trained = {run.config.get("task.num_segments") for group in table.groups for run in group.runs}
    for length in trained - {None}:
        axes.axvline(float(str(length)), color=INK, linewidth=0.8, linestyle="--")
    axes.set(xlabel="segments", ylabel="accuracy, free-running")
    _accuracy_axis(table, axes, "y")


def _position(table: Table, axes: Any) -> None:
    for at, group in enumerate(table.groups):
        by_position: dict[int, list[float]] = {}
        for run in group.runs:
            read = run.result["test_read"]
            # from nats per token to bits per byte, with the tokens per byte of the whole test
            to_bits = read["tokens"] / read["bytes"] / 0.6931471805599453
            for part in run.result.get("by_position") or []:
                by_position.setdefault(part["from"], []).append(part["loss"] * to_bits)
        points = sorted(by_position.items())
        axes.plot(
            [s + 1 for s, _ in points],
            [sum(v) / len(v) for _, v in points],
            linewidth=1.3,
            markersize=4,
            **look(at),
        )
    axes.set_xscale("log", base=2)
    axes.set(xlabel="position in the document, tokens", ylabel="bits per byte")


def _loss(table: Table, axes: Any, axis: str) -> None:
    for at, group in enumerate(table.groups):
        for run in group.runs:
            # earlier stages of a curriculum have easier samples, and so another loss; text has the same
            # documents in all stages
            last = run.result.get("stages") if table.metric == "accuracy" else None
            lines = [
                line
                for line in run.lines
                if f"val/{axis}" in line and last in (None, line.get("val/stage", last))
            ]
            points = [(line[f"val/{axis}"], line["val/loss"]) for line in lines]
            if points:
                axes.plot(
                    *zip(*points, strict=True),
                    linewidth=1,
                    alpha=0.85,
                    markersize=5,
                    markevery=[len(points) - 1],
                    **look(at),
                )
    from matplotlib.ticker import EngFormatter

    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.locator_params(axis="x", nbins=5)
    axes.set(xlabel=f"{axis} of training", ylabel="validation loss, nats")
