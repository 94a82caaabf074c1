"""Passkey in symbols (Landmark Attention, arXiv 2305.16300; Infini-attention, arXiv 2404.07143, appendix B).

    filler .. filler, marker, d1 .. dP, filler .. filler, question, d1 .. dP        tokens L + P, answer P

A haystack of L tokens announces P digits once; the question in the last segment asks for them. Digits are
independent and uniform, so a model that has not read the announcement scores 1 / 10.

The papers' filler repeats one text, which is easy to tell from the announcement and easy to compress;
`filler=random` is neither. Only the announcement has digits, so it is easy to find; in `multi_key_needle`,
the model has to find the right one of several.

Segments: the haystack is divided evenly among the first S - 1, and the question is alone in the last. For any
`segment_lengths`, the announcement lies wholly inside one of the first S - 1 segments, in place of filler.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, Literal, Self

import numpy as np
from numpy.typing import NDArray

from memlab.bounds import Fraction, Positive
from memlab.errors import ConfigError
from memlab.tasks.base import Batch, SyntheticTask, possible
from memlab.tasks.draws import Ints, RandomNumbers, choose, choose_distinct

DIGITS, MARKER, QUESTION, FIRST_FILLER = 10, 10, 11, 12


class Passkey(SyntheticTask):
    """Passkey, and the base of `MultiKeyNeedle`. A needle is a marker, a key if there are keys, and digits.

    Args:
        length: L, tokens of the haystack, including the announcement. `sizes` are `SyntheticTask`'s
            arguments.
        digits: P, digits of the passkey (published: a number up to 50000).
        depth: where the announcement stands, from 0 (earliest) to 1 (latest possible place); None = anywhere,
            uniformly.
        filler: one sentence of all filler tokens, repeated, or filler tokens at random.
        fillers: number of different filler tokens.
    """

    chance = 1 / DIGITS
    needles, keys = 1, 0

    def __init__(
        self,
        *,
        digits: Positive,
        depth: Fraction | None,
        filler: Literal["repeated", "random"],
        fillers: Positive,
        **sizes: Any,
    ) -> None:
        self.digits, self.depth, self.filler, self.fillers = digits, depth, filler, fillers
        self.needle = 1 + (self.keys > 0) + digits
        self.vocab_size = FIRST_FILLER + fillers + self.keys
        super().__init__(**sizes)

    def tokens_for(self, length: int) -> int:
        return length + self.needle - 1

    @property
    def answer_tokens(self) -> int:
        return self.digits

    @cached_property
    def starts(self) -> Ints:
        """Where a needle may begin.

        Several needles must not overlap: their places are multiples of their size, counted from the segment's
        start.
        """
        ends = np.minimum(
            np.cumsum(self.segment_lengths[: max(1, self.num_segments - 1)]), self.length
        ).tolist()
        bounds = list(zip([0, *ends], ends, strict=False))
        step = 1 if self.needles == 1 else self.needle
        starts = [start for begin, end in bounds for start in range(begin, end - self.needle + 1, step)]
        if not starts:
            longest = max(end - begin for begin, end in bounds)
            fit = longest - self.needle + self.digits
            raise ConfigError(
                f"task.digits={self.digits}: at most {fit} fit into one segment of the haystack; the longest "
                f"has {longest} tokens"
            )
        return np.array(starts)

    @property
    def distinct(self) -> int:
        places = len(self.starts) if self.depth is None else 1
        return (
            places
            * DIGITS**self.digits
            * (self.fillers ** (self.length - self.needle) if self.filler == "random" else 1)
        )

    @property
    def _columns(self) -> list[int]:
        """How many random numbers choose the right needle's place, the others', keys, digits, filler."""
        others = len(self.starts) - 1 if self.needles > 1 else 0
        return [
            1,
            others,
            self.keys,
            self.needles * self.digits,
            self.length if self.filler == "random" else 0,
        ]

    @property
    def random_numbers(self) -> int:
        return sum(self._columns)

    def options(self) -> dict[str, Any]:
        return {"digits": self.digits, "depth": self.depth, "filler": self.filler, "fillers": self.fillers}

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        count, places, needles = len(random_BW), len(self.starts), self.needles
        place, others, keys, digits, filler = np.split(random_BW, np.cumsum(self._columns)[:-1], axis=1)
        asked_B1 = (
            choose(place, places)
            if self.depth is None
            else np.full((count, 1), round(self.depth * (places - 1)))
        )
        # among the places left: places from the right needle's are shifted by one
        other_BN = choose_distinct(others, needles - 1)
        start_BN = self.starts[np.concatenate([asked_B1, other_BN + (other_BN >= asked_B1)], axis=1)]
        marker_BN1 = np.full((count, needles, 1), MARKER)
        key_BNK = (
            FIRST_FILLER + self.fillers + choose_distinct(keys, needles)[:, :, None]
            if self.keys
            else marker_BN1[:, :, :0]
        )
        needle_BNn = np.concatenate(
            [marker_BN1, key_BNK, choose(digits, DIGITS).reshape(count, needles, -1)], axis=2
        )
        repeated = np.broadcast_to(np.arange(self.length) % self.fillers, (count, self.length))
        haystack_BL = FIRST_FILLER + (choose(filler, self.fillers) if self.filler == "random" else repeated)
        haystack_BL[np.arange(count)[:, None, None], start_BN[:, :, None] + np.arange(self.needle)] = (
            needle_BNn
        )
        return np.concatenate([haystack_BL, np.full((count, 1), QUESTION), needle_BNn[:, 0, 1:]], axis=1)

    def depths(self, batch: Batch) -> NDArray[np.float64] | None:
        tokens_BT, last = batch.tokens_BT, len(self.starts) - 1
        if last == 0:
            return None
        found_BL = tokens_BT[:, : self.length] == MARKER
        if self.keys:  # the needle whose key the question names
            asked_B1 = tokens_BT[:, self.length + 1, None]
            found_BL[:, :-1] &= tokens_BT[:, 1 : self.length] == asked_B1
        return np.asarray(np.searchsorted(self.starts, found_BL.argmax(axis=1)) / last)

    def at(self, num_segments: int) -> Self:
        """Another number of segments, the last of them with the question."""
        if num_segments == self.num_segments:
            return self
        *context, question = self.segment_lengths
        if len(set(context)) != 1 or question != self.needle - 1 or num_segments < 2:
            raise ConfigError(
                f"task.num_segments={num_segments}: task.segment_lengths={list(self.segment_lengths)} do not "
                "say how to grow"
            )
        return self.resized((num_segments - 1) * context[0], [*context[:1] * (num_segments - 1), question])

    def at_length(self, length: int) -> Self:
        if length == self.length:
            return self
        *context, question = self.segment_lengths
        if not context or question != self.needle - 1:
            raise ConfigError(f"task.segment_lengths={list(self.segment_lengths)} do not say how to grow")
        return self.resized(length, [*self._in_parts(length, max(context)), question])

    def stages(self, one_answer: bool = False) -> tuple[Self, ...]:
        """The haystack grows from one segment, by one at a time.

        Raises:
            ConfigError: the segments do not determine how to grow, or the answer has several tokens although
                `one_answer`.
        """
        if one_answer and self.digits > 1:
            raise ConfigError(
                f"task.digits={self.digits}: a model that answers once per sample needs task.digits=1"
            )
        if self.num_segments > 1:
            self.at(self.num_segments + 1)  # raises if the segments do not determine how to grow
        return possible(self.at, range(min(2, self.num_segments), self.num_segments + 1))

    def _cut(self, num_segments: int, segment_lengths: list[int] | None) -> tuple[int, ...]:
        if segment_lengths is not None or num_segments == 1:
            return super()._cut(num_segments, segment_lengths)
        return (*self._share("haystack tokens", self.length, num_segments - 1), self.needle - 1)
