"""Associative retrieval with rewriting: the latest value of a key wins, and nothing simpler does."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest

from memlab.errors import ConfigError
from memlab.splits import SPLITS
from tests.tasks.context_tasks import learned, make, score, sequences, sigmas

OWN: list[dict[str, Any]] = [
    {"length": 16, "keys": 4, "values": 10, "queries": 2},
    {"length": 11, "keys": 3, "values": 5, "queries": 3},
    {"length": 4, "keys": 1, "values": 9, "queries": 1},
]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("own", OWN)
def test_a_sample_is_assignments_then_some_keys_each_with_its_latest_value(
    own: dict[str, Any], split: Any
) -> None:
    task = make("associative_rewrite", num_segments=1, **own)
    length, keys, values, queries = own["length"], own["keys"], own["values"], own["queries"]
    assert task.vocab_size == keys + values and task.chance == 1 / values
    assert task.tokens == 2 * length + 2 * queries - 1 and task.answer_tokens == queries
    assert task.answer_positions() == [2 * length + 2 * i for i in range(queries)]
    for row in sequences(task.batch(split, 3, 40)):
        latest: dict[int, int] = {}
        times: Counter[int] = Counter()
        for key, value in zip(row[0 : 2 * length : 2], row[1 : 2 * length : 2], strict=True):
            assert 0 <= value < values <= key < values + keys
            latest[key] = value
            times[key] += 1
        assert len(times) == keys and set(times.values()) <= {length // keys, -(-length // keys)}, (
            "all rewritten equally often"
        )
        asked = row[2 * length :: 2]
        assert len(set(asked)) == queries
        assert row[2 * length + 1 :: 2] == [latest[key] for key in asked]


def told(row: list[int], t: int) -> list[int]:
    """All values that the key at the end of the row got, in order."""
    return [row[i + 1] for i in range(0, 32, 2) if row[i] == row[t]]


def test_a_model_that_sees_the_last_segment_is_at_chance() -> None:
    """It learns which value comes most often with the asked key and the value answered before."""
    task = make("associative_rewrite")
    blind = learned(task, lambda row, t: (row[t], row[t - 1] if t > 32 else None))
    assert sigmas(score(task, blind), task.chance, 3000 * 2) < 4
    assert sigmas(score(task, lambda row, t: 3), task.chance, 3000 * 2) < 4


def test_only_the_latest_value_is_a_solution() -> None:
    """The earlier ones are at chance; any of them is right in 1 / n and by luck;
    the most frequent hardly more often.
    """
    task = make("associative_rewrite", queries=1)
    for earlier in range(3):
        assert sigmas(score(task, lambda row, t, i=earlier: told(row, t)[i]), task.chance, 3000) < 4
    luck = np.random.default_rng(0)
    assert sigmas(score(task, lambda row, t: told(row, t)[luck.integers(4)]), 1 / 4 + 3 / 4 / 10, 3000) < 4
    assert score(task, lambda row, t: Counter(told(row, t)).most_common(1)[0][0]) < 0.4
    assert score(task, lambda row, t: row[31]) < 0.4, "nor is the last value of all"


def test_every_key_is_asked_for_as_often_as_any() -> None:
    rows = np.array(sequences(make("associative_rewrite", queries=1).batch("train", 0, 4000)))
    assert np.bincount(rows[:, -2] - 10) == pytest.approx(np.full(4, 1000), abs=4 * (1000 * 0.75) ** 0.5)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"keys": 9}, r"task\.length=16: at least 18, since each of task\.keys=9 is assigned twice"),
        ({"queries": 5}, r"task\.queries=5: at most task\.keys=4"),
    ],
)
def test_what_cannot_be_is_an_error_with_what_can(own: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make("associative_rewrite", **own)
