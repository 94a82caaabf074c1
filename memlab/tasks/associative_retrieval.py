"""Associative retrieval (RMT paper, arXiv 2207.06881, appendix A.1): read K key-value pairs, then the value of one of the keys.

    k1 v1 k2 v2 .. kK vK, query key, separator, value        tokens 2K + 2, answer 1

Keys are 26 letters, values 10 digits, both without repetition in a sample. Who knows which values occurred but not which belongs to
the query scores 1 / K.

Segments: the pairs are divided evenly among the first S - 1, and the query is alone in the last, so that no answer can be had without
memory. (In the published runs pairs straddle boundaries and share the query's segment, where a model without memory scores 0.5;
their segment counts are wrong too, since `torch.chunk` rounds. Any cut can be had with `segment_lengths`.)

The K queries of the same pairs are K consecutive samples. Each sample by itself is as likely as ever, but what the guesses among
the K values add to the gradient cancels within a batch, and what is left is the pairing that the task is about.

Two options make it easier, and the curriculum uses them: few keys, and asking for all pairs in order instead of one value,

    k1 v1 .. kK vK, separator, k1 v1 .. kK vK                 tokens 4K, answer 2K
"""

from __future__ import annotations

import math
from typing import Any, Literal

import numpy as np

from memlab.errors import ConfigError
from memlab.schema import Positive
from memlab.tasks.base import Ints, SyntheticTask, Words, choose_distinct

VALUES, SEPARATOR, FIRST_KEY, KEYS = 10, 10, 11, 26
QUERY = 2  # tokens of the last segment: the asked key and the separator


class AssociativeRetrieval(SyntheticTask):
    """Associative retrieval.

    Args:
        length: K, the number of pairs, at most 10 (published: 4). `sizes` are `SyntheticTask`'s arguments.
        keys: how many different keys there are, K to 26 (published: 26).
        ask: for the value of one key, or for all pairs in order.
    """

    vocab_size = FIRST_KEY + KEYS
    chance = 1 / VALUES
    stage_threshold = 0.9  # the stages prepare; what is missing in one is learned in the next

    def __init__(self, *, keys: Positive, ask: Literal["value", "pairs"], **sizes: Any) -> None:
        if sizes["length"] > VALUES:
            raise ConfigError(f"task.length={sizes['length']}: at most {VALUES} pairs, since values do not repeat")
        if not sizes["length"] <= keys <= KEYS:
            raise ConfigError(f"task.keys={keys}: {sizes['length']} pairs need {sizes['length']} to {KEYS} keys, since keys do not repeat")
        self.keys, self.ask = keys, ask
        super().__init__(**sizes)

    def tokens_for(self, length: int) -> int:
        return 2 * length + self.question(length)

    def question(self, length: int) -> int:
        """Tokens of the last segment: the asked key and the separator, or the separator and all of the answer but its last token."""
        return QUERY if self.ask == "value" else 2 * length

    @property
    def answer_tokens(self) -> int:
        return 1 if self.ask == "value" else 2 * self.length

    @property
    def distinct(self) -> int:
        return math.perm(self.keys, self.length) * math.perm(VALUES, self.length) * self.members

    @property
    def words(self) -> int:
        return self.keys + VALUES

    def options(self) -> dict[str, Any]:
        return {"keys": self.keys, "ask": self.ask}

    @property
    def members(self) -> int:
        return self.length if self.ask == "value" else 1

    def sequences(self, words_BW: Words, member_B: Ints) -> Ints:
        rows = np.arange(len(words_BW))
        keys = FIRST_KEY + choose_distinct(words_BW[:, : self.keys], self.length)
        values = choose_distinct(words_BW[:, self.keys :], self.length)
        pairs = np.stack([keys, values], axis=2).reshape(len(rows), -1)
        separator = np.full((len(rows), 1), SEPARATOR)
        if self.ask == "pairs":
            return np.concatenate([pairs, separator, pairs], axis=1)
        return np.column_stack([pairs, keys[rows, member_B], separator, values[rows, member_B]])

    def at(self, num_segments: int) -> AssociativeRetrieval:
        """As many segments of pairs as are left when the last is the query's."""
        if num_segments == self.num_segments:
            return self
        pairs = (num_segments - 1) * self.segment_lengths[0] // 2
        if self.segment_lengths[-1] != self.question(self.length) or pairs < 1:
            raise ConfigError(f"task.num_segments={num_segments}: task.segment_lengths={list(self.segment_lengths)} do not say how to grow")
        return self._with(pairs)

    def stages(self) -> tuple[AssociativeRetrieval, ...]:
        """First write down all pairs, which teaches to carry them; then ask for one value, first among few keys, then more pairs.

        From the first stage on the question is in a segment of its own. (Asked for a value from the start, a memory of tokens learns
        neither to carry a pair nor to find it, since either is of no use without the other: docs/LOG.md.)
        """
        if self.segment_lengths[-1] != QUERY or self.length < 2 or self.ask == "pairs":
            return super().stages()
        few = [keys for keys in (2, 4, 8, 16) if keys < self.keys]
        wishes: list[dict[str, Any]] = [
            *({"ask": "pairs", "pairs": pairs} for pairs in sorted({2, self.length})),
            *({"keys": keys, "pairs": 2} for keys in few),
            *({"pairs": pairs} for pairs in range(2, self.length + 1)),
        ]
        return tuple(self._with(**wish) for wish in wishes)

    def _with(self, pairs: int, **options: Any) -> AssociativeRetrieval:
        """This task with other options and another number of pairs, in segments of pairs as long as this task's."""
        longest = max(self.segment_lengths[:-1])
        context = [min(longest, 2 * pairs - start) for start in range(0, 2 * pairs, longest)]
        if self.align == "right":
            context.reverse()
        question = 2 * pairs if options.get("ask", self.ask) == "pairs" else QUERY
        return self.resized(pairs, [*context, question], **options)

    def _cut(self, num_segments: int, segment_lengths: list[int] | None) -> tuple[int, ...]:
        if segment_lengths is not None or num_segments == 1:
            return super()._cut(num_segments, segment_lengths)
        context = self._share("pairs", self.length, num_segments - 1)
        return (*(2 * pairs for pairs in context), self.question(self.length))
