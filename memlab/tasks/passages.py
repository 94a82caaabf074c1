"""Sources of filler sentences, in which tasks in words hide something.

    repeated    five short sentences over and over, as in the published passkey tests
    generated   sentences such as "The old river slept quietly."
    DIR         sentences of the .txt files of a directory: of each file, the first 80 % for training, the
                next 10 % for validation and the last 10 % for test. A passage ends at any sentence, and
                goes back across the beginnings of files

A passage is written from its last sentence backwards until it is long enough (`Language.passage`), so it
always ends with a whole sentence. No two splits have passages with the same last sentence, except for
`repeated`.
"""

from __future__ import annotations

import abc
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import ClassVar

import numpy as np

from memlab.errors import ConfigError
from memlab.files import expanded
from memlab.splits import SPLITS, Split
from memlab.tasks.draws import Ints
from memlab.tasks.filler import FILLER_WORDS
from memlab.text.words import split as words_of

REPEATED = (
    "The grass is green.",
    "The sky is blue.",
    "The sun is yellow.",
    "Here we go.",
    "There and back again.",
)
OWN = ("repeated", "generated")
_PLACES = 4  # words of a generated sentence that are chosen
_SENTENCES = 4096  # different generated sentences
# which of them may be the last of a passage
_LAST: dict[Split, tuple[int, int]] = {"train": (0, 3584), "validation": (3584, 3840), "test": (3840, 4096)}
_LONGEST = 400  # characters of a sentence; a longer one is cut between words
_READ = 64 << 20  # bytes of a directory's files, from the first on
_WORDS = 2048  # words of a directory that a vocabulary of words knows
_END = re.compile(r"(?<=[.!?])\s+|(?<=[.!?][\"'\u201d\u2019)\]])\s+")


class Passages(abc.ABC):
    """A source of passages.

    Attributes:
        apart: whether the passages of splits are different.
    """

    apart: ClassVar[bool] = True

    @abc.abstractmethod
    def sentences(self, split: Split) -> Sequence[str]:
        """All different sentences of a split."""

    @abc.abstractmethod
    def order(self, random: int, count: int, split: Split) -> Ints:
        """Which sentences a passage ends with, the last one first, drawn with a random 64-bit number. With a
        larger `count`, the first are the same.
        """

    @abc.abstractmethod
    def distinct(self, length: int) -> int:
        """A lower bound of the number of different passages of `length` tokens in each split."""

    @abc.abstractmethod
    def texts(self) -> Iterable[str]:
        """Texts with the words that a vocabulary of words has to know."""


class RepeatedPassages(Passages):
    """The sentences of `REPEATED`, over and over."""

    apart: ClassVar[bool] = False

    def sentences(self, split: Split) -> Sequence[str]:
        return REPEATED

    def order(self, random: int, count: int, split: Split) -> Ints:
        return -np.arange(1, count + 1) % len(REPEATED)

    def distinct(self, length: int) -> int:
        return 1

    def texts(self) -> Iterable[str]:
        return REPEATED


class GeneratedPassages(Passages):
    """Sentences of an adjective, a noun, a verb and an adverb: 4,096 of those that are possible."""

    def __init__(self) -> None:
        choices = len(FILLER_WORDS) // _PLACES
        drawn = np.random.Generator(np.random.Philox(key=0)).permutation(choices**_PLACES)[:_SENTENCES]
        places = np.unravel_index(drawn, (choices,) * _PLACES)
        words = [[FILLER_WORDS[_PLACES * i + at] for i in of] for at, of in enumerate(places)]
        self.known = [f"The {' '.join(four)}." for four in zip(*words, strict=True)]

    def sentences(self, split: Split) -> Sequence[str]:
        return self.known

    def order(self, random: int, count: int, split: Split) -> Ints:
        found_P = (np.random.Philox(key=random).random_raw(count) % np.uint64(_SENTENCES)).astype(np.int64)
        begin, end = _LAST[split]
        found_P[0] = begin + found_P[0] % (end - begin)
        return found_P

    def distinct(self, length: int) -> int:
        # the last sentence is whole; no tokenizer makes more than 64 tokens of one
        last = min(end - begin for begin, end in _LAST.values())
        return int(last * _SENTENCES ** (length // 64))

    def texts(self) -> Iterable[str]:
        return ("The .", *FILLER_WORDS)


class TextPassages(Passages):
    """Sentences of a directory's .txt files, at any depth.

    Args:
        directory: as the user gave it.
        files: the files, in order.
        forbidden: words of the task; sentences with one of them are left out. So are, from validation and
            test, sentences that another split has.

    Raises:
        ConfigError: a file cannot be read, or a split has no sentence.
    """

    def __init__(self, directory: str, files: Sequence[Path], forbidden: Iterable[str]) -> None:
        parts: dict[Split, list[str]] = {split: [] for split in SPLITS}
        avoid = {word.lower() for word in forbidden}
        left = _READ
        for file in files:
            text = _text(file)[:left]
            left -= len(text)
            ends = [len(text) * tenths // 10 for tenths in (0, 8, 9, 10)]
            for part, begin, end in zip(SPLITS, ends[:-1], ends[1:], strict=True):
                parts[part] += [s for s in _sentences(text[begin:end]) if not avoid & _words(s)]
        self.of, seen = dict[Split, list[str]](), set[str]()
        for part in SPLITS:
            self.of[part] = [sentence for sentence in parts[part] if sentence not in seen]
            seen.update(self.of[part])
        if empty := [part for part in SPLITS if not self.of[part]]:
            raise ConfigError(
                f"task.filler={directory}: its {len(files)} .txt files have no sentence for {empty[0]} (80 % "
                "of a file are for training, 10 % for each of the others); use longer files, or "
                "generated filler"
            )

    def sentences(self, split: Split) -> Sequence[str]:
        return self.of[split]

    def order(self, random: int, count: int, split: Split) -> Ints:
        number = len(self.of[split])
        return (random % number - np.arange(count)) % number

    def distinct(self, length: int) -> int:
        return min(map(len, self.of.values()))

    def texts(self) -> Iterable[str]:
        seen = Counter(word.lower() for sentence in self.of["train"] for word in words_of(sentence))
        return sorted(seen, key=lambda word: (-seen[word], word))[:_WORDS]


def filler_files(filler: str) -> tuple[Path, ...]:
    """The files of `task.filler`; () = it is one of memlab's own.

    Raises:
        ConfigError: there is no such directory, or there are none in it.
    """
    if filler in OWN:
        return ()
    place = expanded(filler, "task.filler")
    if not place.is_dir():
        raise ConfigError(
            f"task.filler={filler}: there is no such directory; allowed are {', '.join(OWN)}, or a directory "
            "with .txt files"
        )
    files = sorted(file for file in place.rglob("*.txt") if file.is_file())
    if not files:
        raise ConfigError(
            f"task.filler={filler}: there are no .txt files in this directory; generated makes sentences"
        )
    return tuple(files)


def passages(filler: str, files: Sequence[Path], forbidden: Iterable[str]) -> Passages:
    """The passages that `task.filler` names; `files` are its `filler_files`."""
    if files:
        return TextPassages(filler, files, forbidden)
    return RepeatedPassages() if filler == "repeated" else GeneratedPassages()


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(f"task.filler: {file} is not UTF-8 text (byte {error.start})") from None
    except OSError as error:
        raise ConfigError(f"task.filler: {file} cannot be read ({error.strerror})") from None


def _sentences(text: str) -> Iterator[str]:
    """Sentences in one line each. The first and the last may be cut, and are left out."""
    for sentence in _END.split(text)[1:-1]:
        line = " ".join(sentence.split())
        while len(line) > _LONGEST:
            at = line.rfind(" ", 0, _LONGEST)
            at = at if at > 0 else _LONGEST
            yield line[:at]
            line = line[at:].lstrip()
        if line:
            yield line


def _words(sentence: str) -> set[str]:
    return {word.lower() for word in words_of(sentence)}
