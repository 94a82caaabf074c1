"""The result of a training: `result.json`, and the figures of the run."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memlab.config.sections import Config
from memlab.evaluation import memory, without_values
from memlab.reports import curves, gates
from memlab.tracking import provenance
from memlab.tracking.run_directory import RunDirectory
from memlab.tracking.versions import versions
from memlab.training.build import Parts
from memlab.training.callbacks import StepClock

SATURATED = 0.9995  # of the answers in a validation


def assemble(
    config: Config,
    parts: Parts,
    directory: RunDirectory,
    clock: StepClock,
    *,
    steps: int,
    best_step: int,
    measured: Mapping[str, Any],
    logged: list[dict[str, float]],
    timing: Mapping[str, float],
    mlflow_run_id: str | None,
) -> dict[str, Any]:
    """The content of `result.json`.

    Args:
        steps: optimizer steps.
        best_step: the step after which the tested checkpoint was written.
        measured: Lightning's metrics, including those of the test.
        logged: the lines of `metrics.jsonl`.
        timing: seconds of the training, of the test and in total.
    """
    module = parts.module
    headline = f"val/{module.evaluator.headline}"
    at_best = next(m for m in logged if m["step"] == best_step and headline in m)
    metrics = {name: float(value) for name, value in measured.items() if name.startswith("test/")}
    metrics |= {name: at_best[name] for name in (headline, "val/score") if name in at_best}
    curriculum = module.stream.curriculum
    return {
        "status": "finished",
        "model": config.model["name"],
        "task": config.task["name"],
        "seed": config.seed,
        "metrics": metrics,
        "memory": without_values.measured(
            parts.model, lambda model: memory.measure(model, parts.task.typical_segments()).to_dict()
        ),
        "timing": {
            **timing,
            "step_seconds": statistics.median(clock.steps),
            "tokens_per_second": clock.tokens / clock.seconds,
        },
        "steps": steps,
        "tokens_read": clock.tokens,
        "processes": module.processes.size,
        "resumed_at": directory.facts()["resumed_at"],
        "best_step": best_step,
        "selected": config.trainer.select,
        "saturated": saturated(logged),
        **{
            f"best_{name}": int(at_best[f"val/{name}"])
            for name in ("stage", "tokens")
            if f"val/{name}" in at_best
        },
        "stages": len(curriculum.stages),
        "stages_began_at": curriculum.began_at,
        **module.objective.facts(),
        **module.stream.facts(),
        **module.evaluator.facts(),
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "parameters/trainable": sum(p.numel() for p in parts.model.parameters() if p.requires_grad),
        "command": directory.facts()["command"],
        "versions": versions(),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "mlflow_run_id": mlflow_run_id,
    }


def saturated(logged: Sequence[Mapping[str, float]]) -> dict[str, int] | None:
    """The step since which all validations answered nearly every sample right, and their number.

    Accuracy does not rank their checkpoints. None = at most the last validation did.

    Args:
        logged: the lines of `metrics.jsonl`.
    """
    validations = [line for line in logged if "val/accuracy" in line]
    perfect: list[int] = []
    for line in reversed(validations):
        measured = [
            value for name, value in line.items() if name.startswith("val/accuracy") and "forced" not in name
        ]
        if min(measured) < SATURATED or line.get("val/stage") != validations[-1].get("val/stage"):
            break
        perfect.append(int(line["step"]))
    return {"since_step": perfect[-1], "validations": len(perfect)} if len(perfect) > 1 else None


def draw(
    parts: Parts, config: Config, result: dict[str, Any], logged: list[dict[str, float]], figures: Path
) -> None:
    """Draw the figures of a run."""
    name, headline = title(config), parts.module.evaluator.headline
    curves.learning(logged, headline, result["stages_began_at"], result.get("chance"), name, figures)
    if config.model.get("memory") != "off":  # with the memory off, gates are there and do nothing
        gates.draw(logged, name, figures)
    if "by_position" in result:
        curves.by_position(result["by_position"], name, figures)


def title(config: Config) -> str:
    """A run's title, for people."""
    return f"{config.model['name']} on {config.task['name']}, seed {config.seed}"
