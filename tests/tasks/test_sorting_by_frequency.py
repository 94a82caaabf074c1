"""Sorting by frequency: count symbols whose distribution moves, then write them by decreasing count."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest

from memlab.errors import ConfigError
from memlab.splits import SPLITS
from tests.tasks.context_tasks import make, score, sequences, sigmas


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("length", "symbols"), [(40, 5), (10, 4), (300, 20), (129, 2)])
def test_a_sample_is_symbols_then_the_separator_then_the_symbols_by_decreasing_frequency(
    length: int, symbols: int, split: Any
) -> None:
    task = make("sorting_by_frequency", num_segments=2, length=length, symbols=symbols)
    assert task.vocab_size == symbols + 1 and task.chance == 1 / symbols
    assert (
        task.tokens == length + symbols
        and task.answer_tokens == symbols
        and task.segment_lengths == (length, symbols)
    )
    assert task.answer_positions() == list(range(length, length + symbols))
    for row in sequences(task.batch(split, 3, 40)):
        counts = Counter(row[:length])
        assert set(counts) == set(range(1, symbols + 1)), "every symbol occurs"
        assert len(set(counts.values())) == symbols, "no two equally often"
        assert row[length] == 0
        assert row[length + 1 :] == sorted(counts, key=lambda symbol: -counts[symbol])


def by_count(tokens: list[int]) -> list[int]:
    counts = Counter({symbol: 0 for symbol in range(1, 6)})
    counts.update(tokens)
    return sorted(counts, key=lambda symbol: (-counts[symbol], symbol))


def test_who_sees_all_is_right_and_who_sees_a_part_is_not() -> None:
    task = make("sorting_by_frequency", length=200)
    assert score(task, lambda row, t: by_count(row[:200])[t - 200], 500) == 1.0
    last, first = (
        score(task, lambda row, t, p=part: by_count(row[p])[t - 200], 500)
        for part in (slice(150, 200), slice(50))
    )
    assert 0.3 < last < 0.7 and 0.3 < first < 0.7, "neither end of the sequence is enough"


def test_who_sees_the_separator_alone_is_at_chance() -> None:
    """Any fixed order has on average one of the V symbols in its place, with variance one. Who is told the
    answer so far can leave out what was there: one right in V - i at place i.
    """
    task, count = make("sorting_by_frequency"), 3000
    for order in ([1, 2, 3, 4, 5], [4, 2, 5, 1, 3], [3, 3, 3, 3, 3]):
        assert (
            abs(score(task, lambda row, t, o=order: o[t - 40], count) - task.chance) * 5 * math.sqrt(count)
            < 4
        )
    left_out = score(task, lambda row, t: min(set(range(1, 6)) - set(row[41:])), count)
    chances = [1 / (5 - i) for i in range(5)]
    assert abs(left_out - np.mean(chances)) < 4 * math.sqrt(sum(p * (1 - p) for p in chances) / count) / 5


def test_every_order_is_as_likely_as_any() -> None:
    task = make("sorting_by_frequency", length=12, symbols=3, num_segments=1)
    answers = Counter(tuple(row[13:]) for row in sequences(task.batch("train", 0, 6000)))
    assert len(answers) == 6 and all(sigmas(times / 6000, 1 / 6, 6000) < 4 for times in answers.values())


def test_the_distribution_moves_evenly_from_the_first_to_the_last() -> None:
    """With weights that are known: 9 to 1 at the beginning, 2 to 8 at the end."""
    length, rows = 400, 500
    task = make("sorting_by_frequency", length=length, symbols=2, num_segments=1)
    words = np.random.Philox(key=3).random_raw(rows * task.random_numbers).reshape(rows, -1)
    words[:, :4] = np.array([9000, 1000, 2000, 8000], dtype=np.uint64) - np.uint64(1000)
    share_T = (task.sequences(words, np.zeros(rows, dtype=np.int64))[:, :length] == 1).mean(axis=0)
    t_T = (np.arange(length) + 0.5) / length
    for part in range(8):
        here = slice(part * 50, part * 50 + 50)
        expected = float((0.9 * (1 - t_T) + 0.2 * t_T)[here].mean())
        assert sigmas(float(share_T[here].mean()), expected, rows * 50) < 4
    assert share_T.sum() == pytest.approx(0.55 * length, abs=1.5), "as often as the mean of both says"


def test_the_published_size() -> None:
    task = make("sorting_by_frequency", length=8000, symbols=20, num_segments=9)
    assert task.segment_lengths == (1000,) * 8 + (20,)
    rows = np.array(sequences(task.batch("train", 0, 3)))
    assert all(len(set(np.bincount(row[:8000]).tolist())) == 21 for row in rows)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"length": 14}, r"task\.length=14: at least 15, for task\.symbols=5"),
        ({"symbols": 1}, r"task\.symbols=1: at least 2"),
    ],
)
def test_what_cannot_be_is_an_error_with_what_can(own: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make("sorting_by_frequency", **own)
