"""What a person sees of an evolution: a bar on a terminal, lines in a file, and a table at the end."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from memlab.policies.namm_weights import FILE
from memlab.reports.summary import ratio, size
from memlab.terminal import tables

_EVERY = 15.0  # seconds between lines in a file, except for those with a measurement of the mean


class Report:
    """Reports generations in a `with` block.

    Args:
        generations: in all.
        done: before.
    """

    def __init__(self, generations: int, done: int) -> None:
        self.generations, self.done = generations, done
        self.began, self.reported, self.dev = time.perf_counter(), 0.0, ""
        console = Console(stderr=True)
        self.bar: Progress | None = None
        if tables.is_live(console):
            columns = (
                MofNCompleteColumn(),
                BarColumn(bar_width=None),
                TextColumn("{task.description}"),
                TimeElapsedColumn(),
                TextColumn("<"),
                TimeRemainingColumn(),
            )
            self.bar = Progress(*columns, console=console)

    def __enter__(self) -> Self:
        if self.bar is not None:
            self.bar.start()
            self.bar.add_task("", total=self.generations, completed=self.done)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.bar is not None:
            self.bar.stop()

    def generation(self, number: int, line: Mapping[str, float]) -> None:
        """A generation has been measured."""
        told = (
            f"fitness {line['evolve/mean']:.3f} (best {line['evolve/best']:.3f})  cache "
            f"{line['evolve/cache_share']:.1%}"
        )
        measured = "dev/fitness" in line
        if measured:
            self.dev = f"  dev {line['dev/fitness']:.3f}, cache {line['dev/cache_share']:.1%}"
        if self.bar is not None:
            self.bar.update(self.bar.task_ids[0], completed=number, description=told + self.dev)
            return
        seconds = time.perf_counter() - self.began
        if not measured and seconds - self.reported < _EVERY:
            return
        self.reported = seconds
        told += self.dev if measured else ""
        print(
            f"generation {number:>4}/{self.generations}  {seconds:6.0f} s  {told}",
            file=sys.stderr,
            flush=True,
        )


def print_result(result: Mapping[str, Any], directory: Path) -> None:
    """Print what an evolution has come to, and what to do with it."""
    console, metrics, memory, timing = tables.console(), result["metrics"], result["memory"], result["timing"]
    split = "test" if "test/accuracy" in metrics else "dev"
    table = Table(show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")
    full = metrics[f"{split}/full_accuracy"]
    table.add_row(
        f"{split} accuracy", f"{metrics[f'{split}/accuracy']:.4f}", f"of the full cache: {full:.4f}"
    )
    table.add_row("cache", f"{metrics[f'{split}/cache_share']:.1%}", "of all tokens so far, on average")
    carried = (
        f"for one document after {memory['tokens']:,} tokens; a full cache: {size(memory['kv_full_bytes'])}"
    )
    table.add_row("carried state", size(memory["state_bytes"]), carried)
    table.add_row("compression, carried", ratio(memory["compression_carry"]), "")
    table.add_row(
        "generations",
        f"{result['generations']:,}",
        f"of {result['population']} candidates with {result['parameters']:,} parameters",
    )
    table.add_row("time", f"{timing['evolve_seconds']:.0f} s", f"{timing['tokens_per_second']:,.0f} tokens/s")
    table.title = f"{result['policy']} on {result['model']} and {result['task']}, seed {result['seed']}"
    table.title_justify = "left"
    console.print()
    tables.show(console, table)
    console.print(f"weights     {directory / FILE}", soft_wrap=True)
    console.print(f"use them    policy={result['policy']} policy.weights={directory}", soft_wrap=True)
