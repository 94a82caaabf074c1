"""In what sizes a task comes to a curriculum: what grows, what stays,
and that the last stage is the task itself.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memlab.errors import ConfigError
from memlab.tasks import growth
from memlab.tasks.associative_retrieval import AssociativeRetrieval
from memlab.tasks.mqar import MQAR
from memlab.tasks.passkey import Passkey
from memlab.tasks.reverse import Reverse

SIZES: dict[str, Any] = {"segment_lengths": None, "batch_size": 4, "validation_size": 4, "test_size": 4}


def reverse(length: int = 24, num_segments: int = 4, align: Any = None) -> Reverse:
    return Reverse(length=length, symbols=10, num_segments=num_segments, align=align, **SIZES)


def cuts(stages: tuple[Any, ...]) -> list[tuple[int, tuple[int, ...]]]:
    return [(stage.length, stage.segment_lengths) for stage in stages]


def test_by_segments_the_segments_keep_their_length() -> None:
    stages = growth.stages(reverse(), "segments", None)
    assert cuts(stages) == [(6, (12,)), (12, (12, 12)), (18, (12,) * 3), (24, (12,) * 4)]


def test_by_length_the_segments_keep_their_length_and_the_length_is_halved() -> None:
    """5 and 10 do not fill their segments."""
    task = reverse(length=20, num_segments=5)
    assert cuts(growth.stages(task, "length", None)) == [(5, (8, 2)), (10, (8, 8, 4)), (20, (8,) * 5)]
    assert cuts(growth.stages(reverse(align="right"), "length", [8, 24])) == [(8, (4, 12)), (24, (12,) * 4)]


def test_by_segment_length_their_number_stays() -> None:
    """3 symbols and 2 are left out: 6 tokens do not divide into 4, and there are too few samples of 2."""
    assert cuts(growth.stages(reverse(), "segment_length", None)) == [
        (6, (3,) * 4),
        (12, (6,) * 4),
        (24, (12,) * 4),
    ]


def test_the_two_ways_by_length_differ_but_for_the_task_itself() -> None:
    fixed, stretched = (growth.stages(reverse(), by, [12, 24]) for by in ("length", "segment_length"))
    assert [s.length for s in fixed] == [s.length for s in stretched]
    assert [s.num_segments for s in fixed] == [2, 4] and [s.num_segments for s in stretched] == [4, 4]
    for stages in (fixed, stretched):
        batch = stages[0].batch("train", 0, 3)
        assert batch.tokens_BT.shape == (3, 24) and sum(batch.segment_lengths) == 24


def test_chosen_numbers_of_segments() -> None:
    assert [s.num_segments for s in growth.stages(reverse(), "segments", [1, 2, 4])] == [1, 2, 4]


@pytest.mark.parametrize("by", ["segments", "length", "segment_length"])
def test_the_last_stage_is_the_task(by: Any) -> None:
    tasks = [
        reverse(),
        Passkey(
            digits=3, depth=None, filler="random", fillers=20, length=32, num_segments=3, align=None, **SIZES
        ),
        MQAR(queries=2, keys=32, values=32, distractors=0, length=8, num_segments=3, align=None, **SIZES),
        AssociativeRetrieval(keys=26, ask="value", queries=2, length=4, num_segments=3, align=None, **SIZES),
    ]
    for task in tasks:
        stages = growth.stages(task, by, None)
        assert len(stages) > 1 and [s.tokens for s in stages] == sorted({s.tokens for s in stages})
        for stage in stages:
            assert sum(stage.segment_lengths) == stage.tokens and stage.vocab_size == task.vocab_size
            assert (
                stage.num_segments == task.num_segments
                if by == "segment_length"
                else max(stage.segment_lengths) <= max(task.segment_lengths)
            )
        last, whole = stages[-1].batch("train", 5, 4), task.batch("train", 5, 4)
        assert (
            np.array_equal(last.tokens_BT, whole.tokens_BT) and last.segment_lengths == whole.segment_lengths
        )


def test_a_question_keeps_its_segment() -> None:
    task = Passkey(
        digits=3, depth=None, filler="random", fillers=20, length=32, num_segments=3, align=None, **SIZES
    )
    assert cuts(growth.stages(task, "length", [8, 24, 32])) == [
        (8, (8, 3)),
        (24, (16, 8, 3)),
        (32, (16, 16, 3)),
    ]
    assert cuts(growth.stages(task, "segment_length", [8, 32])) == [(8, (4, 4, 3)), (32, (16, 16, 3))]


@pytest.mark.parametrize(
    ("task", "by", "sizes", "words"),
    [
        (reverse(), "task", [1, 4], ["curriculum.sizes=[1, 4]", "stages of its own"]),
        (reverse(), "segments", [1, 3], ["curriculum.sizes=[1, 3]", "task.num_segments=4"]),
        (reverse(), "segments", [2, 1, 4], ["curriculum.sizes=[2, 1, 4]", "have to grow"]),
        (reverse(), "length", [12], ["task.length=24"]),
        (reverse(), "segment_length", [7, 24], ["curriculum.sizes=[7, 24]", "do not divide"]),
        (reverse(), "length", [1, 24], ["curriculum.sizes=[1, 24]", "different samples"]),
        (
            reverse(12, 1).resized(12, [10, 14]),
            "length",
            None,
            ["curriculum.by=length", "not equal", "curriculum=off"],
        ),
        (
            reverse(12, 1).resized(12, [10, 14]),
            "segments",
            None,
            ["curriculum.by=segments", "not equal", "curriculum=off"],
        ),
    ],
)
def test_a_task_that_does_not_grow_so_is_a_mistake(
    task: Any, by: Any, sizes: list[int] | None, words: list[str]
) -> None:
    with pytest.raises(ConfigError) as error:
        growth.stages(task, by, sizes)
    assert all(word in str(error.value) for word in words), error.value
