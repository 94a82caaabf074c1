"""`metrics.jsonl`: one object for each logged step, floats at full precision."""

from __future__ import annotations

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from memlab.files import read_lines


class JsonlLogger(Logger):
    """Appends {"step": n, "train/loss": ...} lines, each written whole at once;
    a killed run keeps all earlier lines.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path

    @property
    def name(self) -> str:
        return "jsonl"

    @property
    def version(self) -> str:
        return "0"

    @rank_zero_only
    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": step, **metrics}) + "\n")

    def log_hyperparams(self, params: dict[str, Any] | Namespace, *args: Any, **kwargs: Any) -> None:
        """The configuration is in `config.yaml`."""


def read_metrics(path: Path) -> list[dict[str, float]]:
    """All logged steps in order; see `memlab.files.read_lines`."""
    return read_lines(path)
