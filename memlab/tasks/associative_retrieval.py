"""Associative retrieval (RMT paper, arXiv 2207.06881, appendix A.1): read K key-value pairs, recall a value.

    k1 v1 k2 v2 .. kK vK, query key, separator, value        tokens 2K + 2, answer 1

Keys are 26 letters, values 10 digits, both without repetition in a sample. A model that only knows which
values occurred, and not which one belongs to the query, scores 1 / K.

Segments: the pairs are divided evenly among the first S - 1, and the query is alone in the last, so that
every answer needs memory. (In the published runs, pairs straddle boundaries and share the query's segment,
where a model without memory scores 0.5; their segment counts are wrong too, since `torch.chunk` rounds.
`segment_lengths` allows any cut.)

The K queries of the same pairs are K consecutive samples. The probability of each sample is unchanged, but
the contributions of guessing among the K values to the gradient cancel within a batch, which leaves the
pairing that the task is about.

Options that the curriculum uses: few keys; several queries in the last segment, one after another, each with
its value,

    k1 v1 .. kK vK, key, separator, value, key, separator, value ..       tokens 2K + 3Q - 1, answer Q

and asking for all pairs in order instead of values,

    k1 v1 .. kK vK, separator, k1 v1 .. kK vK                             tokens 4K, answer 2K
"""

from __future__ import annotations

import math
import string
from typing import Any, Literal

import numpy as np

from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.tasks.base import SyntheticTask
from memlab.tasks.draws import Ints, RandomNumbers, choose_distinct

VALUES, SEPARATOR, FIRST_KEY, KEYS = 10, 10, 11, 26


class AssociativeRetrieval(SyntheticTask):
    """Associative retrieval.

    Args:
        length: K, the number of pairs, at most 10 (published: 4). `sizes` are `SyntheticTask`'s arguments.
        keys: number of different keys, K to 26 (published: 26).
        ask: for values of keys, or for all pairs in order.
        queries: Q, the number of different keys to ask for (published: 1).
    """

    vocab_size = FIRST_KEY + KEYS
    chance = 1 / VALUES
    stage_threshold = 0.9  # the stages only prepare: what is missing in one is learned in the next

    def __init__(
        self, *, keys: Positive, ask: Literal["value", "pairs"], queries: Positive, **sizes: Any
    ) -> None:
        if sizes["length"] > VALUES:
            raise ConfigError(
                f"task.length={sizes['length']}: at most {VALUES} pairs, since values do not repeat"
            )
        if not sizes["length"] <= keys <= KEYS:
            raise ConfigError(
                f"task.keys={keys}: {sizes['length']} pairs need {sizes['length']} to {KEYS} keys, since "
                "keys do not repeat"
            )
        if queries > sizes["length"]:
            raise ConfigError(
                f"task.queries={queries}: {sizes['length']} pairs have {sizes['length']} different keys to "
                "ask for"
            )
        self.keys, self.ask, self.queries = keys, ask, queries
        super().__init__(**sizes)

    def tokens_for(self, length: int) -> int:
        return 2 * length + self.question(length)

    def question(self, length: int) -> int:
        """Tokens of the last segment: queries, or separator and pairs, without the answer's last token."""
        return 3 * self.queries - 1 if self.ask == "value" else 2 * length

    @property
    def answer_tokens(self) -> int:
        return self.queries if self.ask == "value" else 2 * self.length

    def answer_positions(self) -> list[int]:
        return (
            list(range(self.tokens - 1, 2 * self.length, -3))[::-1]
            if self.ask == "value"
            else super().answer_positions()
        )

    @property
    def distinct(self) -> int:
        orders = math.perm(self.length, self.queries) if self.ask == "value" else 1
        return math.perm(self.keys, self.length) * math.perm(VALUES, self.length) * orders

    @property
    def random_numbers(self) -> int:
        return self.keys + VALUES + (self.length if self.queries > 1 else 0)

    def word(self, token: int) -> str:
        return (
            "?"
            if token == SEPARATOR
            else str(token)
            if token < VALUES
            else string.ascii_uppercase[token - FIRST_KEY]
        )

    def options(self) -> dict[str, Any]:
        return {"keys": self.keys, "ask": self.ask, "queries": self.queries}

    @property
    def members(self) -> int:
        return self.length if self.ask == "value" and self.queries == 1 else 1

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        rows = np.arange(len(random_BW))
        keys = FIRST_KEY + choose_distinct(random_BW[:, : self.keys], self.length)
        values = choose_distinct(random_BW[:, self.keys : self.keys + VALUES], self.length)
        pairs = np.stack([keys, values], axis=2).reshape(len(rows), -1)
        separator = np.full((len(rows), 1), SEPARATOR)
        if self.ask == "pairs":
            return np.concatenate([pairs, separator, pairs], axis=1)
        order = (
            choose_distinct(random_BW[:, self.keys + VALUES :], self.queries)
            if self.queries > 1
            else member_B[:, None]
        )
        queries = ([keys[rows, q], separator[:, 0], values[rows, q]] for q in order.T)
        return np.column_stack([pairs, *(column for query in queries for column in query)])

    def at(self, num_segments: int) -> AssociativeRetrieval:
        """Another number of segments, the last of them with the query."""
        if num_segments == self.num_segments:
            return self
        pairs = (num_segments - 1) * self.segment_lengths[0] // 2
        if self.segment_lengths[-1] != self.question(self.length) or pairs < 1:
            raise ConfigError(
                f"task.num_segments={num_segments}: task.segment_lengths={list(self.segment_lengths)} do not "
                "say how to grow"
            )
        return self._with(pairs)

    def stages(self, one_answer: bool = False) -> tuple[AssociativeRetrieval, ...]:
        """First ask for all pairs, which teaches to carry them; then for values, first of few keys.

        With more than two pairs, all keys are asked for, since every query teaches what has to be carried
        (with two, the second answer would be known by elimination). The last stage is the task itself. In all
        stages, questions have a segment of their own. (With single values from the start, a memory of tokens
        learns neither to carry a pair nor to find it, since either is useless without the other:
        docs/LOG.md.)
        """
        if self.segment_lengths[-1] != self.question(self.length) or self.length < 2 or self.ask == "pairs":
            return super().stages()
        carry = [] if one_answer else [{"ask": "pairs", "pairs": pairs} for pairs in sorted({2, self.length})]
        few = [
            {"pairs": 2, "keys": keys, "queries": 1}
            for keys in sorted({2, 4, 8, 16, self.keys})
            if keys <= self.keys
        ]
        grow = [
            {"pairs": pairs, "queries": 1 if one_answer else pairs} for pairs in range(3, self.length + 1)
        ]
        wishes: list[dict[str, Any]] = [*carry, *few, *grow]
        stages = [self._with(**wish) for wish in wishes]
        return tuple(stages if stages[-1].options() == self.options() else [*stages, self])

    def options_at(self, length: int) -> dict[str, Any]:
        return {"queries": min(self.queries, length)}

    def at_length(self, length: int) -> AssociativeRetrieval:
        if length == self.length:
            return self
        if self.num_segments == 1 or self.segment_lengths[-1] != self.question(self.length):
            raise ConfigError(f"task.segment_lengths={list(self.segment_lengths)} do not say how to grow")
        return self._with(length)

    def _with(self, pairs: int, **options: Any) -> AssociativeRetrieval:
        """This task with other options and another number of pairs, in segments of the same length."""
        context = self._in_parts(2 * pairs, max(self.segment_lengths[:-1]))
        options = {"queries": min(self.queries, pairs), **options}
        question = 2 * pairs if options.get("ask", self.ask) == "pairs" else 3 * options["queries"] - 1
        return self.resized(pairs, [*context, question], **options)

    def _cut(self, num_segments: int, segment_lengths: list[int] | None) -> tuple[int, ...]:
        if segment_lengths is not None or num_segments == 1:
            return super()._cut(num_segments, segment_lengths)
        context = self._share("pairs", self.length, num_segments - 1)
        return (*(2 * pairs for pairs in context), self.question(self.length))
