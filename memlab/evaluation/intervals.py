"""95 % confidence intervals of shares and means over test samples.

They say nothing about other training seeds.

Wilson's score interval (Wilson 1927) for a share of samples: unlike the normal interval, it is right near 0
and 1 and for few samples. The percentile bootstrap over samples (Efron 1979) for anything whose samples have
several parts: samples are independent, the tokens of one sample are not.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Z = 1.959963984540054  # 97.5 % quantile of the normal distribution
RESAMPLES = 4000
Interval = tuple[float, float]


def wilson(right: int, samples: int) -> Interval:
    """Wilson's interval of the share `right / samples`."""
    share, z2 = right / samples, Z * Z / samples
    centre = (share + z2 / 2) / (1 + z2)
    half = Z / (1 + z2) * math.sqrt(share * (1 - share) / samples + z2 / (4 * samples))
    # exact where rounding would put a bound on the wrong side of the share
    return (0.0 if right == 0 else max(0.0, centre - half)), (
        1.0 if right == samples else min(1.0, centre + half)
    )


def token_share(right_B: Sequence[int], tokens: int) -> Interval:
    """Interval of the share of right tokens, in samples of `tokens` tokens each.

    With one token, Wilson's; otherwise the bootstrap over samples. If all samples are completely right, or
    completely wrong, the bootstrap would give an interval of width 0; then this is Wilson's for whole
    samples, which is on the safe side.
    """
    counts = np.bincount(np.asarray(right_B), minlength=tokens + 1)
    samples = int(counts.sum())
    if tokens == 1 or counts[tokens] == samples or counts[0] == samples:
        return wilson(int(counts[1:].sum()) if tokens > 1 else int(counts[1]), samples)
    # samples with equal counts are interchangeable, so a resample is a multinomial draw
    drawn = _generator().multinomial(samples, counts / samples, size=RESAMPLES)
    return _percentiles(drawn @ np.arange(tokens + 1) / (samples * tokens))


def grouped_share(right_B: Sequence[int], tokens: int, members: int) -> Interval:
    """`token_share` where groups of `members` neighbouring samples share content, so that only groups are
    independent.

    The bootstrap over groups. If all groups are completely right, or completely wrong, Wilson's for whole
    groups.
    """
    if members == 1:
        return token_share(right_B, tokens)
    starts = range(0, len(right_B), members)
    right = [sum(right_B[start : start + members]) for start in starts]
    asked = [len(right_B[start : start + members]) * tokens for start in starts]
    if right == asked or not any(right) or len(right) == 1:
        return wilson(sum(found == most for found, most in zip(right, asked, strict=True)), len(right))
    interval = ratio_of_sums(right, asked)
    assert interval is not None
    return interval


def ratio_of_sums(above: Sequence[float], below: Sequence[float]) -> Interval | None:
    """Bootstrap interval of sum(above) / sum(below) over samples; None for fewer than two samples.

    For example, nats and tokens of documents give the loss per token.
    """
    samples = len(above)
    if samples < 2:
        return None
    picked = _generator().integers(samples, size=(RESAMPLES, samples))
    return _percentiles(
        np.asarray(above, dtype=np.float64)[picked].sum(1)
        / np.asarray(below, dtype=np.float64)[picked].sum(1)
    )


def _generator() -> np.random.Generator:
    return np.random.Generator(np.random.Philox(key=0))  # the same counts always give the same interval


def _percentiles(values: NDArray[np.float64]) -> Interval:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
