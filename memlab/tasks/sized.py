"""Tasks whose length is the number of tokens that a model reads."""

from __future__ import annotations

from typing import Any, Self

from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.tasks.base import SyntheticTask


class SizedTask(SyntheticTask):
    """Base of these tasks. A sample is T tokens in S segments of the same length, unless they are given.

    Args:
        segment_length: N, tokens of each of the `num_segments` segments; None = `length` is given.
        length: T; None = `segment_length` is given. `sizes` are `SyntheticTask`'s arguments.

    Raises:
        ConfigError: both are given, or neither.
    """

    def __init__(
        self,
        *,
        segment_length: Positive | None,
        length: Positive | None,
        num_segments: Positive,
        **sizes: Any,
    ) -> None:
        if (segment_length is None) == (length is None):
            wrong = (
                "neither is given"
                if length is None
                else f"both are given ({segment_length} and {length}); set one to null"
            )
            raise ConfigError(
                f"task.segment_length and task.length both set the size of a sample, and {wrong}"
            )
        super().__init__(
            length=length or num_segments * (segment_length or 0), num_segments=num_segments, **sizes
        )

    def tokens_for(self, length: int) -> int:
        return length

    def options(self) -> dict[str, Any]:
        return {"segment_length": None}

    def at(self, num_segments: int) -> Self:
        """More or fewer segments of the same length."""
        if num_segments == self.num_segments:
            return self
        if len(set(self.segment_lengths)) > 1:
            raise ConfigError(
                f"task.segment_lengths={list(self.segment_lengths)} are not equal, so their number cannot "
                "change"
            )
        segment = self.segment_lengths[0]
        return self.resized(num_segments * segment, [segment] * num_segments)
