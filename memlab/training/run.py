"""One training from configuration to result: build, fit, test the best checkpoint once, write everything down."""

from __future__ import annotations

import platform
import statistics
import sys
import time
from importlib.metadata import version
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import Logger

from memlab import __version__
from memlab.config import Config, MLflowTracking
from memlab.errors import UserError
from memlab.evaluation import memory
from memlab.reports import curves
from memlab.reports.summary import print_summary
from memlab.tracking import mlflow_store
from memlab.tracking.jsonl import JsonlLogger, read_metrics
from memlab.tracking.mlflow_store import Tracker
from memlab.tracking.run_directory import RunDirectory
from memlab.training.build import Parts, build, trainer
from memlab.training.callbacks import Conductor, MetricsLog, ProgressReport, StepClock

EXIT_INTERRUPTED = 130


def train(config: Config) -> dict[str, Any]:
    """Train as configured and return what `result.json` holds.

    Raises:
        UserError: the configuration or the place of the run cannot be used; nothing has been trained.
        SystemExit: the user interrupted the run; checkpoints and metrics up to then are in the run directory.
    """
    began = time.perf_counter()
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer=gpu: torch sees no GPU; use trainer=cpu")
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    parts = build(config)
    if isinstance(config.tracking, MLflowTracking):
        mlflow_store.prepare(config.tracking.uri, config.tracking.experiment)
    directory = RunDirectory(config.run_dir, config)
    tracker = start_tracking(config, config.tracking, directory) if isinstance(config.tracking, MLflowTracking) else None
    print(f"memlab: {title(config)}, in {directory.path}", file=sys.stderr)
    status = "FAILED"
    try:
        result = _run(config, parts, directory, tracker, began)
        status = "FINISHED"
    except (KeyboardInterrupt, SystemExit) as ended:
        if not isinstance(ended.__context__ or ended, KeyboardInterrupt):
            raise
        status = "KILLED"  # Lightning turns the interrupt into an exit of its own
        print(f"\nmemlab: interrupted; what was done so far is in {directory.path}", file=sys.stderr)
        raise SystemExit(EXIT_INTERRUPTED) from None
    finally:
        if tracker:
            tracker.end(status)
    print_summary(result, directory.path, tracker.uri if tracker else None)
    return result


def _run(config: Config, parts: Parts, directory: RunDirectory, tracker: Tracker | None, began: float) -> dict[str, Any]:
    clock = StepClock()
    best = ModelCheckpoint(directory.checkpoints, "best", monitor="val/score", mode="max", enable_version_counter=False)
    last = ModelCheckpoint(directory.checkpoints, "last", enable_version_counter=False)
    reports = [MetricsLog(config.trainer.log_every, clock), ProgressReport(config.trainer.max_steps, clock)]
    loggers: list[Logger] = [JsonlLogger(directory.metrics), *([tracker] if tracker else [])]
    lightning = trainer(config, loggers, [clock, *reports, Conductor(), best, last])

    started = time.perf_counter()
    lightning.fit(parts.module, parts.stream, parts.validation)
    steps, fitted = lightning.global_step, time.perf_counter()
    if steps % config.trainer.val_interval and not lightning.should_stop:
        validate_the_end(lightning, parts, best)

    chosen = torch.load(directory.checkpoints / "best.ckpt", weights_only=True, map_location="cpu")
    parts.module.load_state_dict(chosen["state_dict"])
    lightning.test(parts.module, parts.test, verbose=False)
    metrics = {k: float(v) for k, v in lightning.callback_metrics.items() if k.startswith("test/")}
    logged = read_metrics(directory.metrics)
    headline = f"val/{parts.module.headline}"
    at_best = next(m for m in logged if m["step"] == chosen["global_step"] and headline in m)
    metrics[headline] = at_best[headline]
    at_best = {name: value for name, value in at_best.items() if name in ("val/stage", "val/tokens")}
    result = {
        "status": "finished",
        "model": config.model["name"],
        "task": config.task["name"],
        "seed": config.seed,
        "metrics": metrics,
        "memory": memory.measure(parts.model, parts.task.typical_segments()).to_dict(),
        "timing": {
            "train_seconds": fitted - started,
            "test_seconds": time.perf_counter() - fitted,
            "total_seconds": time.perf_counter() - began,
            "step_seconds": statistics.median(clock.steps),
            "tokens_per_second": clock.tokens / clock.seconds,
        },
        "steps": steps,
        "best_step": chosen["global_step"],
        **{f"best_{name.removeprefix('val/')}": int(value) for name, value in at_best.items()},
        **parts.module.report(),
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "versions": versions(),
        "mlflow_run_id": tracker.run_id if tracker else None,
    }
    draw(parts, config, result, logged, directory.figures)
    if tracker:
        finish_tracking(tracker, result, directory)
    directory.write_result(result)
    return result


def validate_the_end(lightning: L.Trainer, parts: Parts, best: ModelCheckpoint) -> None:
    """Steps after the last regular validation count too: validate once more, and keep the weights if they are the best."""
    lightning.validate(parts.module, parts.validation, verbose=False)
    score = lightning.callback_metrics["val/score"]
    if best.best_model_score is None or score > best.best_model_score:
        lightning.save_checkpoint(Path(best.dirpath or ".") / "best.ckpt")
    lightning.save_checkpoint(Path(best.dirpath or ".") / "last.ckpt")


def start_tracking(config: Config, tracking: MLflowTracking, directory: RunDirectory) -> Tracker:
    """Begin the MLflow run: parameters, tags and the configuration are there before the first step."""
    tags = {"memlab.model": config.model["name"], "memlab.task": config.task["name"], "memlab.run_dir": str(directory.path)}
    name = f"{config.model['name']}-{config.task['name']}-{config.seed}"
    tracker = Tracker(mlflow_store.absolute_uri(tracking.uri), tracking.experiment, name, config.model_dump(), tags)
    tracker.log_artifact(directory.path / "config.yaml", "config")
    return tracker


def draw(parts: Parts, config: Config, result: dict[str, Any], logged: list[dict[str, float]], figures: Path) -> None:
    """The figures of a run."""
    curves.learning(logged, parts.module.headline, result.get("stages_began_at", [0]), result.get("chance"), title(config), figures)
    if "by_position" in result:
        curves.by_position(result["by_position"], title(config), figures)


def finish_tracking(tracker: Tracker, result: dict[str, Any], directory: RunDirectory) -> None:
    """Single numbers for MLflow's tables and scatter plots, and the figures."""
    single = {name.replace("test/", "summary/test_"): value for name, value in result["metrics"].items() if name.startswith("test/")}
    single |= {f"summary/{name}": result["timing"][name] for name in ("train_seconds", "tokens_per_second")}
    single |= {"summary/parameters": result["parameters"], "summary/steps": result["steps"]}
    measured = {f"memory/{name}": value for name, value in result["memory"].items() if value is not None}
    tracker.log_metrics({**result["metrics"], **single, **measured}, step=result["steps"])
    tracker.log_artifacts(directory.figures, "figures")


def title(config: Config) -> str:
    return f"{config.model['name']} on {config.task['name']}, seed {config.seed}"


def versions() -> dict[str, str]:
    """What a figure was made with."""
    found = {name: version(name) for name in ("torch", "lightning", "numpy", "hydra-core")}
    return {"memlab": __version__, "python": platform.python_version(), "machine": platform.machine(), **found}
