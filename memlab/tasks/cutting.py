"""Cut an amount of tokens, pairs or symbols into segments: equal ones, or with one that is shorter."""

from __future__ import annotations

from typing import Literal

from memlab.errors import ConfigError

# The shorter part is the last (left-aligned) or the first (right-aligned); None = all have to be equal
Align = Literal["left", "right"] | None


def in_parts(amount: int, longest: int, align: Align) -> list[int]:
    """`amount` in parts of `longest`; the last (right-aligned: the first) may be shorter."""
    lengths = [min(longest, amount - start) for start in range(0, amount, longest)]
    return lengths[::-1] if align == "right" else lengths


def share(what: str, amount: int, parts: int, num_segments: int, length: int, align: Align) -> list[int]:
    """`amount` in this many parts, equal ones or as `align` permits.

    Args:
        what: name of what is divided, for messages.
        num_segments, length: as the user gave them; segments beyond `parts` hold something else.

    Raises:
        ConfigError: the amount does not divide into this many parts.
    """
    size = -(-amount // parts)
    if amount % parts and align is None:
        others = num_segments - parts
        possible = [n + others for n in range(1, amount + 1) if amount % n == 0]
        raise ConfigError(
            f"task.num_segments={num_segments}: the {amount} {what} of task.length={length} do not divide "
            f"into {parts} equal segments; possible numbers are {possible}, or give task.align=left|right or "
            "task.segment_lengths"
        )
    if amount <= size * (parts - 1):
        raise ConfigError(
            f"task.num_segments={num_segments}: {amount} {what} in segments of {size} do not fill {parts} of "
            "them"
        )
    lengths = [size] * (parts - 1) + [amount - size * (parts - 1)]
    return lengths[::-1] if align == "right" else lengths
