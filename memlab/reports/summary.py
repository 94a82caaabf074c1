"""What a person reads when a run has ended: one table, and where everything is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table


def print_summary(result: dict[str, Any], chance: float, run_dir: Path, store: str | None) -> None:
    """Print a finished run's result.

    Args:
        result: the content of `result.json`.
        chance: accuracy of guessing, for comparison.
        store: MLflow's tracking URI, or None if nothing is tracked.
    """
    console = Console(highlight=False)
    metrics, memory, timing = result["metrics"], result["memory"], result["timing"]
    table = Table(title=f"{result['model']} on {result['task']}, seed {result['seed']}", title_justify="left", show_header=False)
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")

    solved = metrics["test/accuracy"] >= 0.99
    table.add_row(
        "test accuracy", f"[{'green' if solved else 'yellow'}]{metrics['test/accuracy']:.4f}[/]", f"free-running; chance {chance:.3f}"
    )
    table.add_row("  teacher-forced", f"{metrics['test/accuracy_teacher_forced']:.4f}", "true tokens before each answer token")
    table.add_row("  whole answers", f"{metrics['test/exact_match']:.4f}", "every token of the sample right")
    table.add_row(
        "validation accuracy",
        f"{metrics['val/accuracy']:.4f}",
        f"best checkpoint: step {result['best_step']:,}, curriculum stage {result['best_stage']} of {result['stages']}",
        end_section=True,
    )
    table.add_row("steps", f"{result['steps']:,}", f"{result['samples']:,} samples, curriculum stages began at {result['stages_began_at']}")
    table.add_row(
        "training time",
        f"{timing['train_seconds']:.0f} s",
        f"{timing['tokens_per_second']:,.0f} tokens/s, {timing['step_seconds'] * 1000:.0f} ms a step",
    )
    table.add_row("parameters", f"{result['parameters']:,}", "", end_section=True)
    table.add_row(
        "carried state",
        size(memory["state_bytes"]),
        f"for one document after {memory['tokens']} tokens; a full cache: {size(memory['kv_full_bytes'])}",
    )
    table.add_row("compression, carried", ratio(memory["compression_carry"]), "full cache over what passes a segment boundary")
    table.add_row("compression, peak", ratio(memory["compression_peak"]), "full cache over what is held while a segment is read")
    console.print()
    console.print(table)
    console.print(f"run directory  {run_dir}", soft_wrap=True)
    if store is not None:
        console.print(f"compare runs   mlflow ui --backend-store-uri {store}", soft_wrap=True)


def size(count: int) -> str:
    """Bytes as a person reads them."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1024
    raise AssertionError


def ratio(value: float | None) -> str:
    """A compression ratio; nothing is carried where there is none."""
    return "nothing held" if value is None else f"{value:.2f} ×"
