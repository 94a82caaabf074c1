"""Tasks with a context and a question, which is alone in the last segment.

The context is divided evenly among the first S - 1 segments, so that every answer needs memory. With S = 1
everything is in one segment; `segment_lengths` allows any other cut.
"""

from __future__ import annotations

import abc
import contextlib
from typing import Self

from memlab.errors import ConfigError
from memlab.tasks.base import SyntheticTask


class ContextTask(SyntheticTask):
    """Base of these tasks. A subclass defines how long the context and the question are."""

    unit = 2  # tokens of the context that belong together and are never in two segments
    unit_name = "pairs of tokens"
    answers = "queries"  # the argument with the number of answer tokens
    distractors = 0  # tokens of the context without information; even, if units are pairs

    @abc.abstractmethod
    def facts(self, length: int) -> int:
        """Tokens of the context with information, at this length."""

    @abc.abstractmethod
    def question(self, length: int) -> int:
        """Tokens of the last segment, at this length; the answer's last token is not among them."""

    def noise(self, length: int) -> int:
        """Distractors at this length, in proportion and in whole pairs."""
        return self.distractors * self.facts(length) // self.facts(self.length) // 2 * 2

    def context(self, length: int) -> int:
        """Tokens before the question."""
        return self.facts(length) + self.noise(length)

    def tokens_for(self, length: int) -> int:
        return self.context(length) + self.question(length)

    def at(self, num_segments: int) -> Self:
        """Another number of segments, the last of them with the question; distractors in proportion."""
        if num_segments == self.num_segments:
            return self
        parts = set(self.segment_lengths[:-1])
        if len(parts) != 1 or self.segment_lengths[-1] != self.question(self.length):
            raise ConfigError(
                f"task.num_segments={num_segments}: task.segment_lengths={list(self.segment_lengths)} do not "
                "say how to grow"
            )
        tokens = (num_segments - 1) * max(parts)
        length = next((n for n in range(1, tokens + 1) if self.context(n) == tokens), None)
        if length is None:
            raise ConfigError(
                f"task.num_segments={num_segments}: no {type(self).__name__} sample like this one has a "
                f"context of the {tokens} tokens of {num_segments - 1} segments of {max(parts)}"
            )
        return self._with(length)

    def stages(self, one_answer: bool = False) -> tuple[Self, ...]:
        """Lengths 1, 2, 4, .., as far as such short samples are possible, then the task itself.

        Segments are as long as the task's.

        Raises:
            ConfigError: the answer has several tokens although `one_answer`, or the segment lengths do not
                determine how to grow.
        """
        if one_answer and self.answer_tokens > 1:
            raise ConfigError(
                f"task.{self.answers}={self.answer_tokens} makes an answer of {self.answer_tokens} tokens, "
                "and a model that answers once per sample gives 1; use "
                f"{'task.queries=1 or ' * (self.answers == 'queries')}a decoder"
            )
        self._check_question()
        stages = []
        for length in (2**i for i in range((self.length - 1).bit_length())):
            # too short for the task's other arguments, or too few different samples
            with contextlib.suppress(ConfigError):
                stages.append(self._with(length))
        return (*stages, self)

    def at_length(self, length: int) -> Self:
        self._check_question()
        return self if length == self.length else self._with(length)

    def _check_question(self) -> None:
        if self.num_segments > 1 and self.segment_lengths[-1] != self.question(self.length):
            raise ConfigError(
                f"task.segment_lengths={list(self.segment_lengths)}: a curriculum does not know how to grow "
                f"unless the last is the question's {self.question(self.length)} tokens; use curriculum=off"
            )

    def _with(self, length: int) -> Self:
        """This task at another length, in segments of context of the same length; one may be shorter."""
        context, question = self.context(length), self.question(length)
        longest = max(self.segment_lengths[:-1], default=context)
        lengths = [*self._in_parts(context, longest), question]
        return self.resized(
            length, lengths if self.num_segments > 1 else [context + question], **self.options_at(length)
        )

    def _cut(self, num_segments: int, segment_lengths: list[int] | None) -> tuple[int, ...]:
        if segment_lengths is not None or num_segments == 1:
            return super()._cut(num_segments, segment_lengths)
        units = self._share(self.unit_name, self.context(self.length) // self.unit, num_segments - 1)
        return (*(self.unit * n for n in units), self.question(self.length))


class PairsTask(ContextTask):
    """Base of tasks with key-value pairs as context and Q queries, each followed by its value."""

    queries: int

    def facts(self, length: int) -> int:
        return 2 * length

    def question(self, length: int) -> int:
        return 2 * min(self.queries, length) - 1

    @property
    def answer_tokens(self) -> int:
        return self.queries

    def answer_positions(self) -> list[int]:
        return list(range(self.tokens - self.question(self.length), self.tokens, 2))


def even(key: str, amount: int) -> int:
    """`amount`, if it is even.

    Raises:
        ConfigError: it is odd.
    """
    if amount % 2:
        raise ConfigError(
            f"task.{key}={amount}: has to be even, since segments hold whole pairs of tokens, such as "
            f"{amount - 1}"
        )
    return amount
