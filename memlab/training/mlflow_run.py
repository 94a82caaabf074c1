"""The MLflow run of a training: what it logs at its beginning and at its end."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterator
from typing import Any

from memlab.config.sections import Config, MLflowTracking
from memlab.reports.summary import ratio, size
from memlab.terminal.plain import markdown, printable
from memlab.tracking import data_record, mlflow_store, provenance
from memlab.tracking.jsonl import read_metrics
from memlab.tracking.mlflow_store import Tracker
from memlab.tracking.run_directory import RunDirectory
from memlab.training.signals import Ended


def start(config: Config, tracking: MLflowTracking, directory: RunDirectory) -> Tracker:
    """Begin the MLflow run, or continue it.

    Parameters, tags, configuration and all that was logged before are there before the first step.
    """
    facts = directory.facts()
    tags = {
        "memlab.model": config.model["name"],
        "memlab.task": config.task["name"],
        "memlab.seed": str(config.seed),
        "memlab.run_dir": str(directory.path),
        "memlab.command": facts["command"],
        "mlflow.source.name": "memlab.train",
        "mlflow.source.git.commit": provenance.commit(),
    }
    name = f"{config.model['name']}-{config.task['name']}-{config.seed}"
    uri, known = mlflow_store.absolute_uri(tracking.uri), facts["mlflow_run_id"]
    if known is not None and not mlflow_store.holds(uri, known):
        print(
            f"memlab: the MLflow run {printable(str(known))} is not in {uri}; another one begins",
            file=sys.stderr,
        )
        known = None
    tags = {k: v for k, v in tags.items() if v}
    tracker = Tracker(uri, tracking.experiment, name, config.model_dump(), tags, known, tracking.parent_run)
    directory.note(mlflow_run_id=tracker.run_id)
    tracker.log_artifact(directory.path / "config.yaml", "config")
    if (record := directory.path / data_record.NAME).exists():
        tracker.log_artifact(record, "config")
    tracker.log_dataset(config.task)
    if directory.metrics.exists():
        tracker.log_lines(read_metrics(directory.metrics))
    return tracker


@contextlib.contextmanager
def ending(tracker: Tracker | None) -> Iterator[None]:
    """End the MLflow run with this context: FINISHED, KILLED if somebody asked for its end, else FAILED."""
    status = "FAILED"
    try:
        yield
        status = "FINISHED"
    except Ended:
        status = "KILLED"
        raise
    finally:
        if tracker:
            tracker.end(status)


def finish(tracker: Tracker, result: dict[str, Any], directory: RunDirectory) -> None:
    """Log single numbers, for MLflow's tables and scatter plots, and the figures."""
    single = {
        name.replace("test/", "summary/test_"): value
        for name, value in result["metrics"].items()
        if name.startswith("test/")
    }
    single |= {f"summary/{name}": result["timing"][name] for name in ("train_seconds", "tokens_per_second")}
    single |= {"summary/parameters": result["parameters"], "summary/steps": result["steps"]}
    single |= {"summary/parameters_trainable": result["parameters/trainable"]}
    measured = {f"memory/{name}": value for name, value in result["memory"].items() if value is not None}
    # MLflow draws metrics with only step 0 as bars next to each other, and any others as lines over steps
    tracker.log_metrics({**result["metrics"], **single, **measured}, step=0)
    tracker.log_artifacts(directory.figures, "figures")
    tracker.log_text(json.dumps(result, indent=2) + "\n", "result.json")
    tracker.describe(description(result))


def description(result: dict[str, Any]) -> str:
    """The description at the top of MLflow's page of a run, in Markdown: headline, cost and command.

    `Tracker.describe` adds the figure after it.
    """
    m, cost = result["metrics"], result["memory"]
    chance = f" (chance {result['chance']:.3f})" if "chance" in result else ""
    split = "test" if any(name.startswith("test/") for name in m) else "val"
    headline = ""
    if (answers := m.get(f"{split}/accuracy")) is not None:
        headline = f" accuracy {answers:.4f}{chance}"
    elif (text := m.get(f"{split}/bits_per_byte")) is not None:
        headline = f" {text:.4f} bits per byte"
    carried = (
        f"carries {size(cost['state_bytes'])}; a full cache is {ratio(cost['compression_carry'])} that after "
        f"{cost['tokens']:,} tokens"
    )
    if not cost["state_bytes"]:
        carried = "carries nothing from segment to segment"
    command = f"\n\n```\n{result['command']}\n```" if result["command"] else ""
    return (
        f"**{markdown(result['model'])} on {markdown(result['task'])}, seed {result['seed']}: "
        f"{'test' if split == 'test' else 'validation'}{headline}**\n\n{result['steps']:,} steps, "
        f"{result['timing']['train_seconds']:.0f} s, {result['parameters']:,} parameters; "
        f"{carried}.{command}"
    )
