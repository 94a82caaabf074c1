"""Small texts for the tests of mistakes, and what a mistake says."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tokenizers

from memlab.errors import UserError

SPLITS = ("train", "validation", "test")
LONG = "n" * 300
TEXT = "some text"


LINE = b'{"text": "a"}\n'
MARK = b"\xef\xbb\xbf"  # the byte-order mark of UTF-8


def data(place: Path, **contents: bytes) -> Path:
    """Splits of one file each; `train__x_jsonl` is train/x.jsonl, and replaces the split's file."""
    for split in SPLITS:
        own = {n: c for n, c in contents.items() if n.startswith(split)} or {f"{split}__a_txt": TEXT.encode()}
        for name, content in own.items():
            path = place / name.replace("__", "/").replace("_", ".")
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return place


def message(work: Callable[[], Any]) -> str:
    """What a mistake says, in one line."""
    with pytest.raises(UserError) as caught:
        work()
    assert "\n" not in str(caught.value)
    return str(caught.value)


def saved(place: Path, made: tokenizers.Tokenizer) -> str:
    made.save(str(place / "made.json"))
    return str(place / "made.json")
