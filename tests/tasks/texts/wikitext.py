"""The published files, one for each split, with an article under each heading of the first level."""

from pathlib import Path
from typing import Any

import pytest

from tests.text.naive import words


def make(place: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    for seed, (split, articles) in enumerate({"train": 5, "valid": 3, "test": 2}.items()):
        texts = [
            f" = Article {number} of {split} = \n \n {text.strip()} . \n \n"
            for number, text in enumerate(words([12 + 9 * n for n in range(articles)], seed))
        ]
        (place / f"{split}.txt").write_text(" \n" + "".join(texts), encoding="utf-8")
    return {"data_dir": str(place)}
