"""Ctrl-C, SIGTERM, SIGHUP and SIGUSR1, which ask a run to end.

Ctrl-C ends it at once. After one of the others (from a scheduler that takes the machine back, a terminal that
is closed, or SLURM before the time is over), the run finishes and saves the step in progress. While a run is
ending, another Ctrl-C kills the process immediately, and another of the others changes nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
from types import FrameType
from typing import TYPE_CHECKING, Any, Self

from memlab.config.lifetime import ENDING

if TYPE_CHECKING:
    from memlab.training.processes import Processes


class Ended(BaseException):
    """Someone asked the run to end. Not an Exception, so that error handlers do not catch it.

    Attributes:
        signal: the signal; the process ends with status 128 + signal, as in shells.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal = signal.Signals(number)


class Signals:
    """Handles these signals in a `with` block, except ignored ones, as with `nohup`. Only works in
    the main thread, as Python requires.

    Attributes:
        held: whether all but Ctrl-C wait until `leave_if_asked` or `agree` is called, where the run can end
            without loss.
        prints: whether this process is the one that prints.
    """

    def __init__(self, prints: bool = True) -> None:
        self.held = False
        self.prints = prints
        self.received: int | None = None
        self._process = os.getpid()
        self._before: dict[int, Any] = {}

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            self._before = {
                number: signal.signal(number, self._handle)
                for number in ENDING
                if signal.getsignal(number) != signal.SIG_IGN
            }
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def take_back(self) -> None:
        """Install these handlers again: Lightning's contact other processes at any time."""
        for number in self._before:
            signal.signal(number, self._handle)

    def agree(self, processes: Processes) -> int:
        """The signal that any process has received, or 0; all processes get the same result."""
        return processes.largest(self.received or 0)

    def leave_if_asked(self) -> None:
        """End the run if a signal has been received. Everything has to be saved before.

        Raises:
            Ended: the run was asked to end.
        """
        if self.received is not None:
            raise Ended(self.received)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:  # a worker that was forked from this process; it ends silently
            raise KeyboardInterrupt if number == signal.SIGINT else SystemExit(128 + number)
        if self.received is not None:
            if signal.SIGINT in (number, self.received):  # a person at a keyboard does not want to wait
                signal.signal(number, signal.SIG_DFL)
                os.kill(os.getpid(), number)
            return
        self.received = number
        if number != signal.SIGINT and self.held:
            if self.prints:
                print(
                    f"\nmemlab: {signal.Signals(number).name}: finishing this step and saving it; Ctrl-C "
                    "ends at once",
                    file=sys.stderr,
                    flush=True,
                )
            return
        raise Ended(number)
