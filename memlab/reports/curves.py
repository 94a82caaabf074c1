"""The figures of one run."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from memlab.reports.drawing import new_figure, save

_PANELS: dict[str, tuple[str, dict[str, str]]] = {  # by headline: label and series of the lower panel
    "accuracy": (
        "accuracy",
        {"train/accuracy": "training (teacher-forced)", "val/accuracy": "validation (free-running)"},
    ),
    "bits_per_byte": ("bits per byte", {"val/bits_per_byte": "validation"}),
}


def learning(
    steps: list[dict[str, Any]],
    headline: str,
    stages_began_at: list[int],
    chance: float | None,
    title: str,
    directory: Path,
) -> None:
    """Draw `learning_curve.png`: loss and headline metric over the steps, with the stages of the curriculum.

    Args:
        steps: the lines of `metrics.jsonl`.
        headline: the most important metric, such as `accuracy` or `bits_per_byte`.
        stages_began_at: the step at which each stage of the curriculum began.
        chance: accuracy of guessing, if there is an accuracy.
    """
    figure, (top, bottom) = new_figure(2)
    usual = headline.replace("_", " "), {f"val/{headline}": "validation"}
    label, series = _PANELS.get(headline, usual)
    for axes, shown in ((top, {"train/loss": "training", "val/loss": "validation"}), (bottom, series)):
        for key, name in shown.items():
            points = [(s["step"], s[key]) for s in steps if key in s]
            if points:
                axes.plot(
                    *zip(*points, strict=True), label=name, marker="." if key.startswith("val/") else None
                )
        for began in stages_began_at[1:]:
            axes.axvline(began, color="0.7", linewidth=0.8, zorder=0)
        axes.legend(loc="best", fontsize=8)
    bottom.set(xlabel="optimizer step", ylabel=label)
    if chance is not None:
        bottom.axhline(chance, color="0.4", linewidth=0.8, linestyle=":")
        bottom.set(ylim=(0, 1.03), ylabel=f"{label} (dotted: chance)")
    top.set(ylabel="loss", title=title)
    save(figure, directory / "learning_curve.png")


def by_position(ranges: list[dict[str, Any]], title: str, directory: Path) -> None:
    """Draw `loss_by_position.png`: mean loss over the position in the document.

    Args:
        ranges: what `evaluation.metrics.CrossEntropyByPosition` computes.
    """
    figure, (axes,) = new_figure(1)
    axes.stairs([r["loss"] for r in ranges], [*(r["from"] + 1 for r in ranges), 2 * ranges[-1]["from"] + 2])
    axes.set(
        xscale="log",
        xlabel="position in the document, tokens",
        ylabel="loss, nats per token",
        title=title,
    )
    save(figure, directory / "loss_by_position.png")


def activations(result: dict[str, Any], directory: Path) -> None:
    """Draw `memory.png`: peak bytes of a training step over the number of segments, by model and `recompute`.

    Args:
        result: of `memlab.bench suite=memory`.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    models = result["models"]
    columns = min(3, len(models))
    rows = -(-len(models) // columns)
    figure = Figure(figsize=(1 + 2.8 * columns, 1 + 2.3 * rows), layout="constrained")
    FigureCanvasAgg(figure)
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, (name, measured) in zip(grid.flat, models.items(), strict=False):
        for way, peaks in measured["peak_bytes"].items():
            axes.plot(result["segments"], [peak / 1e6 for peak in peaks], label=way, marker=".")
        axes.set(
            title=name, xscale="log", yscale="log", xticks=result["segments"], xticklabels=result["segments"]
        )
        axes.tick_params(axis="x", which="minor", bottom=False, labelbottom=False)
        axes.grid(alpha=0.3)
    for axes in list(grid.flat)[len(models) :]:
        axes.set_visible(False)
    for axes in grid[:, 0]:
        axes.set_ylabel("peak, MB")
    for axes in grid[-1]:
        axes.set_xlabel("segments")
    grid[0, 0].legend(title="recompute", fontsize=8)
    save(figure, directory / "memory.png")
