"""Run directories as trainings leave them, without training."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

COPY = {
    "_target_": "memlab.tasks.copy.Copy",
    "name": "copy",
    "length": 12,
    "num_segments": 4,
    "batch_size": 32,
    "test_size": 2048,
}
TEXT = {
    "_target_": "memlab.tasks.text.TextTask",
    "name": "pg19",
    "data_dir": "books",
    "segment_length": 64,
    "num_segments": 8,
    "batch_size": 16,
}
STATE = {"transformer": 0, "rmt": 3072, "transformer_xl": 6912, "infini": 13056}


def config(model: str, seed: int, **changes: Any) -> dict[str, Any]:
    """A run's `config.yaml`; `changes` are dotted keys with __ for the dot."""
    values: dict[str, Any] = {
        "seed": seed,
        "run_dir": "somewhere",
        "resume": "never",
        "model": {"_target_": "x", "name": model, "layers": 3, "width": 64, "memory": "on"},
        "task": dict(COPY),
        "trainer": {"max_steps": 600, "threads": seed},
        "optim": {"lr": 1e-3},
        "curriculum": {"grow": True},
        "tracking": {"mlflow": False},
    }
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section][name] = value
    return values


def result(model: str, seed: int, score: float, **more: Any) -> dict[str, Any]:
    """A run's `result.json`."""
    state = STATE.get(model, 1024)
    return {
        "status": "finished",
        "model": model,
        "task": "copy",
        "seed": seed,
        "metrics": {"test/accuracy": score, "val/accuracy": score},
        "memory": {
            "tokens": 36,
            "state_bytes": state,
            "compression_carry": 55296 / state if state else None,
            "compression_peak": 1.5,
        },
        "timing": {"train_seconds": 10.0 * (seed + 1), "tokens_per_second": 1000.0},
        "steps": 600,
        "stages": 4,
        "chance": 0.1,
        "parameters": 150_000,
        "command": f"python -m memlab.train model={model} task=copy seed={seed}",
        "commit": "0123456789ab",
        "versions": {"memlab": "0.1.0", "torch": "2.13.0"},
        "hardware": {"processor": "a processor", "cores": 2, "threads": 1, "gpus": []},
        **more,
    }


def lines() -> list[dict[str, float]]:
    """Of `metrics.jsonl`: the loss falls, and rises where the last stage begins."""
    stages = [(50, 1, 0.5), (100, 4, 2.0), (150, 4, 1.0), (200, 4, 0.1)]
    return [
        {"step": s, "val/loss": loss, "val/stage": stage, "val/tokens": 100 * s, "val/seconds": s / 10}
        for s, stage, loss in stages
    ]


def run(
    place: Path,
    model: str,
    seed: int,
    score: float,
    ended: float = 0,
    lengths: dict[int, float] | None = None,
    **changes: Any,
) -> Path:
    """Write a finished run; its directory."""
    place.mkdir(parents=True)
    (place / "config.yaml").write_text(yaml.safe_dump(config(model, seed, **changes)))
    (place / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines()))
    (place / "result.json").write_text(json.dumps(result(model, seed, score)))
    if ended:
        os.utime(place / "result.json", (ended, ended))
    if lengths:
        entries = [
            {"segments": s, "samples": 512, "accuracy": a, "memory": {"state_bytes": 1024}}
            for s, a in lengths.items()
        ]
        (place / "evaluation.json").write_text(json.dumps({"lengths": entries}))
    return place


def text_run(place: Path, model: str, seed: int, bits: float, **changes: Any) -> Path:
    """Write a finished run on text."""
    run(place, model, seed, 0.0)
    values = config(model, seed) | {"task": dict(TEXT)}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        values[section][name] = value
    (place / "config.yaml").write_text(yaml.safe_dump(values))
    read = {"documents": 2, "tokens": 1000, "bytes": 1000, "words": 200}
    found = result(
        model,
        seed,
        0.0,
        test_read=read,
        by_position=[{"from": 0, "tokens": 64, "loss": 3.0}, {"from": 64, "tokens": 64, "loss": 2.0}],
    )
    found["metrics"] = {"test/bits_per_byte": bits, "val/bits_per_byte": bits}
    del found["chance"], found["stages"]
    (place / "result.json").write_text(json.dumps(found))
    return place
