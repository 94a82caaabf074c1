"""Commands in this process, up to the moment at which their work would begin."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from memlab.config import cli
from memlab.config.jobs import Job


class Begun(BaseException):
    """Nothing was wrong: the job, or the jobs of --multirun, would begin now.

    Attributes:
        jobs: the words of each.
    """

    def __init__(self, config: object = None, jobs: Sequence[Sequence[str]] = ()) -> None:
        super().__init__()
        self.config, self.jobs = config, jobs


class Start:
    """Starts a command in a directory, as a shell would."""

    def __init__(
        self, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        self.place, self.monkeypatch, self.capsys = place, monkeypatch, capsys

        def jobs(
            command: str, words: object, folder: object, found: tuple[Sequence[Job], int], imports: object
        ) -> int:
            raise Begun(jobs=[job.words for job in found[0]])

        monkeypatch.setattr(cli, "_multirun", jobs)
        monkeypatch.chdir(place)

    def begun(self, command: str, *words: str) -> Begun:
        """The command, which has nothing to complain of."""
        module = importlib.import_module(f"memlab.{command}")

        def job(config: object) -> int:
            raise Begun(config)

        self.monkeypatch.setattr(module, "job", job)
        self.monkeypatch.setattr(sys, "argv", [f"memlab.{command}", *words])
        self.monkeypatch.setattr(sys, "stdout", sys.stdout)  # what the command puts around them ends with it
        self.monkeypatch.setattr(sys, "stderr", sys.stderr)
        with pytest.raises(Begun) as begun:
            module.main()
        return begun.value

    def finished(self, command: str, *words: str) -> None:
        """The command, whole; it ends well."""
        module = importlib.import_module(f"memlab.{command}")
        self.monkeypatch.setattr(cli.lifetime, "end_quickly", lambda: None)
        self.monkeypatch.setattr(sys, "argv", [f"memlab.{command}", *words])
        self.monkeypatch.setattr(sys, "stdout", sys.stdout)
        self.monkeypatch.setattr(sys, "stderr", sys.stderr)
        with pytest.raises(SystemExit) as ended:
            module.main()
        assert ended.value.code == 0

    def message(self, command: str, *words: str, job: bool = False) -> str:
        """The one line with which the command refuses its words; nothing is left behind.

        Args:
            job: whether its work may begin and refuse.
        """
        before = sorted(self.place.rglob("*"))
        module = importlib.import_module(f"memlab.{command}")
        if not job:
            self.monkeypatch.setattr(module, "job", lambda config: pytest.fail("the job began"))
        self.monkeypatch.setattr(sys, "argv", [f"memlab.{command}", *words])
        self.monkeypatch.setattr(sys, "stdout", sys.stdout)
        self.monkeypatch.setattr(sys, "stderr", sys.stderr)
        self.capsys.readouterr()
        with pytest.raises(SystemExit) as ended:
            module.main()
        shown = self.capsys.readouterr()
        lines = (shown.out + shown.err).strip().splitlines()
        assert ended.value.code == 2, lines
        assert len(lines) == 1 and lines[0].startswith(f"memlab.{command}: error: "), lines
        assert sorted(self.place.rglob("*")) == before, "nothing is left behind"
        return lines[0].partition(": error: ")[2]
