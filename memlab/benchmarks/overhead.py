"""The overhead of `memlab.train`: its seconds per step over those of a bare PyTorch loop.

Both sides train the same model from the same weights on the same batches with the same optimizer. The
training side is the real one: Lightning, callbacks, progress, `metrics.jsonl`, MLflow, batches generated as
they are needed. The bare side gets its batches ready-made. Blocks of both sides alternate, and the first
steps of each block are left out as warm-up.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.table import Table

from memlab.benchmarks import measure
from memlab.benchmarks.report import machine, rows, spread, with_range, write
from memlab.benchmarks.settings import BenchConfig
from memlab.errors import ConfigError, UserError
from memlab.tracking.jsonl import JsonlLogger
from memlab.tracking.mlflow_store import Tracker, absolute_uri, prepare
from memlab.training import optimizers
from memlab.training.build import build, trainer
from memlab.training.callbacks import Conductor, MetricsLog, ProgressReport, StepClock

WARM_UP = 10  # steps at the start of each block, before those that count


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print a table and return {"ratio": {"median", "min", "max"}, ...}, also in `overhead.json`."""
    block = config.model_copy(
        update={"trainer": config.trainer.model_copy(update={"max_steps": config.steps})}
    )
    pairs = []
    with tempfile.TemporaryDirectory() as place:
        for repeat in measure.progress(range(config.repeats), "overhead"):
            pairs.append((train_block(block, Path(place) / str(repeat)), bare_block(block)))
    ratios = [train / bare for train, bare in pairs]
    result = {
        "suite": "overhead",
        "model": config.model["name"],
        "task": config.task["name"],
        "steps_per_block": config.steps,
        "train_seconds_per_step": [train for train, _ in pairs],
        "bare_seconds_per_step": [bare for _, bare in pairs],
        "ratio": spread(ratios),
        "start": start(config),
        **machine(),
    }
    write(result, table(result), config.run_dir, page(result))
    return result


def start(config: BenchConfig) -> dict[str, list[float]]:
    """Seconds from the command to the first training step's entry in `metrics.jsonl`, and of `--help`.

    One list entry per process. The first training creates the MLflow store.
    """
    found: dict[str, list[float]] = {"first_step": [], "help": []}
    train = [sys.executable, "-m", "memlab.train"]
    one = [
        f"model={config.model['name']}",
        f"task={config.task['name']}",
        "trainer.max_steps=1",
        "trainer.log_every=1",
    ]
    silent: dict[str, Any] = {
        "env": measure.environment(),
        "stdout": subprocess.DEVNULL,
        "stderr": subprocess.DEVNULL,
    }
    with tempfile.TemporaryDirectory() as place:
        for repeat in measure.progress(range(3), "start"):
            metrics = Path(place, str(repeat), "metrics.jsonl")
            began = time.perf_counter()
            process = subprocess.Popen([*train, *one, f"run_dir={metrics.parent}"], cwd=place, **silent)
            while process.poll() is None and not (metrics.exists() and "train/loss" in metrics.read_text()):
                time.sleep(0.01)
            found["first_step"].append(time.perf_counter() - began)
            if process.wait():
                raise UserError(f"{' '.join([*train[1:], *one])} ended with status {process.returncode}")
            began = time.perf_counter()
            subprocess.run([*train, "--help"], check=True, cwd=place, **silent)
            found["help"].append(time.perf_counter() - began)
    return found


def train_block(config: BenchConfig, directory: Path) -> float:
    """Mean seconds of a step of `memlab.train`, including everything that it does between validations."""
    parts = build(config)
    directory.mkdir(parents=True)
    uri = absolute_uri(f"sqlite:///{directory / 'mlflow.db'}")
    prepare(uri, "overhead")
    tracker = Tracker(uri, "overhead", "overhead", config.model_dump(), {})
    clock = StepClock()
    callbacks = [
        clock,
        MetricsLog(config.trainer.log_every, clock),
        ProgressReport(config.steps, clock),
        Conductor(),
    ]
    lightning = trainer(
        config, [JsonlLogger(directory / "metrics.jsonl"), tracker], callbacks, limit_val_batches=0
    )
    lightning.fit(parts.module, parts.stream)
    return statistics.fmean(clock.steps[WARM_UP:])


def bare_block(config: BenchConfig) -> float:
    """Mean seconds of a step of a plain training loop."""
    parts = build(config)
    if parts.task.trained_by != "answers":
        raise ConfigError(
            f"suite=overhead measures tasks with samples, not text such as task={config.task['name']}"
        )
    model, batches = parts.model.train(), iter(parts.stream)
    ready = [next(batches) for _ in range(config.steps)]
    optimizer, scheduler = optimizers.build(model, config.optim, config.steps)
    seconds = []
    for batch in ready:
        began = time.perf_counter()
        logits = model(
            torch.stack(batch.tokens_BT.split(list(batch.segment_lengths), dim=1), dim=1)
        ).logits.flatten(1, 2)
        loss = F.cross_entropy(logits[batch.answer_BT], batch.targets_BT[batch.answer_BT])
        optimizer.zero_grad()
        loss.backward()
        if config.optim.gradient_clip is not None:
            torch.nn.utils.clip_grad_norm_(model.parameters(), config.optim.gradient_clip)
        optimizer.step()
        scheduler.step()
        seconds.append(time.perf_counter() - began)
    return statistics.fmean(seconds[WARM_UP:])


def page(result: dict[str, Any]) -> list[str]:
    """The suite's part of PERFORMANCE.md."""
    body = [
        [name, with_range(spread(result[key]), 1, 1000)]
        for name, key in (
            ("memlab.train, ms a step", "train_seconds_per_step"),
            ("bare loop, ms a step", "bare_seconds_per_step"),
        )
    ]
    body.append(["ratio, pair by pair", with_range(result["ratio"], 3)])
    started = {key: ", ".join(f"{s:.1f}" for s in seconds) for key, seconds in result["start"].items()}
    body.append(
        [
            "seconds from the command to the first step (the first one makes the MLflow store)",
            started["first_step"],
        ]
    )
    body.append(["seconds of --help", started["help"]])
    title = (
        f"{result['model']} on {result['task']} as configured, {len(result['bare_seconds_per_step'])} "
        "interleaved pairs of "
    )
    title += f"{result['steps_per_block']} steps, the first {WARM_UP} of each left out."
    return [
        "## What the training command adds",
        "",
        title,
        "",
        *rows(["", "median (smallest–largest)"], body),
    ]


def table(result: dict[str, Any]) -> Table:
    """The table for the terminal."""
    table = Table(
        title=f"overhead: {result['model']} on {result['task']}, {len(result['bare_seconds_per_step'])} "
        "interleaved pairs"
    )
    for column in ("", "median", "min", "max"):
        table.add_column(column, justify="left" if not column else "right")
    for name, key in (
        ("memlab.train, ms a step", "train_seconds_per_step"),
        ("bare loop, ms a step", "bare_seconds_per_step"),
    ):
        table.add_row(name, *(f"{1000 * v:.1f}" for v in spread(result[key]).values()))
    table.add_row("ratio, pair by pair", *(f"{v:.3f}" for v in result["ratio"].values()))
    for name, key in (("first step after the command, s", "first_step"), ("--help, s", "help")):
        table.add_row(name, *(f"{v:.1f}" for v in spread(result["start"][key]).values()))
    return table
