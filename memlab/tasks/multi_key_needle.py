"""Multi-key needle in a haystack, in symbols (RULER, arXiv 2404.06654, section 3.1, "multi-keys NIAH").

    filler .. marker, key, d1 .. dP .. filler, question, key, d1 .. dP        tokens L + P + 1, answer P

N needles stand at random places of a haystack of L tokens: a marker, a key, and the key's value of P digits.
The question in the last segment names one of the keys, and the answer is its value. Keys do not repeat in a
sample; digits are independent and uniform. A model that has not read the haystack gets 1 / 10 of the digits,
and one that knows all values but not which one belongs to the key gets 1 / N + (1 - 1 / N) / 10.

RULER's keys are words and its values numbers of 7 digits. With as many needles as fit, the haystack has
nothing but needles, as in RULER's harder variants. Segments and filler are as in `passkey`.
"""

from __future__ import annotations

import math
from functools import cached_property
from typing import Any, Self

from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.tasks.base import possible
from memlab.tasks.draws import Ints
from memlab.tasks.passkey import DIGITS, Passkey


class MultiKeyNeedle(Passkey):
    """Multi-key needle.

    Args:
        length: L, tokens of the haystack, including needles. `passkey` are the arguments of `Passkey`;
            `depth` is that of the needle in question.
        needles: N (published: 4, or as many as fit).
        keys: number of different keys, N or more.
    """

    def __init__(self, *, needles: Positive, keys: Positive, **passkey: Any) -> None:
        if keys < needles:
            raise ConfigError(
                f"task.keys={keys}: {needles} needles need {needles} keys or more, since keys do not repeat"
            )
        self.needles, self.keys = needles, keys
        super().__init__(**passkey)

    @cached_property
    def starts(self) -> Ints:
        starts: Ints = super().starts
        if self.needles > len(starts):
            raise ConfigError(
                f"task.needles={self.needles}: the haystack has room for {len(starts)} needles of "
                f"{self.needle} tokens, each wholly inside one segment; "
                f"task.segment_lengths={list(self.segment_lengths)}"
            )
        return starts

    @property
    def distinct(self) -> int:
        places = len(self.starts)
        other_places = math.comb(places - 1, self.needles - 1)
        others = (
            other_places * math.perm(self.keys, self.needles) * DIGITS ** (self.digits * (self.needles - 1))
        )
        filler = self.fillers ** (self.length - self.needles * self.needle) if self.filler == "random" else 1
        return (places if self.depth is None else 1) * DIGITS**self.digits * others * filler

    def options(self) -> dict[str, Any]:
        return super().options() | {"needles": self.needles, "keys": self.keys}

    def stages(self, one_answer: bool = False) -> tuple[Self, ...]:
        """1, 2, 4, .. needles in a haystack of one segment; then the haystack grows segment by segment."""
        grow = super().stages(one_answer)
        first = grow[0]
        counts = [2**i for i in range(self.needles.bit_length()) if 2**i < self.needles]
        few = possible(lambda n: first.resized(first.length, list(first.segment_lengths), needles=n), counts)
        return (*few, *grow)
