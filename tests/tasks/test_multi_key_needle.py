"""Multi-key needle against a plain description."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memlab.errors import ConfigError
from memlab.tasks.multi_key_needle import MultiKeyNeedle
from tests.tasks.promises import check_splits_cover, near, whole

MARKER, QUESTION, FILLER = 10, 11, 12
OWN = {
    "length": 60,
    "num_segments": 4,
    "needles": 3,
    "keys": 6,
    "digits": 2,
    "depth": None,
    "filler": "repeated",
    "fillers": 7,
}
COMMON = {"segment_lengths": None, "align": None, "batch_size": 4, "validation_size": 50, "test_size": 70}


def make(**changes: Any) -> MultiKeyNeedle:
    return MultiKeyNeedle(**(OWN | COMMON | changes))


def needles(haystack: list[int], digits: int) -> list[tuple[int, int, list[int]]]:
    """Place, key and value of each needle, as they stand."""
    places = [i for i, token in enumerate(haystack) if token == MARKER]
    return [(at, haystack[at + 1], haystack[at + 2 : at + 2 + digits]) for at in places]


@pytest.mark.parametrize("split", ["train", "validation", "test"])
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"filler": "random"},
        {"digits": 1},
        {"needles": 1},
        {"num_segments": 1},
        {"needles": 15, "keys": 15},
        {"depth": 0.4},
    ],
)
def test_a_sample_is_needles_in_filler_then_one_of_the_keys_then_its_value(
    changes: dict[str, Any], split: Any
) -> None:
    task = make(**changes)
    digits, length, fillers = task.digits, task.length, task.fillers
    assert (
        task.tokens == length + digits + 1
        and task.answer_tokens == digits
        and task.vocab_size == 12 + fillers + task.keys
    )
    for row in whole(task.batch(split, 3, 40)).tolist():
        haystack, question, asked, answer = row[:length], row[length], row[length + 1], row[length + 2 :]
        found = needles(haystack, digits)
        assert len(found) == task.needles == len({key for _, key, _ in found})
        assert all(FILLER + fillers <= key < task.vocab_size for _, key, _ in found)
        assert all(0 <= digit <= 9 for _, _, value in found for digit in value)
        assert question == QUESTION and {key: value for _, key, value in found}[asked] == answer
        inside = {i for at, _, _ in found for i in range(at, at + digits + 2)}
        assert len(inside) == task.needles * (digits + 2), "needles do not overlap"
        rest = [(i, token) for i, token in enumerate(haystack) if i not in inside]
        assert all(FILLER <= token < FILLER + fillers for _, token in rest)
        assert task.filler == "random" or all(token == FILLER + i % fillers for i, token in rest)


@pytest.mark.parametrize(
    ("changes", "places"),
    [
        ({}, range(0, 60, 4)),
        ({"needles": 15, "keys": 20}, range(0, 60, 4)),
        (
            {"num_segments": 5, "digits": 1},
            [15 * segment + at for segment in range(4) for at in range(0, 15, 3)],
        ),
        # the last holds filler too, but no needle
        ({"segment_lengths": [21, 30, 12]}, [*range(0, 20, 4), *range(21, 49, 4)]),
    ],
)
def test_each_needle_is_inside_one_segment_but_the_last(
    changes: dict[str, Any], places: range | list[int]
) -> None:
    task = make(**changes)
    rows = whole(task.batch("train", 0, 3000)).tolist()
    found = [at for row in rows for at, _, _ in needles(row[:60], task.digits)]
    counts = np.unique(found, return_counts=True)
    assert counts[0].tolist() == list(places)
    asked = [at for row in rows for at, key, _ in needles(row[:60], task.digits) if key == row[61]]
    shares = np.unique(asked, return_counts=True)[1] / len(rows)
    assert len(shares) == len(places) and all(near(share, 1 / len(places), len(rows)) for share in shares)
    assert all(
        near(count / len(rows), task.needles / len(places), len(rows)) for count in counts[1]
    ) or task.needles == len(places)


@pytest.mark.parametrize(("depth", "place"), [(0.0, 0), (1.0, 56), (0.5, 28), (0.1, 4)])
def test_depth_says_where_the_asked_needle_is(depth: float, place: int) -> None:
    """Of 15 places; the others stay anywhere else."""
    others = set()
    for row in whole(make(depth=depth).batch("train", 0, 400)).tolist():
        for at, key, _ in needles(row[:60], 2):
            if key == row[61]:
                assert at == place
            else:
                others.add(at)
    assert others == set(range(0, 60, 4)) - {place}


def test_who_sees_only_the_last_segment_scores_chance() -> None:
    """Guessing each digit from the key and the digit before it, by what most often follows in other
    samples.
    """
    rows = whole(make().batch("train", 0, 12000))[:, -3:]
    learned, tested = rows[:8000], rows[8000:]
    for digit in (1, 2):
        known = [0] if digit == 1 else [0, 1]
        seen = [tuple(row[known]) for row in learned]
        table: dict[tuple[int, ...], np.ndarray] = {key: np.zeros(10) for key in seen}
        for key, row in zip(seen, learned, strict=True):
            table[key][row[digit]] += 1
        right = np.mean([table[tuple(row[known])].argmax() == row[digit] for row in tested])
        assert near(float(right), make().chance, len(tested))


def test_who_knows_the_values_but_not_which_is_asked_for_scores_as_the_docstring_says() -> None:
    rows = whole(make().batch("train", 0, 6000)).tolist()
    first = [needles(row[:60], 2)[0][2][0] == row[62] for row in rows]
    assert near(float(np.mean(first)), 1 / 3 + 2 / 3 / 10, len(rows))


def test_distinct_counts_the_contents() -> None:
    tiny = make(length=9, num_segments=4, needles=2, keys=3, digits=1)
    assert tiny.distinct == 3 * 2 * 6 * 10 * 10
    check_splits_cover(tiny, 60_000)
    tiny = make(length=9, num_segments=2, needles=2, keys=2, digits=1, depth=0.5)
    assert tiny.distinct == 2 * 2 * 10 * 10
    check_splits_cover(tiny, 9000)
    tiny = make(length=4, num_segments=2, needles=1, keys=2, digits=1, filler="random", fillers=8)
    assert tiny.distinct == 2 * 2 * 10 * 8
    check_splits_cover(tiny, 9000)


def test_needles_become_more_and_then_the_haystack_grows_up_to_the_task_itself() -> None:
    task = make()
    found = task.stages()
    assert [(stage.needles, stage.segment_lengths) for stage in found] == [
        *((1, (20, 3)), (2, (20, 3)), (3, (20, 3))),
        *((3, (20, 20, 3)), (3, (20, 20, 20, 3))),
    ]
    assert (whole(found[-1].batch("test", 0, 20)) == whole(task.batch("test", 0, 20))).all()
    assert {stage.vocab_size for stage in found} == {task.vocab_size}
    full = make(needles=15, keys=15).stages()  # a stage holds all needles, so the haystack cannot be shorter
    assert [(stage.needles, stage.num_segments) for stage in full] == [
        (1, 4),
        (2, 4),
        (4, 4),
        (8, 4),
        (15, 4),
    ]
    one = make(digits=1).stages(one_answer=True)
    assert {stage.answer_tokens for stage in one} == {1} and one[-1].segment_lengths == (20, 20, 20, 2)
    assert [stage.needles for stage in make(num_segments=1).stages()] == [1, 2, 3]
    longer = make(filler="random").at(9)
    assert longer.segment_lengths == (20,) * 8 + (3,) and (longer.needles, longer.keys, longer.filler) == (
        3,
        6,
        "random",
    )


def test_mistakes_are_told_with_what_is_allowed() -> None:
    with pytest.raises(ConfigError, match=r"task\.keys=2: 3 needles need 3 keys or more"):
        make(keys=2)
    with pytest.raises(
        ConfigError,
        match=r"task\.needles=16: the haystack has room for 15 needles of 4 tokens.*\[20, 20, 20, 3\]",
    ):
        make(needles=16, keys=16)
    with pytest.raises(ConfigError, match=r"task\.digits=19: at most 18 fit into one segment.*20 tokens"):
        make(digits=19)
    with pytest.raises(ConfigError, match=r"task\.digits=2: .*needs task\.digits=1"):
        make().stages(one_answer=True)
    with pytest.raises(ConfigError, match=r"task\.segment_lengths=\[21, 30, 12\] do not say how to grow"):
        make(segment_lengths=[21, 30, 12]).stages()
