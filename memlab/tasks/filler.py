"""Filler text for tasks that hide something in it: generated sentences, or passages of the user's own texts.

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
from memlab.tasks.draws import Ints, Words, choose

_FOURS = """
    old river slept quietly     grey cloud turned slowly    small bird sang again
    tall tree waited long       warm wind rose early        pale moon shone softly
    deep lake froze twice       young fox listened closely  dark road ended suddenly
    bright lamp burned alone    empty boat drifted away     distant bell rang faintly
    narrow bridge shook badly   broken clock stopped once   heavy door opened late
"""  # adjective, noun, verb, adverb
FILLER_WORDS = _FOURS.split()
# words of a generated sentence that are chosen, and all of its words: "the", these four, "."
_CHOSEN, _SENTENCE = 4, 6


class Filler(abc.ABC):
    """Where filler comes from."""

    names: list[str]  # the words that have a token, from `first` on

    @abc.abstractmethod
    def words(self, length: int) -> int:
        """Random words that filler of so many tokens is made of."""

    @abc.abstractmethod
    def tokens(self, words_BW: Words, length: int, split: Split) -> Ints:
        """Filler [B, length] for a split."""

    @abc.abstractmethod
    def distinct(self, length: int, hidden: int, pieces: int) -> int:
        """At least so many different fillers of `length` tokens there are in a split, if `hidden` of them
        cannot be seen and those that can are in so many pieces.
        """


class GeneratedFiller(Filler):
    """Sentences such as "the old river slept quietly .", all words drawn independently; a sample begins
    anywhere in one.

    Args:
        count: how many different words there are, 4 to 60.
        first: the token of the first of them; "the" and "." are in `shared`, words that have tokens already.

    Raises:
        ConfigError: there are not so many words.
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

    def words(self, length: int) -> int:
        # where to begin, and 16 bits for each chosen word of a sentence
        return 1 + -(-(length + _SENTENCE - 1) // _SENTENCE)

    def tokens(self, words_BW: Words, length: int, split: Split) -> Ints:
        bits_BSc = (
            np.ascontiguousarray(words_BW[:, 1:])
            .astype("<u8")
            .view("<u2")
            .reshape(len(words_BW), -1, _CHOSEN)
            .astype(np.int64)
        )
        sentences = np.empty((*bits_BSc.shape[:2], _SENTENCE), dtype=np.int64)
        sentences[..., 0], sentences[..., -1] = self.shared["the"], self.shared["."]
        sentences[..., 1:-1] = self.first + np.arange(_CHOSEN) + _CHOSEN * (bits_BSc % self.choices)
        begin_B1 = choose(words_BW[:, :1], _SENTENCE)
        return np.take_along_axis(sentences.reshape(len(words_BW), -1), begin_B1 + np.arange(length), axis=1)

    def distinct(self, length: int, hidden: int, pieces: int) -> int:
        chosen = max(0, (length - hidden) * _CHOSEN // _SENTENCE - 2 * pieces)
        return int(self.choices.min()) ** chosen


class TextFiller(Filler):
    """Passages of a directory's .txt files.

    Of each file the first 80 % are for training, then 10 % for validation, 10 % for test.

    Words are lower-cased, and a punctuation mark is a word. The training parts' most frequent ones have a
    token each; all others are one unknown token.

    Args:
        files: of the directory `noise_dir`, which errors name.
        count: how many words of the text have a token of their own.
        first: the token of the first of them; `unknown` is that of all others.
        shared: words that have tokens already.
        forbidden: words that a text must not say, in lower case: they are unknown too.

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

    def words(self, length: int) -> int:
        return 1  # where the passage begins

    def tokens(self, words_BW: Words, length: int, split: Split) -> Ints:
        ends_F = np.cumsum(self._passages(length, split))  # of each file, numbers of the passages in it
        passage_B = choose(words_BW[:, 0], int(ends_F[-1]))
        file_B = np.searchsorted(ends_F, passage_B, "right")
        starts_F = np.cumsum(self.lengths[split]) - self.lengths[split]
        begin_B = starts_F[file_B] + passage_B - (ends_F - self._passages(length, split))[file_B]
        return self.text[split][begin_B[:, None] + np.arange(length)]

    def distinct(self, length: int, hidden: int, pieces: int) -> int:
        """Raises:
        ConfigError: a split has no passage of so many words.
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
        """How many passages of so many words each file's part has."""
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
