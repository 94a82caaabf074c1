"""Trainings that are over, read back from run directories and from an MLflow store, without a server or the
network.

A run that cannot be used is no error: it is named, with the reason, and left out.
"""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from memlab.files import DamagedFileError, read_lines, read_object
from memlab.tracking import data_record
from memlab.tracking.resume import flatten

# of all that is logged while training, what comparisons draw
CURVES = ("val/loss", "val/tokens", "val/seconds", "val/stage")
_BY_SEGMENTS = {"eval/accuracy_by_segments": "accuracy", "eval/state_bytes_by_segments": "state_bytes"}


@dataclass(frozen=True)
class LeftOut:
    """A run that takes no part, and why.

    Attributes:
        failed: it ended with an error (or was interrupted for good), which counts; None of the others says
            anything of its memory.
        config: as far as it is known.
    """

    name: str
    reason: str
    failed: bool = False
    config: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StoredRun:
    """A finished training.

    Attributes:
        name: its directory, or its MLflow run id.
        config: flat, such as {"model.width": 64}.
        result: as in `result.json`.
        lines: of validations, `step` and as many of `CURVES` as were logged.
        lengths: of `memlab.evaluate`: {segments: {"accuracy": .., "state_bytes": ..}}.
        ended: seconds since 1970.
        parent: MLflow run id of the multirun that it is a job of.
        data: what it reads, see `data_record.identity`; None = no files, or that is not known.
    """

    name: str
    config: Mapping[str, Any]
    result: Mapping[str, Any]
    lines: tuple[Mapping[str, float], ...]
    lengths: Mapping[int, Mapping[str, float]]
    ended: float
    parent: str | None = None
    data: str | None = None

    @property
    def seed(self) -> int:
        return int(self.config["seed"])

    @property
    def metric(self) -> str:
        """By which the run is judged."""
        return "accuracy" if "test/accuracy" in self.result["metrics"] else "bits_per_byte"

    @property
    def score(self) -> float:
        return float(self.result["metrics"][f"test/{self.metric}"])


class _UnusableError(Exception):
    """Why a run is left out."""


def below(place: Path) -> list[Path]:
    """The run directories in a directory, itself one of them if it is a run."""
    if (place / "config.yaml").is_file():
        return [place]
    return sorted(file.parent for file in place.rglob("config.yaml") if "artifacts" not in file.parts)


def from_directory(directory: Path) -> StoredRun | LeftOut:
    """The run in a directory."""
    config: dict[str, Any] = {}
    try:
        config = _config(_text(directory / "config.yaml"))
        if not (directory / "result.json").is_file():
            raise _UnusableError("has not finished (no result.json)")
        result = _object(directory / "result.json")
        _check(config, result)
        logged = directory / "metrics.jsonl"
        lines = read_lines(logged) if logged.is_file() else []
        evaluation, record = directory / "evaluation.json", directory / data_record.NAME
        return StoredRun(
            str(directory),
            config,
            result,
            tuple(
                {key: line[key] for key in ("step", *CURVES) if key in line}
                for line in lines
                if "val/loss" in line
            ),
            _evaluated(evaluation) if evaluation.is_file() else {},
            (directory / "result.json").stat().st_mtime,
            data=data_record.identity(_text(record) if record.is_file() else None),
        )
    except _UnusableError as why:
        return LeftOut(str(directory), str(why), config=config)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        return LeftOut(str(directory), f"cannot be read: {type(error).__name__} {error}", config=config)


def from_mlflow(client: Any, run: Any) -> StoredRun | LeftOut:
    """A run of an MLflow store: by its files there, or where those are gone,
    by its parameters and metrics.
    """
    name, status = str(run.info.run_id), run.info.status
    config: dict[str, Any] = {}
    try:
        if "model.name" not in run.data.params:
            raise _UnusableError("is no training of memlab (no parameter model.name)")
        saved = _artifact(client, name, "config/config.yaml")
        config = _config(saved) if saved else {key: _value(text) for key, text in run.data.params.items()}
        if status != "FINISHED":
            raise _UnusableError(
                {
                    "RUNNING": "has not finished (still running, or ended by kill -9)",
                    "KILLED": "was interrupted",
                }.get(status, "failed")
            )
        saved = _artifact(client, name, "result.json")
        result = json.loads(saved) if saved else _from_metrics(run.data.metrics, config)
        _check(config, result)
        parent = run.data.tags.get("mlflow.parentRunId")
        return StoredRun(
            name,
            config,
            result,
            _history(client, name),
            _by_segments(client, name),
            run.info.end_time / 1000,
            parent,
            # only text is read from files
            data_record.identity(_artifact(client, name, f"config/{data_record.NAME}"))
            if "test/bits_per_byte" in result["metrics"]
            else None,
        )
    except _UnusableError as why:
        return LeftOut(f"{name} ({run.info.run_name})", str(why), status == "FAILED", config)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        return LeftOut(
            f"{name} ({run.info.run_name})", f"cannot be read: {type(error).__name__} {error}", config=config
        )


def _check(config: Mapping[str, Any], result: Mapping[str, Any]) -> None:
    """Whether it is a result that can be compared."""
    for key in ("model.name", "task.name", "seed"):
        if key not in config:
            raise _UnusableError(f"is of another version of memlab (its configuration has no {key})")
    missing = [key for key in ("metrics", "memory", "timing", "steps") if key not in result]
    if missing:
        raise _UnusableError(f"is of another version of memlab (its result has no {', '.join(missing)})")
    metrics = result["metrics"]
    score = metrics.get("test/accuracy", metrics.get("test/bits_per_byte"))
    if score is None:
        raise _UnusableError("has neither test/accuracy nor test/bits_per_byte")
    if not math.isfinite(score):
        raise _UnusableError(f"has a test score that is no number ({score})")
    memory, timing = result["memory"], result["timing"]
    numbers = [config["seed"], memory.get("state_bytes"), result["steps"], result.get("parameters", 0)]
    numbers += [memory.get("compression_carry", 0), memory.get("compression_peak", 0)]
    numbers += [timing.get("train_seconds", 0)]
    texts = [result.get("versions") or {}, result.get("hardware") or {}]
    if not (
        all(number is None or isinstance(number, int | float) for number in numbers)
        and None not in numbers[:4]
        and all(isinstance(text, Mapping) for text in texts)
    ):
        raise _UnusableError("has a damaged result")


def _config(text: str) -> dict[str, Any]:
    try:
        loaded = yaml.safe_load(text)
    except yaml.YAMLError:
        loaded = None
    if not isinstance(loaded, dict):
        raise _UnusableError("has a damaged config.yaml")
    return flatten(loaded)


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except OSError as error:
        raise _UnusableError(f"cannot be read: {error.filename}: {error.strerror}") from None


def _object(file: Path) -> dict[str, Any]:
    try:
        return read_object(file)
    except DamagedFileError:
        raise _UnusableError(f"has a damaged {file.name}") from None


def _evaluated(file: Path) -> dict[int, dict[str, float]]:
    """What `evaluation.json` holds; a damaged one costs a warning, not the run."""
    try:
        return _lengths(read_object(file))
    except DamagedFileError as error:
        print(f"memlab: warning: {error}; the run is compared without its other lengths", file=sys.stderr)
        return {}


def _lengths(evaluation: Mapping[str, Any]) -> dict[int, dict[str, float]]:
    """Of `evaluation.json`: of the best checkpoint at its newest step, read as trained, and of several sample
    sizes the largest.
    """
    entries = [
        e
        for e in evaluation.get("lengths", [])
        if e.get("checkpoint", "best.ckpt") == "best.ckpt" and not e.get("policy")
    ]
    newest = max((e.get("step", 0) for e in entries), default=0)
    found = {}
    for entry in sorted(
        (e for e in entries if e.get("step", 0) == newest), key=lambda e: (e["segments"], e["samples"])
    ):
        cost = entry.get("memory") or {}
        found[int(entry["segments"])] = {"accuracy": float(entry["accuracy"])} | {
            k: float(cost[k]) for k in ("state_bytes",) if k in cost
        }
    return found


def _artifact(client: Any, run_id: str, path: str) -> str | None:
    """The content of a file of a run; None = it is not there."""
    from mlflow.exceptions import MlflowException

    try:
        return Path(client.download_artifacts(run_id, path)).read_text(encoding="utf-8")
    except (MlflowException, OSError):
        return None


def _value(text: str) -> Any:
    return None if text == "None" else yaml.safe_load(text)


def _from_metrics(metrics: Mapping[str, float], config: Mapping[str, Any]) -> dict[str, Any]:
    """What is there of `result.json` in a run's metrics."""
    memory = {
        key.removeprefix("memory/"): value for key, value in metrics.items() if key.startswith("memory/")
    }
    return {
        "model": config.get("model.name"),
        "metrics": {key: value for key, value in metrics.items() if key.startswith(("test/", "val/"))},
        "memory": {"state_bytes": 0, "compression_carry": None, "compression_peak": None, **memory},
        "timing": {key: metrics[f"summary/{key}"] for key in ("train_seconds", "tokens_per_second")},
        "steps": int(metrics["summary/steps"]),
        "parameters": int(metrics["summary/parameters"]),
    }


def _history(client: Any, run_id: str) -> tuple[dict[str, float], ...]:
    by_step: dict[int, dict[str, float]] = {}
    for key in CURVES:
        for metric in client.get_metric_history(run_id, key):
            by_step.setdefault(metric.step, {"step": metric.step})[key] = metric.value
    return tuple(line for _, line in sorted(by_step.items()) if "val/loss" in line)


def _by_segments(client: Any, run_id: str) -> dict[int, dict[str, float]]:
    found: dict[int, dict[str, float]] = {}
    for key, name in _BY_SEGMENTS.items():
        points: Iterable[Any] = client.get_metric_history(run_id, key)
        # of a length that was evaluated twice, the newest
        for metric in sorted(points, key=lambda m: m.timestamp):
            found.setdefault(metric.step, {})[name] = metric.value
    return {segments: values for segments, values in sorted(found.items()) if "accuracy" in values}
