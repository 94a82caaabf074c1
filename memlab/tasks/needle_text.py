"""Needles in words (RULER, arXiv 2404.06654, section 3.1: single, multi-keys NIAH).

    .. The number of the castle is 7143205. .. The number of the violin is 2090417. .. |
    .. What is the number of the violin? The number of the violin is                   answer: 2090417

N sentences of the same kind stand at random places of filler, each with a key and its value: a number, or a
word. The question names one of the keys. Keys do not repeat in a sample, and values are independent. A
model that knows all values, but not which of them belongs to the key, is right in 1 / N of the samples.

Sentences and words are our own; RULER's keys are pairs of words, and its numbers have 7 digits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.tasks.language import Answers
from memlab.tasks.passkey_text import HiddenTask
from memlab.tasks.prose import Story, chosen, fraction, number, some_numbers

_KEYS = """
    castle violin carpet mirror basket hammer ladder pillow candle bottle button jacket camera tunnel
    statue barrel blanket cabinet fountain kettle ribbon saddle shovel temple trumpet wagon
"""
_VALUES = """
    silver orange yellow purple tiger rabbit monkey camel butter pepper sugar coffee winter summer
    monday friday london paris doctor farmer pilot sailor cotton copper marble diamond
"""
KEYS, VALUES = _KEYS.split(), _VALUES.split()


class NeedleText(HiddenTask):
    """Needles in words.

    Args:
        needles: N, 1 to 26.
        digits: of a value; None = values are words. `hidden` are `HiddenTask`'s arguments; `depth` and
            `depths` are those of the needle in question.
    """

    introduction = "Some things are noted in the following text. Remember them."

    def __init__(self, *, needles: Positive, digits: Positive | None, **hidden: Any) -> None:
        if needles > len(KEYS):
            raise ConfigError(f"task.needles={needles}: there are only {len(KEYS)} different keys")
        self.needles, self.digits = needles, digits
        super().__init__(**hidden)

    @property
    def kind(self) -> str:
        return "word" if self.digits is None else "number"

    def texts(self) -> Iterable[str]:
        return self.question(" ".join(KEYS)), " ".join(VALUES), "0123456789."

    def forbidden(self) -> Iterable[str]:
        return (*KEYS, *VALUES)

    @property
    def stories(self) -> int:
        if self.digits is None:
            values = math.perm(len(VALUES), self.needles)
        else:
            values = (9 * 10 ** (self.digits - 1) if self.digits > 1 else 10) ** self.needles
        return math.perm(len(KEYS), self.needles) * values

    @property
    def story_numbers(self) -> int:
        return self.needles + len(KEYS) + (len(VALUES) if self.digits is None else self.needles)

    def options(self) -> dict[str, Any]:
        return super().options() | {"needles": self.needles, "digits": self.digits}

    def make_answers(self) -> Answers:
        numbers = None if self.digits is None else some_numbers(self.digits)
        pairs = [(self.question(KEYS[0]), value) for value in numbers or VALUES]
        return Answers(self.language, pairs, numbers=numbers is not None)

    def story(self, random_W: Sequence[int], member: int) -> Story:
        n = self.needles
        places, keys, values = random_W[:n], random_W[n : n + len(KEYS)], random_W[n + len(KEYS) :]
        key_N = chosen(KEYS, keys, n)
        value_N = chosen(VALUES, values, n) if self.digits is None else [self._number(v) for v in values]
        where_N = [self.place(places[0], member), *map(fraction, places[1:])]
        notes = (f"The {self.kind} of the {k} is {v}." for k, v in zip(key_N, value_N, strict=True))
        return Story(tuple(zip(notes, where_N, strict=True)), self.question(key_N[0]), value_N[0])

    def question(self, key: str) -> str:
        return f"What is the {self.kind} of the {key}? The {self.kind} of the {key} is"

    def _number(self, random: int) -> str:
        assert self.digits is not None
        return number(random, self.digits, partial(self.answers.fits, self.question(KEYS[0])))
