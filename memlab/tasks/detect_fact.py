"""Where is somebody? One fact anywhere in filler text (arXiv 2304.11062, section 4, "detect and memorize").

    filler .. Mary went to the garden . filler .. | .. | filler .. where is Mary ?      answer: garden

The fact begins at any token before the question's segment, with equal probability: it has to be noticed among
filler, and remembered.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from memlab.bounds import Fraction
from memlab.tasks.base import Batch
from memlab.tasks.draws import Ints, choose
from memlab.tasks.facts import A_PERSON, PERSONS
from memlab.tasks.memorize_fact import MemorizeFact


class DetectFact(MemorizeFact):
    """One fact anywhere.

    Args:
        depth: where the fact stands, 0 = at the very start, 1 = right before the question's segment (or right
            before the question, if there is only one segment); None = anywhere, uniformly. `sizes` are
            `FactTask`'s arguments.
    """

    def __init__(self, *, depth: Fraction | None, **sizes: Any) -> None:
        self.depth = depth
        super().__init__(**sizes)

    @property
    def arrangements(self) -> int:  # type: ignore[override]
        return self._last + 1 if self.depth is None else 1

    @property
    def _last(self) -> int:
        return self.room - self.fact_lengths[0]

    def options(self) -> dict[str, Any]:
        return super().options() | {"depth": self.depth}

    def begin(self, random_B: NDArray[np.uint64]) -> Ints:
        return (
            choose(random_B, self._last + 1)
            if self.depth is None
            else np.full(len(random_B), round(self.depth * self._last))
        )

    def depths(self, batch: Batch) -> NDArray[np.float64] | None:
        if self._last == 0:
            return None
        # a fact begins with one, filler has none
        person_BT = (batch.tokens_BT >= A_PERSON) & (batch.tokens_BT < A_PERSON + len(PERSONS))
        return np.asarray(person_BT.argmax(axis=1) / self._last)
