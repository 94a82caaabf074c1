"""The base of the tasks in words: sentences hidden in filler text, and a question at the end.

    introduction, filler .. , hidden sentence, filler .. | .. | filler .. , question, answer

A sample is English text, as tokens of any tokenizer: a small one of words, bytes, or that of a pretrained
model. It has exactly T tokens with any of them: the filler's first sentence is cut to fit (see
`passages.py`). Every sentence is encoded as after another one, so that the tokens are those of the whole
text.

The answer begins after the tokens that all answers share, and is as long for all samples. Of a word, as
many tokens count as tell all possible words apart: with most tokenizers one, which is also the class that
an encoder answers with. Of a number, all tokens count, and only those with the usual number of tokens
occur.

Hidden sentences stand between sentences of the filler. With more than one segment, they all stand before
the last, so that every answer needs memory; some tasks have an option that lets them stand there too.

Shapes: B batch, T tokens that are read, W random numbers of a sample.
"""

from __future__ import annotations

import abc
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from memlab.errors import ConfigError
from memlab.splits import Split
from memlab.tasks.base import Batch
from memlab.tasks.cutting import in_parts
from memlab.tasks.draws import Ints, RandomNumbers, draw, split_of
from memlab.tasks.language import OWN, Answers, Language, Source
from memlab.tasks.sized import SizedTask
from memlab.text import pretrained_tokenizer
from memlab.text.files import File
from memlab.text.fingerprint import fingerprints

_PROBES = 64  # stories whose sizes are looked at before any sample is read
_SENTENCE = 1000  # tokens that any sentence of filler has at most
_DEPTHS = 1 << 20  # a depth is drawn as a whole number
_NONE = -1


@dataclass(frozen=True)
class Story:
    """What a sample says.

    Attributes:
        hidden: sentences in the filler, and where each stands: 0 = earliest, 1 = latest.
        question: it ends where the answer follows.
        asked: which of the sentences has the answer; None = it takes several.
    """

    hidden: tuple[tuple[str, float], ...]
    question: str
    answer: str
    asked: int | None = 0


class ProseTask(SizedTask):
    """Base of the tasks in words. A subclass tells stories.

    Args:
        tokenizer: `words`, `bytes`, the path of a saved `tokenizer.json`, or a pretrained model's: its
            directory, .gguf file or id on the hub.
        filler: `repeated`, `generated`, or a directory with .txt files, see `passages.py`. `sizes` are
            `SizedTask`'s arguments.

    Raises:
        ConfigError: the sentences do not fit into the segments, or the filler's files cannot be read.
    """

    introduction: ClassVar[str] = ""
    last_segment = False  # whether hidden sentences may also stand in the last segment

    def __init__(self, *, tokenizer: str, filler: str, **sizes: Any) -> None:
        if tokenizer not in OWN:
            pretrained_tokenizer.check(tokenizer, OWN)
        self.tokenizer_name, self.filler = tokenizer, filler
        self.source = Source.of(tokenizer, filler, (self.introduction, *self.texts()), self.forbidden())
        super().__init__(**sizes)
        if self.source.is_open:
            self._check_room()

    # What a subclass tells

    @abc.abstractmethod
    def texts(self) -> Iterable[str]:
        """Texts with all words of all stories."""

    @abc.abstractmethod
    def forbidden(self) -> Iterable[str]:
        """Words that filler from a directory must not have."""

    @property
    @abc.abstractmethod
    def stories(self) -> int:
        """Number of different stories, not counting where the sentences stand."""

    @property
    @abc.abstractmethod
    def story_numbers(self) -> int:
        """How many random numbers a story is made of, including the places of its sentences."""

    @abc.abstractmethod
    def story(self, random_W: Sequence[int], member: int) -> Story:
        """The story of these random numbers; `member` distinguishes samples that share them."""

    @abc.abstractmethod
    def make_answers(self) -> Answers:
        """How the tokenizer writes the answers."""

    # What a task is

    @cached_property
    def language(self) -> Language:
        """The tokenizer and the filler.

        Raises:
            UserError: the tokenizer cannot be read.
        """
        return self.source.language

    @cached_property
    def answers(self) -> Answers:
        return self.make_answers()

    def prepare(self) -> None:
        self._check_room()

    def data(self) -> dict[str, Any]:
        files = [File(str(path), "text", size, str(time)) for path, size, time in self.source.files]
        if not files and self.tokenizer_name in OWN:
            return {}
        digest = getattr(self.language.tokenizer, "digest", None)
        return {"files": fingerprints(files), "revision": None, "tokenizer": digest}

    @property
    def vocab_size(self) -> int:  # type: ignore[override]
        return self.language.vocab_size

    @property
    def answer_tokens(self) -> int:
        return self.answers.tokens

    @property
    def chance(self) -> float:  # type: ignore[override]
        return self.answers.chance

    @property
    def distinct(self) -> int:
        """A lower bound, for which no tokenizer is needed."""
        return self.stories * self.source.passages.distinct(self.tokens // 2)

    @property
    def random_numbers(self) -> int:
        return self.story_numbers + 1

    @property
    def needs_memory(self) -> bool:
        return super().needs_memory and not self.last_segment

    def options(self) -> dict[str, Any]:
        return super().options() | {"tokenizer": self.tokenizer_name, "filler": self.filler}

    def word(self, token: int) -> str:
        return self.language.word(token)

    def at_length(self, length: int) -> Self:
        """This many tokens, in segments of the same length, of which the first may be shorter."""
        if length == self.length:
            return self
        longest = max(self.segment_lengths)
        return self.resized(length, in_parts(length, longest, self.align or "right"))

    # Samples

    def batch(self, split: Split, start: int, count: int, seed: int = 0) -> Batch:
        rows = draw(
            partial(self._rows, split),
            self.random_numbers,
            self.members,
            split,
            start,
            count,
            seed if split == "train" else 0,
            partial(self._fits, split),
        )
        answer_BT = np.zeros((count, self.tokens), dtype=np.bool_)
        answer_BT[:, self.answer_positions()] = True
        depth_B = None if (rows[:, -1] == _NONE).any() else rows[:, -1] / _DEPTHS
        tokens_BT, targets_BT = rows[:, :-2], rows[:, 1:-1]
        return Batch(tokens_BT, targets_BT, answer_BT, self.segment_lengths, self.members, depth_B)

    def sequences(self, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        return self._rows("train", random_BW, member_B)[:, :-1]

    def _rows(self, split: Split, random_BW: RandomNumbers, member_B: Ints) -> Ints:
        """Whole sequences, and after each its depth [B, T + 2]."""
        rows = np.empty((len(random_BW), self.tokens + 2), dtype=np.int64)
        for row, random_W, member in zip(rows, random_BW.tolist(), member_B.tolist(), strict=True):
            self._write(row, split, self.story(random_W[:-1], member), random_W[-1])
        return rows

    def _fits(self, split: Split, random_BW: RandomNumbers) -> NDArray[np.bool_]:
        """Whether samples may be in a split: if the filler does not tell splits apart, the story has to."""
        if self.source.passages.apart:
            return np.ones(len(random_BW), dtype=np.bool_)
        stories = (self.story(random_W[:-1], 0) for random_W in random_BW.tolist())
        texts = (" ".join([s.question, *(text for text, _ in s.hidden)]) for s in stories)
        hashes = np.array([zlib.crc32(text.encode()) for text in texts], dtype=np.int64)
        return split_of(hashes[:, None]) == split

    def _write(self, row: Ints, split: Split, story: Story, random: int) -> None:
        """Write a story, its filler and its depth into a row."""
        encode = self.language.after
        before, after, latest, room = self._sizes(story)
        if room < 1 or latest < 0:
            raise self._too_short()
        filler, starts_P = self.language.passage(random, room, split)
        if not len(starts_P):
            raise self._too_short()
        places = [0, *starts_P[(starts_P > 0) & (starts_P <= latest)].tolist()]
        if room <= latest and room:
            places.append(room)
        chosen = [min(int(where * len(places)), len(places) - 1) for _, where in story.hidden]
        parts, at = [before], 0
        for place, text in sorted(
            ((places[i], text) for i, (text, _) in zip(chosen, story.hidden, strict=True)),
            key=lambda pair: pair[0],
        ):
            parts += [filler[at:place], encode(text)]
            at = place
        np.concatenate([*parts, filler[at:], after], out=row[:-1])
        row[-1] = _NONE
        if story.asked is not None and len(places) > 1:
            row[-1] = round(_DEPTHS * chosen[story.asked] / (len(places) - 1))

    def _sizes(self, story: Story) -> tuple[Ints, Ints, int, int]:
        """Tokens before the filler, and after it; how much filler may stand before the hidden sentences; how
        much there is.
        """
        language = self.language
        before = language.opening(self.introduction)
        question, answer = self.answers.written(story.question, story.answer)
        hidden = sum(len(language.after(text)) for text, _ in story.hidden)
        room = self.tokens + 1 - len(before) - hidden - len(question) - len(answer)
        last = self.segment_lengths[-1] if self.needs_memory else 0
        after = np.concatenate([question, answer])
        if self.num_segments > 1 and len(after) - 1 > self.segment_lengths[-1]:
            room = 0  # the question has to stand in the last segment
        return before, after, min(room, self.tokens - last - len(before) - hidden), room

    def _check_room(self) -> None:
        """Whether stories fit.

        Raises:
            ConfigError: one does not.
        """
        random = np.random.Philox(key=0).random_raw(_PROBES * self.story_numbers).reshape(_PROBES, -1)
        for number, random_W in enumerate(random.tolist()):
            _, _, latest, room = self._sizes(self.story(random_W, number % self.members))
            if room < 1 or latest < 0:
                raise self._too_short()
            _, starts_P = self.language.passage(random_W[0], min(room, _SENTENCE), "train")
            if not len(starts_P):
                raise self._too_short()

    def _too_short(self) -> ConfigError:
        where = "before the last of them" if self.needs_memory else "before the question"
        return ConfigError(
            f"task.length={self.length}: segments of {list(self.segment_lengths)} tokens are too short for a "
            "story of this task and a sentence of filler, as "
            f"task.tokenizer={self.tokenizer_name} writes them; hidden sentences stand {where}. Use longer "
            "segments"
        )


def number(random: int, digits: int, fits: Callable[[str], bool]) -> str:
    """A number of so many digits that `fits`: the random one, or the next."""
    lowest = 10 ** (digits - 1) if digits > 1 else 0
    count = 10**digits - lowest
    at = random % count
    while not fits(str(lowest + at)):
        at = (at + 1) % count
    return str(lowest + at)


def some_numbers(digits: int, count: int = 1000) -> list[str]:
    """Different numbers of so many digits, spread evenly: all of them if there are no more than `count`."""
    lowest = 10 ** (digits - 1) if digits > 1 else 0
    amount = 10**digits - lowest
    # a step without a factor in common with the amount, 9 * 10^n or 10, comes back to no number too early
    return [str(lowest + i * 61_803_397 % amount) for i in range(min(count, amount))]


def fraction(random: int) -> float:
    """A random place, from 0 to 1."""
    return random / 2**64


def chosen(words: Sequence[str], random: Sequence[int], count: int) -> list[str]:
    """So many different words, of a random order of all: one random number for each word."""
    return [words[i] for i in sorted(range(len(words)), key=random.__getitem__)[:count]]
