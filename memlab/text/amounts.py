"""How much an evaluation reads of a text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from memlab.text.given_back import Patch, patch
from memlab.text.tokenizers import Ids, Tokenizer


@dataclass(frozen=True)
class Amounts:
    """What an evaluation reads of a split.

    Attributes:
        documents: how many.
        bytes: of UTF-8.
        words: separated by white space. PG-19's authors divide the total log-likelihood by this number,
            whatever the tokens are, to compare models by word-level perplexity (the README of their data
            set).
        tokens: targets that count.
        lost_bytes: how many of the bytes the tokenizer does not give back.
        patch_bits: what it costs to put them back (see `memlab.text.given_back`). Bits per byte and per word
            are those of the tokens and of this.
    """

    documents: int
    bytes: int
    words: int
    tokens: int
    lost_bytes: int = 0
    patch_bits: float = 0.0

    @property
    def whole(self) -> dict[str, Any]:
        """What the metrics of `memlab.evaluation.metrics.of_text` ask for, of the whole text."""
        return {"text_bytes": self.bytes, "words": self.words, "patch_bits": self.patch_bits}

    @property
    def read(self) -> dict[str, int]:
        """What result files say of it."""
        names = ("documents", "tokens", "bytes", "words", "lost_bytes")
        return {name: getattr(self, name) for name in names}


def count(texts: Sequence[bytes], ids: Sequence[Ids], tokenizer: Tokenizer) -> Amounts:
    """The amounts of some documents with these token ids."""
    words = sum(len(text.decode(errors="replace").split()) for text in texts)
    missing = Patch()
    if not tokenizer.lossless:
        missing = sum(map(patch, texts, map(tokenizer.given_back, texts, ids)), missing)
    return Amounts(len(texts), sum(map(len, texts)), words, sum(map(len, ids)), missing.lost, missing.bits)
