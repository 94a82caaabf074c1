"""The splits of all data."""

from __future__ import annotations

from typing import Literal

Split = Literal["train", "validation", "test"]
Held = Literal["validation", "test"]  # those that are only evaluated

SPLITS: tuple[Split, ...] = ("train", "validation", "test")
