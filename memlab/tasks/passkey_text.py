"""Passkey in words (Landmark Attention, arXiv 2305.16300; Infini-attention, arXiv 2404.07143, appendix B).

    .. The sky is blue. .. The pass key is 71432. Remember it. 71432 is the pass key. The sun is yellow. .. |
    .. What is the pass key? The pass key is                                          answer: 71432

A number is announced once in filler. With the published filler, the announcement has the only digits, so it
is easy to find: a test of whether anything reaches the question, not of how much. In `needle_text`, the
model has to find the right one of several.

With `depths`, that many samples in a row are the same except for where the announcement stands: at evenly
spaced places from the earliest to the latest, which makes a grid of depth and length.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar, Literal

from memlab.bounds import Fraction, Positive
from memlab.errors import ConfigError
from memlab.tasks.language import Answers
from memlab.tasks.prose import ProseTask, Story, fraction, number, some_numbers

QUESTION = "What is the pass key? The pass key is"


class HiddenTask(ProseTask):
    """Base of `PasskeyText` and `NeedleText`: one sentence has the answer.

    Args:
        depth: where this sentence stands, from 0 (earliest) to 1 (latest possible place); None = anywhere,
            uniformly, or at `depths`.
        depths: D; D samples in a row only differ in where the sentence stands. 1 = they are independent.
        last_segment: whether it may also stand in the last segment. `prose` are `ProseTask`'s arguments.
    """

    lengths_in: ClassVar[Literal["segments", "tokens"]] = "tokens"
    whole_answers: ClassVar[bool] = True

    def __init__(self, *, depth: Fraction | None, depths: Positive, last_segment: bool, **prose: Any) -> None:
        if depth is not None and depths > 1:
            raise ConfigError(
                f"task.depth={depth} and task.depths={depths}: the first sets one place, the second several; "
                "use task.depth=null, or task.depths=1"
            )
        self.depth, self.depths_in_turn, self.last_segment = depth, depths, last_segment
        super().__init__(**prose)

    @property
    def members(self) -> int:
        return self.depths_in_turn

    def options(self) -> dict[str, Any]:
        own = {"depth": self.depth, "depths": self.depths_in_turn, "last_segment": self.last_segment}
        return super().options() | own

    def place(self, random: int, member: int) -> float:
        """Where the sentence with the answer stands."""
        if self.depths_in_turn > 1:
            return member / (self.depths_in_turn - 1)
        return fraction(random) if self.depth is None else self.depth


class PasskeyText(HiddenTask):
    """Passkey in words.

    Args:
        digits: P, digits of the key. `hidden` are `HiddenTask`'s arguments.
    """

    introduction = "A pass key is hidden in the following text. Find it and remember it."
    story_numbers = 2

    def __init__(self, *, digits: Positive, **hidden: Any) -> None:
        self.digits = digits
        super().__init__(**hidden)

    def texts(self) -> Iterable[str]:
        return announcement("0123456789"), QUESTION

    def forbidden(self) -> Iterable[str]:
        return ("key",)

    @property
    def stories(self) -> int:
        return 9 * 10 ** (self.digits - 1) if self.digits > 1 else 10

    def options(self) -> dict[str, Any]:
        return super().options() | {"digits": self.digits}

    def make_answers(self) -> Answers:
        pairs = [(QUESTION, key) for key in some_numbers(self.digits)]
        return Answers(self.language, pairs, numbers=True)

    def story(self, random_W: Sequence[int], member: int) -> Story:
        key = number(random_W[0], self.digits, lambda key: self.answers.fits(QUESTION, key))
        return Story(((announcement(key), self.place(random_W[1], member)),), QUESTION, key)


def announcement(key: str) -> str:
    return f"The pass key is {key}. Remember it. {key} is the pass key."
