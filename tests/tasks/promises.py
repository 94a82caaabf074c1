"""What every generated task promises about its samples, to be checked by the test file of each."""

from __future__ import annotations

import itertools
import math

import numpy as np

from memlab.splits import SPLITS
from memlab.tasks.base import Batch, SyntheticTask
from memlab.tasks.draws import Ints


def whole(batch: Batch) -> Ints:
    """Whole sequences [B, T + 1]: the tokens that are read, and the last target."""
    return np.concatenate([batch.tokens_BT, batch.targets_BT[:, -1:]], axis=1)


def check_shapes(task: SyntheticTask) -> None:
    """Targets are the next tokens, the answer is the last of them, ids are in the vocabulary,
    segments fill the sample.
    """
    for split in SPLITS:
        batch = task.batch(split, 3, 20)
        assert batch.tokens_BT.shape == batch.targets_BT.shape == batch.answer_BT.shape == (20, task.tokens)
        assert (
            batch.tokens_BT.dtype == batch.targets_BT.dtype == np.int64 and batch.answer_BT.dtype == np.bool_
        )
        assert (batch.targets_BT[:, :-1] == batch.tokens_BT[:, 1:]).all()
        assert (batch.answer_BT == (np.arange(task.tokens) >= task.tokens - task.answer_tokens)).all()
        assert batch.segment_lengths == task.segment_lengths and sum(batch.segment_lengths) == task.tokens
        assert whole(batch).min() >= 0 and whole(batch).max() < task.vocab_size


def check_streams(task: SyntheticTask, twin: SyntheticTask) -> None:
    """A sample depends on seed, split and index alone (`twin` is made anew); the seed moves training only;
    splits share nothing.
    """
    seen = {}
    for split in SPLITS:
        rows = whole(task.batch(split, 0, 120, seed=1))
        for start, count in [(0, 3), (3, 40), (119, 1)]:
            assert (whole(twin.batch(split, start, count, seed=1)) == rows[start : start + count]).all()
        assert (whole(task.batch(split, 0, 120, seed=2)) == rows).all() == (split != "train")
        seen[split] = {row.tobytes() for row in rows}
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other


def check_splits_cover(task: SyntheticTask, draws: int) -> None:
    """For a tiny task: in so many draws each of its `distinct` contents comes up,
    in one split and no other.
    """
    seen = {split: {row.tobytes() for row in whole(task.batch(split, 0, draws))} for split in SPLITS}
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other
    assert sum(len(contents) for contents in seen.values()) == task.distinct


def near(share: float, chance: float, count: int) -> bool:
    """Whether a share of `count` independent trials is within 4 standard deviations of a probability."""
    return abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / count)
