"""The learning curve of one run, as a figure."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def learning_curve(steps: list[dict[str, Any]], stages_began_at: list[int], chance: float, title: str, file: Path) -> None:
    """Loss and accuracy over the steps, with the curriculum's stages as lines, written as a PNG.

    Args:
        steps: the lines of `metrics.jsonl`.
        stages_began_at: the step at which each stage of the curriculum began.
        chance: accuracy of guessing.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 5), layout="constrained")
    FigureCanvasAgg(figure)
    top, bottom = figure.subplots(2, 1, sharex=True)
    for axes, series in (
        (top, {"train/loss": "training", "val/loss": "validation"}),
        (bottom, {"train/accuracy": "training (teacher-forced)", "val/accuracy": "validation (free-running)"}),
    ):
        for key, label in series.items():
            points = [(s["step"], s[key]) for s in steps if key in s]
            if points:
                axes.plot(*zip(*points, strict=True), label=label, marker="." if key.startswith("val/") else None)
        for began in stages_began_at[1:]:
            axes.axvline(began, color="0.7", linewidth=0.8, zorder=0)
        axes.grid(alpha=0.3)
        axes.legend(loc="best", fontsize=8)
    bottom.axhline(chance, color="0.4", linewidth=0.8, linestyle=":")
    bottom.set(ylim=(0, 1.03), xlabel="optimizer step", ylabel="accuracy (dotted: chance)")
    top.set(ylabel="loss", title=title)
    file.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(file, dpi=120)
