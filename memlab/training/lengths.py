"""A trained run's best weights on test samples of other lengths: more segments of the same length, and what the memory costs there.

The samples of each length are that length's own test split, the same for every run and seed, and not touched in training.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from rich.console import Console
from rich.progress import track
from rich.table import Table

from memlab.config import Config, EvaluateConfig, MLflowTracking, check
from memlab.errors import ConfigError, UserError
from memlab.evaluation import memory
from memlab.reports.summary import ratio, size
from memlab.tasks.base import SyntheticTask
from memlab.tracking import mlflow_store
from memlab.tracking.run_directory import write_whole
from memlab.training import checkpoints
from memlab.training.answering import AnsweringModule
from memlab.training.build import build
from memlab.training.data import EvaluationBatches
from memlab.training.processes import Processes


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure, print a table, and return what is written to `evaluation.json` in the run's directory (and to its MLflow run).

    Raises:
        UserError: there is no such run, it has no best checkpoint, or its task has no samples of such a length.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    directory = Path(config.run).expanduser().absolute()
    trained = _configuration(directory)
    parts = build(trained)
    if not isinstance(parts.module, AnsweringModule) or not isinstance(parts.task, SyntheticTask):
        raise ConfigError(f"run={config.run}: task={trained.task['name']} is text, whose test already reads whole documents, by position")
    checkpoint = _best(directory)
    parts.module.load_state_dict(checkpoint["state_dict"])
    parts.module.eval()

    tasks = [parts.task.at(segments) for segments in config.lengths or [parts.task.num_segments, 2 * parts.task.num_segments]]
    measured = []
    for task in tasks:
        task.test_size = config.samples or task.test_size
        metrics = _metrics(parts.module, task)
        cost = memory.measure(parts.model, task.segment_lengths).to_dict()
        sizes = {"segments": task.num_segments, "length": task.length, "samples": task.test_size}
        measured.append({**sizes, **metrics, "memory": cost})
    result = {
        "run": str(directory),
        "model": trained.model["name"],
        "task": trained.task["name"],
        "seed": trained.seed,
        "trained_segments": parts.task.num_segments,
        "step": checkpoint["global_step"],
        "lengths": measured,
    }
    write_whole(directory / "evaluation.json", json.dumps(result, indent=2) + "\n")
    _track(trained, directory, measured)
    console = Console(highlight=False)
    console.print(_table(result, parts.task.chance))
    console.print(f"written to  {directory / 'evaluation.json'}", soft_wrap=True)
    return result


def _configuration(directory: Path) -> Config:
    file = directory / "config.yaml"
    if not file.is_file():
        raise UserError(f"run={directory}: there is no run here (no config.yaml)")
    composed = OmegaConf.load(file)
    return check(composed)  # type: ignore[arg-type]


def _best(directory: Path) -> dict[str, Any]:
    file = directory / "checkpoints" / checkpoints.BEST
    if not file.is_file():
        raise UserError(f"run={directory}: the run has no checkpoint yet ({file} is missing)")
    try:
        return checkpoints.read(file)
    except checkpoints.DamagedError as error:
        raise UserError(f"{file} is damaged ({error})") from None


@torch.no_grad()
def _metrics(module: AnsweringModule, task: SyntheticTask) -> dict[str, float]:
    module.start_evaluation()
    batches = EvaluationBatches(task, "test", Processes())
    for batch in track(
        batches, description=f"{task.num_segments} segments", total=len(batches), transient=True, console=Console(stderr=True)
    ):
        module.evaluate(batch)
    return module.evaluated("test")


def _track(trained: Config, directory: Path, measured: list[dict[str, Any]]) -> None:
    """The same as curves over the number of segments in the run's MLflow run, if it is there."""
    facts = directory / "run.json"
    if not isinstance(trained.tracking, MLflowTracking) or not facts.is_file():
        return
    points = [
        (name, value, length["segments"])
        for length in measured
        for name, value in (
            ("eval/accuracy_by_segments", length["accuracy"]),
            ("eval/state_bytes_by_segments", length["memory"]["state_bytes"]),
        )
    ]
    mlflow_store.add_points(trained.tracking.uri, json.loads(facts.read_text(encoding="utf-8")).get("mlflow_run_id"), points)


def _table(result: dict[str, Any], chance: float) -> Table:
    trained = f"trained with {result['trained_segments']} segments"
    title = f"{result['model']} on {result['task']}, seed {result['seed']}, {trained}; chance {chance:.3f}"
    said = "accuracy: free-running; forced: with the true tokens before each; whole: every token of it right; state: what is carried for\n"
    said += "one document; carried, peak: a full cache over the state, and over all that is held while a segment is read"
    table = Table(title=title, title_justify="left", caption=said, caption_justify="left")
    for column in ("segments", "tokens", "accuracy", "forced", "whole", "state", "carried", "peak"):
        table.add_column(column, justify="right")
    for length in result["lengths"]:
        cost = length["memory"]
        table.add_row(
            str(length["segments"]),
            f"{cost['tokens']:,}",
            f"{length['accuracy']:.4f}",
            f"{length['accuracy_teacher_forced']:.4f}",
            f"{length['exact_match']:.4f}",
            size(cost["state_bytes"]),
            ratio(cost["compression_carry"]),
            ratio(cost["compression_peak"]),
        )
    return table
