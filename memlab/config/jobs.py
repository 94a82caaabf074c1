"""The jobs of `--multirun`: a process for each, `jobs=N` of them at a time.

One process imports what they need and starts them all (see `starter.py`). They are isolated from each other:
a run that fails, or that the kernel kills for lack of memory, touches no other. Signals to this process reach
those that run, and no other begins. One at a time, they print as if they were started by hand; several at a
time, each has a file for its output, and one table shows them all.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from hydra.core.override_parser.types import Override

from memlab.config import lifetime
from memlab.config.override_file import word
from memlab.config.starter import Running, Starter
from memlab.errors import ConfigError
from memlab.processors import cores, gpus
from memlab.terminal.runs_table import Row, RunsTable

_MULTIRUN = "MEMLAB_MULTIRUN"  # which multirun a process is a job of, and its command line
_NOTE = "MEMLAB_JOB_NOTE"  # a file in which a job names its run directory
_RESTARTS = 3  # how often a run goes on from its checkpoint after it was killed, as for lack of memory
_SHOWN_EVERY = 1.0  # seconds


def announce(command: str, words: Sequence[str]) -> str:
    """Say to the processes that are started from now on that they are jobs of this command.

    Returns:
        The identity of this multirun.
    """
    identity = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"
    os.environ[_MULTIRUN] = shlex.join([identity, "python", "-m", f"memlab.{command}", *words])
    return identity


def multirun() -> tuple[str, list[str]] | None:
    """The identity and the command line of the multirun that this process is a job of, if it is one."""
    if not (said := os.environ.get(_MULTIRUN)):
        return None
    identity, *words = shlex.split(said)
    return identity, words


def note_directory(directory: Path) -> None:
    """Called by a job: where its run is."""
    if (note := os.environ.get(_NOTE)) is not None:
        with contextlib.suppress(OSError):  # what the table shows depends on it, the run does not
            Path(note).write_text(str(directory), encoding="utf-8")


def at_once(given: Sequence[Override], multirun: bool) -> tuple[int, list[Override]]:
    """How many jobs run at a time, by the key `jobs`, and the other overrides.

    Raises:
        ConfigError: it is no positive number, or there is one job.
    """
    said = [override for override in given if override.key_or_group == "jobs"]
    if not said:
        return 1, list(given)
    number = None if said[0].is_sweep_override() else said[0].value()
    if not isinstance(number, int) or isinstance(number, bool) or number < 1:
        raise ConfigError(
            f"{said[0].input_line}: jobs is one number, 1 or more: how many runs of --multirun go on at once"
        )
    if not multirun:
        raise ConfigError(f"{said[0].input_line}: this is one run; several at a time need --multirun")
    return number, [override for override in given if override.key_or_group != "jobs"]


def with_threads(every: Sequence[Job], at_once: int) -> list[Job]:
    """The jobs with the processor's cores dealt out among those that run at a time; says so in a line.

    Runs that have their own `trainer.threads` keep it.
    """
    each = max(1, cores() // at_once)
    dealt = []
    for job in every:
        mine = "threads" in job.trainer and job.trainer["threads"] is None and at_once > 1
        dealt.append(Job([*job.words, f"trainer.threads={each}"], job.trainer) if mine else job)
    if any(before is not after for before, after in zip(every, dealt, strict=True)):
        print(f"memlab: trainer.threads={each} for each run: {cores()} cores, {at_once} runs at a time")
    return dealt


@dataclass
class Job:
    """One command line of a multirun.

    Attributes:
        words: its overrides.
        trainer: the section of its configuration, if it has one.
    """

    words: list[str]
    trainer: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Run:
    """A job that was begun."""

    job: Job
    number: int
    slot: int
    process: Running
    note: Path
    log: Path | None
    began: float
    restarts: int = 0

    @property
    def directory(self) -> Path | None:
        with contextlib.suppress(OSError):
            if said := self.note.read_text(encoding="utf-8"):
                return Path(said)
        return None


class Jobs:
    """Runs them.

    Args:
        command: of memlab.
        options: that stand before the overrides of each job, such as [--config-dir, DIR].
        at_once: N, how many run at a time.
        logs: a directory for their output, if N > 1.
        modules: what a job imports first.

    Attributes:
        failed: a line for each job that ended with another status than 0.
        waiting: the overrides of each that has not begun, or was ended before it was done.
        asked: the signal that requested the end, or None.
    """

    def __init__(
        self,
        command: str,
        options: Sequence[str] = (),
        at_once: int = 1,
        logs: Path | None = None,
        modules: Sequence[str] = (),
    ) -> None:
        self.command, self.options, self.at_once = command, list(options), at_once
        self.logs = logs if at_once > 1 else None
        self.failed: list[str] = []
        self.waiting: list[str] = []
        self.asked: int | None = None
        self._modules = modules
        self._running: list[_Run] = []
        self._rows: list[Row] = []

    def run(self, jobs: Sequence[Job]) -> int | str:
        """Run all; returns what the process is to end with: 0, a status, or a message."""
        before = {
            number: signal.signal(number, self._handle)
            for number in lifetime.ENDING
            if signal.getsignal(number) != signal.SIG_IGN  # as nohup asks for SIGHUP
        }
        starter = Starter(self._modules)
        try:
            with tempfile.TemporaryDirectory(prefix="memlab-jobs-") as notes:
                self._run(starter, list(jobs), Path(notes))
        finally:
            starter.close()
            for number, handler in before.items():
                signal.signal(number, handler)
        return self._told_at_end()

    def _run(self, starter: Starter, jobs: list[Job], notes: Path) -> None:
        shares = gpus() if any(job.trainer.get("accelerator") == "gpu" for job in jobs) else []
        free = list(range(self.at_once))[::-1]
        self._rows = [Row(self._named(job, jobs), job.trainer.get("max_steps")) for job in jobs]
        table = RunsTable(self._rows) if self.at_once > 1 else None
        if self.logs is not None:
            self.logs.mkdir(parents=True, exist_ok=True)
            print(f"memlab.{self.command}: the output of each run is in {self.logs}", flush=True)
        left, shown = list(enumerate(jobs)), 0.0
        with table or contextlib.nullcontext():
            while left or self._running:
                while left and free and not self._ending():
                    number, job = left.pop(0)
                    self._start(starter, job, number, free.pop(), notes, shares)
                if self._ending():
                    self.waiting += [self._line(job) for _, job in left]
                    left.clear()
                for run, status in self._over():
                    self._running.remove(run)
                    if not self._continued(starter, run, status, notes, shares):
                        free.append(run.slot)
                        self._ended(run, status)
                if table is not None and time.monotonic() - shown > _SHOWN_EVERY:
                    for run in self._running:
                        _look(run, self._rows[run.number])
                    table.update()
                    shown = time.monotonic()
            if table is not None:
                table.update()

    def _over(self) -> list[tuple[_Run, int]]:
        """The runs that have ended, after waiting for a moment; if there is one at a time, for its end."""
        if self.at_once == 1:
            return [(run, run.process.wait()) for run in self._running]
        found = [(run, status) for run in self._running if (status := run.process.poll()) is not None]
        if not found:
            time.sleep(0.05)
        return found

    def _start(
        self,
        starter: Starter,
        job: Job,
        number: int,
        slot: int,
        notes: Path,
        shares: Sequence[str],
        again: Path | None = None,
        restarts: int = 0,
    ) -> None:
        """Begin a job, or let the run in a directory go on."""
        words = [*self.options, *job.words]
        if again is not None:
            words = [w for w in words if w.partition("=")[0] not in ("resume", "run_dir")]
            words.append(word("resume", again))
        log = None if self.logs is None else self.logs / f"{number + 1}.log"
        if log is None and not restarts:
            print(f"\nmemlab.{self.command} {shlex.join(words)}", flush=True)
        note = notes / str(number)
        environment = {**os.environ, _NOTE: str(note)}
        if shares and self.at_once > 1:
            environment["CUDA_VISIBLE_DEVICES"] = shares[slot % len(shares)]
        process = starter.start(self.command, words, out=log, environment=environment)
        self._running.append(_Run(job, number, slot, process, note, log, time.monotonic(), restarts))
        row = self._rows[number]
        row.state, row.began = "running", row.began or time.monotonic()
        if number_asked := self._ending():  # while it was being started
            self._pass_on(number_asked)

    def _continued(
        self, starter: Starter, run: _Run, status: int, notes: Path, shares: Sequence[str]
    ) -> bool:
        """Whether a run that was killed goes on."""
        if (
            status != -signal.SIGKILL
            or self._ending()
            or run.restarts == _RESTARTS
            or self.command != "train"
        ):
            return False
        directory = run.directory
        how = "it begins again" if directory is None else "it goes on from its last checkpoint"
        said = f"memlab.train: {self._line(run.job)}: killed; {how}"
        print(said, file=sys.stderr, flush=True)
        if run.log is not None:
            with run.log.open("a", encoding="utf-8") as log:
                log.write(said + "\n")
        self._start(starter, run.job, run.number, run.slot, notes, shares, directory, run.restarts + 1)
        return True

    def _ended(self, run: _Run, status: int) -> None:
        row, words = self._rows[run.number], self._line(run.job)
        _look(run, row)
        row.ended = time.monotonic()
        if not status:
            row.state = "done"
        elif self._ending():
            row.state = "stopped"
            self.waiting.append(words)
        else:
            row.state = "failed"
            how = f"exit status {status}" if status > 0 else f"ended by {signal.Signals(-status).name}"
            said = f"{words} ({how})"
            if run.log is not None:
                said += f"\n    {_last_line(run.log)}\n    {run.log}"
            self.failed.append(said)

    def _line(self, job: Job) -> str:
        return shlex.join([*self.options, *job.words])

    def _named(self, job: Job, jobs: Sequence[Job]) -> str:
        """The overrides that not all jobs have."""
        own = [word for word in job.words if not all(word in other.words for other in jobs)]
        return " ".join(word for word in own if not word.startswith("run_dir=")) or self._line(job)

    def _told_at_end(self) -> int | str:
        lines = []
        if self.failed:
            lines.append(
                f"memlab.{self.command}: {len(self.failed)} of the jobs failed:\n  "
                + "\n  ".join(self.failed)
            )
        if self.waiting:
            name = signal.Signals(self.asked or signal.SIGTERM).name
            lines.append(
                f"memlab.{self.command}: {name}: {len(self.waiting)} of the jobs not done:\n  "
                + "\n  ".join(self.waiting)
            )
        if self.asked is None:
            return lines[0] if lines else 0
        print("\n".join(lines), file=sys.stderr, flush=True)
        return 128 + self.asked

    def _ending(self) -> int:
        """The signal that requested the end, or 0. (A call: a signal may come at any moment.)"""
        return self.asked or 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = number if self.asked is None else self.asked
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        if number == signal.SIGINT and _at_keyboard():
            return  # the terminal sends Ctrl-C to all
        for run in list(self._running):
            with contextlib.suppress(ProcessLookupError):
                run.process.send_signal(number)


def _look(run: _Run, row: Row) -> None:
    """What a run has logged last."""
    directory = run.directory
    if directory is None:
        return
    try:
        with (directory / "metrics.jsonl").open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - 20_000))
            lines = file.read().splitlines()
    except OSError:
        return
    for line in reversed(lines):
        with contextlib.suppress(ValueError):  # the last line may be half there, the first one cut
            found = json.loads(line)
            row.step = max(row.step, int(found["step"]))
            for name in ("val/accuracy", "val/bits_per_byte"):
                if name in found:
                    row.score, row.stage = float(found[name]), found.get("val/stage")
                    return


def _last_line(log: Path) -> str:
    with contextlib.suppress(OSError):
        lines = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line]
        errors = [line for line in lines if ": error: " in line]
        if lines:
            return (errors or lines)[-1]
    return "it said nothing"


def _at_keyboard() -> bool:
    """Whether this process is in the foreground of a terminal."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
