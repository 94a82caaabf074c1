"""Make and save figures of one run: panels on top of each other."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def new_figure(panels: int, width: float = 7.0, height: float | None = None) -> tuple[Any, Any]:
    """A figure with this many panels on top of each other, and their axes; sizes in inches."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height or 2.5 * panels + (panels == 1)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(panels, 1, sharex=True, squeeze=False)[:, 0]
    for panel in axes:
        panel.grid(alpha=0.3)
        panel.title.set_parse_math(False)  # it has the names of a run, and $ is no mathematics there
    return figure, axes


def save(figure: Any, file: Path) -> None:
    """Save a figure, and create its directory."""
    for text in figure.texts:
        text.set_parse_math(False)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
