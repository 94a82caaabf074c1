"""From (seed, split, index) to the random words that a sample is made of, and to the sample.

Any process can make any sample, a batch of 32 is the same as two of 16, and nothing is stored. The splits are
disjoint by construction: a hash of a sample's content says which split it may appear in, and a draw that
falls into another split is drawn again.

Shapes: B batch, W random words for a sample. This file imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memlab.splits import SPLITS, Split

Ints = NDArray[np.int64]
Words = NDArray[np.uint64]

_SHARES = 16  # of the samples, one share each is kept for validation and for test

# for one sample of the right split; one in 16 fits validation or test, so this is never reached
_MAX_DRAWS = 2000


def draw(
    sequences: Callable[[Words, Ints], Ints],
    words: int,
    members: int,
    split: Split,
    start: int,
    count: int,
    seed: int,
) -> Ints:
    """The samples start .. start + count - 1 of a split, as whole sequences.

    Args:
        sequences: makes them from random words [B, W] and the number [B] of each among those that share them.
        words: W.
        members: how many consecutive samples share their words. They are in the split of the first.
    """
    index = np.arange(start, start + count)
    group, member = index // members, index % members
    first, groups = int(group[0]), int(group[-1] - group[0]) + 1
    found = np.zeros((groups, words), dtype=np.uint64)
    missing = np.arange(groups)
    for attempt in range(_MAX_DRAWS):
        drawn = _random_words(seed, split, attempt, first, groups, words)[missing]
        fits = _split_of(sequences(drawn, np.zeros(len(drawn), dtype=np.int64))) == split
        found[missing[fits]] = drawn[fits]
        missing = missing[~fits]
        if not missing.size:
            return sequences(found[group - first], member)
    raise RuntimeError(f"no sample for {split} in {_MAX_DRAWS} draws")


def _random_words(seed: int, split: Split, attempt: int, start: int, count: int, words: int) -> Words:
    """uint64 [B, W]: words W*i .. W*i + W - 1 of a Philox stream belong to sample i,
    whatever the batch it is made in.
    """
    blocks = -(-words // 4)  # Philox yields four words for each count of its counter
    key = np.array([seed, SPLITS.index(split) << 32 | attempt], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=start * blocks)
    return generator.random_raw(count * blocks * 4).reshape(count, -1)[:, :words]


def _split_of(sequence: Ints) -> NDArray[np.str_]:
    """The split that each row, and all that share its words, may appear in:
    by a multiplicative hash of its content.
    """
    odd = np.random.Philox(key=np.uint64(0)).random_raw(sequence.shape[1]) | np.uint64(1)
    mixed = (sequence.astype(np.uint64) * odd).sum(axis=1, dtype=np.uint64)
    mixed ^= mixed >> np.uint64(32)
    share = (mixed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(60)  # 0 .. 15, evenly
    assert _SHARES == 1 << 4
    return np.where(share == 0, "test", np.where(share == 1, "validation", "train"))


def choose(words: Words, n: int) -> Ints:
    """Integers 0 .. n - 1 from random words (the bias of the remainder is below n / 2**64)."""
    return (words % np.uint64(n)).astype(np.int64)


def choose_distinct(words_BW: Words, k: int) -> Ints:
    """The first k of a random order of 0 .. W - 1, for each row: draws without replacement."""
    return np.argsort(words_BW, axis=1, kind="stable")[:, :k].astype(np.int64)
