"""Handwritten digits as sequences of pixels: read K images, then say which digit one of them shows.

    64 pixels, 64 pixels, .., question i, digit of image i        tokens 64 K + 1, answer 1

The images are the 1,797 of 8 x 8 pixels with 17 levels of grey in scikit-learn's package (Alpaydin and Kaynak
1998). A pixel is a token; images are read row by row. An eighth of the images is for validation, and another
for test: no image of a split occurs in another.

Segments: the images are divided evenly among the first S - 1, and the question is alone in the last.
"""

from __future__ import annotations

import functools
from typing import Any

import numpy as np

from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.splits import Split
from memlab.tasks.context import ContextTask
from memlab.tasks.draws import Ints, RandomNumbers, choose, draw

DIGITS, LEVELS, PIXELS, MOST = 10, 17, 64, 32
FIRST_LEVEL, FIRST_QUESTION = DIGITS, DIGITS + LEVELS
_IMAGES, _EACH = 1797, 8  # of this many consecutive images, one is for test and one for validation


@functools.cache
def images() -> tuple[Ints, Ints]:
    """Levels of grey [1797, 64], and the digits [1797]."""
    from sklearn.datasets import load_digits  # takes a second to import

    found = load_digits()
    return found.data.astype(np.int64), found.target.astype(np.int64)


def of_split(split: Split) -> Ints:
    """Numbers of a split's images."""
    place = np.arange(_IMAGES) % _EACH
    return np.flatnonzero({"test": place == 0, "validation": place == 1, "train": place > 1}[split])


class Digits(ContextTask):
    """Digits as pixels.

    Args:
        length: K, images of a sample, at most 32. `sizes` are `SyntheticTask`'s arguments.

    Raises:
        ConfigError: there are too many images.
    """

    vocab_size = DIGITS + LEVELS + MOST
    chance = 1 / DIGITS
    answer_tokens = 1
    unit, unit_name = PIXELS, "images"

    def __init__(self, *, length: Positive, **sizes: Any) -> None:
        if length > MOST:
            raise ConfigError(f"task.length={length}: a sample has at most {MOST} images")
        super().__init__(length=length, **sizes)

    def facts(self, length: int) -> int:
        return PIXELS * length

    def question(self, length: int) -> int:
        return 1

    @property
    def random_numbers(self) -> int:
        return self.length + 1

    @property
    def distinct(self) -> int:
        return int(_IMAGES**self.length * self.length)

    def options(self) -> dict[str, Any]:
        return {}

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        return self._of(np.arange(_IMAGES), random_BW)

    def _draw(self, split: Split, start: int, count: int, seed: int) -> Ints:
        def sequences(random_BW: RandomNumbers, member_B: Ints) -> Ints:
            return self._of(of_split(split), random_BW)

        return draw(sequences, self.random_numbers, self.members, split, start, count, seed)

    def _of(self, numbers: Ints, random_BW: RandomNumbers) -> Ints:
        """Whole sequences with images of these numbers."""
        levels, digits = images()
        image_BK = numbers[choose(random_BW[:, :-1], len(numbers))]
        asked_B1 = choose(random_BW[:, -1:], self.length)
        pixels_BT = FIRST_LEVEL + levels[image_BK].reshape(len(image_BK), -1)
        answer_B1 = digits[np.take_along_axis(image_BK, asked_B1, axis=1)]
        return np.concatenate([pixels_BT, FIRST_QUESTION + asked_B1, answer_B1], axis=1)

    def word(self, token: int) -> str:
        if token < DIGITS:
            return str(token)
        return f"?{token - FIRST_QUESTION + 1}" if token >= FIRST_QUESTION else _SHADES[token - FIRST_LEVEL]


_SHADES = " .,:;-~=+*oaOQ%#@"  # from white to black
