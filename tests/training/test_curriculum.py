"""The curriculum: when the next stage begins, and that it goes on where a checkpoint left it."""

from __future__ import annotations

import pytest

from memlab.reports import progress
from memlab.tasks.reverse import Reverse
from memlab.training.curriculum import Curriculum


def curriculum_of(segments: list[int], threshold: float, stage_steps: int | None) -> Curriculum:
    """A curriculum of reverse tasks with these numbers of segments."""
    task = Reverse(
        length=48,
        symbols=10,
        num_segments=8,
        segment_lengths=None,
        align=None,
        batch_size=4,
        validation_size=4,
        test_size=4,
    )
    return Curriculum([task.at(n) for n in segments], threshold, stage_steps)


def test_it_begins_with_the_first_stage() -> None:
    curriculum = curriculum_of([2, 4, 8], threshold=0.9, stage_steps=None)
    assert curriculum.task.num_segments == 2 and not curriculum.in_last_stage and curriculum.began_at == [0]


def test_the_next_stage_begins_once_the_threshold_is_reached() -> None:
    """Reached, not passed; one stage for one validation, however good; and not before."""
    curriculum = curriculum_of([2, 4, 8], threshold=0.9, stage_steps=None)
    assert not curriculum.update(10, 0.899)
    assert curriculum.task.num_segments == 2
    assert curriculum.update(20, 0.9)
    assert curriculum.task.num_segments == 4
    assert not curriculum.update(30, 0.5)
    assert curriculum.task.num_segments == 4
    assert curriculum.update(40, 1.0)
    assert curriculum.task.num_segments == 8 and curriculum.in_last_stage
    assert curriculum.began_at == [0, 20, 40]


def test_the_last_stage_stays() -> None:
    curriculum = curriculum_of([2, 4], threshold=0.5, stage_steps=10)
    curriculum.update(10, 1.0)
    assert not curriculum.update(20, 1.0) and not curriculum.update(1000, 1.0)
    assert curriculum.task.num_segments == 4 and curriculum.began_at == [0, 10]


def test_a_single_stage_is_the_last() -> None:
    curriculum = curriculum_of([4], threshold=0.0, stage_steps=1)
    assert curriculum.in_last_stage and not curriculum.update(5, 1.0) and curriculum.task.num_segments == 4


def test_the_next_stage_begins_when_the_stages_steps_are_spent() -> None:
    """Counted from the step at which the stage began, whatever the accuracy."""
    curriculum = curriculum_of([1, 2, 3], threshold=0.9, stage_steps=100)
    assert not curriculum.update(99, 0.0)
    assert curriculum.update(100, 0.0)
    assert curriculum.update(130, 0.95)
    assert curriculum.began_at == [0, 100, 130]
    curriculum = curriculum_of([1, 2, 3], threshold=0.9, stage_steps=100)
    curriculum.update(60, 0.95)
    assert not curriculum.update(159, 0.0)
    assert curriculum.update(160, 0.0)


def test_without_a_budget_only_the_threshold_counts() -> None:
    curriculum = curriculum_of([1, 2], threshold=0.9, stage_steps=None)
    assert not any(curriculum.update(step, 0.89) for step in (1, 1_000, 1_000_000))


@pytest.mark.parametrize("left_at", range(7))
def test_a_restored_curriculum_goes_on_as_if_uninterrupted(left_at: int) -> None:
    validations = [(10, 0.2), (20, 0.95), (30, 0.1), (60, 0.2), (70, 0.2), (80, 0.9)]
    whole = curriculum_of([1, 2, 3, 4], threshold=0.9, stage_steps=40)
    stages = []
    for step, accuracy in validations:
        whole.update(step, accuracy)
        stages.append(whole.task.num_segments)
    assert stages == [1, 2, 2, 3, 3, 4]
    first, second = (curriculum_of([1, 2, 3, 4], threshold=0.9, stage_steps=40) for _ in range(2))
    for step, accuracy in validations[:left_at]:
        first.update(step, accuracy)
    second.load_state_dict(first.state_dict())
    for step, accuracy in validations[left_at:]:
        second.update(step, accuracy)
    assert second.state_dict() == whole.state_dict()


def test_a_checkpoint_does_not_change_with_the_curriculum_it_was_taken_from() -> None:
    curriculum = curriculum_of([1, 2, 3], threshold=0.9, stage_steps=None)
    curriculum.update(5, 1.0)
    saved = curriculum.state_dict()
    other = curriculum_of([1, 2, 3], threshold=0.9, stage_steps=None)
    other.load_state_dict(saved)
    curriculum.update(9, 1.0)
    assert saved == {"stage": 1, "began_at": [0, 5]} and other.state_dict() == saved


def sizes(curriculum: Curriculum, batches: range) -> list[int]:
    return [curriculum.at(batch).num_segments for batch in batches]


def test_unless_sizes_are_mixed_every_batch_has_the_stages() -> None:
    curriculum = curriculum_of([1, 2, 4], threshold=0.9, stage_steps=None)
    curriculum.update(5, 1.0)
    assert sizes(curriculum, range(50)) == [2] * 50


def mixed(seed: int) -> Curriculum:
    return Curriculum(curriculum_of([1, 2, 3, 4], 0.9, None).stages, 0.9, mixed=True, seed=seed)


def test_mixed_sizes_are_drawn_evenly_from_the_stages_so_far() -> None:
    curriculum = mixed(seed=0)
    for stage in range(4):
        drawn = sizes(curriculum, range(2000))
        for segments in range(1, 5):
            share = drawn.count(segments) / 2000
            assert share == 0 if segments > stage + 1 else abs(share - 1 / (stage + 1)) < 0.05
        assert curriculum.task.num_segments == stage + 1, "validation has the full size"
        curriculum.update(stage, 1.0)


def test_mixed_sizes_depend_on_seed_stage_and_batch_alone() -> None:
    """Whoever asks, in whatever order, before and after a checkpoint."""
    one, other = mixed(seed=3), mixed(seed=3)
    for step in (1, 2):
        one.update(step, 1.0)
    other.load_state_dict(one.state_dict())
    assert sizes(one, range(100)) == sizes(other, range(99, -1, -1))[::-1]
    another = mixed(seed=4)
    another.load_state_dict(one.state_dict())
    assert sizes(one, range(100)) != sizes(another, range(100))


def words(curriculum: Curriculum) -> str:
    return progress.place(curriculum.metrics, len(curriculum.stages), curriculum.mixed)


def test_the_stage_in_words() -> None:
    curriculum = mixed(seed=0)
    assert words(curriculum) == f"stage 1/4 (length {curriculum.task.length}, 1 segment)"
    curriculum.update(1, 1.0)
    assert words(curriculum) == f"stage 2/4 (up to length {curriculum.task.length}, 2 segments)"
    text = {"curriculum/stage": 1, "curriculum/segments": 3, "train/tokens": 12_345}
    assert progress.place(text, stages=1, mixed=False) == "12,345 tokens"
    assert curriculum.metrics == {
        "curriculum/stage": 2,
        "curriculum/segments": 2,
        "curriculum/length": curriculum.task.length,
    }


def test_without_an_accuracy_only_the_steps_count() -> None:
    curriculum = curriculum_of([1, 2, 3], threshold=0.0, stage_steps=10)
    assert not curriculum.update(9, None) and curriculum.update(10, None)
