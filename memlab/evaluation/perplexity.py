"""How well text is predicted: nats, summed exactly over all that is read, and what people quote of them.

perplexity        exp(nats / tokens); only comparable between models with one tokenizer
bits per byte     nats / ln 2 / UTF-8 bytes; comparable between all models
word perplexity   exp(nats / words), whatever the tokens are, as the README of PG-19 (arXiv 1911.05507) asks
                      for; words are what white space separates in what is read
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

_LARGEST = 88.0  # exp of more is no float in single precision, as which the trainer hands metrics on


class Tally:
    """Sums of nats, in all and by position in the document, in float64.

    Args:
        first: tokens in the first range of positions; each further range is as long as all before it
            together.
    """

    def __init__(self, first: int) -> None:
        self.first = first
        self.nats_R = torch.zeros(64, dtype=torch.float64)
        self.tokens_R = torch.zeros(64, dtype=torch.long)

    @classmethod
    def of(cls, parts: Sequence[Tally]) -> Tally:
        """Of all that several tallies have read."""
        whole = cls(parts[0].first)
        for part in parts:
            whole.nats_R += part.nats_R
            whole.tokens_R += part.tokens_R
        return whole

    @property
    def nats(self) -> float:
        return float(self.nats_R.sum())

    @property
    def tokens(self) -> int:
        return int(self.tokens_R.sum())

    def add(self, nats_BT: Tensor, counts_BT: Tensor, positions_BT: Tensor) -> None:
        """Add the predictions that count.

        Args:
            nats_BT: of each target.
            positions_BT: of the target in its document, from 0.
        """
        where = counts_BT.flatten()
        nats = nats_BT.detach().flatten()[where].double().cpu()
        position = positions_BT.flatten()[where].cpu()
        # 0 .. first - 1 is range 0, first .. 2 first - 1 range 1, 2 first .. 4 first - 1 range 2; frexp is
        # exact where log2 is not
        index = torch.frexp((position // self.first).double()).exponent.long()
        self.nats_R.index_add_(0, index, nats)
        self.tokens_R.index_add_(0, index, torch.ones_like(index))

    def metrics(self, text_bytes: int, words: int) -> dict[str, float]:
        """Of text that has so many bytes and words."""
        loss = self.nats / self.tokens
        return {
            "loss": loss,
            "perplexity": math.exp(min(loss, _LARGEST)),
            "bits_per_byte": self.nats / math.log(2) / text_bytes,
            "word_perplexity": math.exp(min(self.nats / words, _LARGEST)),
        }

    def by_position(self) -> list[dict[str, Any]]:
        """For each range of positions in a document that was read: its first position, how many tokens,
        and their mean loss.
        """
        starts = [0, *(self.first << r for r in range(63))]
        return [
            {"from": starts[r], "tokens": int(n), "loss": float(self.nats_R[r] / n)}
            for r, n in enumerate(self.tokens_R.tolist())
            if n
        ]
