"""Commands as processes of their own that start in no time: one process has imported everything, and forks.

All that such a process is for stays real: its exit status, its streams, signals, kills and locks. Only the
import of torch, lightning and mlflow is left out, which takes seconds; tests of a command's start use
`subprocess`.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

REPOSITORY = Path(__file__).parents[1]
QUIET = {
    "TORCH_CPP_LOG_LEVEL": "ERROR",
    "KINETO_LOG_LEVEL": "99",
}  # memlab's own, read when torch is imported
LOADED = ("memlab.training.run", "memlab.tracking.mlflow_store", "mlflow", "matplotlib.pyplot", "scipy.stats")


class Process:
    """A command that was started; its methods are those of `subprocess.Popen`.

    Attributes:
        out, err: files with what it prints.
        returncode: negative if a signal ended it; None = it runs.
    """

    def __init__(self, starter: Processes, pid: int, out: Path, err: Path) -> None:
        self._starter = starter
        self.pid, self.out, self.err = pid, out, err
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            self.returncode = self._starter.ask(ended=self.pid)
        return self.returncode

    def wait(self, timeout: float = 240) -> int:
        deadline = time.monotonic() + timeout
        while (status := self.poll()) is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.out), timeout)
            time.sleep(0.01)
        return status

    def communicate(self, timeout: float = 240) -> tuple[str, str]:
        self.wait(timeout)
        return self.out.read_text(), self.err.read_text()

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)


class Processes:
    """Starts commands; ends all that are left when it is closed."""

    def __init__(self) -> None:
        self._started: list[Process] = []
        self._streams = tempfile.TemporaryDirectory()
        self._server = subprocess.Popen(
            [sys.executable, "-m", "tests.processes"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, **QUIET, "PYTHONPATH": str(REPOSITORY)},
        )

    def start(
        self, command: str, *words: str, cwd: Path, log: Path | None = None, **environment: str
    ) -> Process:
        """Begin `python -m memlab.COMMAND WORDS` in a directory.

        Args:
            log: a file that both streams are appended to; None = one for each.
            environment: what differs from this process's.
        """
        place = Path(self._streams.name, str(len(self._started)))
        out, err = (log, log) if log else (place.with_suffix(".out"), place.with_suffix(".err"))
        job = {"cwd": str(cwd), "out": str(out), "err": str(err), "command": command, "words": words}
        pid = self.ask(**job, environment={**os.environ, "PYTHONPATH": str(REPOSITORY), **environment})
        self._started.append(Process(self, pid, out, err))
        return self._started[-1]

    def run(
        self, command: str, *words: str, cwd: Path, **environment: str
    ) -> subprocess.CompletedProcess[str]:
        """The same, and wait until it has ended."""
        process = self.start(command, *words, cwd=cwd, log=None, **environment)
        out, err = process.communicate()
        return subprocess.CompletedProcess([command, *words], process.wait(), out, err)

    def ask(self, **what: Any) -> Any:
        assert self._server.stdin and self._server.stdout
        self._server.stdin.write(json.dumps(what) + "\n")
        self._server.stdin.flush()
        return json.loads(self._server.stdout.readline())

    def close(self) -> None:
        assert self._server.stdin and self._server.stdout
        for process in self._started:
            process.send_signal(signal.SIGKILL)
        self._server.stdin.close()
        self._server.wait(60)
        self._server.stdout.close()
        self._streams.cleanup()


def serve() -> None:
    for name in LOADED:
        importlib.import_module(name)
    import torch

    torch.set_num_threads(1)
    for line in sys.stdin:
        job = json.loads(line)
        if "ended" in job:
            pid, status = os.waitpid(job["ended"], os.WNOHANG)
            print(json.dumps(os.waitstatus_to_exitcode(status) if pid else None), flush=True)
        elif pid := os.fork():
            print(pid, flush=True)
        else:
            run(**job)


def run(command: str, words: list[str], cwd: str, out: str, err: str, environment: dict[str, str]) -> None:
    """In the process that was forked: what `python -m` does."""
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND
    for number, descriptor in enumerate(
        (os.open(os.devnull, os.O_RDONLY), os.open(out, flags), os.open(err, flags))
    ):
        os.dup2(descriptor, number)
    sys.argv = [f"memlab.{command}", *words]
    sys.path[0:0] = [cwd, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    status = 0
    try:
        importlib.import_module(f"memlab.{command}").main()
    except SystemExit as ended:
        if isinstance(ended.code, str):
            print(ended.code, file=sys.stderr)
        status = ended.code if isinstance(ended.code, int) else 1 if ended.code else 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    with contextlib.suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve()
