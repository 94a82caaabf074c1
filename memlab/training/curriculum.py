"""How samples grow while training: which of a task's stages comes now, and when the next one does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from memlab.tasks.base import SyntheticTask


class Curriculum:
    """Stages of a task, from short samples to the task itself.

    Args:
        stages: the task in growing sizes; the last is the task itself.
        threshold: validation accuracy at which the next stage begins.
        stage_steps: or the number of steps after which it does, whatever the accuracy; None = only the threshold counts.
    """

    def __init__(self, stages: Sequence[SyntheticTask], threshold: float = 1.0, stage_steps: int | None = None) -> None:
        self.stages = tuple(stages)
        self.threshold = threshold
        self.stage_steps = stage_steps
        self.stage = 0
        self.began_at: list[int] = [0]  # the step at which each stage so far began

    @property
    def task(self) -> SyntheticTask:
        """What samples are made of now."""
        return self.stages[self.stage]

    @property
    def in_last_stage(self) -> bool:
        return self.stage == len(self.stages) - 1

    @property
    def words(self) -> str:
        """The stage as a person reads it: '2/4 (length 12, 2 segments)'."""
        segments = self.task.num_segments
        return f"{self.stage + 1}/{len(self.stages)} (length {self.task.length}, {segments} segment{'s' * (segments > 1)})"

    def update(self, step: int, accuracy: float) -> bool:
        """Take note of a validation after `step` steps; True if the next stage begins."""
        spent = self.stage_steps is not None and step - self.began_at[-1] >= self.stage_steps
        if self.in_last_stage or not (accuracy >= self.threshold or spent):
            return False
        self.stage += 1
        self.began_at.append(step)
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "began_at": list(self.began_at)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.stage, self.began_at = saved["stage"], list(saved["began_at"])
