"""Consoles and tables for people: no figure of a table is ever cut.

A pipe or a file gets each table whole, however wide it is. On a terminal, a table that is too wide has its
names wrapped; if that is not enough, it is printed in parts, one below the other, each beginning with the
columns of names.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderableType
from rich.segment import Segment
from rich.table import Table
from rich.text import Text

from memlab.terminal.plain import printable

_UNBOUNDED = 100_000  # columns of a file
_NAME, _TEXT = 20, 16  # minimum width to which columns of names, or of other text, are wrapped


class PlainConsole(Console):
    """A console that shows the control characters of what it prints, and so obeys only its own."""

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        for segment in super().render(renderable, options):
            text = segment.text if segment.control else printable(segment.text)
            yield Segment(text, segment.style, segment.control)


def console(stderr: bool = False) -> Console:
    """A console as wide as needed, unless a terminal's window is the limit."""
    found = PlainConsole(stderr=stderr, highlight=False)
    return found if found.is_terminal else PlainConsole(stderr=stderr, highlight=False, width=_UNBOUNDED)


def is_live(target: Console) -> bool:
    """Whether lines can be redrawn: on a terminal that can move its cursor (not `TERM=dumb`)."""
    return target.is_terminal and not target.is_dumb_terminal


def show(target: Console, table: Table, names: int = 1, caption: str = "") -> None:
    """Print a table with its title and caption, which may be wider than the table.

    Args:
        names: how many of its first columns identify a row. These and all other left-justified columns hold
            text, which may be wrapped; the others hold figures, which may not.
        caption: printed dim below the table.
    """
    said = caption or str(table.caption or "")
    if table.title:
        style = "italic" if table.title_style is None else table.title_style
        target.print(Text.from_markup(printable(str(table.title))), style=style or "italic", soft_wrap=True)
    for part in parts(table, target.width, names):
        target.print(part)
    if said:
        target.print(Text.from_markup(printable(said)), style="dim", soft_wrap=True)


def parts(table: Table, width: int, names: int = 1) -> list[Table]:
    """A table as one or several that each fit a width, without title and caption."""
    cells = [[printable(c) if isinstance(c, str) else c for c in column._cells] for column in table.columns]
    natural = [
        max((_width(cell) for cell in [column.header, *own]), default=0)
        for column, own in zip(table.columns, cells, strict=True)
    ]
    least = [
        natural[at] if column.justify == "right" else min(natural[at], _NAME if at < names else _TEXT)
        for at, column in enumerate(table.columns)
    ]
    _, right, _, left = table.padding
    border = int(table.box is not None)
    around = left + right + border  # of a cell
    heads = list(range(min(names, len(least))))
    if heads and len(least) > len(heads):  # the names take the room that the widest figure leaves
        most = (width - border - around - max(least[len(heads) :])) // len(heads) - around
        least[: len(heads)] = [min(least[at], max(most, 1)) for at in heads]
    head = border + sum(least[at] + around for at in heads)
    chunks: list[list[int]] = [[]]
    used = head
    for at in range(len(heads), len(least)):
        if chunks[-1] and used + least[at] + around > width:
            chunks.append([])
            used = head
        chunks[-1].append(at)
        used += least[at] + around
    made = []
    for chunk in chunks:
        chosen = [*heads, *chunk]
        widths = _share(width - border - around * len(chosen), chosen, least, natural)
        made.append(_part(table, cells, widths))
    return made


def _share(room: int, chosen: Sequence[int], least: Sequence[int], natural: Sequence[int]) -> dict[int, int]:
    """The widths of some columns. Remaining room goes to those with text, the narrowest first."""
    widths = {at: least[at] for at in chosen}
    left = room - sum(widths.values())
    growing = sorted((at for at in chosen if natural[at] > least[at]), key=lambda at: natural[at])
    for number, at in enumerate(growing):
        more = max(0, min(natural[at] - widths[at], left // (len(growing) - number)))
        widths[at] += more
        left -= more
    return widths


def _part(table: Table, cells: Sequence[Sequence[RenderableType]], widths: Mapping[int, int]) -> Table:
    """Some columns of a table."""
    made = Table(
        box=table.box,
        padding=table.padding,
        show_edge=table.show_edge,
        show_header=table.show_header,
        pad_edge=table.pad_edge,
    )
    for at, width in widths.items():
        column = table.columns[at]
        made.add_column(
            column.header,
            justify=column.justify,
            style=column.style,
            header_style=column.header_style,
            overflow="fold",
            no_wrap=column.justify == "right",
            width=width,
        )
    for number, row in enumerate(table.rows):
        made.add_row(*(cells[at][number] for at in widths), style=row.style, end_section=row.end_section)
    return made


def _width(cell: object) -> int:
    text = cell if isinstance(cell, Text) else Text.from_markup(str(cell))
    return max((cell_len(line) for line in text.plain.splitlines()), default=0)
