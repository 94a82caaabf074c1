"""Filler text, in which tasks hide something: generated sentences, or passages of the user's own texts.

One token is one word.

Shapes: B batch, S sentences, F files.
"""

from __future__ import annotations

import abc
import re
from collections import Counter
from collections.abc import Collection, Iterable
from pathlib import Path

import numpy as np

from memlab.errors import ConfigError
from memlab.splits import SPLITS, Split
from memlab.tasks.draws import Ints, RandomNumbers, choose

_FOURS = """
    old river slept quietly     grey cloud turned slowly    small bird sang again
    tall tree waited long       warm wind rose early        pale moon shone softly
    deep lake froze twice       young fox listened closely  dark road ended suddenly
    bright lamp burned alone    empty boat drifted away     distant bell rang faintly
    narrow bridge shook badly   broken clock stopped once   heavy door opened late
"""  # adjective, noun, verb, adverb
FILLER_WORDS = _FOURS.split()
# of a generated sentence: the words that are chosen, and all words ("the", these four, ".")
_CHOSEN, _SENTENCE = 4, 6


class Filler(abc.ABC):
    """A source of filler."""

    names: list[str]  # the words with a token of their own, from the token `first`

    @abc.abstractmethod
    def random_numbers(self, length: int) -> int:
        """How many random numbers filler of `length` tokens is made of."""

    @abc.abstractmethod
    def tokens(self, random_BW: RandomNumbers, length: int, split: Split) -> Ints:
        """Filler [B, length] for a split."""

    @abc.abstractmethod
    def distinct(self, length: int, hidden: int, pieces: int) -> int:
        """A lower bound of the number of different fillers of `length` tokens in each split.

        `hidden` of the tokens are replaced, and the visible ones are in this many `pieces`.
        """


class GeneratedFiller(Filler):
    """Sentences such as "the old river slept quietly .", with all words drawn independently.

    A sample begins anywhere in a sentence.

    Args:
        count: number of different words, 4 to 60.
        first: the token of the first of them.
        shared: words that have tokens already, among them "the" and ".".

    Raises:
        ConfigError: there are fewer words than `count`.
    """

    def __init__(self, count: int, first: int, shared: dict[str, int]) -> None:
        if not _CHOSEN <= count <= len(FILLER_WORDS):
            raise ConfigError(
                f"task.noise_words={count}: generated filler has {_CHOSEN} to {len(FILLER_WORDS)} different "
                "words; more with task.noise_dir"
            )
        self.names = FILLER_WORDS[:count]
        self.first, self.shared = first, shared
        self.choices = np.array([len(self.names[place::_CHOSEN]) for place in range(_CHOSEN)])

    def random_numbers(self, length: int) -> int:
        # where to begin, and 16 bits for each chosen word of a sentence
        return 1 + -(-(length + _SENTENCE - 1) // _SENTENCE)

    def tokens(self, random_BW: RandomNumbers, length: int, split: Split) -> Ints:
        bits_BSc = (
            np.ascontiguousarray(random_BW[:, 1:])
            .astype("<u8")
            .view("<u2")
            .reshape(len(random_BW), -1, _CHOSEN)
            .astype(np.int64)
        )
        sentences = np.empty((*bits_BSc.shape[:2], _SENTENCE), dtype=np.int64)
        sentences[..., 0], sentences[..., -1] = self.shared["the"], self.shared["."]
        sentences[..., 1:-1] = self.first + np.arange(_CHOSEN) + _CHOSEN * (bits_BSc % self.choices)
        begin_B1 = choose(random_BW[:, :1], _SENTENCE)
        return np.take_along_axis(sentences.reshape(len(random_BW), -1), begin_B1 + np.arange(length), axis=1)

    def distinct(self, length: int, hidden: int, pieces: int) -> int:
        chosen = max(0, (length - hidden) * _CHOSEN // _SENTENCE - 2 * pieces)
        return int(self.choices.min()) ** chosen


class TextFiller(Filler):
    """Passages of a directory's .txt files.

    The first 80 % of each file are for training, the next 10 % for validation, and the last 10 % for test.

    Words are lower-cased, and a punctuation mark is a word. The most frequent words of the training parts
    have a token each; all others share one unknown token.

    Args:
        noise_dir: the directory of `files`, for error messages.
        count: how many words of the text have a token of their own.
        first: the token of the first of them; `unknown` is that of all others.
        shared: words that have tokens already.
        forbidden: words that a text must not contain, in lower case: they are unknown too.

    Raises:
        ConfigError: a file is not UTF-8 text or cannot be read.
    """

    def __init__(
        self,
        noise_dir: str,
        files: Iterable[Path],
        *,
        count: int,
        first: int,
        unknown: int,
        shared: dict[str, int],
        forbidden: Collection[str] = (),
    ) -> None:
        self.noise_dir = noise_dir
        parts: dict[Split, list[list[str]]] = {split: [] for split in SPLITS}
        for file in files:
            text = _words_of(file)
            ends = [len(text) * tenths // 10 for tenths in (0, 8, 9, 10)]
            for split, begin, end in zip(SPLITS, ends[:-1], ends[1:], strict=True):
                parts[split].append(text[begin:end])
        seen = Counter(word for part in parts["train"] for word in part)
        for word in (*shared, *forbidden):
            del seen[word]
        frequent = sorted(seen, key=lambda word: (-seen[word], word))[:count]
        self.names = frequent + [f"(unused {i})" for i in range(len(frequent), count)]
        token = {word: first + i for i, word in enumerate(frequent)} | shared
        self.lengths = {split: np.array([len(part) for part in parts[split]]) for split in SPLITS}
        self.text = {
            split: np.array([token.get(w, unknown) for part in parts[split] for w in part], dtype=np.int64)
            for split in SPLITS
        }

    def random_numbers(self, length: int) -> int:
        return 1  # where the passage begins

    def tokens(self, random_BW: RandomNumbers, length: int, split: Split) -> Ints:
        ends_F = np.cumsum(self._passages(length, split))  # passages are numbered file by file
        passage_B = choose(random_BW[:, 0], int(ends_F[-1]))
        file_B = np.searchsorted(ends_F, passage_B, "right")
        starts_F = np.cumsum(self.lengths[split]) - self.lengths[split]
        begin_B = starts_F[file_B] + passage_B - (ends_F - self._passages(length, split))[file_B]
        return self.text[split][begin_B[:, None] + np.arange(length)]

    def distinct(self, length: int, hidden: int, pieces: int) -> int:
        """Raises:
        ConfigError: a split has no passage of `length` words.
        """
        for split in SPLITS:
            longest = int(self.lengths[split].max())
            if longest < length:
                raise ConfigError(
                    f"task.noise_dir={self.noise_dir}: a sample has {length} words, the longest part of a "
                    f"file for {split} has {longest} (80 % of a file are for training, 10 % for each of the "
                    "others); use longer files, or fewer or shorter segments"
                )
        return min(int(self._passages(length, split).sum()) for split in SPLITS)

    def _passages(self, length: int, split: Split) -> Ints:
        """How many passages of `length` words each file has for a split."""
        return np.maximum(self.lengths[split] - length + 1, 0)


def text_files(noise_dir: str) -> list[Path]:
    """The .txt files of a directory, by name.

    Raises:
        ConfigError: there is no such directory, or there are none in it.
    """
    place = Path(noise_dir).expanduser()
    if not place.is_dir():
        raise ConfigError(
            f"task.noise_dir={noise_dir}: there is no such directory; give one with .txt files, or null for "
            "generated filler"
        )
    files = sorted(file for file in place.glob("*.txt") if file.is_file())
    if not files:
        raise ConfigError(
            f"task.noise_dir={noise_dir}: there are no .txt files in it; null makes generated filler"
        )
    return files


def _words_of(file: Path) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ConfigError(f"task.noise_dir: {file} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"task.noise_dir: {file} cannot be read ({error.strerror})") from None
    return re.findall(r"\w+(?:['\u2019]\w+)*|[^\w\s]", text.lower())
