"""One training from configuration to result: build, fit, test the best checkpoint once,
write everything down.
"""

from __future__ import annotations

import errno
import json
import re
import shlex
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger

from memlab.config.sections import Config, MLflowTracking
from memlab.errors import UserError
from memlab.evaluation import memory
from memlab.reports import curves, gates
from memlab.reports.summary import print_summary, ratio, size
from memlab.tracking import mlflow_store, provenance, resume
from memlab.tracking.jsonl import JsonlLogger, read_metrics
from memlab.tracking.mlflow_store import Tracker
from memlab.tracking.resume import Origin
from memlab.tracking.run_directory import RunDirectory
from memlab.tracking.versions import versions
from memlab.training import checkpoints, sharding
from memlab.training.build import Parts, build, on_gpu, trainer
from memlab.training.callbacks import Conductor, MetricsLog, ProgressReport, StepClock
from memlab.training.checkpoints import BEST, LAST, Checkpoints
from memlab.training.finite import DivergedError
from memlab.training.processes import Followed, Processes
from memlab.training.signals import Ended, Signals

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def train(
    config: Config,
    origin: Origin | None = None,
    words: Sequence[str] = (),
    join: Callable[[bool], Processes] | None = None,
) -> dict[str, Any]:
    """Train as configured, from the beginning or from a checkpoint, and return what `result.json` holds.

    Args:
        origin: what `memlab.tracking.resume.find` said of this configuration; None = ask it.
        words: the command line behind `memlab.train`, to say with which one the run can be continued.
        join: gives the processes that train together, told whether on GPUs; None = this one alone. All of
            them call `train`; the first says with which configuration, writes all files, and has a result,
            the others return {}.

    Raises:
        UserError: the configuration or the place of the run cannot be used, nothing has been trained; or the
            disk is full; or another process is gone.
        DivergedError: the loss or the gradient is not finite.
        SystemExit: the run was asked to end (130 for Ctrl-C, 143 for SIGTERM); what was done up to then is in
            the run directory.
    """
    began = time.perf_counter()
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer=gpu: torch sees no GPU; use trainer=cpu")
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    with Signals() as signals:
        try:
            processes = Processes() if join is None else join(on_gpu(config))
            signals.told = processes.leads
            config, origin = processes.first(
                lambda: (config, resume.find(config) if origin is None else origin)
            )
            if origin.directory is not None:
                if origin.result is not None:
                    return say_finished(origin.directory, origin.result) if processes.leads else {}
                config = config.model_copy(update={"run_dir": str(origin.directory)})
            parts = processes.each(lambda: build(config, processes))
            directory = claim(config, origin.directory is not None, processes)
            if processes.leads and words and origin.directory is None:
                directory.note(command=shlex.join(["python", "-m", "memlab.train", *without_place(words)]))
        except Ended as ended:  # nothing has been begun
            raise SystemExit(128 + ended.signal) from None
        try:
            return _train_in(
                directory, config, parts, signals, processes, began, origin.directory is not None
            )
        except Ended as ended:
            how = f"continue with: {command(words, directory.path)}"
            if not processes.leads:
                pass
            elif ended.signal == signal.SIGINT:
                print(
                    f"\nmemlab: interrupted; what was done so far is in {directory.path}\nmemlab: {how}",
                    file=sys.stderr,
                )
            else:
                print(f"memlab: SIGTERM: saved; {how}", file=sys.stderr)
            raise SystemExit(128 + ended.signal) from None
        except DivergedError as error:
            if not processes.leads:
                raise Followed from None
            raise DivergedError(f"{error}. {kept(directory)}") from None
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            how = f"when there is room: {command(words, directory.path)}"
            raise UserError(
                f"{error.strerror}: {error.filename or directory.path}. {kept(directory)}; {how}"
            ) from None
        finally:
            directory.release()


def claim(config: Config, continues: bool, processes: Processes) -> RunDirectory:
    """The run's directory, which the first process makes or takes for all of them.

    Raises:
        UserError: it cannot be used, or MLflow's store cannot.
    """
    claimed: list[RunDirectory] = []

    def take() -> Path:
        if isinstance(config.tracking, MLflowTracking):
            part_of_a_sweep = config.tracking.parent_run is not None  # which has reached the store before
            mlflow_store.prepare(config.tracking.uri, config.tracking.experiment, patient=part_of_a_sweep)
        claimed.append(RunDirectory(config.run_dir, config, continues))
        return claimed[0].path

    path = processes.first(take)
    return claimed[0] if claimed else RunDirectory(path, config, ours=False)


def _train_in(
    directory: RunDirectory,
    config: Config,
    parts: Parts,
    signals: Signals,
    processes: Processes,
    began: float,
    continues: bool,
) -> dict[str, Any]:
    """Train in a directory that is ours, with an MLflow run that ends as this does."""
    checkpoint = processes.first(lambda: go_on(directory) if continues else None)
    if not processes.leads:
        return _run(config, parts, directory, None, signals, processes, began, checkpoint)
    signals.held = True  # or MLflow would keep a run of which nobody here knows
    tracker = (
        start_tracking(config, config.tracking, directory)
        if isinstance(config.tracking, MLflowTracking)
        else None
    )
    print(f"memlab: {title(config)}, in {directory.path}", file=sys.stderr)
    status = "FAILED"
    try:
        signals.held = False
        signals.leave_if_asked()
        result = _run(config, parts, directory, tracker, signals, processes, began, checkpoint)
        status = "FINISHED"
    except Ended:
        status = "KILLED"
        raise
    finally:
        if tracker:
            tracker.end(status)
    print_summary(result, directory.path, tracker.uri if tracker else None)
    return result


def go_on(directory: RunDirectory) -> Path | None:
    """Make a run's directory what it was at its newest whole checkpoint, and return that; None = it never
    came to one.

    Raises:
        UserError: there are checkpoints, and all are damaged.
    """
    found = checkpoints.newest(directory.checkpoints)
    step = found[1]["global_step"] if found else 0
    directory.forget_after(checkpoints.metrics_bytes(found[1]) if found else 0)
    directory.note(resumed_at=[*directory.facts()["resumed_at"], step])
    where = (
        f"step {step}, {found[0].name}"
        if found
        else "the beginning: it was stopped before its first checkpoint"
    )
    print(f"memlab: the run goes on from {where}", file=sys.stderr)
    return found[0] if found else None


def kept(directory: RunDirectory) -> str:
    """Which checkpoint there is."""
    last = directory.checkpoints / LAST
    return f"The last checkpoint is kept: {last}" if last.exists() else "There is no checkpoint yet"


def command(words: Sequence[str], directory: Path) -> str:
    """The command line that continues a run."""
    # Hydra too has characters of its own
    place = str(directory) if re.fullmatch(r"[\w./-]+", str(directory)) else f"'{directory}'"
    return shlex.join(["python", "-m", "memlab.train", *without_place(words), f"resume={place}"])


def without_place(words: Sequence[str]) -> list[str]:
    """A command line but for where the run is kept."""
    return [word for word in words if word.partition("=")[0] not in ("resume", "run_dir")]


def say_finished(directory: Path, result: dict[str, Any]) -> dict[str, Any]:
    """Print the result of a run that has nothing left to do, and return it."""
    print(f"memlab: the run in {directory} has finished already", file=sys.stderr)
    print_summary(result, directory, None)
    return result


def _run(
    config: Config,
    parts: Parts,
    directory: RunDirectory,
    tracker: Tracker | None,
    signals: Signals,
    processes: Processes,
    began: float,
    checkpoint: Path | None,
) -> dict[str, Any]:
    clock = StepClock(processes.size)
    keeper = Checkpoints(directory, config.trainer, signals, processes, began)
    reports: list[L.Callback] = [
        MetricsLog(config.trainer.log_every, clock),
        ProgressReport(config.trainer.max_steps, clock),
    ]
    loggers: list[Logger] = [JsonlLogger(directory.metrics), *([tracker] if tracker else [])]
    if not processes.leads:
        reports, loggers = [], []
    lightning = trainer(config, loggers, [clock, *reports, Conductor(), keeper], processes)
    try:
        lightning.fit(parts.module, parts.stream, parts.validation, ckpt_path=checkpoint, weights_only=True)
        steps = lightning.global_step
        train_seconds, fitted = keeper.seconds()["train_seconds"], time.perf_counter()
        if not config.trainer.validates_after(steps) and not lightning.should_stop:
            # the steps after the last regular validation count too
            lightning.validate(parts.module, parts.validation, verbose=False)
        chosen = processes.each(lambda: read_best(directory))
        sharding.load_weights(parts.module, chosen["state_dict"])
        if config.trainer.test:
            lightning.test(parts.module, parts.test, verbose=False)
    except RuntimeError as error:
        raise processes.lost(error) from None
    if not processes.leads:
        return {}
    metrics = {k: float(v) for k, v in lightning.callback_metrics.items() if k.startswith("test/")}
    logged = read_metrics(directory.metrics)
    headline = f"val/{parts.module.headline}"
    at_best = next(m for m in logged if m["step"] == chosen["global_step"] and headline in m)
    metrics |= {name: at_best[name] for name in (headline, "val/score") if name in at_best}
    at_best = {name: value for name, value in at_best.items() if name in ("val/stage", "val/tokens")}
    report = parts.module.report()
    if not config.trainer.test:  # these are the test's
        report = {name: value for name, value in report.items() if name not in ("test_read", "by_position")}
    result = {
        "status": "finished",
        "model": config.model["name"],
        "task": config.task["name"],
        "seed": config.seed,
        "metrics": metrics,
        "memory": memory.measure(parts.model, parts.task.typical_segments()).to_dict(),
        "timing": {
            "train_seconds": train_seconds,
            "test_seconds": time.perf_counter() - fitted,
            "total_seconds": keeper.seconds()["total_seconds"],
            "step_seconds": statistics.median(clock.steps),
            "tokens_per_second": clock.tokens / clock.seconds,
        },
        "steps": steps,
        "tokens_read": clock.tokens,
        "processes": processes.size,
        "resumed_at": directory.facts()["resumed_at"],
        "best_step": chosen["global_step"],
        **{f"best_{name.removeprefix('val/')}": int(value) for name, value in at_best.items()},
        **report,
        "parameters": sum(p.numel() for p in parts.model.parameters()),
        "command": directory.facts()["command"],
        "versions": versions(),
        "commit": provenance.commit(),
        "hardware": provenance.hardware(),
        "mlflow_run_id": tracker.run_id if tracker else None,
    }
    draw(parts, config, result, logged, directory.figures)
    if tracker:
        finish_tracking(tracker, result, directory)
    directory.write_result(result)
    return result


def read_best(directory: RunDirectory) -> dict[str, Any]:
    """The checkpoint that is tested.

    Raises:
        UserError: it is damaged.
    """
    try:
        return checkpoints.read(directory.checkpoints / BEST)
    except checkpoints.DamagedError as error:
        raise UserError(
            f"{directory.checkpoints / BEST} is damaged ({error}); without it there is nothing to test"
        ) from None


def start_tracking(config: Config, tracking: MLflowTracking, directory: RunDirectory) -> Tracker:
    """Begin the MLflow run, or go on with it: parameters, tags, configuration and all that was logged are
    there before the first step.
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
        print(f"memlab: the MLflow run {known} is not in {uri}; another one begins", file=sys.stderr)
        known = None
    tags = {k: v for k, v in tags.items() if v}
    tracker = Tracker(uri, tracking.experiment, name, config.model_dump(), tags, known, tracking.parent_run)
    directory.note(mlflow_run_id=tracker.run_id)
    tracker.log_artifact(directory.path / "config.yaml", "config")
    tracker.log_dataset(config.task)
    if directory.metrics.exists():
        tracker.log_lines(read_metrics(directory.metrics))
    return tracker


def draw(
    parts: Parts, config: Config, result: dict[str, Any], logged: list[dict[str, float]], figures: Path
) -> None:
    """The figures of a run."""
    curves.learning(
        logged,
        parts.module.headline,
        result.get("stages_began_at", [0]),
        result.get("chance"),
        title(config),
        figures,
    )
    if config.model.get("memory") != "off":  # with the memory off, gates are there and do nothing
        gates.draw(logged, title(config), figures)
    if "by_position" in result:
        curves.by_position(result["by_position"], title(config), figures)


def finish_tracking(tracker: Tracker, result: dict[str, Any], directory: RunDirectory) -> None:
    """Single numbers for MLflow's tables and scatter plots, and the figures."""
    single = {
        name.replace("test/", "summary/test_"): value
        for name, value in result["metrics"].items()
        if name.startswith("test/")
    }
    single |= {f"summary/{name}": result["timing"][name] for name in ("train_seconds", "tokens_per_second")}
    single |= {"summary/parameters": result["parameters"], "summary/steps": result["steps"]}
    measured = {f"memory/{name}": value for name, value in result["memory"].items() if value is not None}
    # MLflow draws what has step 0 alone as bars beside each other, anything else as a line over steps
    tracker.log_metrics({**result["metrics"], **single, **measured}, step=0)
    tracker.log_artifacts(directory.figures, "figures")
    tracker.log_text(json.dumps(result, indent=2) + "\n", "result.json")
    tracker.describe(description(result))


def description(result: dict[str, Any]) -> str:
    """What MLflow's page of a run says first, in Markdown: its headline, cost and command.

    The figure is put behind it.
    """
    m, cost = result["metrics"], result["memory"]
    chance = f" (chance {result['chance']:.3f})" if "chance" in result else ""
    split = "test" if any(name.startswith("test/") for name in m) else "val"
    answers, text = m.get(f"{split}/accuracy"), m.get(f"{split}/bits_per_byte")
    headline = f"{text:.4f} bits per byte" if answers is None else f"accuracy {answers:.4f}{chance}"
    carried = (
        f"carries {size(cost['state_bytes'])}, a full cache is {ratio(cost['compression_carry'])} that after "
        f"{cost['tokens']:,} tokens"
    )
    if not cost["state_bytes"]:
        carried = "carries nothing from segment to segment"
    command = f"\n\n```\n{result['command']}\n```" if result["command"] else ""
    return (
        f"**{result['model']} on {result['task']}, seed {result['seed']}: "
        f"{'test' if split == 'test' else 'validation'} {headline}**\n\n{result['steps']:,} steps, "
        f"{result['timing']['train_seconds']:.0f} s, {result['parameters']:,} parameters; "
        f"{carried}.{command}"
    )


def title(config: Config) -> str:
    return f"{config.model['name']} on {config.task['name']}, seed {config.seed}"
