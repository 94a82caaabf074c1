"""Commands as processes of their own that start in no time: forks of one that has imported everything.

All that such a process is for stays real: its exit status, its streams, signals, kills and locks. Only the
import of torch, lightning and mlflow is left out, which takes seconds; tests of a command's start use
`subprocess`.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

from memlab.config.starter import TRAINING, Running, Starter

REPOSITORY = Path(__file__).parents[1]


class Process:
    """A command that was started; its methods are those of `subprocess.Popen`.

    Attributes:
        running: as the starter gives it.
        out, err: files with what it prints.
    """

    def __init__(self, running: Running, out: Path, err: Path) -> None:
        self.running = running
        self.pid, self.out, self.err = running.pid, out, err
        self.poll, self.send_signal = running.poll, running.send_signal

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def wait(self, timeout: float = 240) -> int:
        return self.running.wait(timeout)

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()


class Processes:
    """Starts commands; ends all that are left when it is closed."""

    def __init__(self, modules: Sequence[str] = TRAINING) -> None:
        self._streams = tempfile.TemporaryDirectory()
        self._count = 0
        self.starter = Starter(modules)

    def start(
        self, command: str, *words: str, cwd: Path, log: Path | None = None, **environment: str
    ) -> Process:
        """Begin `python -m memlab.COMMAND WORDS` in a directory.

        Args:
            log: a file that both streams are appended to; None = one for each.
            environment: what differs from this process's.
        """
        place = Path(self._streams.name, str(self._count))
        self._count += 1
        out, err = (log, log) if log else (place.with_suffix(".out"), place.with_suffix(".err"))
        running = self.starter.start(
            command,
            words,
            out=out,
            err=err,
            cwd=cwd,
            environment={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment},
        )
        return Process(running, out, err)

    def run(
        self, command: str, *words: str, cwd: Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """The same, and wait until it has ended."""
        process = self.start(command, *words, cwd=cwd, log=None, **environment)
        out, err = process.communicate()
        return subprocess.CompletedProcess([command, *words], process.wait(), out, err)

    def close(self) -> None:
        self.starter.close()
        self._streams.cleanup()
