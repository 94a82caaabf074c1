"""Passkey against a plain description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memlab.errors import ConfigError
from memlab.tasks.passkey import Passkey
from tests.tasks.promises import check_shapes, check_splits_cover, near, whole

MARKER, QUESTION, FILLER = 10, 11, 12
OWN = {"length": 60, "num_segments": 4, "digits": 5, "depth": None, "filler": "repeated", "fillers": 7}
COMMON = {"segment_lengths": None, "align": None, "batch_size": 4, "validation_size": 50, "test_size": 70}


def make(**changes: Any) -> Passkey:
    return Passkey(**(OWN | COMMON | changes))


def oracle(tokens: list[int], digits: int) -> list[int]:
    """The digits after the marker."""
    at = tokens.index(MARKER)
    return tokens[at + 1 : at + 1 + digits]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    "changes", [{}, {"filler": "random"}, {"digits": 1}, {"depth": 0.5}, {"num_segments": 1}, {"fillers": 1}]
)
def test_a_sample_is_filler_with_one_announcement_then_the_question_then_the_digits(
    changes: dict[str, Any], split: Any
) -> None:
    task = make(**changes)
    digits, length, fillers = task.digits, task.length, task.fillers
    assert task.tokens == length + digits and task.answer_tokens == digits and task.vocab_size == 12 + fillers
    places = set()
    for row in whole(task.batch(split, 3, 40)).tolist():
        haystack, question, answer = row[:length], row[length], row[length + 1 :]
        assert question == QUESTION and len(answer) == digits and all(0 <= digit <= 9 for digit in answer)
        assert haystack.count(MARKER) == 1 and oracle(haystack, digits) == answer
        at = haystack.index(MARKER)
        places.add(at)
        rest = [(i, token) for i, token in enumerate(haystack) if not at <= i <= at + digits]
        assert all(FILLER <= token < FILLER + fillers for _, token in rest)
        repeats = all(token == FILLER + i % fillers for i, token in rest)
        assert repeats == (task.filler == "repeated" or fillers == 1)
    assert (len(places) == 1) == (task.depth is not None)


@pytest.mark.parametrize(
    ("changes", "contexts"),
    [
        ({}, [(0, 20), (20, 40), (40, 60)]),
        ({"num_segments": 1}, [(0, 60)]),
        ({"num_segments": 8, "align": "left"}, [(i, min(i + 9, 60)) for i in range(0, 60, 9)]),
        ({"num_segments": 8, "align": "right"}, [(0, 6), *((i, i + 9) for i in range(6, 60, 9))]),
        # the last segment holds filler too, but no announcement
        ({"segment_lengths": [13, 20, 32]}, [(0, 13), (13, 33)]),
        # the segment before the last holds the question's beginning too
        ({"segment_lengths": [30, 32, 3]}, [(0, 30), (30, 60)]),
        ({"segment_lengths": [4, 56, 5]}, [(4, 60)]),  # the first is too short
    ],
)
def test_an_announcement_is_anywhere_in_one_segment_but_the_last(
    changes: dict[str, Any], contexts: list[tuple[int, int]]
) -> None:
    task = make(**changes)
    places = {row.index(MARKER) for row in whole(task.batch("train", 0, 2000)).tolist()}
    assert places == {at for begin, end in contexts for at in range(begin, end - 5)}
    ends = np.cumsum(task.segment_lengths)
    assert all(np.searchsorted(ends, at, "right") == np.searchsorted(ends, at + 5, "right") for at in places)


def test_places_are_uniform() -> None:
    rows = whole(make().batch("train", 0, 9000))
    counts = np.unique((rows == MARKER).argmax(axis=1), return_counts=True)[1]
    assert len(counts) == 45 and all(near(count / 9000, 1 / 45, 9000) for count in counts)


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (1.0, 54), (0.5, 27), (0.25, 11)])
def test_depth_says_where_among_the_possible_places(depth: float, place: int) -> None:
    """Of 45 places: 0 .. 14, 20 .. 34, 40 .. 54."""
    assert {row.index(MARKER) for row in whole(make(depth=depth).batch("test", 0, 50)).tolist()} == {place}


@pytest.mark.parametrize("filler", ["repeated", "random"])
def test_who_sees_only_the_last_segment_scores_chance(filler: str) -> None:
    """Guessing each digit as what most often stands there, and after the digit before it;
    the guess is made on other samples.
    """
    rows = whole(make(filler=filler).batch("train", 0, 8000))[:, -6:]
    learned, tested = rows[:4000], rows[4000:]
    for digit in range(1, 6):
        table = np.zeros((12, 10))
        np.add.at(table, (learned[:, digit - 1], learned[:, digit]), 1)
        assert near(
            (table.argmax(axis=1)[tested[:, digit - 1]] == tested[:, digit]).mean(), make().chance, 4000
        )


def test_distinct_counts_the_contents() -> None:
    assert make().distinct == 45 * 10**5
    assert make(depth=0.3).distinct == 10**5
    assert make(digits=1, filler="random", fillers=3).distinct == 57 * 10 * 3**58
    tiny = make(digits=1, length=5, num_segments=1, filler="random", fillers=2)
    assert tiny.distinct == 4 * 10 * 2**3
    check_splits_cover(tiny, 8000)
    tiny = make(digits=2, length=8, num_segments=3)
    assert tiny.distinct == 4 * 100
    check_splits_cover(tiny, 8000)


def test_the_haystack_grows_by_segments_up_to_the_task_itself() -> None:
    task = make()
    assert [stage.segment_lengths for stage in task.stages()] == [(20, 5), (20, 20, 5), (20, 20, 20, 5)]
    assert (whole(task.stages()[-1].batch("test", 0, 20)) == whole(task.batch("test", 0, 20))).all()
    longer = make(depth=0.5, filler="random").at(9)
    assert longer.segment_lengths == (20,) * 8 + (5,) and longer.length == 160
    assert longer.options() == {"digits": 5, "depth": 0.5, "filler": "random", "fillers": 7}
    check_shapes(longer)
    assert make(num_segments=1).stages()[0].segment_lengths == (65,)
    # a haystack of 20 has too few different samples, 19 places * 10 digits
    one = make(digits=1).stages(one_answer=True)
    assert [(stage.answer_tokens, stage.segment_lengths) for stage in one] == [
        (1, (20, 20, 1)),
        (1, (20, 20, 20, 1)),
    ]


@pytest.mark.parametrize("changes", [{"segment_lengths": [13, 20, 32]}, {"num_segments": 8, "align": "left"}])
def test_unequal_segments_do_not_say_how_to_grow(changes: dict[str, Any]) -> None:
    for grow in (make(**changes).stages, lambda: make(**changes).at(6)):
        with pytest.raises(ConfigError, match=r"task\.segment_lengths=\[.*do not say how to grow"):
            grow()


def test_mistakes_are_told_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"task\.digits=20: at most 19 fit into one segment.*20 tokens"):
        make(digits=20)
    assert make(digits=19).distinct == 3 * 10**19
    with pytest.raises(
        ConfigError,
        match=r"task\.num_segments=8: the 60 haystack tokens.*possible numbers are \[2, 3, 4, 5, 6, 7, ",
    ):
        make(num_segments=8)
    with pytest.raises(ConfigError, match=r"task\.length=20 makes only 190 different samples; at least 200"):
        make(length=20, num_segments=2, digits=1, depth=None)
    with pytest.raises(ConfigError, match=r"task\.segment_lengths=\[30, 30\] add up to 60.*makes 65 tokens"):
        make(segment_lengths=[30, 30])
    with pytest.raises(ConfigError, match=r"task\.digits=5: .*needs task\.digits=1"):
        make().stages(one_answer=True)
    with pytest.raises(ConfigError, match=r"task\.num_segments=1"):
        make().at(1)
