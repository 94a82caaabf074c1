"""The report of a measurement: machine, tables, JSON, and a page that joins all suites."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Iterable, Sequence
from datetime import date
from pathlib import Path
from typing import Any

import torch
from rich.table import Table

from memlab.terminal import tables
from memlab.tracking.versions import versions

# the parts of the page, in this order
PAGE = ("peers", "roofline", "streaming", "policies", "forms", "overhead", "sweep")
# suite=all; streaming comes first, since it reports the peak memory of the process
ALL = ("streaming", "peers", "roofline", "forms", "overhead")


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": _processor(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "versions": versions(),
    }


def _processor() -> str:
    """The processor's name, as the system reports it."""
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    named = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return named[0] if named else platform.processor() or platform.machine()


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def with_range(values: dict[str, float], digits: int = 2, unit: float = 1.0) -> str:
    """A spread as one cell: median (smallest–largest)."""
    return (
        f"{values['median'] * unit:.{digits}f} "
        f"({values['min'] * unit:.{digits}f}–{values['max'] * unit:.{digits}f})"
    )


def rows(head: Sequence[str], body: Sequence[Sequence[Any]]) -> list[str]:
    """A table of a page, with an empty line after it."""
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *body]
    return [*(f"| {' | '.join(map(str, line))} |" for line in lines), ""]


def terminal_table(
    title: str, head: Sequence[str], body: Iterable[Sequence[str]], caption: str, names: int = 1
) -> Table:
    """A table for the terminal: the first columns are names, the others figures."""
    table = Table(title=title, title_justify="left", caption=caption, caption_justify="left")
    for at, column in enumerate(head):
        table.add_column(column, justify="left" if at < names else "right")
    for line in body:
        table.add_row(*line)
    return table


def write(result: dict[str, Any], table: Table, run_dir: str, page: Sequence[str] = ()) -> None:
    """Write `run_dir/<suite>.json`, and print the table, the machine, and where the report is.

    Args:
        page: the suite's part of `PERFORMANCE.md`, which joins all parts in `run_dir`.
    """
    directory = Path(run_dir).absolute()
    report = directory / f"{result['suite']}.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console = tables.console()
    tables.show(console, table)
    if "processor" in result:
        console.print(
            f"{result['processor']}, {result['cores']} cores, {result['threads']} threads, torch "
            f"{result['versions']['torch']}"
        )
    console.print(f"report  {report}", soft_wrap=True)
    if page:
        (directory / f"{result['suite']}.md").write_text("\n".join(page), encoding="utf-8")
        console.print(f"page    {_join(directory, result)}", soft_wrap=True)


def _join(directory: Path, last: dict[str, Any]) -> Path:
    """Join the parts of all suites in a directory into one page, with the machine of the last one."""
    where = f"{last['processor']}, {last['cores']} cores, {last['threads']} threads"
    where += f", {last['gpu']}" if last["gpu"] else ""
    packages = ", ".join(f"{name} {version}" for name, version in last["versions"].items())
    found = [name for name in PAGE if (directory / f"{name}.md").exists()]
    made = ", ".join(f"`{name}`" for name in found)
    how = (
        f"Made by `python -m memlab.bench suite=SUITE` ({made}), or `suite=all` for all but `policies` and "
        f"`sweep`, on {date.today()}."
    )
    head = ["# Performance", "", how, f"Machine: {where}. Versions: {packages}.", ""]
    parts = [(directory / f"{name}.md").read_text(encoding="utf-8") for name in found]
    page = directory / "PERFORMANCE.md"
    page.write_text("\n".join([*head, *parts]).rstrip() + "\n", encoding="utf-8")
    return page
