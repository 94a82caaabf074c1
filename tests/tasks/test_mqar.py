"""Multi-query associative recall: pairs, noise, and the values of many keys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memlab.errors import ConfigError
from memlab.splits import SPLITS
from tests.tasks.context_tasks import learned, make, score, sequences, sigmas

OWN: list[dict[str, Any]] = [
    {"length": 8, "keys": 20, "values": 10, "queries": 3, "distractors": 8},
    {"length": 5, "keys": 5, "values": 3, "queries": 5, "distractors": 0},
    {"length": 1, "keys": 300, "values": 7, "queries": 1, "distractors": 2},
]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("own", OWN)
def test_a_sample_is_pairs_then_noise_then_some_of_the_keys_each_with_its_value(
    own: dict[str, Any], split: Any
) -> None:
    task = make("mqar", num_segments=1, **own)
    pairs, values, queries, noise = own["length"], own["values"], own["queries"], own["distractors"]
    assert task.vocab_size == 16 + values + own["keys"] and task.chance == 1 / values
    assert task.tokens == 2 * pairs + noise + 2 * queries - 1 and task.answer_tokens == queries
    orders = set()
    for row in sequences(task.batch(split, 3, 40)):
        told, between, asked = row[: 2 * pairs], row[2 * pairs : 2 * pairs + noise], row[2 * pairs + noise :]
        keys = told[0::2]
        assert all(16 + values <= key < task.vocab_size for key in keys) and len(set(keys)) == pairs
        assert all(16 <= value < 16 + values for value in told[1::2])
        assert all(0 <= token < 16 for token in between)
        assert len(set(asked[0::2])) == queries
        assert [told[keys.index(key) * 2 + 1] for key in asked[0::2]] == asked[1::2]
        orders.add(tuple(keys.index(key) for key in asked[0::2]))
    assert len(orders) > 10 or pairs == 1, "asked in any order"


def test_the_answers_are_the_targets_at_the_asked_keys() -> None:
    task = make("mqar", queries=3)
    assert task.answer_positions() == [24, 26, 28] and task.tokens == 29


def test_a_model_that_sees_the_last_segment_is_at_chance() -> None:
    """It learns which value comes most often with the asked key and the value answered before."""
    task = make("mqar", keys=8, values=10)
    blind = learned(task, lambda row, t: (row[t], row[t - 1] if t > 24 else None))
    assert sigmas(score(task, blind), task.chance, 3000 * 3) < 4
    assert sigmas(score(task, lambda row, t: 16), task.chance, 3000 * 3) < 4


def test_who_knows_the_values_but_not_whose_they_are_is_right_by_luck() -> None:
    task = make("mqar", queries=1)
    luck = np.random.default_rng(0)
    found = score(task, lambda row, t: row[1 + 2 * int(luck.integers(8))])
    assert sigmas(found, 1 / 8 + 7 / 8 / 10, 3000) < 4


def test_no_pair_is_in_two_segments() -> None:
    assert make("mqar", num_segments=13).segment_lengths == (2,) * 12 + (5,)
    assert make("mqar", length=9, num_segments=4, align="left").segment_lengths == (10, 10, 6, 5)
    assert make("mqar", length=9, num_segments=4, align="right").segment_lengths == (6, 10, 10, 5)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"keys": 7}, r"task\.keys=7: 8 pairs need 8 keys or more"),
        ({"queries": 9}, r"task\.queries=9: at most task\.length=8"),
        ({"distractors": 3}, r"task\.distractors=3: has to be even.*2"),
    ],
)
def test_what_cannot_be_is_an_error_with_what_can(own: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make("mqar", **own)
