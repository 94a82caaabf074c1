"""The promises of all tasks that tell something and then ask, whatever they tell."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import memlab
from memlab.config import schema
from memlab.errors import ConfigError
from memlab.splits import SPLITS
from tests.tasks.context_tasks import SMALL, make, sequences

ROOT = Path(memlab.__file__).parents[1]
TASKS = list(SMALL)


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_targets_are_the_next_tokens_and_the_answer_is_in_the_last_segment(name: str, split: Any) -> None:
    task = make(name)
    batch = task.batch(split, 0, 6)
    assert batch.tokens_BT.shape == batch.targets_BT.shape == batch.answer_BT.shape == (6, task.tokens)
    assert batch.tokens_BT.dtype == batch.targets_BT.dtype == np.int64 and batch.answer_BT.dtype == np.bool_
    assert (batch.targets_BT[:, :-1] == batch.tokens_BT[:, 1:]).all()
    assert (batch.answer_BT == batch.answer_BT[0]).all() and batch.answer_BT[0].sum() == task.answer_tokens
    assert (
        not batch.answer_BT[:, : task.tokens - batch.segment_lengths[-1]].any()
        and batch.answer_BT[:, -1].all()
    )
    assert batch.segment_lengths == task.segment_lengths and sum(batch.segment_lengths) == task.tokens
    for ids in (batch.tokens_BT, batch.targets_BT):
        assert ids.min() >= 0 and ids.max() < task.vocab_size


@pytest.mark.parametrize("split", SPLITS)
@pytest.mark.parametrize("name", TASKS)
def test_a_sample_does_not_depend_on_the_batch_it_is_made_in(name: str, split: Any) -> None:
    task = make(name)
    whole = sequences(task.batch(split, 0, 70, seed=1))
    for start, count in [(0, 3), (3, 4), (7, 63), (69, 1)]:
        assert sequences(task.batch(split, start, count, seed=1)) == whole[start : start + count]
    assert sequences(make(name, batch_size=64).batch(split, 0, 70, seed=1)) == whole


@pytest.mark.parametrize("name", TASKS)
def test_a_sequence_is_a_function_of_its_own_words(name: str) -> None:
    """Not of the other rows, of earlier calls or of the order of rows; and the words stay as they are."""
    task = make(name)
    words = np.random.Philox(key=1).random_raw(20 * task.words).reshape(20, -1)
    before, members = words.copy(), np.zeros(20, dtype=np.int64)
    first = task.sequences(words, members)
    assert (task.sequences(words[::-1], members)[::-1] == first).all()
    assert (np.concatenate([task.sequences(row, members[:1]) for row in words[:, None]]) == first).all()
    assert (words == before).all()


@pytest.mark.parametrize("name", TASKS)
def test_the_seed_moves_the_training_stream_and_leaves_validation_and_test(name: str) -> None:
    task = make(name)
    for split in ("validation", "test"):
        assert sequences(task.batch(split, 0, 30, seed=1)) == sequences(task.batch(split, 0, 30, seed=2))
    one, other = (sequences(task.batch("train", 0, 30, seed=s)) for s in (1, 2))
    assert not {tuple(row) for row in one} & {tuple(row) for row in other}


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


# Configuration files


@pytest.mark.parametrize("name", TASKS)
def test_the_configuration_file_has_every_argument(name: str) -> None:
    values = yaml.safe_load((ROOT / "configs" / "task" / f"{name}.yaml").read_text())
    target = values.pop("_target_")
    assert values.pop("name") == name and schema.load(target) is SMALL[name][0]
    arguments = schema.parameters(target)
    assert arguments.keys() == values.keys()
    for key, value in values.items():
        schema.check_value(key, value, arguments[key].annotation)
    task = SMALL[name][0](**values)
    assert len(task.stages()) > 1 and len(set(task.segment_lengths[:-1])) == 1


def test_tasks_import_no_torch() -> None:
    code = (
        f"import sys; {'; '.join(f'import memlab.tasks.{name}' for name in TASKS)}; sys.exit('torch' in "
        "sys.modules)"
    )
    assert (
        subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}
        ).returncode
        == 0
    )
