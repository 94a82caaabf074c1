"""The splits of a task's data."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "validation", "test"]
Held = Literal["validation", "test"]  # splits that are only evaluated

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
