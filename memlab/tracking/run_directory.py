"""The directory of a run: the configuration first, then metrics, and `result.json` as the last act.

A directory without `result.json` is a run that did not finish. One process at a time works in a run's
directory: it holds a lock that the operating system takes from it when it dies, however it dies.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml
from filelock import FileLock, Timeout

from memlab.config.sections import Section
from memlab.errors import UserError
from memlab.files import DamagedFileError, read_object, refuse_links, write_whole
from memlab.tracking.resume import LOCK


class RunDirectory:
    """Files of one run. Making it claims the directory, until `release`.

    Args:
        path: where.
        config: becomes `config.yaml`.
        continues: whether the directory holds a run that is to go on; else it must hold none.
        ours: False = another process of the same training has claimed it; this one only reads there.

    Raises:
        UserError: the directory already holds a run (or none, if one is to go on), another process works in
            it, or it cannot be made.
    """

    def __init__(self, path: str | Path, config: Section, continues: bool = False, ours: bool = True) -> None:
        self.path = Path(path).absolute()
        self._reported = False  # whether the damage of run.json has been reported
        self._lock = FileLock(self.path / LOCK)
        if not ours:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            refuse_links(self.path, [LOCK, "metrics.jsonl"])
            self._lock.acquire(timeout=0)
            if not continues and self.config_file.exists():
                self.release()
                raise UserError(
                    f"run_dir={path} already holds a run ({self.config_file}); give another run_dir, or "
                    "resume=auto to continue it"
                )
            if continues and self._has_result():
                self.release()
                raise UserError(f"the run in {path} has been finished by another process at this moment")
            write_whole(self.config_file, yaml.safe_dump(config.model_dump(), sort_keys=False))
        except Timeout:
            raise UserError(
                f"the run in {path} is in use: another process trains it at this moment"
            ) from None
        except OSError as error:
            raise UserError(f"run_dir={path} cannot be used: {error.strerror}") from None

    def _has_result(self) -> bool:
        file = self.path / "result.json"
        try:
            return file.exists() and bool(read_object(file))
        except DamagedFileError:
            return False

    @property
    def config_file(self) -> Path:
        return self.path / "config.yaml"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def release(self) -> None:
        """Release the directory, so that other processes can claim it."""
        self._lock.release()

    def facts(self) -> dict[str, Any]:
        """What a process that continues the run has to know in addition to its checkpoint: `mlflow_run_id`,
        `resumed_at` (steps), and `command`.
        """
        empty: dict[str, Any] = {"mlflow_run_id": None, "resumed_at": [], "command": None}
        file = self.path / "run.json"
        try:
            return {**empty, **read_object(file)} if file.exists() else empty
        except DamagedFileError as error:
            if not self._reported:
                print(f"memlab: warning: {error}; a new MLflow run begins", file=sys.stderr)
            self._reported = True
            return empty

    def note(self, **facts: Any) -> None:
        """Change some of the `facts`."""
        write_whole(self.path / "run.json", json.dumps({**self.facts(), **facts}, indent=2) + "\n")

    def forget_after(self, size: int) -> None:
        """Cut `metrics.jsonl` back to its first bytes: what was logged after a checkpoint comes again.

        Raises:
            UserError: lines are missing that were there when the checkpoint was written.
        """
        there = self.metrics.stat().st_size if self.metrics.exists() else 0
        if there < size:
            raise UserError(
                f"{self.metrics} has {there} bytes, and had {size} when the checkpoint was written: the "
                "validation that chose the best checkpoint may be lost with them. Restore the file, or start "
                "again with another run_dir"
            )
        if self.metrics.exists():
            os.truncate(self.metrics, size)

    def write_result(self, result: dict[str, Any]) -> Path:
        """Write `result.json` in one piece: it is there whole or not at all."""
        target = self.path / "result.json"
        write_whole(target, json.dumps(result, indent=2, allow_nan=False) + "\n")
        return target
