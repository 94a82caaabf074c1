"""One training from configuration to result: build, fit, test the best checkpoint once, write the result."""

from __future__ import annotations

import errno
import shlex
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import Logger

from memlab.config import jobs
from memlab.config.sections import Config, MLflowTracking
from memlab.errors import UserError
from memlab.reports.summary import print_summary
from memlab.tracking import data_record, resume
from memlab.tracking.jsonl import JsonlLogger, read_metrics
from memlab.tracking.mlflow_store import Tracker
from memlab.tracking.resume import Origin
from memlab.tracking.run_directory import RunDirectory
from memlab.training import mlflow_run, sharding
from memlab.training.build import Parts, build, on_gpu, trainer
from memlab.training.callbacks import Conductor, MetricsLog, ProgressReport, StepClock
from memlab.training.checkpoints import Checkpoints
from memlab.training.directory import (
    claim,
    command,
    go_on,
    kept,
    known_data,
    read_best,
    say_finished,
    without_place,
)
from memlab.training.finite import DivergedError
from memlab.training.processes import Followed, Processes
from memlab.training.result import assemble, draw, title
from memlab.training.signals import Ended, Signals

_DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def train(
    config: Config,
    origin: Origin | None = None,
    arguments: Sequence[str] = (),
    join: Callable[[bool], Processes] | None = None,
) -> dict[str, Any]:
    """Train as configured, from the beginning or from a checkpoint, and return the content of `result.json`.

    Args:
        origin: the result of `memlab.tracking.resume.find` for this configuration; None = call it.
        arguments: the command line after `memlab.train`, from which the command that continues the run is
            made.
        join: returns the processes that train together, given whether they use GPUs; None = only this
            process. All of them call `train`. The first decides on the configuration, writes all files, and
            returns the result; the others return {}.

    Raises:
        UserError: the configuration or the run directory cannot be used, and nothing has been trained; or the
            disk is full; or another process is gone.
        DivergedError: the loss or the gradient is not finite.
        SystemExit: the run was asked to end (130 for Ctrl-C, 143 for SIGTERM, 129 for SIGHUP, 138 for
            SIGUSR1); what was done by then is in the run directory.
    """
    began = time.perf_counter()
    if config.trainer.accelerator == "gpu" and not torch.cuda.is_available():
        raise UserError("trainer=gpu: torch sees no GPU; use trainer=cpu")
    if config.trainer.threads is not None:
        torch.set_num_threads(config.trainer.threads)
    with Signals() as signals:
        try:
            processes = Processes() if join is None else join(on_gpu(config))
            signals.prints = processes.leads
            config, origin = processes.first(
                lambda: (config, resume.find(config) if origin is None else origin)
            )
            if origin.directory is not None:
                if origin.result is not None:
                    return say_finished(origin.directory, origin.result) if processes.leads else {}
                config = config.model_copy(update={"run_dir": str(origin.directory)})
            parts = processes.each(lambda: build(config, processes))
            data = processes.first(lambda: known_data(parts.task, origin))
            directory = claim(config, origin.directory is not None, processes)
            if processes.leads:
                jobs.note_directory(directory.path)
                data_record.write(directory.path, data)
            if processes.leads and arguments and origin.directory is None:
                directory.note(
                    command=shlex.join(["python", "-m", "memlab.train", *without_place(arguments)])
                )
        except Ended as ended:  # nothing has been begun
            raise SystemExit(128 + ended.signal) from None
        try:
            return _train_in(
                directory, config, parts, signals, processes, began, origin.directory is not None
            )
        except Ended as ended:
            how = f"continue with: {command(arguments, directory.path)}"
            if not processes.leads:
                pass
            elif ended.signal == signal.SIGINT:
                print(
                    f"\nmemlab: interrupted; what was done so far is in {directory.path}\nmemlab: {how}",
                    file=sys.stderr,
                )
            else:
                print(f"memlab: {ended.signal.name}: saved; {how}", file=sys.stderr)
            raise SystemExit(128 + ended.signal) from None
        except DivergedError as error:
            if not processes.leads:
                raise Followed from None
            raise DivergedError(f"{error}. {kept(directory)}") from None
        except OSError as error:
            if error.errno not in _DISK_FULL:
                raise
            how = f"when there is room: {command(arguments, directory.path)}"
            raise UserError(
                f"{error.strerror}: {error.filename or directory.path}. {kept(directory)}; {how}"
            ) from None
        finally:
            directory.release()


def _train_in(
    directory: RunDirectory,
    config: Config,
    parts: Parts,
    signals: Signals,
    processes: Processes,
    began: float,
    continues: bool,
) -> dict[str, Any]:
    """Train in a directory that this process owns, with an MLflow run that ends with this call."""
    checkpoint = processes.first(lambda: go_on(directory) if continues else None)
    if not processes.leads:
        return _run(config, parts, directory, None, signals, processes, began, checkpoint)
    signals.held = True  # otherwise MLflow might have a run that nobody here knows
    tracker = (
        mlflow_run.start(config, config.tracking, directory)
        if isinstance(config.tracking, MLflowTracking)
        else None
    )
    print(f"memlab: {title(config)}, in {directory.path}", file=sys.stderr)
    with mlflow_run.ending(tracker):
        signals.held = False
        signals.leave_if_asked()
        result = _run(config, parts, directory, tracker, signals, processes, began, checkpoint)
    print_summary(result, directory.path, tracker.uri if tracker else None)
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
    conductor = Conductor(config.trainer.stop_at_accuracy, config.trainer.patience)
    lightning = trainer(config, loggers, [clock, *reports, conductor, keeper], processes)
    try:
        lightning.fit(parts.module, parts.stream, parts.validation, ckpt_path=checkpoint, weights_only=True)
        steps = lightning.global_step
        train_seconds, fitted = keeper.seconds()["train_seconds"], time.perf_counter()
        if not config.trainer.validates_after(steps) and not lightning.should_stop:
            # the steps after the last regular validation count too
            lightning.validate(parts.module, parts.validation, verbose=False)
        chosen = processes.each(lambda: read_best(directory))
        sharding.load_weights(parts.module, parts.module.whole(chosen["state_dict"]))
        if config.trainer.test:
            lightning.test(parts.module, parts.test, verbose=False)
    except RuntimeError as error:
        raise processes.lost(error) from None
    if not processes.leads:
        return {}
    seconds = keeper.seconds()["total_seconds"]
    timing = {
        "train_seconds": train_seconds,
        "test_seconds": time.perf_counter() - fitted,
        "total_seconds": seconds,
    }
    logged = read_metrics(directory.metrics)
    result = assemble(
        config,
        parts,
        directory,
        clock,
        steps=steps,
        best_step=chosen["global_step"],
        measured=lightning.callback_metrics,
        logged=logged,
        timing=timing,
        mlflow_run_id=tracker.run_id if tracker else None,
    )
    draw(parts, config, result, logged, directory.figures)
    if tracker:
        mlflow_run.finish(tracker, result, directory)
    directory.write_result(result)
    return result
