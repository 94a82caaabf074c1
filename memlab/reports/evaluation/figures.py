"""The figures of an evaluation, from the entries of `evaluation.json` (see `memlab/evaluation/record.py`)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memlab.reports.drawing import new_figure, save

# Okabe and Ito's colours, which people with any colour vision can distinguish; markers repeat the distinction
_SERIES: dict[str, tuple[str, str, str]] = {
    "plain": ("free-running", "#0072B2", "o"),
    "memory_off": ("memory off", "#D55E00", "s"),
    "shuffled": ("memory of another document", "#009E73", "^"),
}
SCORES = {"accuracy": "accuracy", "exact_match": "whole answers right"}
_BYTES = (("state_bytes", "carried", "#0072B2"), ("peak_bytes", "held while a segment is read", "#D55E00"))
_RATIOS = (("compression_carry", "carried", "#0072B2"), ("compression_peak", "peak", "#D55E00"))


def accuracy_by_length(
    entries: Sequence[dict[str, Any]],
    unit: str,
    score: str,
    trained: int | None,
    chance: float,
    title: str,
    file: Path,
) -> None:
    """Accuracy over the length, with 95 % intervals, controls, chance, and the trained length.

    Args:
        unit: of lengths, `segments` or `tokens`.
        score: `accuracy`, or `exact_match` of whole answers.
        trained: length in training; None = not trained.
    """
    figure, (axes,) = new_figure(1)
    for name, (label, colour, marker) in _SERIES.items():
        of = [(e[unit], e if name == "plain" else e["controls"].get(name)) for e in entries]
        points = [(length, f[score], *f["intervals"][score]) for length, f in of if f is not None]
        if points:
            x, y, low, high = zip(*points, strict=True)
            axes.plot(x, y, label=label, color=colour, marker=marker, markersize=4)
            axes.fill_between(x, low, high, color=colour, alpha=0.2, linewidth=0)
    axes.axhline(chance, color="0.4", linewidth=0.8, linestyle=":")
    if trained is not None:
        axes.axvline(trained, color="0.4", linewidth=0.8, linestyle="--")
    axes.set_xscale("log", base=2)
    places = {e[unit] for e in entries}
    if len(places) == 1:  # a single place on the axis has no width
        (place,) = places
        axes.set_xlim(place / 2, place * 2)
    _plain_numbers(axes, [e[unit] for e in entries])
    axes.set(
        ylim=(0, 1.03),
        xlabel=unit if trained is None else f"{unit} (dashed: trained up to {trained:,})",
        ylabel=f"{SCORES[score]} (dotted: chance)",
        title=title,
    )
    axes.legend(loc="best", fontsize=8, title="band: 95 % interval", title_fontsize=7)
    save(figure, file)


def depth_by_length(
    entries: Sequence[dict[str, Any]], unit: str, score: str, chance: float, title: str, file: Path
) -> None:
    """Accuracy by where the fact stands and by length: a heat map with numbers. Arguments as for
    `accuracy_by_length`.
    """
    import numpy as np

    edges = sorted({(cell["from"], cell["to"]) for e in entries for cell in e["depth"]})
    values = np.full((len(edges), len(entries)), np.nan)
    for column, entry in enumerate(entries):
        for cell in entry["depth"]:
            # an entry of memlab 0.2 has no whole answers
            values[edges.index((cell["from"], cell["to"])), column] = cell.get(score, np.nan)
    figure, (axes,) = new_figure(1, width=max(5.0, 1.6 + 0.7 * len(entries)), height=1.5 + 0.3 * len(edges))
    image = axes.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for row, column in np.ndindex(values.shape):
        if not np.isnan(values[row, column]):
            dark = values[row, column] < 0.5
            axes.text(
                column,
                row,
                f"{values[row, column]:.2f}",
                ha="center",
                va="center",
                fontsize=7,
                color="white" if dark else "black",
            )
    axes.set_xticks(range(len(entries)), [f"{e[unit]:,}\nn={e['samples']}" for e in entries], fontsize=7)
    axes.set_yticks(range(len(edges)), [f"{low:.0%} to {high:.0%}" for low, high in edges], fontsize=7)
    axes.grid(False)
    axes.set(xlabel=unit, ylabel="where the fact stands", title=title)
    figure.colorbar(image, label=f"{SCORES[score]} (chance {chance:.2g})")
    save(figure, file)


def memory_by_tokens(curve: Sequence[dict[str, Any]], title: str, file: Path) -> None:
    """Bytes held for one document, and both compressions, over the tokens read."""
    figure, (top, bottom) = new_figure(2)
    tokens = [point["tokens"] for point in curve]
    top.plot(
        tokens, [point["kv_full_bytes"] for point in curve], color="0.4", linestyle="--", label="a full cache"
    )
    for axes, series in ((top, _BYTES), (bottom, _RATIOS)):
        for key, label, colour in series:
            points = [(point["tokens"], point[key]) for point in curve if point[key]]
            if points:
                axes.plot(*zip(*points, strict=True), color=colour, label=label, marker="o", markersize=3)
        axes.set(xscale="log", yscale="log")
        axes.legend(loc="best", fontsize=8)
    top.set(ylabel="bytes, one document", title=title)
    bottom.set(xlabel="tokens read", ylabel="compression, ×")
    save(figure, file)


def loss_by_position(entry: dict[str, Any], title: str, file: Path) -> None:
    """Mean loss over the position in the document, with the memory and under the controls."""
    figure, (axes,) = new_figure(1)
    for name, (label, colour, _) in _SERIES.items():
        control = entry.get("controls", {}).get(name)
        ranges = entry["by_position"] if name == "plain" else control["by_position"] if control else []
        if ranges:
            edges = [*(r["from"] + 1 for r in ranges), 2 * ranges[-1]["from"] + 2]
            axes.stairs(
                [r["loss"] for r in ranges],
                edges,
                color=colour,
                label="memory on" if name == "plain" else label,
            )
    axes.set(
        xscale="log",
        xlabel="position in the document, tokens",
        ylabel="loss, nats per token",
        title=title,
    )
    axes.legend(loc="best", fontsize=8)
    save(figure, file)


def streaming(entry: dict[str, Any], title: str, file: Path) -> None:
    """Speed and memory over the tokens of one stream."""
    figure, (top, bottom) = new_figure(2)
    tokens = [point["tokens"] for point in entry["points"]]
    for axes, key, scale, label in (
        (top, "tokens_per_second", 1, "tokens/s"),
        (bottom, "peak_memory", 2**-20, "peak memory, MiB"),
    ):
        axes.plot(
            tokens,
            [scale * point[key] for point in entry["points"]],
            color="#0072B2",
            marker="o",
            markersize=4,
        )
        axes.set_ylim(bottom=0)
        axes.set(xscale="log", ylabel=label)
    top.set(title=title)
    bottom.set(xlabel="tokens read")
    save(figure, file)


def _plain_numbers(axes: Any, values: Sequence[int]) -> None:
    axes.set_xticks(
        sorted(set(values)),
        [str(v) for v in sorted(set(values))],
        fontsize=8,
        rotation=45 if len(values) > 8 else 0,
    )
    axes.minorticks_off()
