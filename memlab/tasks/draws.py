"""From (seed, split, index) to the random numbers that a sample is made of, and to the sample.

Any process can make any sample, a batch of 32 is the same as two of 16, and nothing is stored. The splits are
disjoint by construction: a hash of a sample's content decides which split it may appear in, and a sample that
falls into another split is drawn again.

Shapes: B batch, W random numbers per sample. This file imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from memlab.splits import SPLITS, Split

Ints = NDArray[np.int64]
RandomNumbers = NDArray[np.uint64]  # uniform 64-bit integers

_SHARES = 16  # validation and test each get one of this many shares of all samples

# for one sample of the right split; one in 16 fits validation or test, so this is never reached
_MAX_DRAWS = 2000


def draw(
    sequences: Callable[[RandomNumbers, Ints], Ints],
    random_numbers: int,
    members: int,
    split: Split,
    start: int,
    count: int,
    seed: int,
    fits: Callable[[RandomNumbers], NDArray[np.bool_]] | None = None,
) -> Ints:
    """The samples start .. start + count - 1 of a split, as whole sequences.

    Args:
        sequences: makes the samples from random numbers [B, W] and from the index [B] of each among those
            that share them.
        random_numbers: W.
        members: how many consecutive samples share their random numbers; they are in the split of the first.
        fits: whether samples with these random numbers are in the split; None = a hash of their content
            decides.
    """
    index = np.arange(start, start + count)
    group, member = index // members, index % members
    first, groups = int(group[0]), int(group[-1] - group[0]) + 1
    found = np.zeros((groups, random_numbers), dtype=np.uint64)
    rows: Ints | None = None  # of the first of each group, where they had to be made
    missing = np.arange(groups)
    for attempt in range(_MAX_DRAWS):
        drawn = _draw_numbers(seed, split, attempt, first, groups, random_numbers)[missing]
        if fits is None:
            made = sequences(drawn, np.zeros(len(drawn), dtype=np.int64))
            right = split_of(made) == split
            rows = np.empty((groups, made.shape[1]), dtype=np.int64) if rows is None else rows
            rows[missing[right]] = made[right]
        else:
            right = fits(drawn)
        found[missing[right]] = drawn[right]
        missing = missing[~right]
        if not missing.size:
            return sequences(found[group - first], member) if rows is None or members > 1 else rows
    raise RuntimeError(f"no sample for {split} in {_MAX_DRAWS} draws")


def _draw_numbers(seed: int, split: Split, attempt: int, start: int, count: int, each: int) -> RandomNumbers:
    """Random numbers [B, W]; sample i has its own range of a Philox stream, whatever the batch."""
    blocks = -(-each // 4)  # Philox yields four numbers for each value of its counter
    key = np.array([seed, SPLITS.index(split) << 32 | attempt], dtype=np.uint64)
    generator = np.random.Philox(key=key, counter=start * blocks)
    return generator.random_raw(count * blocks * 4).reshape(count, -1)[:, :each]


def split_of(sequence: Ints) -> NDArray[np.str_]:
    """The split that each sample may appear in, by a multiplicative hash of its content."""
    odd = np.random.Philox(key=np.uint64(0)).random_raw(sequence.shape[1]) | np.uint64(1)
    mixed = (sequence.astype(np.uint64) * odd).sum(axis=1, dtype=np.uint64)
    mixed ^= mixed >> np.uint64(32)
    share = (mixed * np.uint64(0x9E3779B97F4A7C15)) >> np.uint64(60)  # 0 .. 15, evenly
    assert _SHARES == 1 << 4
    return np.where(share == 0, "test", np.where(share == 1, "validation", "train"))


def choose(random: RandomNumbers, n: int) -> Ints:
    """Integers 0 .. n - 1 from random numbers (the bias of the remainder is below n / 2**64)."""
    return (random % np.uint64(n)).astype(np.int64)


def choose_distinct(random_BW: RandomNumbers, k: int) -> Ints:
    """The first k of a random order of 0 .. W - 1, for each sample: draws without replacement."""
    return np.argsort(random_BW, axis=1, kind="stable")[:, :k].astype(np.int64)
