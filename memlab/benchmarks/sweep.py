"""The overhead of `memlab.sweep`: its wall time over that of the same trainings, started by hand in sequence.

Both sides are the commands that a user types, each with MLflow in a SQLite store of its own. The sweep has
one worker, no pruning and no final trainings; then each of its trials is trained again with the command in
its `result.json`.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from rich.console import Console
from rich.progress import track
from rich.table import Table

from memlab.benchmarks import measure
from memlab.benchmarks.report import machine, rows, write
from memlab.benchmarks.settings import BenchConfig
from memlab.errors import UserError
from memlab.sweeping.spec import find
from memlab.terminal.tables import is_live


@dataclass(frozen=True)
class Times:
    """Times of a sweep, in seconds since 1970.

    Attributes:
        began, ended: of the command.
        trials: of each trial, from when a worker takes it until its result is written.
        processor: processor seconds of all its processes.
    """

    began: float
    trials: Sequence[tuple[float, float]]
    ended: float
    processor: float = 0.0


def run(config: BenchConfig) -> dict[str, Any]:
    """Measure, print a table and return {"ratio", "sweep_seconds", "by_hand_seconds", ...}; also
    `sweep.json`.

    Raises:
        UserError: the sweep or a training failed.
    """
    sizes = config.sweep
    with tempfile.TemporaryDirectory() as directory:
        place = Path(directory)
        # so that files are cached for both sides
        _command(place, "memlab.train", ["trainer.max_steps=1", "run_dir=warm_up", "tracking=off"])
        times = sweep(place, sizes.name, sizes.trials, sizes.steps)
        commands = [_by_hand(file) for file in sorted(place.glob("sweep/trials/*/*/result.json"))]
        by_hand: list[float] = []
        processor = 0.0
        for at, arguments in enumerate(
            track(commands, "by hand", transient=True, disable=not is_live(Console()))
        ):
            training = _command(
                place,
                "memlab.train",
                [*arguments, f"run_dir=by_hand/{at}", "tracking.uri=sqlite:///by_hand.db"],
            )
            by_hand.append(training[0])
            processor += training[1]
    result = {
        "suite": "sweep",
        "sweep": sizes.name,
        "trials": len(times.trials),
        "steps": sizes.steps,
        "ratio": (times.ended - times.began) / sum(by_hand),
        "sweep_seconds": times.ended - times.began,
        "by_hand_seconds": by_hand,
        "trial_seconds": [end - start for start, end in times.trials],
        "parts": parts(times, by_hand),
        "processor_seconds": {"sweep": times.processor, "by_hand": processor},
        **machine(),
    }
    write(result, table(result), config.run_dir, page(result))
    return result


def sweep(place: Path, name: str, trials: int, steps: int) -> Times:
    """Run a sweep in `place/sweep`, without what would make its trainings differ from those by hand.

    Raises:
        UserError: it failed.
    """
    import optuna

    values = {**yaml.safe_load(find(name).read_text(encoding="utf-8")), "pruner": {"name": "none"}}
    (place / "measured.yaml").write_text(yaml.safe_dump(values), encoding="utf-8")
    arguments = [
        "sweep=./measured.yaml",
        f"trials={trials}",
        f"base.trainer.max_steps={steps}",
        "final=false",
        "run_dir=sweep",
    ]
    began = time.time()
    processor = _command(place, "memlab.sweep", [*arguments, "tracking.uri=sqlite:///sweep.db"])[1]
    ended = time.time()
    storage = optuna.storages.RDBStorage(f"sqlite:///{place / 'sweep' / 'study.db'}")
    spans = []
    for summary in optuna.get_all_study_summaries(storage):  # one per arm
        for trial in optuna.load_study(study_name=summary.study_name, storage=storage).get_trials(
            deepcopy=False
        ):
            if trial.state.name != "COMPLETE":
                raise UserError(f"sweep={name}: trial {trial.number} failed: {trial.user_attrs.get('error')}")
            assert trial.datetime_start is not None and trial.datetime_complete is not None
            spans.append((trial.datetime_start.timestamp(), trial.datetime_complete.timestamp()))
    storage.remove_session()
    storage.engine.dispose()
    return Times(began, sorted(spans), ended, processor)


def parts(times: Times, by_hand: Sequence[float]) -> dict[str, float]:
    """Where the difference arises, in seconds; their sum is the sweep's wall time minus the sum by hand."""
    between = [start - end for (_, end), (start, _) in zip(times.trials, times.trials[1:], strict=False)]
    return {
        "before the first trial": times.trials[0][0] - times.began,
        "between trials": sum(between),
        "in trials, over the same by hand": sum(end - start for start, end in times.trials) - sum(by_hand),
        "after the last trial": times.ended - times.trials[-1][1],
    }


def _by_hand(result: Path) -> list[str]:
    """The overrides of a trial's training, without the store and the sweep's run."""
    # after python -m memlab.train
    arguments = shlex.split(json.loads(result.read_text(encoding="utf-8"))["command"])[3:]
    own = ("tracking.uri", "tracking.parent_run")
    return [argument for argument in arguments if argument.partition("=")[0] not in own]


def _command(place: Path, program: str, arguments: Sequence[str]) -> tuple[float, float]:
    """Wall time and processor time of a command, including all processes that it starts, in seconds.

    Raises:
        UserError: it failed.
    """
    began, used = time.perf_counter(), _used()
    done = subprocess.run(
        [sys.executable, "-m", program, *arguments],
        cwd=place,
        env=measure.environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise UserError(
            f"{program} {shlex.join(arguments)} ended with status {done.returncode}: "
            f"{done.stderr.strip()[-500:]}"
        )
    return time.perf_counter() - began, _used() - used


def _used() -> float:
    times = os.times()
    return times.children_user + times.children_system


def _title(result: dict[str, Any]) -> str:
    mean = sum(result["by_hand_seconds"]) / len(result["by_hand_seconds"])
    return (
        f"{result['trials']} trials of {result['sweep']}, {result['steps']} steps each (by hand {mean:.1f} s "
        "on average), one worker"
    )


def _lines(result: dict[str, Any]) -> list[tuple[str, str]]:
    measured = [
        ("sweep, s", result["sweep_seconds"]),
        ("the same trainings by hand, one after another, s", sum(result["by_hand_seconds"])),
    ]
    lines = [(name, f"{seconds:.1f}") for name, seconds in measured]
    lines += [
        ("ratio", f"{result['ratio']:.3f}"),
        *((f"{name}, s", f"{s:.1f}") for name, s in result["parts"].items()),
    ]
    used = result["processor_seconds"]
    return [*lines, ("processor time, sweep / by hand, s", f"{used['sweep']:.1f} / {used['by_hand']:.1f}")]


def page(result: dict[str, Any]) -> list[str]:
    """The suite's part of PERFORMANCE.md."""
    return ["## What a sweep adds", "", f"{_title(result)}.", "", *rows(["", ""], _lines(result))]


def table(result: dict[str, Any]) -> Table:
    """The table for the terminal."""
    table = Table(title=f"sweep: {_title(result)}", show_header=False)
    table.add_column("")
    table.add_column("", justify="right")
    for line in _lines(result):
        table.add_row(*line)
    return table
