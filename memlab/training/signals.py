"""Ctrl-C and SIGTERM: how a run is asked to end, and ends.

Ctrl-C ends it at once. SIGTERM (a scheduler that takes the machine back) lets the step in progress be
finished and saved. While a run is ending, Ctrl-C again kills the process without any ceremony, and SIGTERM
again changes nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from memlab.training.processes import Processes


class Ended(BaseException):
    """Someone asked the run to end. Not an Exception: what mends errors shall not swallow it.

    Attributes:
        signal: which told it so; the process ends with status 128 + signal, as shells write it.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


class Signals:
    """Handles both signals while it is entered; does nothing outside the main thread, where Python allows no
    handlers.

    Attributes:
        held: SIGTERM waits, for who holds it calls `leave_if_asked` or `agree` where the run can be left
            without loss.

    Args:
        told: whether this process is the one that prints.
    """

    def __init__(self, told: bool = True) -> None:
        self.held = False
        self.told = told
        self.received: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._handle) for number in (signal.SIGINT, signal.SIGTERM)
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_back(self) -> None:
        """Handle the signals again, and alone: Lightning's handler for SIGTERM talks to other processes,
        whatever they are doing.
        """
        for number in self._before:
            signal.signal(number, self._handle)

    def agree(self, processes: Processes) -> int:
        """The signal by which any process was asked to end the run as soon as it has saved, or 0;
        all processes get the same answer.
        """
        return processes.largest(self.received or 0)

    def leave_if_asked(self) -> None:
        """All is saved.

        Raises:
            Ended: the run was asked to end.
        """
        if self.received is not None:
            raise Ended(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked from this process; it ends without words
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if self.received is not None:
            if signal.SIGINT in (number, self.received):  # someone at a keyboard does not want to wait
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received = number
        if number == signal.SIGTERM and self.held:
            if self.told:
                print(
                    "\nmemlab: SIGTERM: finishing this step and saving it; Ctrl-C ends at once",
                    file=sys.stderr,
                    flush=True,
                )
            return
        raise Ended(number)
