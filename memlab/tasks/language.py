"""How a tokenizer writes the sentences of a task, and the answers to its questions."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from memlab.errors import UserError
from memlab.splits import Split
from memlab.tasks.draws import Ints
from memlab.tasks.passages import Passages, filler_files, passages
from memlab.text.corpus import cache_directory
from memlab.text.pretrained_tokenizer import opened
from memlab.text.tokenizers import ByteTokenizer, SavedTokenizer
from memlab.text.words import WordTokenizer

OWN = ("words", "bytes")  # tokenizers that are no files
CACHE = "~/.cache/memlab"  # unless MEMLAB_CACHE is set
_KNOWN = 1 << 16  # sentences whose tokens are remembered


@dataclass(frozen=True)
class Source:
    """What a language is made of.

    Attributes:
        tokenizer, filler: as the user gave them.
        texts: with all words of the task, for a vocabulary of words.
        forbidden: words that filler from files must not have.
        files: of the filler, with sizes and times, which show when they have changed.
    """

    tokenizer: str
    filler: str
    texts: tuple[str, ...]
    forbidden: tuple[str, ...]
    files: tuple[tuple[Path, int, int], ...]

    @classmethod
    def of(cls, tokenizer: str, filler: str, texts: Iterable[str], forbidden: Iterable[str]) -> Source:
        """Raises:
        ConfigError: there is no such filler.
        """
        files = tuple((f, f.stat().st_size, f.stat().st_mtime_ns) for f in filler_files(filler))
        return cls(tokenizer, filler, tuple(texts), tuple(forbidden), files)

    @property
    def passages(self) -> Passages:
        return _passages(self.filler, self.files, self.forbidden)

    @property
    def is_open(self) -> bool:
        """Whether `language` takes no time and imports nothing."""
        return self.tokenizer in OWN or self in _OPEN

    @property
    def language(self) -> Language:
        """Raises:
        UserError: the tokenizer cannot be read.
        """
        if self not in _OPEN:
            while len(_OPEN) >= 4:
                _OPEN.pop(next(iter(_OPEN)))
            _OPEN[self] = Language(self)
        return _OPEN[self]


_OPEN: dict[Source, Language] = {}  # all stages of a curriculum share one


@lru_cache(maxsize=4)
def _passages(filler: str, files: tuple[tuple[Path, int, int], ...], forbidden: tuple[str, ...]) -> Passages:
    return passages(filler, [file for file, _, _ in files], forbidden)


@dataclass
class _Filler:
    """Tokens of the sentences of a split, and how many; -1 = not encoded yet."""

    tokens: list[Any]
    lengths: Ints


class Language:
    """A tokenizer, and the filler that it writes.

    Attributes:
        begin: the tokens [0 or 1] before a text: BEGIN, if the tokenizer itself puts it there.
    """

    def __init__(self, source: Source) -> None:
        self.name = f"task.tokenizer={source.tokenizer}"
        self.passages = source.passages
        self.tokenizer: WordTokenizer | ByteTokenizer | SavedTokenizer
        if source.tokenizer == "words":
            self.tokenizer = WordTokenizer((*source.texts, *self.passages.texts()))
        elif source.tokenizer == "bytes":
            self.tokenizer = ByteTokenizer()
        else:
            self.tokenizer = opened(source.tokenizer, cache_directory(CACHE))
        begins = getattr(self.tokenizer, "begins_texts", False)
        self.begin = np.full(int(begins), self.tokenizer.begin)
        self._stop = self.encode(".")
        self._known: dict[str, Ints] = {}
        self._filler: dict[Split, _Filler] = {}

    @property
    def vocab_size(self) -> int:
        return self.tokenizer.size

    def encode(self, text: str) -> Ints:
        """Token ids of a whole text, without BEGIN."""
        return self.tokenizer.encode(text.encode()).astype(np.int64)

    def opening(self, text: str) -> Ints:
        """BEGIN, if this tokenizer puts it before texts, and the token ids of the beginning of a text."""
        key = f"\n{text}"  # no sentence begins so
        if key not in self._known:
            self._known[key] = np.concatenate([self.begin, self.encode(text)])
        return self._known[key]

    def after(self, text: str) -> Ints:
        """Token ids of a text that stands after another sentence."""
        if (found := self._known.get(text)) is None:
            if len(self._known) >= _KNOWN:
                self._known.clear()
            found = self._known[text] = self._after(text)
        return found

    def _after(self, text: str) -> Ints:
        whole, n = self.encode(f". {text}"), len(self._stop)
        # a tokenizer may join a full stop to what comes after it
        return whole[n:] if (whole[:n] == self._stop).all() else self.encode(f" {text}")

    def passage(self, random: int, length: int, split: Split) -> tuple[Ints, Ints]:
        """So many tokens of filler [F], and where its whole sentences begin [P]. The first one is cut.

        Raises:
            UserError: the tokenizer makes no tokens of it.
        """
        if split not in self._filler:
            sentences = self.passages.sentences(split)
            self._filler[split] = _Filler([None] * len(sentences), np.full(len(sentences), -1))
        written, count, tokens_P = self._filler[split], 8 + length // 4, np.zeros(1, np.int64)
        last_P = tokens_P
        while tokens_P.sum() < length:
            if not tokens_P.any() and len(tokens_P) > len(written.tokens):
                raise UserError(f"{self.name} makes no token of the filler")
            last_P = self.passages.order(random, count, split)
            for i in last_P[written.lengths[last_P] < 0].tolist():
                written.tokens[i] = self._after(self.passages.sentences(split)[i])
                written.lengths[i] = len(written.tokens[i])
            tokens_P = written.lengths[last_P]
            count *= 2
        whole_P = np.cumsum(tokens_P)
        needed = int(np.searchsorted(whole_P, length)) + 1
        found = [written.tokens[i] for i in last_P[:needed][::-1].tolist()]
        starts_P = length - whole_P[:needed][::-1]
        return np.concatenate(found)[whole_P[needed - 1] - length :], starts_P[starts_P >= 0]

    def word(self, token: int) -> str:
        """A token as text."""
        if isinstance(self.tokenizer, WordTokenizer):
            return self.tokenizer.names[token]
        text = self.tokenizer.decode([token]).replace("\n", "\u23ce")
        return text if text.strip() else f"'{text}'"


class Answers:
    """The answers to some questions: where their tokens begin, and how many count.

    Args:
        pairs: questions and their answers. All answers of one word, or many of all numbers.
        numbers: whether the answers are numbers, of which all tokens count.

    Raises:
        UserError: the tokenizer writes two different answers in the same way.
    """

    def __init__(self, language: Language, pairs: Iterable[tuple[str, str]], numbers: bool) -> None:
        self.language, self.numbers = language, numbers
        self.pairs = list(pairs)
        self._rests: dict[tuple[str, str], tuple[int, ...]] = {}
        rests = [self._rest(*pair) for pair in self.pairs]
        shared = zip(*rests, strict=False)
        self.shared = next((i for i, tokens in enumerate(shared) if len(set(tokens)) > 1), 0)
        self.tokens = self._count([rest[self.shared :] for rest in rests])

    def _rest(self, question: str, answer: str) -> tuple[int, ...]:
        """The tokens after a question. Behind a word comes a full stop, which is part of what tells it from
        longer ones. Of the question, only its last word matters.
        """
        last = question.rpartition(" ")[2]
        if (found := self._rests.get((last, answer))) is None:
            asked = self.language.opening(last)[len(self.language.begin) :]
            whole = self.language.encode(f"{last} {answer}" + "." * (not self.numbers))
            joined = not (whole[: len(asked)] == asked).all()
            rest = self.language.encode(f" {answer}") if joined else whole[len(asked) :]
            found = self._rests[last, answer] = tuple(rest.tolist())
        return found

    def _count(self, rests: list[tuple[int, ...]]) -> int:
        answers = [answer for _, answer in self.pairs]
        if self.numbers:
            written = dict(zip(rests, answers, strict=True))
            if other := next((a for r, a in zip(rests, answers, strict=True) if written[r] != a), None):
                self._refuse(other, written[rests[answers.index(other)]])
            return Counter(sorted(map(len, rests))).most_common(1)[0][0]
        for n in range(1, 1 + min(map(len, rests))):
            seen: dict[tuple[int, ...], str] = {}
            if all(seen.setdefault(r[:n], a) == a for r, a in zip(rests, answers, strict=True)):
                return n
        seen = {}
        for rest, answer in zip(rests, answers, strict=True):
            if seen.setdefault(rest, answer) != answer:
                self._refuse(answer, seen[rest])
        raise AssertionError("a word and a full stop are never the beginning of another word")

    def _refuse(self, one: str, other: str) -> None:
        raise UserError(
            f"{self.language.name}: it writes the answers {one} and {other} in the same tokens; use another "
            "tokenizer"
        )

    def fits(self, question: str, answer: str) -> bool:
        """Whether an answer has the usual number of tokens."""
        return not self.numbers or len(self._rest(question, answer)) - self.shared == self.tokens

    def written(self, question: str, answer: str) -> tuple[Ints, Ints]:
        """The tokens of a question, with those that all answers share, and of its answer [A]."""
        rest = np.array(self._rest(question, answer), dtype=np.int64)
        return (
            np.concatenate([self.language.after(question), rest[: self.shared]]),
            rest[self.shared : self.shared + self.tokens],
        )

    @cached_property
    def chance(self) -> float:
        """Accuracy of the best constant guess of a token."""
        written = np.concatenate([self.written(*pair)[1] for pair in self.pairs if self.fits(*pair)])
        return float(np.bincount(written).max() / len(written))
