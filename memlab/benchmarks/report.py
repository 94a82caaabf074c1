"""What every measurement of speed says about the machine it was made on, and where it is written."""

from __future__ import annotations

import json
import os
import platform
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from memlab.tracking.versions import versions


def machine() -> dict[str, Any]:
    """Hardware and versions."""
    return {
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processor": platform.processor() or platform.machine(),
        "versions": versions(),
    }


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values)}


def write(result: dict[str, Any], table: Table, run_dir: str) -> None:
    """Write `run_dir/<suite>.json`, and print the table, the machine, and where the report is."""
    report = Path(run_dir).absolute() / f"{result['suite']}.json"
    report.parent.mkdir(parents=True, exist_ok=True)
    report.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    console = Console(highlight=False)
    console.print(table)
    if "processor" in result:
        console.print(f"{result['processor']}, {result['cores']} cores, {result['threads']} threads, torch {result['versions']['torch']}")
    console.print(f"report  {report}", soft_wrap=True)
