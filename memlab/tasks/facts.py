"""The base of the three fact tasks: facts from a small world, filler text around them, a question at the end.

    filler .. filler, fact, filler .. filler | .. | filler .. filler, question      tokens T, answer 1

After "Scaling Transformer to 1M tokens and beyond with RMT" (Bulatov, Kuratov, Burtsev 2023, arXiv
2304.11062, section 4), in a small world of our own: one token is one word. All answers are places with equal
probability, so guessing scores 1 / 6.

Segments have the same length, and the last one ends with the question. With more than one segment, no fact
stands in the question's segment, so every answer needs memory. Facts replace filler and begin at any token; a
boundary may cut one in two. (In the released code, a fact always begins a segment, and the filler repeats one
article.)
"""

from __future__ import annotations

import abc
import copy
import math
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from memlab.bounds import Positive
from memlab.errors import ConfigError
from memlab.splits import Split
from memlab.tasks.base import SyntheticTask
from memlab.tasks.draws import Ints, RandomNumbers, choose
from memlab.tasks.filler import Filler, GeneratedFiller, TextFiller, text_files
from memlab.tasks.sized import SizedTask

PLACES = ("bathroom", "bedroom", "garden", "hallway", "kitchen", "office")
PERSONS = ("Daniel", "John", "Mary", "Sandra")
MOVES = ("journeyed", "moved", "travelled", "went")
OBJECTS = ("apple", "football", "key", "milk")
TAKES = ("found", "has", "holds", "took")
COMMON = ("the", ".", "?", "to", "in", "and", "is", "where")  # filler may only share these
FACT_WORDS = (*PLACES, *PERSONS, *MOVES, *OBJECTS, *TAKES, *COMMON)
TOKEN = {word: token for token, word in enumerate(FACT_WORDS)}
UNKNOWN, FIRST_FILLER = len(FACT_WORDS), len(FACT_WORDS) + 1
SHARED = {word: TOKEN[word] for word in COMMON}
# places come first, so a place's token is its index
A_PERSON, A_MOVE, AN_OBJECT, A_TAKE = (TOKEN[words[0]] for words in (PERSONS, MOVES, OBJECTS, TAKES))


def _filler(noise_dir: str | None, noise_words: int) -> Filler:
    if noise_dir is None:
        return GeneratedFiller(noise_words, FIRST_FILLER, SHARED)
    files = text_files(noise_dir)
    return _text_filler(
        noise_dir, noise_words, tuple((file, file.stat().st_size, file.stat().st_mtime_ns) for file in files)
    )


# all stages of a curriculum share the text; sizes and times show when files have changed since they were read
@lru_cache(maxsize=2)
def _text_filler(noise_dir: str, noise_words: int, files: tuple[tuple[Path, int, int], ...]) -> TextFiller:
    forbidden = [word.lower() for word in FACT_WORDS]
    return TextFiller(
        noise_dir,
        [file for file, _, _ in files],
        count=noise_words,
        first=FIRST_FILLER,
        unknown=UNKNOWN,
        shared=SHARED,
        forbidden=forbidden,
    )


class FactTask(SizedTask):
    """Base of the fact tasks. A subclass makes stories: facts and their places, a question, its answer.

    Args:
        segment_length: tokens of a segment; T is `num_segments` times that. Either this or `length` is None.
        length: T, including the question, cut into `num_segments` as in `SyntheticTask`.
        noise_dir: a directory whose .txt files are the filler; None = generated sentences.
        noise_words: number of different filler words. `sizes` are `SyntheticTask`'s other arguments.
    """

    chance = 1 / len(PLACES)

    def __init__(self, *, noise_dir: str | None, noise_words: Positive, **sizes: Any) -> None:
        self.noise_dir, self.noise_words = noise_dir, noise_words
        self.filler = _filler(noise_dir, noise_words)
        self.vocab_size = FIRST_FILLER + noise_words
        self.split: Split = "train"  # the split whose filler `sequences` uses, see `_draw`
        super().__init__(**sizes)

    @property
    @abc.abstractmethod
    def fact_lengths(self) -> tuple[int, ...]:
        """Tokens of each fact."""

    @property
    @abc.abstractmethod
    def question_length(self) -> int:
        """Tokens of the question."""

    @property
    @abc.abstractmethod
    def story_numbers(self) -> int:
        """How many random numbers a story is made of, including the places of its facts."""

    @property
    @abc.abstractmethod
    def stories(self) -> int:
        """Number of different stories, not counting where the facts stand."""

    @property
    @abc.abstractmethod
    def arrangements(self) -> int:
        """Number of ways to place the facts."""

    @abc.abstractmethod
    def story(self, random_BW: RandomNumbers, member_B: Ints) -> tuple[list[tuple[Ints, Ints]], Ints, Ints]:
        """Facts, each with the position of its first token ([B], [B, n]), question [B, q] and answer [B]."""

    @property
    def room(self) -> int:
        """Tokens in which facts may stand: before the question's segment, or before the question if S = 1."""
        return self._room(self.segment_lengths)

    def _room(self, segment_lengths: tuple[int, ...]) -> int:
        return self.length - (segment_lengths[-1] if len(segment_lengths) > 1 else self.question_length)

    @property
    def answer_tokens(self) -> int:
        return 1

    @property
    def distinct(self) -> int:
        """A lower bound, since that for filler is one."""
        story_tokens = sum(self.fact_lengths) + self.question_length
        return (
            self.stories
            * self.arrangements
            * self.filler.distinct(self.length, story_tokens, pieces=1 + len(self.fact_lengths))
        )

    @property
    def random_numbers(self) -> int:
        return self.story_numbers + self.filler.random_numbers(self.length)

    @cached_property
    def _names(self) -> list[str]:
        return [*FACT_WORDS, "(unknown)", *self.filler.names]

    def word(self, token: int) -> str:
        return self._names[token]

    def options(self) -> dict[str, Any]:
        return super().options() | {"noise_dir": self.noise_dir, "noise_words": self.noise_words}

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        rows_B1 = np.arange(len(random_BW))[:, None]
        facts, question_Bq, answer_B = self.story(random_BW[:, : self.story_numbers], member_B)
        tokens_BT = self.filler.tokens(random_BW[:, self.story_numbers :], self.length, self.split)
        for begin_B, fact_Bn in facts:
            tokens_BT[rows_B1, begin_B[:, None] + np.arange(fact_Bn.shape[1])] = fact_Bn
        tokens_BT[:, self.length - self.question_length :] = question_Bq
        return np.concatenate([tokens_BT, answer_B[:, None]], axis=1)

    def _cut(self, num_segments: int, segment_lengths: list[int] | None) -> tuple[int, ...]:
        lengths = super()._cut(num_segments, segment_lengths)
        if lengths[-1] < self.question_length:
            raise ConfigError(
                f"the last of segments {list(lengths)} is too short: the question has {self.question_length} "
                "tokens"
            )
        if self._room(lengths) < sum(self.fact_lengths):
            raise ConfigError(
                f"segments {list(lengths)} leave {self._room(lengths)} tokens for facts of "
                f"{sum(self.fact_lengths)} tokens, "
                + (
                    "which stand before the last segment"
                    if len(lengths) > 1
                    else f"in addition to a question of {self.question_length}"
                )
            )
        return lengths

    def _draw(self, split: Split, start: int, count: int, seed: int) -> Ints:
        own = copy.copy(self)  # each split has its own filler
        own.split = split
        return SyntheticTask._draw(own, split, start, count, seed)


def phrase(count: int, *words: str | Ints) -> Ints:
    """Token ids [count, n] of a phrase: words, or for each sample a token [count]."""
    return np.column_stack([np.full(count, TOKEN[word]) if isinstance(word, str) else word for word in words])


def stack_gaps(random_B: NDArray[np.uint64], free: int) -> tuple[Ints, Ints]:
    """Two gaps 0 <= a <= b <= free for each random number, all pairs (see `pairs_of_gaps`) equally likely."""
    pair_B = choose(random_B, pairs_of_gaps(free))
    b_B = ((np.sqrt(8.0 * pair_B + 1) - 1) / 2).astype(np.int64)
    b_B -= b_B * (b_B + 1) // 2 > pair_B  # correct for rounding
    b_B += (b_B + 1) * (b_B + 2) // 2 <= pair_B
    return pair_B - b_B * (b_B + 1) // 2, b_B


def pairs_of_gaps(free: int) -> int:
    return math.comb(free + 2, 2)
