"""What every generated task promises about its samples. The conformance suite checks it for every file in
configs/task/; the test file of a task checks it for more of the task's options.

Shapes: B samples, T tokens, n tokens of the last segment, A answer tokens of a sample.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable

import numpy as np

from memlab.splits import SPLITS
from memlab.tasks.base import Batch, SyntheticTask
from memlab.tasks.draws import Ints

BLANK = -1  # in the place of an answer's own token
Solve = Callable[[SyntheticTask, list[int]], list[int]]


def whole(batch: Batch) -> Ints:
    """Whole sequences [B, T + 1]: the tokens that are read, and the last target."""
    return np.concatenate([batch.tokens_BT, batch.targets_BT[:, -1:]], axis=1)


def asked(task: SyntheticTask, batch: Batch) -> tuple[Ints, Ints]:
    """What is read [B, T], with `BLANK` in the place of the answer's own tokens; and the answer [B, A]."""
    positions = np.array(task.answer_positions())
    read_BT = batch.tokens_BT.copy()
    read_BT[:, positions[positions + 1 < task.tokens] + 1] = BLANK
    return read_BT, batch.targets_BT[:, positions]


def contents(task: SyntheticTask, split: str, count: int, seed: int = 0) -> set[bytes]:
    return {row.tobytes() for row in whole(task.batch(split, 0, count, seed))}  # type: ignore[arg-type]


def near(share: float, chance: float, count: int) -> bool:
    """Whether a share of `count` independent trials is within 4 standard deviations of a probability."""
    return abs(share - chance) < 4 * math.sqrt(chance * (1 - chance) / count)


# Samples


def check_shapes(task: SyntheticTask) -> None:
    """Targets are the next tokens, answers stand where the task says, ids are in the vocabulary and have a
    word each, segments fill the sample.
    """
    positions = task.answer_positions()
    assert len(positions) == task.answer_tokens > 0 and positions == sorted(set(positions))
    assert positions[0] >= 0 and positions[-1] < task.tokens
    for split in SPLITS:
        batch = task.batch(split, 3, 20)
        assert batch.tokens_BT.shape == batch.targets_BT.shape == batch.answer_BT.shape == (20, task.tokens)
        assert batch.tokens_BT.dtype == batch.targets_BT.dtype == np.int64
        assert batch.answer_BT.dtype == np.bool_
        assert (batch.targets_BT[:, :-1] == batch.tokens_BT[:, 1:]).all()
        assert (batch.answer_BT == np.isin(np.arange(task.tokens), positions)).all()
        assert batch.segment_lengths == task.segment_lengths and sum(batch.segment_lengths) == task.tokens
        assert min(batch.segment_lengths) > 0 and task.num_segments == len(batch.segment_lengths)
        assert whole(batch).min() >= 0 and whole(batch).max() < task.vocab_size
        depths = task.depths(batch)
        assert depths is None or (depths.shape == (20,) and depths.min() >= 0 and depths.max() <= 1)
    words = [task.word(token) for token in range(task.vocab_size)]
    assert all(words) and len(set(words)) == task.vocab_size
    sizes = (task.size("train"), task.size("validation"), task.size("test"))
    assert sizes == (None, task.validation_size, task.test_size)


def check_streams(task: SyntheticTask, twin: SyntheticTask) -> None:
    """A sample depends on seed, split and index alone (`twin` is made anew); the seed moves training only;
    splits share nothing.
    """
    seen = {}
    for split in SPLITS:
        rows = whole(task.batch(split, 0, 120, seed=1))
        for start, count in [(0, 3), (3, 40), (119, 1), *((i, 1) for i in range(10))]:
            assert (whole(twin.batch(split, start, count, seed=1)) == rows[start : start + count]).all()
        others = [whole(task.batch(split, 0, 120, seed=seed)) for seed in (0, 2, 3)]
        for one, other in itertools.combinations([rows, *others], 2):
            equal = int((one == other).all(axis=1).sum())
            assert equal <= 6 if split == "train" else equal == 120
        seen[split] = {row.tobytes() for row in rows}
        assert len(seen[split]) > 110 or task.distinct < 50 * 120**2, "samples come up again"
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other


def check_own_words(task: SyntheticTask) -> None:
    """A sequence is a function of its own random words: not of the other rows, of earlier calls or of the
    order of rows. The words stay as they are.
    """
    words = np.random.Philox(key=1).random_raw(20 * task.random_numbers).reshape(20, -1)
    before, members = words.copy(), np.arange(20) % task.members
    first = task.sequences(words, members)
    assert (task.sequences(words[::-1], members[::-1])[::-1] == first).all()
    alone = [task.sequences(words[i : i + 1], members[i : i + 1]) for i in range(20)]
    assert (np.concatenate(alone) == first).all() and (words == before).all()


def check_disjoint(task: SyntheticTask, count: int = 4000, held: int = 800) -> None:
    """No content is in two splits, with any seed of training.

    Args:
        count: samples of training, twice.
        held: samples of validation and of test; one draw in 16 is one of them.
    """
    train = contents(task, "train", count) | contents(task, "train", count, seed=1)
    others = [contents(task, split, held) for split in ("validation", "test")]
    for one, other in itertools.combinations([train, *others], 2):
        assert not one & other


def check_never_repeats(task: SyntheticTask) -> None:
    """Neighbours and far parts of the training stream are new samples, as far as there are so many."""
    starts, count = (0, 5_000, 10**12), 1000
    blocks = [whole(task.batch("train", start, count)) for start in starts]
    for one, other in itertools.combinations(blocks, 2):
        assert (one == other).all(axis=1).mean() < 0.01, "the stream goes round"
    drawn = len(starts) * count
    if 50 * drawn**2 < task.distinct:  # of so many, hardly any two would be the same by chance
        assert len({row.tobytes() for block in blocks for row in block}) == drawn


def check_splits_cover(task: SyntheticTask, draws: int) -> None:
    """For a tiny task: in so many draws each of its `distinct` contents comes up,
    in one split and no other.
    """
    seen = {split: contents(task, split, draws) for split in SPLITS}
    for one, other in itertools.combinations(seen.values(), 2):
        assert not one & other
    assert sum(len(found) for found in seen.values()) == task.distinct


# What can be known of the answer


def check_oracle(task: SyntheticTask, solve: Solve, count: int = 200) -> None:
    """From all that is read, the oracle is always right."""
    for split in SPLITS:
        read_BT, answer_BA = asked(task, task.batch(split, 5, count))
        for read, answer in zip(read_BT.tolist(), answer_BA.tolist(), strict=True):
            found = solve(task, read)
            assert found == answer, f"the oracle says {found} of {read}, the task {answer}"


def check_chance(task: SyntheticTask, count: int = 4000) -> None:
    """`chance` is what the best constant guess scores, on other samples than those it was found on."""
    (_, learned), (_, tested) = (asked(task, task.batch("train", 0, count, seed)) for seed in (0, 1))
    right_B = (tested == np.bincount(learned.ravel()).argmax()).mean(axis=1)
    assert abs(right_B.mean() - task.chance) <= 4.5 * right_B.std() / math.sqrt(count) + 1e-9


def check_last_segment(task: SyntheticTask, count: int = 3000) -> None:
    """Who reads the last segment alone is no better than who reads nothing and knows what is most often the
    answer: what it asks for lies before.

    The readers learn from one stream of training and are scored on another. One takes the column of tokens
    that says most, one weighs all columns (naive Bayes). They do not get the answer's own tokens.
    """
    assert task.num_segments > 1, "with one segment there is nothing to remember"
    (read, answer), (read_test, answer_test) = (
        _last_segment(task, task.batch("train", 0, count, seed)) for seed in (0, 1)
    )
    gain_B = np.zeros((2, count))
    for wanted, truth in zip(answer.T, answer_test.T, strict=True):
        blind = truth == np.bincount(wanted).argmax()
        for reader, guess in enumerate(_guesses(read, wanted, read_test)):
            gain_B[reader] += guess == truth
            gain_B[reader] -= blind
    for gain in gain_B / answer.shape[1]:
        assert gain.mean() <= 4.5 * gain.std() / math.sqrt(count) + 1e-9, (
            f"the last segment gives {gain.mean():.3f} of the answer away"
        )


def _last_segment(task: SyntheticTask, batch: Batch) -> tuple[Ints, Ints]:
    """Of the last segment, what can be seen [B, n], the last column two tokens as one; and the answers."""
    read_BT, answer_BA = asked(task, batch)
    begin = task.tokens - task.segment_lengths[-1]
    seen_Bn = read_BT[:, begin:]
    seen_Bn = seen_Bn[:, (seen_Bn != BLANK).all(axis=0)]
    if seen_Bn.shape[1] > 1:
        pair_B = seen_Bn[:, -2] * task.vocab_size + seen_Bn[:, -1]
        seen_Bn = np.column_stack([seen_Bn, pair_B])
    return seen_Bn, answer_BA[:, np.array(task.answer_positions()) >= begin]


def _guesses(seen_Bn: Ints, answer_B: Ints, test_Bn: Ints) -> tuple[Ints, Ints]:
    """Of the best single column, and of naive Bayes over all columns."""
    answers, coded_B = np.unique(answer_B, return_inverse=True)
    prior_A = np.bincount(coded_B)
    column_BA = score_BA = np.tile(np.log(prior_A / len(answer_B)), (len(test_Bn), 1))
    best = int(prior_A.max())
    for seen_B, test_B in zip(seen_Bn.T, test_Bn.T, strict=True):
        counts_VA = np.zeros((max(seen_B.max(), test_B.max()) + 1, len(answers)))
        np.add.at(counts_VA, (seen_B, coded_B), 1)
        likely_VA = np.log((counts_VA + 0.5) / (prior_A + 0.5 * np.count_nonzero(counts_VA.any(axis=1))))
        score_BA = score_BA + likely_VA[test_B]
        if (right := int(counts_VA.max(axis=1).sum())) > best:
            best, column_BA = right, counts_VA[test_B]
    return answers[column_BA.argmax(axis=1)], answers[score_BA.argmax(axis=1)]


# Sizes


def check_options(task: SyntheticTask) -> None:
    """`options` names all of the task's own arguments: at its own size it is made again as it is."""
    again = task.resized(task.length, list(task.segment_lengths))
    assert type(again) is type(task) and again.segment_lengths == task.segment_lengths
    assert (whole(again.batch("test", 0, 20)) == whole(task.batch("test", 0, 20))).all()
    assert task.at(task.num_segments) is task


def check_stages(task: SyntheticTask, solve: Solve) -> None:
    """Stages share the task's vocabulary and sizes, keep every promise of a sample, and end with the task."""
    stages = task.stages()
    for stage in stages:
        for attribute in ("vocab_size", "batch_size", "validation_size", "test_size"):
            assert getattr(stage, attribute) == getattr(task, attribute)
        check_shapes(stage)
        check_oracle(stage, solve, count=20)
    last, own = stages[-1].batch("test", 0, 20), task.batch("test", 0, 20)
    assert (whole(last) == whole(own)).all() and last.segment_lengths == own.segment_lengths
