"""Progress of a long evaluation: a bar with the remaining time on a terminal, occasional lines in a file."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from memlab.terminal.tables import is_live
from memlab.terminal.times import duration

EVERY = 15.0  # seconds between lines in a file
_DRAWN = 0.2  # seconds between updates of a bar


class Meter:
    """Counts tokens in a `with` block.

    Args:
        what: description of what is being read.
        total: number of tokens to read.
    """

    def __init__(self, what: str, total: int) -> None:
        self.what, self.total, self.done = what, total, 0
        self.began = self.reported = time.perf_counter()
        self.bar: Progress | None = None
        console = Console(stderr=True)
        if is_live(console):
            columns = (
                TextColumn("{task.description}"),
                BarColumn(),
                TaskProgressColumn(),
                TextColumn("{task.fields[speed]}"),
                TimeElapsedColumn(),
                TextColumn("<"),
                TimeRemainingColumn(elapsed_when_finished=False),
            )
            self.bar = Progress(*columns, console=console, transient=True)

    def __enter__(self) -> Meter:
        if self.bar is not None:
            self.bar.start()
            self.bar.add_task(self.what, total=self.total, speed="")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def advance(self, tokens: int) -> None:
        """Report that this many more tokens have been read."""
        self.done += tokens
        now = time.perf_counter()
        if now - self.reported < (EVERY if self.bar is None else _DRAWN):
            return
        self.reported = now
        speed = self.done / (now - self.began)
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=self.done, speed=f"{speed:,.0f} tokens/s")
            return
        left = (self.total - self.done) / speed
        print(
            f"{self.what}: {self.done / self.total:4.0%}  {speed:,.0f} tokens/s  {duration(left)} left",
            file=sys.stderr,
            flush=True,
        )
