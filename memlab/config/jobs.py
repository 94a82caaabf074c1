"""The jobs of `--multirun`: a process for each, one after another.

Signals to this process reach the one that runs, and no other begins.
"""

from __future__ import annotations

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from types import FrameType
from typing import Any

from memlab.config import lifetime

_MULTIRUN = "MEMLAB_MULTIRUN"  # which multirun a process is a job of, and its command line


def announce(command: str, words: Sequence[str]) -> None:
    """Say to the processes that are started from now on that they are jobs of this command."""
    identity = f"{time.strftime('%Y-%m-%d_%H-%M-%S')}-{os.getpid()}"
    os.environ[_MULTIRUN] = shlex.join([identity, "python", "-m", f"memlab.{command}", *words])


def multirun() -> tuple[str, list[str]] | None:
    """The identity and the command line of the multirun that this process is a job of, if it is one."""
    if not (said := os.environ.get(_MULTIRUN)):
        return None
    identity, *words = shlex.split(said)
    return identity, words


class Jobs:
    """Runs them.

    Args:
        options: that stand before the overrides of each job, such as [--config-dir, DIR].

    Attributes:
        failed: a line for each job that ended otherwise than with status 0.
        waiting: the overrides of each that was not begun, or was ended before it was done.
        asked: the signal that asked for the end, or None.
    """

    def __init__(self, command: str, options: Sequence[str] = ()) -> None:
        self.command, self.options = command, options
        self.failed: list[str] = []
        self.waiting: list[str] = []
        self.asked: int | None = None
        self._process: subprocess.Popen[bytes] | None = None
        self._before: dict[int, Any] = {}

    def run(self, overrides: Sequence[str]) -> None:
        """Run one job, unless the end was asked for."""
        words = shlex.join([*self.options, *overrides])
        if self._told():
            self.waiting.append(words)
            return
        print(f"\nmemlab.{self.command} {words}", flush=True)
        if not self._before:  # from the first job on, until `end`
            self._before = {
                number: signal.signal(number, self._handle)
                for number in lifetime.ENDING
                if signal.getsignal(number) != signal.SIG_IGN  # as nohup asks for SIGHUP
            }
        self._process = subprocess.Popen(
            [sys.executable, "-m", f"memlab.{self.command}", *self.options, *overrides]
        )
        if number := self._told():  # while it was being started
            self._pass_on(number)
        status = self._process.wait()
        self._process = None
        if self._told() and status:
            self.waiting.insert(0, words)
        elif status:
            self.failed.append(f"{words} (exit status {status})")

    def end(self) -> int | str:
        """What the process is to end with, when all jobs were given to `run`: 0, a status, or a message."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        told = []
        if self.failed:
            told.append(
                f"memlab.{self.command}: {len(self.failed)} of the jobs failed:\n  "
                + "\n  ".join(self.failed)
            )
        if self.waiting:
            name = signal.Signals(self.asked or signal.SIGTERM).name
            told.append(
                f"memlab.{self.command}: {name}: {len(self.waiting)} of the jobs not done:\n  "
                + "\n  ".join(self.waiting)
            )
        if self.asked is None:
            return told[0] if told else 0
        print("\n".join(told), file=sys.stderr, flush=True)
        return 128 + self.asked

    def _told(self) -> int:
        """The signal by which the end was asked for, or 0. (A call: a signal may come at any moment.)"""
        return self.asked or 0

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.asked = number if self.asked is None else self.asked
        self._pass_on(number)

    def _pass_on(self, number: int) -> None:
        process = self._process
        # the terminal tells Ctrl-C to both
        if process is None or (number == signal.SIGINT and _at_keyboard()):
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(number)


def _at_keyboard() -> bool:
    """Whether this process is in the foreground of a terminal."""
    try:
        return os.tcgetpgrp(0) == os.getpgrp()
    except OSError:
        return False
