"""The figures of looking inside, made from the entries `inside` of `evaluation.json` (see
`memlab/evaluation/record.py`).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memlab.reports.drawing import new_figure, save

_SAID = {
    "memory_tokens": "attention on read memory",
    "cache": "attention on the cache",
    "gated": "memory's share of the output",
}


def draw(entry: dict[str, Any], title: str, folder: Path) -> list[Path]:
    """All figures of an entry; their files."""
    title = f"{title}: {entry['samples']} samples of {entry['segments']} segments"
    drawn = []
    for kind, found in entry["memory_share"].items():
        drawn.append(folder / f"inside_{kind}_{entry['segments']}_segments.png")
        _share(found, _SAID[kind], title, drawn[-1])
    for name, figure in (("similarity", _similarity), ("retrieval", _retrieval)):
        if entry[name]:
            drawn.append(folder / f"inside_{name}_{entry['segments']}_segments.png")
            figure(entry[name], title, drawn[-1])
    return drawn


def _share(found: dict[str, Any], said: str, title: str, file: Path) -> None:
    """A row is a head, a column a segment."""
    import numpy as np

    values = np.asarray(found["values"])  # [S, L, H]
    segments, layers, heads = values.shape
    rows = layers * heads
    figure, (axes,) = new_figure(1, height=min(12.0, 2.7 + 0.2 * rows))
    image = axes.imshow(
        values.reshape(segments, rows).T,
        vmin=0,
        vmax=1,
        cmap="cividis",
        aspect="auto",
        interpolation="nearest",
    )
    for layer in range(1, layers):
        axes.axhline(layer * heads - 0.5, color="white", linewidth=1.5)
    axes.set_yticks(
        [layer * heads + (heads - 1) / 2 for layer in range(layers)],
        [f"layer {layer}" for layer in found["layers"]],
    )
    _segments(axes.xaxis, segments, 1)
    axes.grid(False)
    axes.set(xlabel=f"segment (a row is one of {heads} heads)", title=title)
    axes.title.set_fontsize(9)
    figure.colorbar(image, label=said)
    save(figure, file)


def _similarity(found: dict[str, Any], title: str, file: Path) -> None:
    """Between all memories, and of each slot with itself one segment before."""
    import numpy as np

    between, by_slot = np.asarray(found["between"]), np.asarray(found["by_slot"])
    figure, _ = new_figure(1, height=7.5)
    figure.clear()
    top, bottom = figure.subplots(2, 1, height_ratios=(2, 1))
    image = top.imshow(between, vmin=-1, vmax=1, cmap="PuOr", interpolation="nearest")
    figure.colorbar(image, ax=top, label="cosine, mean over slots")
    for axis in (top.xaxis, top.yaxis):
        _segments(axis, len(between), 0)
    top.set(xlabel="memory behind segment (0: initial)", ylabel="memory behind segment", title=title)
    top.title.set_fontsize(9)
    segments = range(1, by_slot.shape[1] + 1)
    for slot in by_slot:
        bottom.plot(segments, slot, color="#0072B2", alpha=0.35, linewidth=0.9, marker=".")
    bottom.plot(segments, by_slot.mean(0), color="black", linewidth=1.8, label="mean of the slots")
    bottom.grid(alpha=0.3)
    bottom.legend(loc="best", fontsize=8)
    step = -(-len(segments) // 16)
    bottom.set(
        xticks=segments[::step],
        xlabel="segment that wrote it",
        ylabel="cosine, slot and the\nsame slot before",
        ylim=(-1.05, 1.05),
    )
    save(figure, file)


def _retrieval(found: dict[str, Any], title: str, file: Path) -> None:
    """A histogram for each head, by keys and by the attention that they get."""
    figure, panels = new_figure(2)
    for axes, name, label in zip(
        panels, ("keys", "attention"), ("share of retrieved keys", "share of their attention"), strict=True
    ):
        for head, counts in enumerate(found[name]):
            total = sum(counts)
            if total:
                edges = [*found["from"], 2 * found["from"][-1]]
                line = ("-", "--", ":", "-.")[head % 4]
                axes.stairs(
                    [c / total for c in counts], edges, label=f"head {head}", linestyle=line, linewidth=1.6
                )
        axes.set_xscale("log", base=2)
        axes.set(ylabel=label, ylim=(0, None))
    if len(found["keys"]) <= 12 and found["from"]:
        panels[0].legend(loc="best", fontsize=8)
    panels[0].set_title(title, fontsize=9)
    panels[1].set_xlabel(f"tokens before the query (layer {found['layer']})")
    save(figure, file)


def _segments(axis: Any, count: int, first: int) -> None:
    step = -(-count // 16)
    axis.set_ticks(range(0, count, step), [str(first + i) for i in range(0, count, step)], fontsize=8)
