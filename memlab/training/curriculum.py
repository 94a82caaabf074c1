"""The curriculum of a training: the present stage of a task that grows, and when the next one begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_DRAWS = 0x6D69786564  # separates these draws from all others that use the run's seed


class Curriculum:
    """Stages of a task, from short samples to the task itself.

    Args:
        stages: the task in growing sizes (see `memlab/tasks/growth.py`); the last is the task itself.
        threshold: validation accuracy at which the next stage begins; None = only the number of steps
            decides.
        stage_steps: number of steps after which the next stage begins, whatever the accuracy; None = only the
            threshold decides.
        mixed: whether the size of each step is drawn uniformly from those of the stages so far, as the RMT
            authors do in BABILong (arXiv 2402.10790) and with `vary_n_segments` in their code of arXiv
            2304.11062. Otherwise it is the stage's.
        seed: of the draws.
    """

    def __init__(
        self,
        stages: Sequence[Any],
        threshold: float | None = 1.0,
        stage_steps: int | None = None,
        mixed: bool = False,
        seed: int = 0,
    ) -> None:
        self.stages = tuple(stages)
        self.threshold = threshold
        self.stage_steps = stage_steps
        self.mixed = mixed
        self.seed = seed
        self.stage = 0
        self.began_at: list[int] = [0]  # the step at which each stage so far began

    @property
    def task(self) -> Any:
        """The task at the present stage's size, for validation and, unless sizes are mixed, for training."""
        return self.stages[self.stage]

    def at(self, batch: int) -> Any:
        """The task at the size of training batch number `batch`, counted from the beginning of the run.

        It only depends on seed, stage and number, so it is the same in every process and after a resume.
        """
        if not self.mixed:
            return self.task
        drawn = np.random.default_rng((self.seed, _DRAWS, batch)).integers(self.stage + 1)
        return self.stages[int(drawn)]

    @property
    def in_last_stage(self) -> bool:
        return self.stage == len(self.stages) - 1

    @property
    def metrics(self) -> dict[str, float]:
        """The present stage as numbers, by their names in the log."""
        length = {"curriculum/length": self.task.length} if hasattr(self.task, "length") else {}
        return {"curriculum/stage": self.stage + 1, "curriculum/segments": self.task.num_segments, **length}

    def update(self, step: int, accuracy: float | None) -> bool:
        """Report a validation after `step` steps. True = the next stage begins.

        Args:
            accuracy: None = there is none, as for text.
        """
        reached = accuracy is not None and self.threshold is not None and accuracy >= self.threshold
        spent = self.stage_steps is not None and step - self.began_at[-1] >= self.stage_steps
        if self.in_last_stage or not (reached or spent):
            return False
        self.stage += 1
        self.began_at.append(step)
        return True

    def state_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "began_at": list(self.began_at)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        self.stage, self.began_at = saved["stage"], list(saved["began_at"])
