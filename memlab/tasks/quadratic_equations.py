"""Quadratic equations with step-by-step solutions (RMT paper, arXiv 2207.06881, appendix A.3).

    -4*x^2+392*x-2208=0            the equation, then a sign that asks for the solution, in parts:
    x^2-98*x+552=0                 1. canonical form
    D=98^2-4*1*552=7396=86^2       2. discriminant
    x=(98-86)/2=6                  3. lower root
    x=(98+86)/2=92                 4. higher root
    6,92                           5. answer        tokens 6 * 30, answer 5 * 30

Characters are tokens. The equation and each part are padded to `length` (30), and padding is predicted too.
With segments of 30, each segment after the first has exactly one part to predict: it begins with the sign, or
with the last padding of the previous part.

The roots are independent and uniform in -100 .. 100, the equation is multiplied by 1 .. 10, and 20 in 100
have no real roots. Decided here, since the paper leaves it open:
- Numbers keep their minus, 4*1*-552, but b is squared without. Terms of 0 and factors of 1 are left out. A
  double root is given twice.
- The factor is positive in the paper's text, and of both signs in its example and in the authors' code:
  `both_signs`.
- Without real roots, b is uniform in -199 .. 199, c in b^2/4 < c <= 10000. The discriminant ends part 2, and
  parts 3 to 5 are empty.
- A separate sign (id 1, unused in their vocabulary) asks for the first part; in the authors' code, the
  equation's last padding does.

Padding is 0.54 of the answer, and a model that only knows positions gets 0.69 of the tokens right. So
accuracy says little: look at exact match, which here is of all parts (in the paper, of part 5).
"""

from __future__ import annotations

import math
from typing import Any, Self

import numpy as np

from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.tasks.base import SyntheticTask
from memlab.tasks.draws import Ints, RandomNumbers, choose

# padding, the sign, and the authors' characters in their order; ";" is never used
ALPHABET = " >0123456789+-*/^=()xD;,"
LARGEST_ROOT, LARGEST_FACTOR, PARTS = 100, 10, 5
LONGEST = 28  # characters of the longest part, such as D=0^2-4*1*-10000=40000=200^2
# characters of each part over all samples, without padding
MEAN = (14.84765, 24.588143, 12.388664, 11.988674, 4.660697)
_TOKEN = np.array([max(ALPHABET.find(chr(i)), 0) for i in range(128)])


def equation(a: int, b: int, c: int) -> str:
    """a x^2 + b x + c = 0 as text."""
    terms = [
        f"{n:+d}*{power}" if abs(n) != 1 else f"{n:+d}"[0] + power for n, power in ((a, "x^2"), (b, "x")) if n
    ]
    return "".join([*terms, f"{c:+d}" if c else ""]).removeprefix("+") + "=0"


def solution(b: int, c: int) -> tuple[str, ...]:
    """The five parts for x^2 + b x + c = 0, whose roots are integers or not real."""
    square = b * b - 4 * c
    discriminant = f"D={abs(b)}^2-4*1*{c}={square}"
    if square < 0:
        return equation(1, b, c), discriminant, "", "", ""
    root = math.isqrt(square)
    low, high = (-b - root) // 2, (-b + root) // 2
    return (
        equation(1, b, c),
        f"{discriminant}={root}^2",
        f"x=({-b}-{root})/2={low}",
        f"x=({-b}+{root})/2={high}",
        f"{low},{high}",
    )


class QuadraticEquations(SyntheticTask):
    """Quadratic equations.

    Args:
        length: tokens of the equation and of each part, at least 28 (published: 30). `sizes` are
            `SyntheticTask`'s arguments.
        parts: how many parts of the solution to ask for, from the first, at most 5 (published: 5).
        both_signs: whether the factor before the equation may be negative.
    """

    vocab_size = len(ALPHABET)

    def __init__(self, *, parts: Positive, both_signs: bool, **sizes: Any) -> None:
        if sizes["length"] < LONGEST:
            raise ConfigError(
                f"task.length={sizes['length']}: the longest part has {LONGEST} characters; use {LONGEST} or "
                "more"
            )
        if parts > PARTS:
            raise ConfigError(f"task.parts={parts}: a solution has {PARTS} parts, so it may be 1 to {PARTS}")
        self.parts, self.both_signs = parts, both_signs
        super().__init__(**sizes)
        self.chance = 1 - sum(MEAN[:parts]) / self.answer_tokens  # padding, the most frequent token

    def tokens_for(self, length: int) -> int:
        return (1 + self.parts) * length

    @property
    def answer_tokens(self) -> int:
        return self.parts * self.length

    @property
    def distinct(self) -> int:
        rootless = sum(LARGEST_ROOT**2 - b * b // 4 for b in range(1 - 2 * LARGEST_ROOT, 2 * LARGEST_ROOT))
        return (math.comb(2 * LARGEST_ROOT + 2, 2) + rootless) * LARGEST_FACTOR * (1 + self.both_signs)

    @property
    def random_numbers(self) -> int:
        return 4

    def options(self) -> dict[str, Any]:
        return {"parts": self.parts, "both_signs": self.both_signs}

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        kind, first, second, factor = random_BW.T
        roots = choose(random_BW[:, 1:3], 2 * LARGEST_ROOT + 1) - LARGEST_ROOT
        b = choose(first, 4 * LARGEST_ROOT - 1) - (2 * LARGEST_ROOT - 1)
        too_small = b * b // 4  # up to here, c has real roots
        c = too_small + 1 + (second % (LARGEST_ROOT**2 - too_small).astype(np.uint64)).astype(np.int64)
        real = choose(kind, 5) > 0
        b, c = np.where(real, -roots.sum(axis=1), b), np.where(real, roots.prod(axis=1), c)
        a = 1 + choose(factor, LARGEST_FACTOR * (1 + self.both_signs))
        a = np.where(a > LARGEST_FACTOR, LARGEST_FACTOR - a, a)
        text = "".join(map(self._text, a.tolist(), b.tolist(), c.tolist())).encode()
        return _TOKEN[np.frombuffer(text, dtype=np.uint8)].reshape(len(random_BW), self.tokens + 1)

    def _text(self, a: int, b: int, c: int) -> str:
        read, *parts = (
            part.ljust(self.length) for part in (equation(a, a * b, a * c), *solution(b, c)[: self.parts])
        )
        return "".join([read, ALPHABET[1], *parts])

    def at(self, num_segments: int) -> Self:
        """The parts of the solution that fill this many segments."""
        if num_segments == self.num_segments:
            return self
        cut = [self.segment_lengths[0]] * num_segments
        parts, rest = divmod(sum(cut), self.length)
        if len(set(self.segment_lengths)) > 1 or rest or not 2 <= parts <= 1 + PARTS:
            raise ConfigError(
                f"task.num_segments={num_segments}: segments of {cut[:1]} tokens do not hold 1 to {PARTS} "
                "whole parts"
            )
        return self.resized(self.length, cut, parts=parts - 1)

    def stages(self, one_answer: bool = False) -> tuple[Self, ...]:
        """One more part of the solution at a time, from the first to the last of the task."""
        if one_answer:
            raise ConfigError(
                f"task.parts={self.parts}: {self.answer_tokens} answer tokens; a model that answers once "
                "needs a task of one"
            )
        return super().stages()
