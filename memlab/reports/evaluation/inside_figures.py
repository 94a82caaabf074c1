"""The figures of `inside`, from its entries in `evaluation.json` (see `memlab/evaluation/record.py`)."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from memlab.reports.drawing import new_figure, save

_SAID = {
    "memory_tokens": "attention on memory tokens",
    "remembered": "attention on remembered rows",
    "gated": "memory's share of the output",
}
_COLUMNS = 4  # of small panels


def draw(entry: dict[str, Any], title: str, folder: Path) -> list[Path]:
    """Draw all figures of an entry and return their files."""
    title = f"{title}: {entry['samples']} samples of {entry['segments']} segments"
    similarity = dict(entry["similarity"])
    slots = similarity.pop("memory_tokens", None)
    figures: list[tuple[str, Callable[[Path], None]]] = [
        (kind, partial(_share, found, _SAID[kind], title)) for kind, found in entry["memory_share"].items()
    ]
    if slots:
        figures.append(("similarity", partial(_similarity, slots, title)))
    if similarity:
        figures.append(("similarity_of_layers", partial(_similarity_of_layers, similarity, title)))
    for found in entry["retrieval"]:
        of = f"_layer{found['layer']}" if len(entry["retrieval"]) > 1 else ""
        figures.append((f"retrieval{of}", partial(_retrieval, found, title)))
    drawn = []
    for name, draw_to in figures:
        drawn.append(folder / f"inside_{name}_{entry['segments']}_segments.png")
        draw_to(drawn[-1])
    return drawn


def _share(found: dict[str, Any], said: str, title: str, file: Path) -> None:
    """A row per head, a column per segment."""
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
    """Memory tokens: similarity between all segments, and of each slot with itself one segment before."""
    import numpy as np

    between, by_slot = np.asarray(found["between"]), np.asarray(found["by_slot"])
    figure, _ = new_figure(1, height=7.5)
    figure.clear()
    top, bottom = figure.subplots(2, 1, height_ratios=(2, 1))
    image = top.imshow(between, vmin=-1, vmax=1, cmap="PuOr", interpolation="nearest")
    figure.colorbar(image, ax=top, label="cosine, mean over slots")
    for axis in (top.xaxis, top.yaxis):
        _segments(axis, len(between), 0)
    top.set(xlabel="memory after segment (0: initial)", ylabel="memory after segment", title=title)
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


def _similarity_of_layers(found: dict[str, Any], title: str, file: Path) -> None:
    """Similarity between the states of each layer, one panel per layer."""
    import numpy as np

    columns = min(_COLUMNS, len(found))
    rows = -(-len(found) // columns)
    figure, _ = new_figure(1, height=1.2 + 2.2 * rows)
    figure.clear()
    panels = figure.subplots(rows, columns, squeeze=False)
    for axes in panels.flat[len(found) :]:
        axes.set_visible(False)
    for axes, (name, of) in zip(panels.flat, found.items(), strict=False):
        between = np.asarray(of["between"])
        image = axes.imshow(between, vmin=-1, vmax=1, cmap="PuOr", interpolation="nearest")
        for axis in (axes.xaxis, axes.yaxis):
            _segments(axis, len(between), 0, most=6)
        axes.set_title(f"layer {name.removeprefix('layer')}", fontsize=8)
    figure.suptitle(title, fontsize=9)
    figure.supxlabel("state after segment (0: initial)", fontsize=9)
    figure.colorbar(image, ax=list(panels.flat), label="cosine")
    save(figure, file)


def _retrieval(found: dict[str, Any], title: str, file: Path) -> None:
    """A histogram per head, of keys and of their attention."""
    figure, panels = new_figure(2)
    for axes, name, label in zip(
        panels, ("keys", "attention"), ("share of retrieved keys", "share of their attention"), strict=True
    ):
        for head, counts in enumerate(found[name], 1):
            total = sum(counts)
            if total:
                edges = [*found["from"], 2 * found["from"][-1]]
                line = ("-", "--", ":", "-.")[(head - 1) % 4]
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


def _segments(axis: Any, count: int, first: int, most: int = 16) -> None:
    step = -(-count // most)
    axis.set_ticks(range(0, count, step), [str(first + i) for i in range(0, count, step)], fontsize=8)
