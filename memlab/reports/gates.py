"""The gates of a run: how much of each head's output comes from the memory, over training.

The Infini-attention paper (arXiv 2404.07143, figure 3) distinguishes specialised heads, whose gate is near 0
(the segment) or near 1 (the memory), from mixer heads near 0.5. It gives no bounds; these are memlab's.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from memlab.reports.drawing import new_figure, save

LOCAL, MEMORY, MIXER = 0.1, 0.9, (0.4, 0.6)  # at most, at least, and between
_NAME = re.compile(r"gate/layer(\d+)_head(\d+)")
_LINES = ("-", "--", ":", "-.")


def kinds(gates: Sequence[float]) -> dict[str, int]:
    """Number of heads that are `local`, `memory` (both are specialised), `mixer`, or `between` these."""
    counted = {
        "local": sum(gate <= LOCAL for gate in gates),
        "memory": sum(gate >= MEMORY for gate in gates),
        "mixer": sum(MIXER[0] <= gate <= MIXER[1] for gate in gates),
    }
    return {**counted, "between": len(gates) - sum(counted.values())}


def over_training(steps: Sequence[dict[str, Any]]) -> dict[tuple[int, int], list[tuple[int, float]]]:
    """The logged gates: (step, gate) by (layer, head), both counted from 1.

    Args:
        steps: the lines of `metrics.jsonl`.
    """
    found: dict[tuple[int, int], list[tuple[int, float]]] = {}
    for line in steps:
        for key, value in line.items():
            if match := _NAME.fullmatch(key):
                found.setdefault((int(match[1]), int(match[2])), []).append((int(line["step"]), float(value)))
    return dict(sorted(found.items()))


def draw(steps: Sequence[dict[str, Any]], title: str, directory: Path) -> bool:
    """Draw `gates.png`: every gate over the steps, and all gates at the last step. False = there are none.

    Args:
        steps: the lines of `metrics.jsonl`.
    """
    found = over_training(steps)
    if not found:
        return False
    import matplotlib as mpl
    import numpy as np

    layers = sorted({layer for layer, _ in found})
    heads = max(head for _, head in found)
    figure, _ = new_figure(1, height=5.2)
    figure.clear()
    top, bottom = figure.subplots(2, 1, height_ratios=(3, 1 + 0.2 * len(layers)))
    colours = mpl.colormaps["viridis"].resampled(len(layers) + 1)
    for low, high in ((0, LOCAL), (MEMORY, 1), MIXER):
        top.axhspan(low, high, color="0.9", zorder=0)
    for (layer, head), points in found.items():
        label = f"layer {layer}" if head == 1 else None
        top.plot(
            *zip(*points, strict=True),
            color=colours(layers.index(layer)),
            linestyle=_LINES[(head - 1) % len(_LINES)],
            label=label,
        )
    labels = ((LOCAL / 2, "local"), (sum(MIXER) / 2, "mixer"), ((1 + MEMORY) / 2, "memory"))
    for height, label in labels:
        top.text(1.01, height, label, transform=top.get_yaxis_transform(), va="center", fontsize=8)
    top.set(
        ylim=(0, 1),
        xlabel="optimizer step (a line is a head)",
        ylabel="gate, share of the memory",
        title=title,
    )
    top.grid(alpha=0.3)
    top.legend(loc="best", fontsize=8, ncols=1 + (len(layers) - 1) // 6)

    values = np.full((len(layers), heads), np.nan)
    for (layer, head), points in found.items():
        values[layers.index(layer), head - 1] = points[-1][1]
    image = bottom.imshow(values, vmin=0, vmax=1, cmap="cividis", aspect="auto")
    for row, column in np.ndindex(values.shape):
        if heads <= 16 and not np.isnan(values[row, column]):
            colour = "white" if values[row, column] < 0.5 else "black"
            bottom.text(
                column, row, f"{values[row, column]:.2f}", ha="center", va="center", fontsize=7, color=colour
            )
    bottom.set_xticks(range(heads), [str(head) for head in range(1, heads + 1)])
    bottom.set_yticks(range(len(layers)), [str(layer) for layer in layers])
    bottom.set(ylabel="layer", xlabel="head, at the last step logged")
    figure.supxlabel(caption([points[-1][1] for points in found.values()]), fontsize=8)
    figure.colorbar(image, ax=bottom, label="gate")
    save(figure, directory / "gates.png")
    return True


def caption(gates: Sequence[float]) -> str:
    """The counts of `kinds`, with their bounds."""
    n = kinds(gates)
    specialised = (
        f"{n['local'] + n['memory']} specialised ({n['local']} local, gate ≤ {LOCAL}; {n['memory']} memory, "
        f"≥ {MEMORY})"
    )
    return (
        f"of {len(gates)} heads: {specialised}, {n['mixer']} mixer ({MIXER[0]} to {MIXER[1]}), "
        f"{n['between']} between"
    )
