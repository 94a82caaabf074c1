"""Small tasks that tell something and then ask, and ways to guess their answers, for the tests of each."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Callable, Hashable
from typing import Any

import numpy as np

from memlab.tasks.associative_rewrite import AssociativeRewrite
from memlab.tasks.base import Batch
from memlab.tasks.context import ContextTask
from memlab.tasks.mqar import MQAR
from memlab.tasks.sorting_by_frequency import SortingByFrequency
from memlab.tasks.variable_tracking import VariableTracking

COMMON = {"segment_lengths": None, "align": None, "batch_size": 4, "validation_size": 50, "test_size": 70}
SMALL: dict[str, tuple[type[ContextTask], dict[str, Any]]] = {
    "mqar": (
        MQAR,
        {"length": 8, "num_segments": 5, "keys": 20, "values": 10, "queries": 3, "distractors": 8},
    ),
    "associative_rewrite": (
        AssociativeRewrite,
        {"length": 16, "num_segments": 5, "keys": 4, "values": 10, "queries": 2},
    ),
    "variable_tracking": (
        VariableTracking,
        {"length": 2, "num_segments": 5, "chains": 4, "variables": 24, "values": 10, "distractors": 8},
    ),
    "sorting_by_frequency": (SortingByFrequency, {"length": 40, "num_segments": 5, "symbols": 5}),
}


def make(name: str, **changes: Any) -> ContextTask:
    task, own = SMALL[name]
    return task(**(COMMON | own | changes))


def sequences(batch: Batch) -> list[list[int]]:
    """Whole sequences: the tokens that are read, and the last target."""
    return np.concatenate([batch.tokens_BT, batch.targets_BT[:, -1:]], axis=1).tolist()


def score(task: ContextTask, guess: Callable[[list[int], int], int], count: int = 3000) -> float:
    """Share of answer tokens of the test split that `guess` gets right from the tokens up to position t,
    and t.
    """
    batch = task.batch("test", 0, count)
    positions = np.flatnonzero(batch.answer_BT[0]).tolist()
    guesses = [[guess(row[: t + 1], t) for t in positions] for row in batch.tokens_BT.tolist()]
    return float((np.array(guesses) == batch.targets_BT[:, positions]).mean())


def learned(
    task: ContextTask, feature: Callable[[list[int], int], Hashable], count: int = 6000
) -> Callable[[list[int], int], int]:
    """The best guesser that sees no more than `feature`: the answer that came most often with it in the
    train split.
    """
    batch = task.batch("train", 0, count)
    seen: defaultdict[Hashable, Counter[int]] = defaultdict(Counter)
    for row, targets in zip(batch.tokens_BT.tolist(), batch.targets_BT.tolist(), strict=True):
        for t in np.flatnonzero(batch.answer_BT[0]).tolist():
            seen[feature(row[: t + 1], t)][targets[t]] += 1
    best = {key: answers.most_common(1)[0][0] for key, answers in seen.items()}
    return lambda row, t: best.get(feature(row, t), 0)


def sigmas(found: float, chance: float, trials: int) -> float:
    """How far a share of independent trials is from what is expected, in standard deviations."""
    return abs(found - chance) / math.sqrt(chance * (1 - chance) / trials)
