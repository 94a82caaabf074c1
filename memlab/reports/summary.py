"""The summary of a finished run: one table, and where everything is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.markup import escape
from rich.table import Table

from memlab.terminal import tables


def print_summary(result: dict[str, Any], run_dir: Path, store: str | None) -> None:
    """Print the result of a finished run.

    Args:
        result: the content of `result.json`.
        store: MLflow's tracking URI, or None if nothing is tracked.
    """
    console = tables.console()
    metrics, memory, timing = result["metrics"], result["memory"], result["timing"]
    table = Table(
        title=escape(f"{result['model']} on {result['task']}, seed {result['seed']}"),
        title_justify="left",
        show_header=False,
    )
    table.add_column(style="bold")
    table.add_column(justify="right")
    table.add_column(style="dim")

    rows = _answers if "val/accuracy" in metrics else _text if "val/bits_per_byte" in metrics else _others
    for row in rows(result, metrics):
        table.add_row(*row)
    table.add_section()
    seen = f"{result.get('tokens', result['tokens_read']):,} tokens"
    if "samples" in result:
        seen = f"{result['samples']:,} samples, curriculum stages began at {result['stages_began_at']}"
    table.add_row("steps", f"{result['steps']:,}", seen)
    table.add_row(
        "training time",
        f"{timing['train_seconds']:.0f} s",
        f"{timing['tokens_per_second']:,.0f} tokens/s, {timing['step_seconds'] * 1000:.0f} ms a step",
    )
    total, trained = result["parameters"], result.get("parameters/trainable", result["parameters"])
    frozen = f"{trained:,} of them are trained" if trained < total else ""
    table.add_row("parameters", f"{total:,}", frozen, end_section=True)
    table.add_row(
        "carried state",
        size(memory["state_bytes"]),
        f"for one document after {memory['tokens']:,} tokens; a full cache: {size(memory['kv_full_bytes'])}",
    )
    table.add_row(
        "compression, carried",
        ratio(memory["compression_carry"]),
        "full cache over what passes a segment boundary",
    )
    table.add_row(
        "compression, peak",
        ratio(memory["compression_peak"]),
        "full cache over what is held while a segment is read",
    )
    console.print()
    tables.show(console, table)
    if found := result.get("saturated"):
        console.print(
            f"validation is saturated: about 1.000 in {found['validations']} validations since step "
            f"{found['since_step']:,}, so their loss ranks these checkpoints, not their accuracy. "
            "Longer samples, trainer.val_segments=[..], distinguish them",
            soft_wrap=True,
        )
    console.print(f"run directory  {run_dir}", soft_wrap=True)
    if store is not None:
        console.print(f"compare runs   mlflow ui --backend-store-uri {store}", soft_wrap=True)


Row = tuple[str, str, str]
NO_TEST = ("test", "-", "left alone: trainer.test=false")


def _answers(result: dict[str, Any], metrics: dict[str, float]) -> list[Row]:
    best = (
        f"best checkpoint: step {result['best_step']:,}, curriculum stage {result['best_stage']} of "
        f"{result['stages']}"
    )
    validation = ("validation accuracy", f"{metrics['val/accuracy']:.4f}", best)
    if "test/accuracy" not in metrics:
        return [validation, NO_TEST]
    colour = "green" if metrics["test/accuracy"] >= 0.99 else "yellow"
    return [
        (
            "test accuracy",
            f"[{colour}]{metrics['test/accuracy']:.4f}[/]",
            f"free-running; chance {result['chance']:.3f}",
        ),
        (
            "  teacher-forced",
            f"{metrics['test/accuracy_teacher_forced']:.4f}",
            "true tokens before each answer token",
        ),
        ("  whole answers", f"{metrics['test/exact_match']:.4f}", "every token of the sample right"),
        validation,
    ]


def _text(result: dict[str, Any], metrics: dict[str, float]) -> list[Row]:
    best = f"best checkpoint: step {result['best_step']:,}, after {result['best_tokens']:,} tokens"
    validation = ("validation bits per byte", f"{metrics['val/bits_per_byte']:.4f}", best)
    if "test_read" not in result:
        return [validation, NO_TEST]
    read = result["test_read"]
    lost = f", {read['lost_bytes']:,} of them not given back" if read.get("lost_bytes") else ""
    return [
        (
            "test bits per byte",
            f"[green]{metrics['test/bits_per_byte']:.4f}[/]",
            f"{read['documents']} documents, {read['bytes']:,} bytes{lost}",
        ),
        ("  perplexity", f"{metrics['test/perplexity']:,.2f}", f"per token, {read['tokens']:,} tokens"),
        (
            "  word perplexity",
            f"{metrics['test/word_perplexity']:,.1f}",
            f"per word, {read['words']:,} words",
        ),
        validation,
    ]


def _others(result: dict[str, Any], metrics: dict[str, float]) -> list[Row]:
    """For a task with metrics of its own."""
    best = f"best checkpoint: step {result['best_step']:,}"
    return [
        (
            escape(name.replace("/", " ").replace("_", " ")),
            f"{value:.4f}",
            best if name.startswith("val/") else "",
        )
        for name, value in metrics.items()
        if name != "val/score"
    ]


def size(count: int) -> str:
    """Bytes with a unit."""
    amount = float(count)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if amount < 1024 or unit == "GiB":
            return f"{amount:,.0f} {unit}" if unit == "B" else f"{amount:,.1f} {unit}"
        amount /= 1024
    raise AssertionError


def ratio(value: float | None) -> str:
    """A compression ratio; None = nothing is held."""
    return "nothing held" if value is None else f"{value:.2f} ×"
