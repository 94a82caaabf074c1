"""The directory of a run: the configuration first, metrics while it goes, and `result.json` as the last act.

A directory without `result.json` is a run that did not finish.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import yaml

from memlab.config import Config
from memlab.errors import UserError


class RunDirectory:
    """Files of one run. Making it claims the directory: two runs never share one.

    Raises:
        UserError: the directory already holds a run, or cannot be made.
    """

    def __init__(self, path: str | Path, config: Config) -> None:
        self.path = Path(path).absolute()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            with (self.path / "config.yaml").open("x", encoding="utf-8") as file:
                yaml.safe_dump(config.model_dump(), file, sort_keys=False)
        except FileExistsError:
            raise UserError(f"run_dir={path} already holds a run ({self.path / 'config.yaml'}); give another run_dir") from None
        except OSError as error:
            raise UserError(f"run_dir={path} cannot be used: {error.strerror}") from None

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def figures(self) -> Path:
        return self.path / "figures"

    def write_result(self, result: dict[str, Any]) -> Path:
        """Write `result.json` in one piece: it is there whole or not at all."""
        target = self.path / "result.json"
        partial = target.with_suffix(".json.partial")
        with partial.open("w", encoding="utf-8") as file:
            json.dump(result, file, indent=2, allow_nan=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        partial.replace(target)
        return target
