"""One file of bytes that are not text. The borders of its splits are moved from millions to hundreds."""

import random
from pathlib import Path
from typing import Any

import pytest

from memlab.tasks import enwik8


def make(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.setattr(enwik8, "BORDERS", {"train": (0, 250), "validation": (250, 275), "test": (275, 300)})
    (place / "enwik8").write_bytes(random.Random(1).randbytes(300))
    return {"data_dir": str(place), "part_bytes": 40}
