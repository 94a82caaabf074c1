"""Variable tracking: chains of assignments among noise, and the value at the end of one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from memlab.errors import ConfigError
from memlab.splits import SPLITS
from tests.tasks.context_tasks import learned, make, score, sequences, sigmas

OWN: list[dict[str, Any]] = [
    {"length": 2, "chains": 4, "variables": 20, "values": 10, "distractors": 8},
    {"length": 5, "chains": 3, "variables": 18, "values": 3, "distractors": 0},
    {"length": 1, "chains": 1, "variables": 9, "values": 40, "distractors": 2},
]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("own", OWN)
def test_a_sample_is_chains_of_assignments_then_the_end_of_one_and_its_value(
    own: dict[str, Any], split: Any
) -> None:
    task = make("variable_tracking", num_segments=1, **own)
    hops, chains, values, noise = own["length"], own["chains"], own["values"], own["distractors"]
    first_name = 16 + values
    assert task.vocab_size == first_name + own["variables"] and task.chance == 1 / values
    assert task.tokens == 2 * chains * (hops + 1) + noise + 1 and task.answer_tokens == 1
    orders, places = set(), set()
    for row in sequences(task.batch(split, 3, 60)):
        value_of: dict[int, int] = {}
        depth: dict[int, int] = {}
        units = [tuple(row[i : i + 2]) for i in range(0, len(row) - 2, 2)]
        facts = [unit for unit in units if unit[0] >= 16]
        assert len(facts) == chains * (hops + 1) and len(units) == len(facts) + noise // 2
        assert all(0 <= a < 16 and 0 <= b < 16 for a, b in set(units) - set(facts))
        for i, (name, source) in enumerate(facts):
            assert name >= first_name and name not in value_of, "each variable is assigned once"
            assert (source < first_name) == (i < chains), "values first"
            if source >= first_name:  # known already, and the end of its chain so far
                value_of[name], depth[name] = value_of[source], depth[source] + 1
                depth[source] = -1
            else:
                value_of[name], depth[name] = source, 0
        assert sorted(depth.values())[-chains:] == [hops] * chains, (
            "each chain has its hops and does not branch"
        )
        assert len(set(value_of.values())) == chains and all(
            16 <= value < first_name for value in value_of.values()
        )
        assert depth[row[-2]] == hops and row[-1] == value_of[row[-2]]
        orders.add(tuple(value_of[name] for name, _ in facts))
        places.add(tuple(unit[0] < 16 for unit in units))
    assert len(orders) > 20 and (len(places) > 2) == (noise > 0), "in any order, with noise anywhere"


def values_told(row: list[int]) -> list[int]:
    return [row[i + 1] for i in range(0, len(row) - 1, 2) if row[i] >= 26 and 16 <= row[i + 1] < 26]


def test_a_model_that_sees_the_last_segment_is_at_chance() -> None:
    """It learns which value comes most often with the asked variable."""
    task = make("variable_tracking")
    assert sigmas(score(task, learned(task, lambda row, t: row[t])), task.chance, 3000) < 4
    assert sigmas(score(task, lambda row, t: 20), task.chance, 3000) < 4


@pytest.mark.parametrize("own", [{"chains": 4, "length": 2}, {"chains": 2, "length": 1}])
def test_who_cannot_follow_hops_scores_one_in_chains(own: dict[str, int]) -> None:
    """Neither does the place of the asked variable's last assignment tell which of the values is its own."""
    task = make("variable_tracking", num_segments=1, distractors=0, **own)
    chains = own["chains"]
    for which in range(chains):
        assert sigmas(score(task, lambda row, t, i=which: values_told(row)[i]), 1 / chains, 3000) < 4
    batch = task.batch("train", 0, 6000)
    # by place of the last assignment: how often each value was right
    right = np.zeros((task.tokens, chains), dtype=np.int64)
    for row, targets in zip(batch.tokens_BT.tolist(), batch.targets_BT.tolist(), strict=True):
        right[row.index(row[-1]), values_told(row).index(targets[-1])] += 1
    best = right.argmax(axis=1)
    assert sigmas(score(task, lambda row, t: values_told(row)[best[row.index(row[t])]]), 1 / chains, 3000) < 4


def test_every_chain_is_asked_for_as_often_as_any() -> None:
    task = make("variable_tracking")
    rows = sequences(task.batch("train", 0, 4000))
    asked = np.bincount([values_told(row[:-1]).index(row[-1]) for row in rows])
    assert asked == pytest.approx(np.full(4, 1000), abs=4 * (1000 * 0.75) ** 0.5)
    assert learned(task, lambda row, t: None)([0], 0) in range(16, 26)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"variables": 11}, r"task\.variables=11: 4 chains of 2 hops need 12 or more"),
        ({"values": 3}, r"task\.values=3: 4 chains need 4 or more"),
        ({"distractors": 5}, r"task\.distractors=5: has to be even.*4"),
    ],
)
def test_what_cannot_be_is_an_error_with_what_can(own: dict[str, Any], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        make("variable_tracking", **own)
