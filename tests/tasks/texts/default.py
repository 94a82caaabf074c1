"""A directory with train/, validation/ and test/, each file a document."""

from pathlib import Path
from typing import Any

import pytest

from tests.text.naive import words, write


def make(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    sizes = {"train": [1, 5, 40, 16, 33, 77], "validation": [15, 34, 8], "test": [41, 6]}
    for seed, (split, lengths) in enumerate(sizes.items()):
        write(place / split, "txt", [[document] for document in words(lengths, seed)])
    return {"data_dir": str(place)}
