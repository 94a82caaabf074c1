"""One evaluation from configuration to result: open the run, measure what is missing, record, draw and print
it.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from memlab.config.sections import MLflowTracking
from memlab.errors import ConfigError
from memlab.evaluation import cost, documents, inside, lengths, streaming, trained
from memlab.evaluation.record import NAME, Record, best
from memlab.evaluation.samples import PLAIN
from memlab.evaluation.settings import EvaluateConfig
from memlab.evaluation.trained import Trained
from memlab.files import refuse_links
from memlab.models.compose import compose
from memlab.reports.evaluation import figures, inside_figures, tables
from memlab.tasks.base import SyntheticTask
from memlab.tasks.text import TextTask
from memlab.terminal import tables as terminal
from memlab.terminal.plain import printable
from memlab.tracking import finished_runs
from memlab.tracking.finished_runs import Found
from memlab.tracking.mlflow_client import SQLITE
from memlab.tracking.versions import versions

Points = list[tuple[str, float, int]]


def evaluate(config: EvaluateConfig) -> dict[str, Any]:
    """Measure and print what is requested, and return the content of the run's `evaluation.json`.

    Raises:
        UserError: there is no such run, it cannot be opened, or the request does not fit it.
    """
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    device = trained.choose_device(config.accelerator)
    limits = {"test_documents": config.documents, "test_bytes": config.bytes}
    if config.untrained is not None:
        run = trained.fresh(config.untrained, device, limits, config.policy)
    else:
        assert config.run is not None  # or `untrained`
        found = finished_runs.find(config.run, config.tracking.uri)
        _check_links(found)
        run = trained.load(found, device, limits, config.trust, config.policy)
    if config.stream is not None:
        done = _stream(config.stream, config, run)
    else:
        _check_kind(config, run)
        if config.inside is not None:
            done = _inside(config.inside, config, run)
        else:
            done = _text(config, run, run.task) if isinstance(run.task, TextTask) else _lengths(config, run)
    if done.new:
        _track(config, run, (), done.drawn)
    console = terminal.console()
    done.show(console)
    console.print(f"written to  {done.record.file}", soft_wrap=True)
    for file in done.drawn:
        console.print(f"figure      {file}", soft_wrap=True)
    return done.record.whole()


def _check_links(found: Found) -> None:
    """Check that an evaluation does not write to other places by way of links in a run.

    Raises:
        UserError: it would.
    """
    directory, figures = found.directory, found.directory / "figures"
    refuse_links(directory, [NAME, f"{NAME}.lock", "figures"])
    if figures.is_dir():
        refuse_links(figures, [file.name for file in figures.iterdir()])
    if not found.by_id and directory.name.endswith(".evaluation"):  # beside a checkpoint: nobody named it
        refuse_links(directory.parent, [directory.name])


@dataclass
class Done:
    """The outcome: the record, whether any of it is new, the figures, and what prints the tables."""

    record: Record
    new: bool
    drawn: list[Path]
    show: Callable[[Console], None]


def _lengths(config: EvaluateConfig, run: Trained) -> Done:
    task = run.task
    assert isinstance(task, SyntheticTask)
    own = task.num_segments if task.lengths_in == "segments" else task.tokens
    tasks = [task.sized(length) for length in config.lengths or [own, 2 * own]]
    samples = [lengths.samples_for(t, config.samples, config.max_tokens) for t in tasks]
    for number in samples:
        lengths.check(number, config.controls, task.members)
    record, new = _record(run), False
    entries: list[dict[str, Any]] = []
    for t, number in zip(tasks, samples, strict=True):
        key = {**_origin(run), "segments": t.num_segments, "length": t.length, "samples": number}
        entry = record.find("lengths", **key)
        if conditions := _missing(config, entry):
            found = lengths.measure(run.model, t, number, conditions)
            entries.append(record.add("lengths", {**found, **_about(run)}))
            # now, since an evaluation may be stopped before its next length
            _track(config, run, _points(entries[-1], task.lengths_in))
            new = True
        elif entry is not None:
            entries.append(entry)
    whole = _whole(record, run)
    drawn = _draw_lengths(run, whole, best(whole["lengths"], run.policy) or entries)
    return Done(
        record, new, drawn, lambda console: tables.print_lengths(console, whole, entries, task.test_size)
    )


def _text(config: EvaluateConfig, run: Trained, task: TextTask) -> Done:
    record, new = _record(run), False
    key = {**_origin(run), "documents": task.documents["test"], "bytes": task.bytes["test"]}
    entry = record.find("texts", **key) or {}
    if conditions := _missing(config, entry):
        entry = record.add("texts", {**key, **documents.measure(run.model, task, conditions), **_about(run)})
        points = [("eval/loss_by_position", r["loss"], r["from"]) for r in entry["by_position"]]
        for name, control in entry["controls"].items():
            points += [
                (f"eval/loss_by_position_{name}", r["loss"], r["from"]) for r in control["by_position"]
            ]
        _track(config, run, points)
        new = True
    folder, title = _folder(run), _title(run)
    drawn = [folder / "evaluation_loss_by_position.png", folder / "memory_by_tokens.png"]
    figures.loss_by_position(entry, title, drawn[0])
    figures.memory_by_tokens(entry["memory_curve"], title, drawn[1])
    whole = _whole(record, run)
    return Done(record, new, drawn, lambda console: tables.print_text(console, whole, entry))


def _stream(tokens: int, config: EvaluateConfig, run: Trained) -> Done:
    streaming.check(run.model, tokens)
    record = _record(run)
    key = {
        **_about(run),
        "tokens": tokens,
        "segment_length": max(run.task.segment_lengths),
        "threads": torch.get_num_threads(),
    }
    entry = None if config.again else record.find("streams", **key)
    new = entry is None
    if entry is None:
        entry = record.add("streams", {**streaming.stream(run.model, run.task, tokens), **key})
        names = ("tokens_per_second", "peak_memory")
        _track(
            config,
            run,
            [
                (f"eval/stream_{name}", point[name], point["tokens"])
                for point in entry["points"]
                for name in names
            ],
        )
    drawn = [_folder(run) / "streaming.png"]
    figures.streaming(entry, _title(run), drawn[0])
    whole = _whole(record, run)
    return Done(record, new, drawn, lambda console: tables.print_stream(console, whole, entry))


def _inside(samples: int, config: EvaluateConfig, run: Trained) -> Done:
    task = run.task
    if not isinstance(task, SyntheticTask):
        raise ConfigError(f"inside={samples} looks at test samples: task={run.config.task['name']} {_TEXT}")
    tasks = [task.sized(length) for length in config.lengths] if config.lengths else [task]
    for t in tasks:
        inside.check(run.model, t.num_segments)
    record, new = _record(run), False
    entries, drawn = [], []
    for t in tasks:
        key = {**_origin(run), "segments": t.num_segments, "length": t.length, "samples": samples}
        entry = None if config.again else record.find("inside", **key)
        if entry is None:
            entry, new = (
                record.add("inside", {**inside.look(run.model, t, samples), **key, **_about(run)}),
                True,
            )
        entries.append(entry)
        drawn += inside_figures.draw(entry, _title(run), _folder(run))
    return Done(
        record, new, drawn, lambda console: tables.print_inside(console, _whole(record, run), entries)
    )


def _missing(config: EvaluateConfig, entry: dict[str, Any] | None) -> list[str] | None:
    """The conditions that have to be read; None = everything requested is known.

    Known controls are measured again, so that the new entry has them too.
    """
    known = set(entry["controls"]) if entry else set()
    if entry and not config.again and set(config.controls) <= known:
        return None
    return [PLAIN, *sorted({*config.controls, *known})]


def _record(run: Trained) -> Record:
    task = run.task
    model = run.model
    if run.policy is not None:
        # the costs in the record are those of the run as trained; no weights are needed
        with torch.device("meta"):
            model = compose(run.config.model, task.vocab_size, task.members)
    facts = {
        "run": str(run.found.directory),
        "model": run.config.model["name"],
        "task": run.config.task["name"],
        "seed": run.config.seed,
        **(_about_samples(run, task) if isinstance(task, SyntheticTask) else _NO_SAMPLES),
        "cost": cost.of(model, task.segment_lengths),
    }
    return Record(run.found.directory, facts)


_NO_SAMPLES = dict.fromkeys(("trained_segments", "trained_tokens", "lengths_in", "score", "chance"))


def _about_samples(run: Trained, task: SyntheticTask) -> dict[str, Any]:
    """How the lengths of a task with samples are counted and scored."""
    return {
        "trained_segments": task.num_segments if run.trained else None,
        "trained_tokens": task.tokens if run.trained else None,
        "lengths_in": task.lengths_in,
        "score": "exact_match" if task.whole_answers else "accuracy",
        "chance": task.chance**task.answer_tokens if task.whole_answers else task.chance,
    }


def _whole(record: Record, run: Trained) -> dict[str, Any]:
    """Everything that has been measured; `policy` is the one of this reading."""
    return {**record.whole(), "policy": None if run.policy is None else _label(run)}


def _draw_lengths(run: Trained, whole: dict[str, Any], entries: list[dict[str, Any]]) -> list[Path]:
    folder, title, chance = _folder(run), _title(run), whole["chance"]
    unit, score = whole["lengths_in"], whole["score"]
    drawn = [folder / f"accuracy_by_{unit}.png", folder / "memory_by_tokens.png"]
    figures.accuracy_by_length(entries, unit, score, whole[f"trained_{unit}"], chance, title, drawn[0])
    figures.memory_by_tokens(max(entries, key=lambda e: int(e["tokens"]))["memory_curve"], title, drawn[1])
    if with_depth := [entry for entry in entries if entry["depth"]]:
        drawn.append(folder / f"depth_by_{unit}.png")
        figures.depth_by_length(with_depth, unit, score, chance, title, drawn[-1])
    return drawn


def _points(entry: dict[str, Any], unit: str) -> Points:
    """The metrics of a length for MLflow, with the number of segments, or of tokens, as step."""
    named = {
        "accuracy": entry["accuracy"],
        "accuracy_low": entry["intervals"]["accuracy"][0],
        "accuracy_high": entry["intervals"]["accuracy"][1],
        "exact_match": entry["exact_match"],
        **{f"accuracy_{name}": control["accuracy"] for name, control in entry["controls"].items()},
        **{key: entry["memory"][key] for key in ("state_bytes", "compression_carry", "compression_peak")},
        "tokens_per_second": entry["tokens_per_second"],
    }
    return [
        (f"eval/{_by(unit, name)}", value, entry[unit]) for name, value in named.items() if value is not None
    ]


def _by(unit: str, name: str) -> str:
    return (
        f"accuracy_by_{unit}{name.removeprefix('accuracy')}"
        if name.startswith("accuracy")
        else f"{name}_by_{unit}"
    )


def _track(
    config: EvaluateConfig, run: Trained, points: Sequence[tuple[str, float, int]], drawn: Sequence[Path] = ()
) -> None:
    """Add to the run's MLflow run, if there is one and this is the run's own checkpoint."""
    tracking = run.config.tracking
    if not (run.found.best and isinstance(tracking, MLflowTracking)):
        return
    uri = config.tracking.uri if run.found.by_id else tracking.uri
    if not uri.startswith(SQLITE) and uri != config.tracking.uri:
        # MLflow would send what the environment has to log in with
        print(
            f"memlab: warning: not written to MLflow: the run names the server {printable(uri)}; to write "
            "there, give the same as tracking.uri",
            file=sys.stderr,
        )
        return
    if run.policy is not None:
        points = [(name.replace("eval/", f"eval/{_label(run)}/", 1), v, step) for name, v, step in points]
    finished_runs.add(
        uri,
        finished_runs.mlflow_run_id(run.found.directory),
        points,
        [(file, str(file.parent.relative_to(run.found.directory))) for file in drawn],
    )


def _check_kind(config: EvaluateConfig, run: Trained) -> None:
    """Refuse keys that have no meaning for this task.

    Raises:
        ConfigError: one of them is given.
    """
    text = isinstance(run.task, TextTask)
    if given := next(
        (
            k
            for k in (("lengths", "samples") if text else ("documents", "bytes"))
            if getattr(config, k) is not None
        ),
        None,
    ):
        raise ConfigError(
            f"{given}={getattr(config, given)}: task={run.config.task['name']} {_TEXT if text else _SAMPLES}"
        )


_TEXT = (
    "is text, whose documents have lengths of their own: its loss is reported by position; documents and "
    "bytes set how much is read"
)
_SAMPLES = "has samples, not documents; lengths and samples set what is read"


def _origin(run: Trained) -> dict[str, Any]:
    return {"policy": run.policy, "checkpoint": run.found.checkpoint.name, "step": run.step}


def _about(run: Trained) -> dict[str, Any]:
    return {**_origin(run), "device": run.model.device.type, "versions": versions()}


def _title(run: Trained) -> str:
    name = f"{run.config.model['name']} on {run.config.task['name']}, seed {run.config.seed}"
    return name if run.policy is None else f"{name}, policy {_label(run)}"


def _label(run: Trained) -> str:
    """A policy and its budget in one word. Readings with other options have the same figures' names."""
    assert run.policy is not None
    return "_".join(str(run.policy[key]) for key in ("name", "budget") if key in run.policy)


def _folder(run: Trained) -> Path:
    """Where figures go."""
    folder = run.found.directory / "figures"
    return folder if run.policy is None else folder / _label(run)
