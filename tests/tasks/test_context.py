"""The promises of all tasks that tell something and then ask, whatever they tell."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

import memlab
from memlab.errors import ConfigError
from memlab.splits import SPLITS
from tests.tasks.context_tasks import SMALL, make, sequences

ROOT = Path(memlab.__file__).parents[1]
TASKS = list(SMALL)


@pytest.mark.parametrize("name", TASKS)
def test_the_answer_is_in_the_last_segment(name: str) -> None:
    task = make(name)
    assert task.answer_positions()[0] >= task.tokens - task.segment_lengths[-1]
    assert task.answer_positions()[-1] == task.tokens - 1


TINY = [  # small enough that every content comes up
    ("mqar", {"length": 2, "keys": 2, "values": 8, "queries": 1, "distractors": 0}, 2 * 8**2 * 2),
    ("mqar", {"length": 1, "keys": 1, "values": 2, "queries": 1, "distractors": 2}, 2 * 16**2),
    ("associative_rewrite", {"length": 2, "keys": 1, "values": 15, "queries": 1}, 15**2),
    ("associative_rewrite", {"length": 5, "keys": 2, "values": 2, "queries": 2}, 10 * 2**5 * 2),
    (
        "variable_tracking",
        {"length": 1, "chains": 2, "variables": 4, "values": 3, "distractors": 0},
        24 * 6 * 2 * 2,
    ),
    (
        "variable_tracking",
        {"length": 1, "chains": 1, "variables": 2, "values": 1, "distractors": 2},
        2 * 3 * 16**2,
    ),
    ("sorting_by_frequency", {"length": 6, "symbols": 3}, 6 * 60),
]


@pytest.mark.parametrize(("name", "own", "contents"), TINY)
def test_splits_of_a_tiny_task_are_disjoint_and_together_all_there_is(
    name: str, own: dict[str, int], contents: int
) -> None:
    task = make(name, num_segments=1, **own)
    assert task.distinct == contents
    seen = {split: {tuple(row) for row in sequences(task.batch(split, 0, 16000))} for split in SPLITS}
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other
    assert len(set.union(*seen.values())) == contents
    assert len(seen["train"]) > contents * 3 / 4 and len(seen["validation"]) > 2 and len(seen["test"]) > 2


@pytest.mark.parametrize(
    ("name", "own"),
    [
        ("mqar", {"length": 1, "keys": 19, "queries": 1, "distractors": 0}),
        ("associative_rewrite", {"length": 2, "keys": 1, "queries": 1, "values": 14}),
        ("variable_tracking", {"length": 1, "chains": 1, "variables": 2, "values": 99, "distractors": 0}),
        ("sorting_by_frequency", {"length": 4, "symbols": 2}),
    ],
)
def test_a_task_too_tiny_for_three_splits_is_an_error(name: str, own: dict[str, int]) -> None:
    with pytest.raises(
        ConfigError, match=rf"task\.length={own['length']} makes only \d+ different samples; at least 200"
    ):
        make(name, num_segments=1, **own)


# How a sample is cut, and how it grows

LENGTHS = {
    "mqar": (6, 6, 6, 6, 5),
    "associative_rewrite": (8, 8, 8, 8, 3),
    "variable_tracking": (8, 8, 8, 8, 1),
}
LENGTHS["sorting_by_frequency"] = (10, 10, 10, 10, 5)
STAGES = {
    "mqar": [(1, (2, 1)), (2, (6, 3)), (4, (6, 6, 5)), (8, LENGTHS["mqar"])],
    "associative_rewrite": [(8, (8, 8, 3)), (16, LENGTHS["associative_rewrite"])],
    "variable_tracking": [(1, (8, 8, 4, 1)), (2, LENGTHS["variable_tracking"])],
    "sorting_by_frequency": [
        (16, (10, 6, 5)),
        (32, (10, 10, 10, 2, 5)),
        (40, LENGTHS["sorting_by_frequency"]),
    ],
}


@pytest.mark.parametrize("name", TASKS)
def test_the_context_is_cut_evenly_and_the_question_is_alone(name: str) -> None:
    assert make(name).segment_lengths == LENGTHS[name]
    one = make(name, num_segments=1)
    assert one.segment_lengths == (sum(LENGTHS[name]),)
    assert sequences(one.batch("test", 0, 20)) == sequences(make(name).batch("test", 0, 20)), (
        "a cut changes no sample"
    )
    lengths = [1, sum(LENGTHS[name]) - 1]
    assert make(name, segment_lengths=lengths).segment_lengths == tuple(lengths)


@pytest.mark.parametrize(
    ("name", "left", "right"),
    [
        ("mqar", (8, 8, 8, 5), (8, 8, 8, 5)),
        ("associative_rewrite", (12, 12, 8, 3), (8, 12, 12, 3)),
        ("variable_tracking", (12, 12, 8, 1), (8, 12, 12, 1)),
        ("sorting_by_frequency", (14, 14, 12, 5), (12, 14, 14, 5)),
    ],
)
def test_contexts_that_do_not_divide_are_aligned_or_an_error_with_the_possible_numbers(
    name: str, left: tuple, right: tuple
) -> None:
    """Pairs stay whole: context segments have an even number of tokens where a fact is two."""
    assert make(name, num_segments=4, align="left").segment_lengths == left
    assert make(name, num_segments=4, align="right").segment_lengths == right
    assert make(name, num_segments=4, align="right").stages()[-1].segment_lengths == right
    with pytest.raises(
        ConfigError, match=r"task\.num_segments=6: .* possible numbers are \[2, .*task\.align=left\|right"
    ):
        make(name, num_segments=6, **({"length": 41} if name == "sorting_by_frequency" else {}))


@pytest.mark.parametrize("name", TASKS)
def test_stages_grow_to_the_task_itself(name: str) -> None:
    task = make(name)
    stages = task.stages()
    assert [(stage.length, stage.segment_lengths) for stage in stages] == STAGES[name]
    assert stages[-1] is task
    for stage in stages:
        for attribute in ("vocab_size", "chance", "batch_size", "validation_size", "test_size"):
            assert getattr(stage, attribute) == getattr(task, attribute)
        assert stage.batch("validation", 0, 3).tokens_BT.shape == (3, sum(stage.segment_lengths))
    assert all(stage.num_segments == 1 for stage in make(name, num_segments=1).stages())
    with pytest.raises(ConfigError, match=r"task\.segment_lengths=.*use curriculum=off"):
        make(name, segment_lengths=[1, task.tokens - 1]).stages()


@pytest.mark.parametrize(
    ("name", "own", "says"),
    [
        ("mqar", {"queries": 1}, r"task\.queries=3 .* 3 tokens.*use task\.queries=1 or a decoder"),
        (
            "associative_rewrite",
            {"queries": 1},
            r"task\.queries=2 .* 2 tokens.*use task\.queries=1 or a decoder",
        ),
        ("variable_tracking", {}, None),
        ("sorting_by_frequency", None, r"task\.symbols=5 .* 5 tokens.*; use a decoder"),
    ],
)
def test_a_model_that_answers_once_has_stages_of_one_answer_or_an_error(
    name: str, own: dict | None, says: str | None
) -> None:
    if own is not None:
        assert all(stage.answer_tokens == 1 for stage in make(name, **own).stages(one_answer=True))
    if says is not None:
        with pytest.raises(ConfigError, match=says):
            make(name).stages(one_answer=True)


@pytest.mark.parametrize(
    ("name", "segments", "length"),
    [
        ("mqar", 9, 16),
        ("associative_rewrite", 41, 160),
        ("variable_tracking", 9, 5),
        ("sorting_by_frequency", 3, 20),
    ],
)
def test_at_has_more_or_fewer_segments_of_the_same_length(name: str, segments: int, length: int) -> None:
    task = make(name)
    assert task.at(task.num_segments) is task
    other = task.at(segments)
    assert (other.length, other.num_segments) == (length, segments)
    assert (
        set(other.segment_lengths[:-1]) == set(task.segment_lengths[:-1])
        and other.segment_lengths[-1] == task.segment_lengths[-1]
    )
    assert other.vocab_size == task.vocab_size
    assert other.distractors == task.distractors * (segments - 1) // (task.num_segments - 1)
    assert sequences(other.at(task.num_segments).batch("test", 0, 5)) == sequences(
        task.batch("test", 0, 5)
    ), "and back"


def test_at_is_an_error_where_it_cannot_be_had() -> None:
    with pytest.raises(ConfigError, match=r"task\.num_segments=1: no MQAR sample"):
        make("mqar").at(1)
    with pytest.raises(
        ConfigError, match=r"task\.num_segments=4: no MQAR sample like this one has a context of the 6 tokens"
    ):
        make("mqar", length=4, num_segments=9).at(4)  # 4 pairs and 8 distractors grow together, by 4 tokens
    with pytest.raises(ConfigError, match=r"task\.keys=20: 24 pairs"):
        make("mqar").at(13)
    with pytest.raises(
        ConfigError,
        match=r"task\.num_segments=7: task\.segment_lengths=\[12, 12, 8, 3\] do not say how to grow",
    ):
        make("associative_rewrite", num_segments=4, align="left").at(7)
