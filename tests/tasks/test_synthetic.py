"""Copy, reverse and associative retrieval, against plain descriptions of what a sample is, and how samples
are cut and grow.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from typing import Any

import numpy as np
import pytest

from memlab.errors import ConfigError
from memlab.splits import SPLITS
from memlab.tasks.associative_retrieval import AssociativeRetrieval
from memlab.tasks.base import Batch, SyntheticTask
from memlab.tasks.copy import Copy
from memlab.tasks.reverse import Reverse

COMMON = {"segment_lengths": None, "align": None, "batch_size": 4, "validation_size": 50, "test_size": 70}
TASKS = ["copy", "reverse", "associative_retrieval"]


def make(name: str, **changes: Any) -> SyntheticTask:
    defaults: dict[str, tuple[type[SyntheticTask], dict[str, Any]]] = {
        "copy": (Copy, {"length": 5, "symbols": 7, "num_segments": 3}),
        "reverse": (Reverse, {"length": 6, "symbols": 5, "num_segments": 4}),
        "associative_retrieval": (
            AssociativeRetrieval,
            {"length": 4, "num_segments": 5, "keys": 26, "ask": "value", "queries": 1},
        ),
    }
    task, own = defaults[name]
    return task(**(COMMON | own | changes))


def sequences(batch: Batch) -> list[list[int]]:
    """Whole sequences: the tokens that are read, and the last target."""
    return np.concatenate([batch.tokens_BT, batch.targets_BT[:, -1:]], axis=1).tolist()


def digest(batch: Batch) -> str:
    return hashlib.sha256(
        b"".join(a.astype(np.int64).tobytes() for a in (batch.tokens_BT, batch.targets_BT, batch.answer_BT))
    ).hexdigest()


# What a sample is


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("length", "symbols"), [(5, 7), (24, 10), (9, 2)])
def test_copy_is_symbols_then_start_then_the_symbols_twice(split: Any, length: int, symbols: int) -> None:
    task = make("copy", length=length, symbols=symbols)
    assert task.vocab_size == symbols + 2 and task.tokens == 3 * length and task.answer_tokens == 2 * length
    for row in sequences(task.batch(split, 3, 40)):
        source, start, answer = row[:length], row[length], row[length + 1 :]
        assert all(2 <= symbol < 2 + symbols for symbol in source)
        assert start == 1
        assert answer == source + source


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("length", "symbols"), [(6, 5), (24, 10), (10, 2)])
def test_reverse_is_symbols_then_start_then_the_symbols_backwards(
    split: Any, length: int, symbols: int
) -> None:
    task = make("reverse", length=length, symbols=symbols)
    assert task.vocab_size == symbols + 2 and task.tokens == 2 * length and task.answer_tokens == length
    for row in sequences(task.batch(split, 3, 40)):
        source, start, answer = row[:length], row[length], row[length + 1 :]
        assert all(2 <= symbol < 2 + symbols for symbol in source)
        assert start == 1
        assert answer == [source[length - 1 - i] for i in range(length)]


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("pairs", [2, 4, 10])
def test_associative_retrieval_is_pairs_then_one_of_the_keys_then_its_value(split: Any, pairs: int) -> None:
    task = make("associative_retrieval", length=pairs, num_segments=1)
    assert task.vocab_size == 37 and task.tokens == 2 * pairs + 2 and task.answer_tokens == 1
    for row in sequences(task.batch(split, 3, 40)):
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        query, separator, answer = row[2 * pairs :]
        assert all(11 <= key <= 36 for key in keys) and len(set(keys)) == pairs
        assert all(0 <= value <= 9 for value in values) and len(set(values)) == pairs
        assert query in keys and separator == 10
        assert answer == values[keys.index(query)]


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_begins_right_after_the_sign_that_asks_for_it(name: str) -> None:
    """So the prompt of free-running evaluation, tokens up to the first answer position,
    ends with that sign and holds no answer.
    """
    task = make(name)
    batch = task.batch("test", 0, 20)
    sign = 10 if name == "associative_retrieval" else 1
    first = int(batch.answer_BT[0].argmax())
    assert (batch.tokens_BT[:, first] == sign).all()


@pytest.mark.parametrize(
    ("name", "chance"), [("copy", 1 / 7), ("reverse", 1 / 5), ("associative_retrieval", 1 / 10)]
)
def test_chance_is_what_a_constant_guess_scores(name: str, chance: float) -> None:
    task = make(name)
    assert task.chance == pytest.approx(chance)
    batch = task.batch("train", 0, 3000)
    answers = batch.targets_BT[batch.answer_BT]
    shares = np.bincount(answers)[np.unique(answers)] / len(answers)
    assert len(shares) == round(1 / chance)
    assert shares == pytest.approx(chance, abs=0.025)


# Where samples come from


@pytest.mark.parametrize("name", TASKS)
def test_splits_are_disjoint(name: str) -> None:
    """No content is in two splits, at sizes where chance alone would put hundreds into both,
    with any seeds of training.
    """
    task = make(
        name, length=2, num_segments=1, **({} if name == "associative_retrieval" else {"symbols": 60})
    )
    train = [row for seed in range(3) for row in sequences(task.batch("train", 0, 4000, seed=seed))]
    contents = [
        {tuple(row) for row in rows}
        for rows in (train, *(sequences(task.batch(s, 0, 2000)) for s in ("validation", "test")))
    ]
    for one, other in itertools.combinations(contents, 2):
        assert not one & other


TINY = [  # samples of the fewest different contents that are allowed, and some more
    ("copy", {"length": 1, "symbols": 200}, 200),
    ("copy", {"length": 2, "symbols": 15}, 225),
    ("reverse", {"length": 3, "symbols": 6}, 216),
    ("reverse", {"length": 4, "symbols": 4}, 256),
    ("reverse", {"length": 5, "symbols": 3}, 243),
    ("copy", {"length": 8, "symbols": 2}, 256),
    ("associative_retrieval", {"length": 1}, 260),
]


@pytest.mark.parametrize(("name", "own", "contents"), TINY)
def test_splits_of_a_tiny_task_are_disjoint_and_together_all_there_is(
    name: str, own: dict[str, int], contents: int
) -> None:
    """Over so many draws each content comes up, in one split and no other."""
    task = make(name, num_segments=1, **own)
    assert task.distinct == contents
    seen = {split: {tuple(row) for row in sequences(task.batch(split, 0, 6000))} for split in SPLITS}
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other
    assert len(set.union(*seen.values())) == contents
    assert len(seen["train"]) > contents * 3 / 4 and len(seen["validation"]) > 2 and len(seen["test"]) > 2


def test_every_content_of_a_tiny_task_is_in_one_of_the_splits() -> None:
    """By name, not by number: all sequences of 4 symbols out of 4."""
    task = make("reverse", length=4, symbols=4, num_segments=1)
    seen = {tuple(row[:4]) for split in SPLITS for row in sequences(task.batch(split, 0, 6000))}
    assert seen == set(itertools.product(range(2, 6), repeat=4))


@pytest.mark.timeout(20)
@pytest.mark.parametrize(
    ("name", "own", "contents"),
    [
        ("reverse", {"length": 1, "symbols": 1}, 1),
        ("copy", {"length": 30, "symbols": 1}, 1),
        ("reverse", {"length": 2, "symbols": 14}, 196),
    ],
)
def test_a_task_too_tiny_for_three_splits_is_an_error(name: str, own: dict[str, int], contents: int) -> None:
    """At once, with the number of its contents; not an endless drawing."""
    with pytest.raises(
        ConfigError, match=rf"task\.length={own['length']} makes only {contents} different samples"
    ):
        make(name, num_segments=1, **own)


@pytest.mark.parametrize(
    ("name", "length", "contents"),
    [("copy", 5, 7**5), ("reverse", 6, 5**6), ("associative_retrieval", 2, 26 * 25 * 10 * 9 * 2)],
)
def test_distinct_counts_the_contents(name: str, length: int, contents: int) -> None:
    assert make(name, length=length, num_segments=1).distinct == contents


def chi_square(counts: np.ndarray) -> float:
    """Deviation from equal counts in standard deviations of the statistic."""
    expected = counts.sum() / counts.size
    freedom = counts.size - 1
    return float((((counts - expected) ** 2 / expected).sum() - freedom) / math.sqrt(2 * freedom))


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", ["copy", "reverse"])
def test_symbols_are_uniform_and_independent(name: str, split: Any) -> None:
    """At every position, and in pairs of neighbours and of first and last:
    choosing the split by content bends nothing.
    """
    task = make(name, length=8, symbols=5, num_segments=1)
    source = np.array(sequences(task.batch(split, 0, 4000)))[:, :8] - 2
    for position in range(8):
        assert abs(chi_square(np.bincount(source[:, position], minlength=5))) < 5
    for i, j in [*itertools.pairwise(range(8)), (0, 7)]:
        assert abs(chi_square(np.bincount(source[:, i] * 5 + source[:, j], minlength=25))) < 5


@pytest.mark.parametrize("split", SPLITS)
def test_keys_values_and_queries_are_uniform(split: Any) -> None:
    task = make("associative_retrieval")
    every_query = np.array(sequences(task.batch(split, 0, 16000)))
    rows = every_query[np.arange(4000) * 4 + np.arange(4000) % 4]  # one query of each four of the same pairs
    keys, values = rows[:, 0:8:2] - 11, rows[:, 1:8:2]
    for pair in range(4):
        assert abs(chi_square(np.bincount(keys[:, pair], minlength=26))) < 5
        assert abs(chi_square(np.bincount(values[:, pair], minlength=10))) < 5
    asked = (keys == rows[:, 8:9] - 11).argmax(axis=1)
    assert np.bincount(asked, minlength=4).tolist() == [1000] * 4
    assert abs(chi_square(np.bincount(rows[:, -1], minlength=10))) < 5
    # A value says nothing about its key, and neither tells which pair is asked for.
    for joint, cells in (
        (keys[:, 0] * 10 + values[:, 0], 260),
        (asked * 26 + keys[:, 0], 104),
        (asked * 10 + values[:, 0], 40),
    ):
        assert abs(chi_square(np.bincount(joint, minlength=cells))) < 5


# How a sample is cut


@pytest.mark.parametrize(
    ("name", "count", "lengths"),
    [("copy", 3, (5, 5, 5)), ("reverse", 4, (3,) * 4), ("associative_retrieval", 5, (2,) * 5)],
)
def test_equal_segments_fill_the_sample(name: str, count: int, lengths: tuple[int, ...]) -> None:
    task = make(name, num_segments=count)
    assert task.segment_lengths == lengths and task.num_segments == count


def test_explicit_segment_lengths_are_taken_as_they_are() -> None:
    task = make("associative_retrieval", segment_lengths=[4, 4, 2])
    assert task.segment_lengths == (4, 4, 2) and task.num_segments == 3
    assert task.batch("train", 0, 2).segment_lengths == (4, 4, 2)
    assert sequences(task.batch("train", 0, 2)) == sequences(
        make("associative_retrieval").batch("train", 0, 2)
    )


def test_a_number_of_segments_that_does_not_divide_the_sample_is_an_error_with_the_possible_ones() -> None:
    with pytest.raises(
        ConfigError,
        match=r"task\.num_segments=4.*15 tokens.*task\.length=5.*\[1, 3, 5, 15\].*task\.segment_lengths",
    ):
        make("copy", num_segments=4)
    for possible in (1, 3, 5, 15):
        assert make("copy", num_segments=possible).num_segments == possible


def test_explicit_lengths_that_do_not_add_up_are_an_error_with_both_sums() -> None:
    with pytest.raises(
        ConfigError, match=r"task\.segment_lengths=\[4, 4, 4\] add up to 12.*task\.length=4 makes 10 tokens"
    ):
        make("associative_retrieval", segment_lengths=[4, 4, 4])


def test_more_pairs_than_values_are_an_error_with_the_bound() -> None:
    with pytest.raises(ConfigError, match=r"task\.length=11.*at most 10"):
        make("associative_retrieval", length=11)
    assert make("associative_retrieval", length=10, num_segments=1).tokens == 22


@pytest.mark.parametrize(
    ("name", "own", "reachable"),
    [
        # segments of 6 tokens
        ("copy", {"length": 8, "num_segments": 4, "symbols": 20}, {1: 2, 2: 4, 3: 6, 4: 8}),
        # 1 would be too tiny: 4 ** 2 contents
        ("copy", {"length": 8, "num_segments": 4, "symbols": 4}, {2: 4, 3: 6, 4: 8}),
        ("copy", {"length": 8, "num_segments": 6}, {3: 4, 6: 8}),  # segments of 4: copy needs 3N tokens
        # segments of 3: reverse needs 2N tokens
        ("reverse", {"length": 6, "num_segments": 4, "symbols": 20}, {2: 3, 4: 6}),
    ],
)
def test_stages_grow_by_segments_of_one_length(name: str, own: dict, reachable: dict[int, int]) -> None:
    """Up to the task's own number; `at` gives the sample of that length, everything else the same."""
    task = make(name, **own)
    assert [(stage.num_segments, stage.length) for stage in task.stages()] == list(reachable.items())
    for count in range(1, task.num_segments + 1):
        if count not in reachable:
            with pytest.raises(ConfigError):
                task.at(count)
            continue
        shorter = task.at(count)
        assert (
            type(shorter) is type(task)
            and shorter.length == reachable[count]
            and shorter.num_segments == count
        )
        assert set(shorter.segment_lengths) <= set(task.segment_lengths)
        for attribute in ("vocab_size", "chance", "batch_size", "validation_size", "test_size"):
            assert getattr(shorter, attribute) == getattr(task, attribute)


@pytest.mark.parametrize(
    ("own", "stages"),
    [
        (
            {"length": 4, "num_segments": 2},
            [
                *("pairs 26 (4, 4)", "pairs 26 (8, 8)", *(f"value {k} (4, 2)" for k in (2, 4, 8, 16, 26))),
                *("value 26 (6, 8)", "value 26 (8, 11)", "value 26 (8, 2)"),
            ],
        ),
        (
            {"length": 4, "num_segments": 5, "keys": 5, "queries": 4},
            [
                *("pairs 5 (2, 2, 4)", "pairs 5 (2, 2, 2, 2, 8)", "value 2 (2, 2, 2)", "value 4 (2, 2, 2)"),
                *("value 5 (2, 2, 2)", "value 5 (2, 2, 2, 8)", "value 5 (2, 2, 2, 2, 11)"),
            ],
        ),
        (
            {"length": 3, "num_segments": 4, "keys": 3, "queries": 2},
            [
                "pairs 3 (2, 2, 4)",
                "pairs 3 (2, 2, 2, 6)",
                "value 2 (2, 2, 2)",
                "value 3 (2, 2, 2)",
                "value 3 (2, 2, 2, 8)",
                "value 3 (2, 2, 2, 5)",
            ],
        ),
        ({"length": 1, "num_segments": 2}, ["value 26 (2, 2)"]),
        ({"length": 4, "num_segments": 1}, ["value 26 (10,)"]),
        ({"length": 4, "num_segments": 2, "ask": "pairs"}, ["pairs 26 (8, 8)"]),
    ],
)
def test_retrieval_learns_to_carry_pairs_then_to_find_one_and_then_grows(
    own: dict, stages: list[str]
) -> None:
    task = make("associative_retrieval", **own)
    found = task.stages()
    assert [f"{stage.ask} {stage.keys} {stage.segment_lengths}" for stage in found] == stages  # type: ignore[attr-defined]
    assert digest(found[-1].batch("test", 0, 20)) == digest(task.batch("test", 0, 20)), (
        "the last stage is the task itself"
    )
    assert {stage.vocab_size for stage in found} == {task.vocab_size}


def test_a_model_that_answers_once_has_stages_of_one_answer() -> None:
    found = make("associative_retrieval", length=3, num_segments=2, keys=3).stages(one_answer=True)
    assert [(stage.keys, stage.segment_lengths) for stage in found] == [(2, (4, 2)), (3, (4, 2)), (3, (6, 2))]  # type: ignore[attr-defined]
    assert all(stage.answer_tokens == 1 for stage in found)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize(("pairs", "queries"), [(4, 2), (3, 3), (5, 4)])
def test_several_queries_ask_for_different_keys_one_after_another(
    split: Any, pairs: int, queries: int
) -> None:
    task = make("associative_retrieval", length=pairs, num_segments=2, queries=queries)
    assert task.segment_lengths == (2 * pairs, 3 * queries - 1) and task.answer_tokens == queries
    batch = task.batch(split, 3, 40)
    orders = set()
    for row, answer in zip(sequences(batch), batch.answer_BT.tolist(), strict=True):
        keys, values = row[0 : 2 * pairs : 2], row[1 : 2 * pairs : 2]
        asked = [row[i : i + 3] for i in range(2 * pairs, len(row), 3)]
        assert len(asked) == queries == len({key for key, _, _ in asked})
        for key, separator, value in asked:
            assert separator == 10 and value == values[keys.index(key)]
        assert [t for t, counts in enumerate(answer) if counts] == [
            2 * pairs + 3 * i + 1 for i in range(queries)
        ]
        assert all(row[t] == 10 for t, counts in enumerate(answer) if counts), "asked by the separator"
        orders.add(tuple(keys.index(key) for key, _, _ in asked))
    assert len(orders) > 4, "in any order"
    with pytest.raises(ConfigError, match=rf"task\.queries={pairs + 1}: {pairs} pairs"):
        make("associative_retrieval", length=pairs, num_segments=2, queries=pairs + 1)


def test_retrieval_can_ask_for_all_pairs_in_order_and_have_few_keys() -> None:
    task = make("associative_retrieval", length=3, num_segments=4, ask="pairs", keys=4)
    assert task.tokens == 12 and task.answer_tokens == 6 and task.segment_lengths == (2, 2, 2, 6)
    for row in sequences(task.batch("validation", 0, 30)):
        assert row[6] == 10 and row[7:] == row[:6]
        assert set(row[:6:2]) <= {11, 12, 13, 14}
    with pytest.raises(ConfigError, match=r"task\.keys=2: 3 pairs need 3 to 26 keys"):
        make("associative_retrieval", length=3, num_segments=4, keys=2)
    with pytest.raises(ConfigError, match=r"task\.keys=27"):
        make("associative_retrieval", keys=27)


@pytest.mark.parametrize("split", SPLITS)
def test_the_queries_of_the_same_pairs_follow_each_other(split: Any) -> None:
    rows = np.array(sequences(make("associative_retrieval").batch(split, 0, 40)))
    assert (rows.reshape(10, 4, -1)[:, :, :8] == rows[::4, None, :8]).all()
    assert (rows[:, 8].reshape(10, 4) == rows[::4, 0:8:2]).all()


def test_no_retrieval_segment_holds_pairs_and_query_unless_asked_for() -> None:
    """So that a model without memory is at chance: pairs are whole, and the last segment is the query and
    the separator.
    """
    for segments in (2, 3, 5):
        lengths = make("associative_retrieval", num_segments=segments).segment_lengths
        assert len(lengths) == segments and lengths[-1] == 2 and all(n % 2 == 0 for n in lengths)
    with pytest.raises(ConfigError, match=r"task\.num_segments=4.*\[2, 3, 5\]"):
        make("associative_retrieval", num_segments=4)
    assert make("associative_retrieval", num_segments=3).at(6).length == 10


@pytest.mark.parametrize(
    ("name", "own", "lengths"),
    [
        ("copy", {"length": 5, "num_segments": 4, "align": "left"}, (4, 4, 4, 3)),
        ("copy", {"length": 5, "num_segments": 4, "align": "right"}, (3, 4, 4, 4)),
        ("copy", {"length": 5, "num_segments": 3, "align": "right"}, (5, 5, 5)),
        ("associative_retrieval", {"length": 5, "num_segments": 3, "align": "left"}, (6, 4, 2)),
        ("associative_retrieval", {"length": 5, "num_segments": 3, "align": "right"}, (4, 6, 2)),
    ],
)
def test_segments_that_cannot_be_equal_are_aligned_left_or_right(
    name: str, own: dict[str, Any], lengths: tuple[int, ...]
) -> None:
    assert make(name, **own).segment_lengths == lengths
    if name == "associative_retrieval":
        assert make(name, **own).stages()[-1].segment_lengths == lengths


def test_aligned_segments_have_to_be_filled() -> None:
    with pytest.raises(
        ConfigError, match=r"task\.num_segments=9: 10 tokens in segments of 2 do not fill 9 of them"
    ):
        make("reverse", length=5, num_segments=9, align="left")


def test_at_goes_beyond_the_tasks_own_length_for_evaluation() -> None:
    assert make("reverse", length=6, num_segments=4).at(16).length == 24
    with pytest.raises(ConfigError, match="10"):  # the values do not suffice for 11 pairs
        make("associative_retrieval").at(12)


def test_at_is_an_error_where_it_cannot_be_had() -> None:
    with pytest.raises(ConfigError, match=r"task.num_segments=3: no Reverse sample has the 9 tokens"):
        make("reverse", length=6, num_segments=4).at(3)
    with pytest.raises(ConfigError, match=r"task\.segment_lengths=\[20, 16, 12\] are not equal"):
        make("reverse", length=24, segment_lengths=[20, 16, 12]).at(2)
    with pytest.raises(
        ConfigError, match=r"task\.segment_lengths=\[20, 16, 12\] are not equal, so a curriculum"
    ):
        make("reverse", length=24, segment_lengths=[20, 16, 12]).stages()


@pytest.mark.parametrize("name", ["copy", "reverse"])
def test_a_shorter_sample_keeps_the_alphabet(name: str) -> None:
    """A curriculum's stages share the model's vocabulary."""
    task = make(name, length=8, num_segments=4, symbols=6)
    short = task.at(2)
    tokens = short.batch("train", 0, 200).tokens_BT
    assert set(np.unique(tokens)) == {1, 2, 3, 4, 5, 6, 7} and task.vocab_size == short.vocab_size == 8
