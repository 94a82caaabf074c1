"""The canvas of a comparison's figures: a colour and a marker for each group, and SVG for the page.

Colours are those of Okabe and Ito (2008), which people with any colour vision can distinguish, without yellow
and black, which do not show on white or on dark pages. On the page, figures take their colours from the
page's style (light, dark, print); as files, they have those of paper.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from memlab.terminal.plain import printable

PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#56B4E9", "#E69F00", "#7F7F7F")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "h")
INK, _GRID = "#1b1b1b", "#d0d0d0"
_STYLE: dict[Any, Any] = {
    "font.size": 9,
    "text.color": INK,
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": _GRID,
    "svg.hashsalt": "memlab",  # so that the same figure gives the same file
    "svg.fonttype": "path",
}
_STYLED = {
    INK: "var(--ink)",
    _GRID: "var(--grid)",
    **{colour.lower(): f"var(--c{i})" for i, colour in enumerate(PALETTE)},
}


def look(at: int) -> dict[str, Any]:
    """Colour and marker of the group at index `at` of its table."""
    return {"color": PALETTE[at % len(PALETTE)], "marker": MARKERS[at % len(MARKERS)]}


def swatch(at: int) -> str:
    """A group's line and marker as a small SVG, for a legend in the page."""
    figure = _figure((0.36, 0.18), layout=None)
    axes = figure.add_axes((0, 0, 1, 1))
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.plot([0.05, 0.5, 0.95], [0.5] * 3, markevery=[1], markersize=7, **look(at))
    return _svg(figure)


def paint(labels: Sequence[str], fill: Callable[[Any], None], file: Path) -> str:
    """Draw a figure as a file with a legend of these groups, and as SVG for the page, which has its own
    legend.

    Args:
        fill: draws into the axes.
    """
    import matplotlib as mpl

    with mpl.rc_context(_STYLE):
        figure = _figure((4.2, 3.2))
        axes = figure.subplots()
        axes.grid(alpha=0.6, linewidth=0.6)
        axes.set_axisbelow(True)
        for side in ("top", "right"):
            axes.spines[side].set_visible(False)
        fill(axes)
        svg = _svg(figure)
        figure.legend(
            handles=[_handle(at, label) for at, label in enumerate(labels)],
            loc="outside lower center",
            ncols=2 if max(map(len, labels)) < 24 else 1,
            frameon=False,
        )
        figure.set_size_inches(4.2, 3.2 + 0.2 * len(labels))
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=150)
    return svg


def _handle(at: int, label: str) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], label=plain(label), linewidth=1.4, markersize=5, **look(at))


def plain(label: str) -> str:
    """A label, escaped so that matplotlib does not read it as mathematics."""
    return printable(label).replace("$", r"\$")


def _figure(inches: tuple[float, float], layout: Any = "constrained") -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=inches, layout=layout)
    FigureCanvasAgg(figure)
    return figure


def _svg(figure: Any) -> str:
    """The drawing as SVG, with the colours of the page."""
    out = io.StringIO()
    figure.savefig(
        out,
        format="svg",
        transparent=True,
        metadata={"Date": None, "Creator": None, "Format": None, "Type": None},
    )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    # not needed within a page, and they look like network addresses
    svg = re.sub(r' xmlns(:\w+)?="[^"]*"', "", svg)
    svg = re.sub(r"#[0-9a-fA-F]{6}\b", lambda m: _STYLED.get(m[0].lower(), m[0]), svg)
    svg = svg.replace("xlink:href", "href").replace("<svg ", '<svg aria-hidden="true" ', 1)
    # several figures share a page, so the names of their parts have to be unique
    own = hashlib.sha256(svg.encode()).hexdigest()[:8]
    return re.sub(r'(\bid="|\bhref="#|url\(#)', rf"\g<1>f{own}-", svg)
