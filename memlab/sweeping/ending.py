"""How a sweep is asked to end: Ctrl-C, SIGTERM, SIGHUP or SIGUSR1, and only where nothing is cut short."""

from __future__ import annotations

import contextlib
import signal
import sys
from types import FrameType
from typing import Any

from memlab.config import lifetime


class Interrupted(BaseException):
    """The sweep was asked to end."""


class Asked:
    """Whether one of `lifetime.ENDING` has come.

    Nothing is raised when it comes: a transaction cut short would leave the storage locked.

    A second Ctrl-C ends this process at once, and everything with it.
    """

    def __init__(self) -> None:
        self.number = 0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Asked:
        self._before = {
            number: signal.signal(number, self._handle)
            for number in lifetime.ENDING
            if signal.getsignal(number) != signal.SIG_IGN  # as nohup asks for SIGHUP
        }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.number = number
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        with contextlib.suppress(RuntimeError):  # it may come while another line is being printed
            print(
                "\nmemlab: the sweep ends as soon as its trainings have saved; Ctrl-C ends it at once",
                file=sys.stderr,
                flush=True,
            )

    def leave(self) -> None:
        """
        Raises:
            Interrupted: it has come.
        """
        if self.number:
            raise Interrupted
