"""Starts commands in no time: one process has imported everything once, and forks a copy for each of them.

Such a copy is a process of its own, with its own exit status, streams, signals and locks; a crash or a kill
touches no other. Only the import of torch, lightning and mlflow is left out, which takes seconds. Where
processes cannot be forked safely (not on Linux), each command is started as usual.

    starter = Starter(["memlab.training.run"])
    run = starter.start("train", ["model=rmt", "task=reverse"], out=log)    # like subprocess.Popen
    run.wait()

When the starter's owner ends, however it ends, so does all that it started (on Linux).
This file imports no torch.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn, Protocol

from memlab.config import lifetime
from memlab.processors import cores

# what a training imports, and what MLflow's client and the figures import when they are first used
TRAINING = (
    "memlab.training.run",
    "memlab.tracking.mlflow_store",
    "mlflow",
    "matplotlib.pyplot",
    "scipy.stats",
)
FORKS = sys.platform.startswith("linux")
# read when torch is imported: see `launch.find`
_QUIET = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
_THREADS = "OMP_NUM_THREADS"
_REQUESTS, _ANSWERS = "MEMLAB_REQUESTS", "MEMLAB_ANSWERS"  # file descriptors of the conversation


class Running(Protocol):
    """A command that was started: what `subprocess.Popen` and `Forked` have in common.

    Attributes:
        pid: its process id.
        returncode: its exit status, negative if a signal ended it; None until `poll` or `wait` saw its end.
    """

    pid: int
    returncode: Any

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def terminate(self) -> None: ...
    def kill(self) -> None: ...


class Forked:
    """A copy of the starter's process that runs a command."""

    def __init__(self, starter: Starter, pid: int) -> None:
        self._starter = starter
        self.pid = pid
        self.returncode: int | None = None
        self._handle = os.pidfd_open(pid)  # stays this process's, also after its id is given to another

    def poll(self) -> int | None:
        """Its exit status; None while it runs."""
        return self._look(0)

    def wait(self, timeout: float | None = None) -> int:
        """Wait for its end.

        Raises:
            subprocess.TimeoutExpired: it runs for longer than `timeout` seconds.
        """
        status = self._look(None if timeout is None else 1000 * timeout)
        if status is None:
            raise subprocess.TimeoutExpired(f"process {self.pid}", timeout or 0)
        return status

    def send_signal(self, sig: int) -> None:
        """Send it a signal, if it still runs; may be called by a signal handler."""
        if self.returncode is None:
            with contextlib.suppress(ProcessLookupError, OSError):
                signal.pidfd_send_signal(self._handle, sig)

    def terminate(self) -> None:
        self.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def _look(self, milliseconds: float | None) -> int | None:
        if self.returncode is not None:
            return self.returncode
        ended = select.poll()
        ended.register(self._handle, select.POLLIN)
        if not ended.poll(milliseconds):
            return None
        # only its parent learns how it ended; a starter that was killed has taken it along
        status = self._starter.ask(ended=self.pid)
        self.returncode = -signal.SIGKILL if status is None else int(status)
        os.close(self._handle)
        return self.returncode


class Starter:
    """Starts `python -m memlab.COMMAND WORDS`.

    Args:
        modules: that the commands need and that take long to import.
    """

    def __init__(self, modules: Sequence[str]) -> None:
        self._modules = list(modules)
        self._server: subprocess.Popen[bytes] | None = None
        self._requests, self._answers = -1, -1
        self._talking = threading.RLock()
        if FORKS:
            self._begin()  # it imports while its owner does something else

    def start(
        self,
        command: str,
        words: Sequence[str],
        *,
        out: Path | None = None,
        err: Path | None = None,
        cwd: Path | None = None,
        environment: Mapping[str, str] | None = None,
        session: bool = False,
    ) -> Running:
        """Begin a command.

        Args:
            out: a file that its output is appended to, and then it reads no input; None = as of this process.
            err: the same for standard error; None = with the output.
            cwd: its working directory; None = this process's.
            environment: the whole environment; None = this process's.
            session: whether it has a session of its own, so that Ctrl-C of the terminal does not reach it.
        """
        environment = dict(os.environ if environment is None else environment)
        if not FORKS:
            return _as_usual(command, words, out, err, cwd, environment, session)
        job = {
            "command": command,
            "words": list(words),
            "out": None if out is None else str(out),
            "err": None if err is None else str(err),
            "cwd": str(cwd or os.getcwd()),
            "environment": environment,
            "session": session,
        }
        with self._talking:
            pid = self.ask(job=job)
            if pid is None:  # it was killed: another one takes its place
                self._begin()
                pid = self.ask(job=job)
        if pid is None:
            raise RuntimeError(
                f"the process that starts memlab.{command} has ended with status {self._status()}"
            )
        return Forked(self, int(pid))

    def ask(self, **request: Any) -> int | None:
        """The server's answer; None = there is no server any more."""
        with self._talking:
            if self._server is None:
                return None
            try:
                _write(self._requests, json.dumps(request).encode() + b"\n")
                line = _read_line(self._answers)
            except OSError:
                line = b""
            if not line:
                self._end()
                return None
            answer: int = json.loads(line)
            return answer

    def close(self) -> None:
        """End the server, and with it all that it started."""
        self._end()

    def _begin(self) -> None:
        self._end()
        theirs, self._requests = os.pipe()
        self._answers, answers = os.pipe()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "memlab.config.starter", *self._modules],
            pass_fds=(theirs, answers),
            env={
                **_QUIET,
                **os.environ,
                _REQUESTS: str(theirs),
                _ANSWERS: str(answers),
                lifetime.DIES_WITH: str(os.getpid()),
            },
        )
        os.close(theirs)
        os.close(answers)

    def _status(self) -> int | None:
        return None if self._server is None else self._server.poll()

    def _end(self) -> None:
        if self._server is None:
            return
        server, self._server = self._server, None
        os.close(self._requests)
        os.close(self._answers)
        server.kill()  # what it started ends with it, before it is gone
        server.wait()


def _as_usual(
    command: str,
    words: Sequence[str],
    out: Path | None,
    err: Path | None,
    cwd: Path | None,
    environment: dict[str, str],
    session: bool,
) -> subprocess.Popen[bytes]:
    """Begin a command in a new Python process."""
    with contextlib.ExitStack() as files:
        stdout = None if out is None else files.enter_context(out.open("ab"))
        stderr = files.enter_context(err.open("ab")) if err else None if out is None else subprocess.STDOUT
        return subprocess.Popen(
            [sys.executable, "-m", f"memlab.{command}", *words],
            stdin=None if out is None else subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            cwd=cwd,
            env={**environment, lifetime.DIES_WITH: str(os.getpid())},
            start_new_session=session,
        )


def serve(modules: Sequence[str]) -> None:
    """Import modules, then answer requests until there are no more."""
    lifetime.end_with_starter()
    requests, answers = (int(os.environ.pop(name)) for name in (_REQUESTS, _ANSWERS))
    # a terminal sends these to all its processes, and this one has to outlive those it has started
    before = {number: signal.getsignal(number) for number in lifetime.ENDING}
    for number in lifetime.ENDING:
        signal.signal(number, signal.SIG_IGN)
    for name in modules:
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # a collection in a copy would write to, and so copy, every page
    while line := _read_line(requests):
        request = json.loads(line)
        if "ended" in request:
            _, status = os.waitpid(request["ended"], 0)
            answer = os.waitstatus_to_exitcode(status)
        else:
            parent = os.getpid()
            answer = os.fork()
            if not answer:
                os.close(requests)
                os.close(answers)
                for number, handler in before.items():
                    signal.signal(number, handler)
                lifetime.end_with(parent)
                _become(**request["job"])
        _write(answers, json.dumps(answer).encode() + b"\n")


def _become(
    command: str,
    words: list[str],
    out: str | None,
    err: str | None,
    cwd: str,
    environment: dict[str, str],
    session: bool,
) -> NoReturn:
    """In the copy: what `python -m` does."""
    status = 1
    try:
        if session:
            os.setsid()
        os.chdir(cwd)
        before = os.environ.get(_THREADS)
        os.environ.clear()
        os.environ.update(environment)
        if (threads := environment.get(_THREADS)) != before and (torch := sys.modules.get("torch")):
            torch.set_num_threads(int(threads) if threads else cores())  # read when it was imported
        if out is not None:
            flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            os.dup2(os.open(out, flags), 1)
            os.dup2(1 if err is None else os.open(err, flags), 2)
        sys.argv = [f"memlab.{command}", *words]
        sys.path[:1] = [cwd]  # where `python -m` looks first
        for place in reversed(environment.get("PYTHONPATH", "").split(os.pathsep)):
            if place and place not in sys.path:
                sys.path.insert(1, place)
        importlib.import_module(f"memlab.{command}").main()
        status = 0
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    with contextlib.suppress(BaseException):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


def _write(to: int, line: bytes) -> None:
    while line:
        line = line[os.write(to, line) :]


def _read_line(source: int) -> bytes:
    """The next line, or b"" at the end. (Byte by byte: nothing is held back from a later `fork`.)"""
    line = b""
    while not line.endswith(b"\n"):
        byte = os.read(source, 1)
        if not byte:
            return b""
        line += byte
    return line


if __name__ == "__main__":
    serve(sys.argv[1:])
