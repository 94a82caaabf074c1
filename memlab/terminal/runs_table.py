"""The runs of one command while they go: a live table on a terminal, a line for each change in a file."""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from memlab.terminal import tables
from memlab.terminal.times import duration

_COLOURS = {"running": "cyan", "done": "green", "failed": "red", "stopped": "yellow", "waiting": "white"}
_MOST = 24  # rows of the table; those that have not ended come first


@dataclass
class Row:
    """What is known of one run.

    Attributes:
        name: what distinguishes it from the others.
        max_steps: the most that it trains for; None = unknown.
        state: waiting, running, done, failed, or stopped.
        score: of its last validation.
        stage: of the curriculum, counted from 1.
        began, ended: moments of `time.monotonic`.
    """

    name: str
    max_steps: int | None = None
    state: str = "waiting"
    step: int = 0
    score: float | None = None
    stage: float | None = None
    began: float | None = None
    ended: float | None = None

    @property
    def seconds(self) -> float:
        """How long it took, or has taken."""
        return 0.0 if self.began is None else (self.ended or time.monotonic()) - self.began

    @property
    def left(self) -> float | None:
        """Seconds to its last step, at its speed so far; a run may end sooner."""
        if self.state != "running" or not self.step or self.max_steps is None:
            return None
        return self.seconds / self.step * max(0, self.max_steps - self.step)


class RunsTable:
    """Shows the rows while it is entered; `update` looks at them again."""

    def __init__(self, rows: Sequence[Row]) -> None:
        self.rows = rows
        self.began = time.monotonic()
        self.console = tables.console(stderr=True)
        self._live: Live | None = None
        self._said: dict[int, str] = {}

    def __enter__(self) -> Self:
        if tables.is_live(self.console):
            self._live = Live(
                console=self.console, refresh_per_second=2, redirect_stderr=True, redirect_stdout=True
            )
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()
            self._live = None

    def update(self) -> None:
        if self._live is not None:
            self._live.update(self._table())
        else:
            self._lines()

    def _table(self) -> Group:
        table = Table()
        for name in ("run", "state", "stage", "step", "validation", "time", "left, at most"):
            table.add_column(name, justify="left" if name in ("run", "state") else "right")
        order = sorted(self.rows, key=lambda row: (row.ended is not None, row.began is None))
        for row in order[:_MOST]:
            table.add_row(
                Text(row.name),
                f"[{_COLOURS[row.state]}]{row.state}[/]",
                "-" if row.stage is None else f"{row.stage:.0f}",
                f"{row.step:,}" if row.began else "-",
                "-" if row.score is None else f"{row.score:.4f}",
                duration(row.seconds) if row.began else "-",
                "-" if row.left is None else duration(row.left),
            )
        return Group(*tables.parts(table, self.console.width), self._counted())

    def _counted(self) -> str:
        counts = Counter(row.state for row in self.rows)
        said = ", ".join(f"{counts[state]} {state}" for state in _COLOURS if counts[state])
        return f"{len(self.rows)} runs: {said}; {duration(time.monotonic() - self.began)}"

    def _lines(self) -> None:
        for number, row in enumerate(self.rows):
            if row.state in ("waiting", self._said.get(number)):
                continue
            self._said[number] = row.state
            tail = f"  {self._counted()}"
            if row.state != "running":
                score = "" if row.score is None else f"  {row.score:.4f}"
                tail = f"  step {row.step:,}{score}  {duration(row.seconds)}{tail}"
            print(f"run {number + 1:>3}  {row.state:<8}  {row.name}{tail}", file=sys.stderr, flush=True)
