"""How samples grow while training: which of a task's stages comes now, and when the next one does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

_DRAWS = 0x6D69786564  # apart from all else that is drawn from a run's seed


class Curriculum:
    """Stages of a task, from short samples to the task itself.

    Args:
        stages: the task in growing sizes (see `memlab/tasks/growth.py`); the last is the task itself.
        threshold: validation accuracy at which the next stage begins; None = only the steps count.
        stage_steps: or the number of steps after which it does, whatever the accuracy; None = only the
            threshold counts.
        mixed: whether each step's size is drawn, evenly, from those of the stages so far, as the RMT authors
            do in BABILong (arXiv 2402.10790) and with `vary_n_segments` in their code of arXiv 2304.11062.
            Otherwise it is the stage's.
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
        """The task at the present stage's size, which validation has; training too,
        unless sizes are mixed.
        """
        return self.stages[self.stage]

    def at(self, batch: int) -> Any:
        """The task at the size of a training batch, told by its number since the run's beginning.

        It depends on seed, stage and number alone: every process has the same, and so has a run that was
        resumed.
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
        """The present stage as numbers, by the names they are logged under."""
        length = {"curriculum/length": self.task.length} if hasattr(self.task, "length") else {}
        return {"curriculum/stage": self.stage + 1, "curriculum/segments": self.task.num_segments, **length}

    def update(self, step: int, accuracy: float | None) -> bool:
        """Take note of a validation after `step` steps; True if the next stage begins.

        None = there is no accuracy, as in text.
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
