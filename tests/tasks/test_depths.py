"""Where the fact stands, by the samples alone, against the option that puts it there."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memlab.tasks.base import SyntheticTask
from memlab.tasks.detect_fact import DetectFact
from memlab.tasks.memorize_fact import MemorizeFact
from memlab.tasks.multi_key_needle import MultiKeyNeedle
from memlab.tasks.passkey import Passkey

SIZES: dict[str, Any] = {
    "segment_lengths": None,
    "align": None,
    "batch_size": 4,
    "validation_size": 50,
    "test_size": 70,
}
HAY: dict[str, Any] = {"length": 60, "num_segments": 4, "digits": 3, "fillers": 7, **SIZES}
FACT: dict[str, Any] = {
    "segment_length": 24,
    "length": None,
    "num_segments": 4,
    "noise_dir": None,
    "noise_words": 60,
    **SIZES,
}


def make(name: str, depth: float | None, filler: str) -> SyntheticTask:
    if name == "detect_fact":
        return DetectFact(depth=depth, **FACT)
    if name == "passkey":
        return Passkey(depth=depth, filler=filler, **HAY)  # type: ignore[arg-type]
    return MultiKeyNeedle(depth=depth, filler=filler, needles=3, keys=6, **HAY)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "filler", "places"),
    [
        ("passkey", "repeated", 3 * 17),
        ("passkey", "random", 3 * 17),
        ("multi_key_needle", "random", 3 * 4),
        ("detect_fact", "", 72 - 5),
    ],
)
def test_depth_is_where_the_option_puts_the_fact(name: str, filler: str, places: int) -> None:
    anywhere = make(name, None, filler)
    for depth in (0.0, 0.1, 0.5, 0.77, 1.0):
        found = anywhere.depths(make(name, depth, filler).batch("test", 0, 12))
        assert found is not None and found.shape == (12,)
        assert found == pytest.approx(np.full(12, round(depth * (places - 1)) / (places - 1)))
    spread = anywhere.depths(anywhere.batch("test", 0, 70))
    assert spread is not None and spread.min() >= 0 and spread.max() <= 1 and len(np.unique(spread)) > 8


def test_a_task_with_one_place_does_not_say() -> None:
    task = MemorizeFact(**FACT)
    assert task.depths(task.batch("test", 0, 4)) is None
    one = Passkey(depth=None, filler="repeated", **{**HAY, "length": 5, "num_segments": 2, "digits": 4})
    assert one.depths(one.batch("test", 0, 4)) is None
