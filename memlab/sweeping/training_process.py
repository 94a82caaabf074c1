"""One training of a trial, as a process of its own: started or continued, followed, ended,
and what it left.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from memlab.config import lifetime
from memlab.config.lifetime import DIES_WITH
from memlab.config.starter import TRAINING, Running, Starter

_ENDED = [128 + number for number in lifetime.ENDING if number != signal.SIGINT]  # it saved, and can go on
LAST_LINES = 5  # of its log, kept as the error of a training that failed
_PATIENCE = 120.0  # seconds that a training has to save and end after SIGTERM


@dataclass(frozen=True)
class Ended:
    """How a training ended: `result` if it finished, else `error` in some lines;
    neither = it was asked to end.
    """

    result: dict[str, Any] | None = None
    error: str | None = None


# starts a training: its overrides, a file that its output is appended to, and its environment
Start = Callable[[Sequence[str], Path, Mapping[str, str]], Running]


def starts(command: Sequence[str] | None, starter: Starter | None = None) -> Start:
    """Trainings by a program; None = memlab's own, which share their imports.

    Args:
        starter: of them; None = another one.
    """
    return _forked(starter or Starter(TRAINING)) if command is None else program(command)


def _forked(starter: Starter) -> Start:
    def start(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Running:
        return starter.start("train", words, out=log, environment=environment, session=True)

    return start


def program(command: Sequence[str]) -> Start:
    """Trainings by another program than memlab's own."""

    def start(words: Sequence[str], log: Path, environment: Mapping[str, str]) -> Running:
        with log.open("ab") as out:
            return subprocess.Popen(
                [*command, *words],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                env={**environment, DIES_WITH: str(os.getpid())},
                start_new_session=True,
            )

    return start


class Following:
    """A training that runs, and its validations.

    Args:
        start: starts it in a session of its own: Ctrl-C of the terminal reaches the sweep, which ends its
            trainings in its own way.
        words: its overrides, with `run_dir` and `resume=auto`.
        run_dir: the same directory.
        log: where its output is appended.
        environment: changes to this process's.
        restarts: how often it goes on from its checkpoint if a signal kills it, such as the kernel's for lack
            of memory.
    """

    def __init__(
        self,
        start: Start,
        words: Sequence[str],
        run_dir: Path,
        log: Path,
        environment: Mapping[str, str],
        restarts: int = 3,
    ) -> None:
        self.start, self.words = start, words
        self.run_dir, self.log, self.restarts = run_dir, log, restarts
        self.environment = {**os.environ, **environment}
        self.process: Running | None = None
        self._read = (-1, -1)

    def run(
        self,
        asked: Callable[[], bool],
        validated: Callable[[int, dict[str, float]], bool],
        every: float = 0.2,
    ) -> Ended:
        """Start it and wait for its end.

        Args:
            asked: whether it is to end now, with a checkpoint, to be continued later.
            validated: called once with each validation (step, metrics); True = end it, it is pruned.
            every: seconds between looks.
        """
        seen: set[int] = set()
        how, size = "", 0
        for attempt in range(self.restarts + 1):
            # a worker died between the end of the training and its own next step
            if (result := self._result()) is not None:
                return Ended(result)
            self._wait_for_directory(asked)
            if asked():
                return Ended()
            began, size = time.monotonic(), self.log.stat().st_size if self.log.exists() else 0
            status = self._start_and_follow(asked, validated, seen, every)
            if status is None:
                return Ended()
            if (result := self._result()) is not None:
                return Ended(result)
            if status >= 0 and status not in _ENDED:
                return Ended(
                    error=self._last_lines(size) or f"it ended with status {status} and said nothing"
                )
            how = f"was ended by {signal.Signals(-status if status < 0 else status - 128).name}"
            if attempt < self.restarts:
                self._note(
                    f"memlab.sweep: it {how} after {time.monotonic() - began:.0f} s; it goes on from its "
                    "last checkpoint"
                )
        return Ended(error=f"it {how}, {self.restarts + 1} times; {self._last_lines(size)}".rstrip("; "))

    def _start_and_follow(
        self,
        asked: Callable[[], bool],
        validated: Callable[[int, dict[str, float]], bool],
        seen: set[int],
        every: float,
    ) -> int | None:
        """Its exit status, or None if it was asked to end."""
        self.log.parent.mkdir(parents=True, exist_ok=True)
        self.process = self.start(self.words, self.log, self.environment)
        self._read = (-1, -1)
        try:
            while True:
                status = self.process.poll()
                for step, metrics in self._validations():
                    if step not in seen:
                        seen.add(step)
                        if validated(step, metrics) and status is None:
                            self.end()
                            return None
                if status is not None:
                    return status
                if asked():
                    self.end()
                    return None
                with contextlib.suppress(subprocess.TimeoutExpired):  # its end is seen at once
                    self.process.wait(every)
        finally:
            self._kill()

    def end(self) -> None:
        """Ask it to save and end; kill it if it does not."""
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            self.process.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(_PATIENCE)
        self._kill()

    def _kill(self) -> None:
        """End whatever is left of it, however it ended."""
        if self.process is None:
            return
        if self.process.poll() is None:
            self.process.kill()
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def _validations(self) -> list[tuple[int, dict[str, float]]]:
        """All in `metrics.jsonl`, if it has changed.

        It is read from its beginning: a training that continues cuts it back to its checkpoint.
        """
        file = self.run_dir / "metrics.jsonl"
        try:
            facts = file.stat()
            if (facts.st_mtime_ns, facts.st_size) == self._read:
                return []
            self._read = (facts.st_mtime_ns, facts.st_size)
            lines = file.read_text(encoding="utf-8").splitlines()
        except OSError:
            return []
        found = []
        for line in lines:
            if '"val/' in line:
                with contextlib.suppress(ValueError):  # the last one may be half there
                    metrics = json.loads(line)
                    found.append((int(metrics["step"]), metrics))
        return found

    def _wait_for_directory(self, asked: Callable[[], bool]) -> None:
        """Until no other process works in the run's directory: one whose worker was killed ends a moment
        later.
        """
        from filelock import FileLock, Timeout

        if not self.run_dir.exists():
            return
        deadline = time.monotonic() + _PATIENCE
        while time.monotonic() < deadline and not asked():
            try:
                with FileLock(self.run_dir / ".lock", timeout=0):
                    return
            except Timeout:
                time.sleep(0.1)

    def _result(self) -> dict[str, Any] | None:
        file = self.run_dir / "result.json"
        if not file.exists():
            return None
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found

    def _note(self, line: str) -> None:
        with self.log.open("a", encoding="utf-8") as log:
            log.write(line + "\n")

    def _last_lines(self, after: int) -> str:
        with self.log.open("rb") as log:
            log.seek(after)
            lines = [
                line.strip()
                for line in log.read()[-20_000:].decode(errors="replace").splitlines()
                if line.strip()
            ]
        errors = [line for line in lines if line.startswith("memlab.train: error:")]
        return errors[-1] if errors else "\n".join(lines[-LAST_LINES:])
