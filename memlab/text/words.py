"""A tokenizer with a small vocabulary of its own: a word, a digit or a punctuation mark is a token."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np

from memlab.text.tokenizers import Ids

UNKNOWN = "(unknown)"
# digits stand alone, and an apostrophe within a word belongs to it
_TOKEN = re.compile(r"\d|[^\W\d]+(?:['\u2019][^\W\d]+)*|[^\w\s]")


class WordTokenizer:
    """Words, whatever their capitals. All words that it does not know share its last id.

    Args:
        texts: those whose words it knows, in order; words that repeat count once.
    """

    begins_texts = False

    def __init__(self, texts: Iterable[str]) -> None:
        words = [word for text in texts for word in split(text)]
        self.names = [*dict.fromkeys(words), UNKNOWN]
        self.token = {word.lower(): i for i, word in reversed(list(enumerate(self.names)))}
        self.size = self.begin = len(self.names)

    def encode(self, document: bytes) -> Ids:
        """Token ids [L]."""
        unknown = self.token[UNKNOWN]
        words = split(document.decode())
        return np.array([self.token.get(word.lower(), unknown) for word in words], dtype=np.uint32)

    def decode(self, ids: list[int]) -> str:
        """The words, with a space between."""
        return " ".join(self.names[i] for i in ids)


def split(text: str) -> list[str]:
    """The words, digits and punctuation marks of a text."""
    return _TOKEN.findall(text)
