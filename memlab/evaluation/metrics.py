"""Metrics for answers and for text, as torchmetrics objects: add batches with `update`, then call `compute`.

    accuracy            share of right tokens ("per-character accuracy" of the RMT paper)
    exact match         share of samples whose every answer token is right
    cross-entropy       nats per target
    perplexity          exp(nats / targets); only comparable between models with the same tokenizer
    bits per byte       nats / ln 2 / UTF-8 bytes; comparable between all models
    bits per word       nats / ln 2 / words, for any tokens
    word perplexity     exp(nats / words), as in the README of PG-19 (arXiv 1911.05507); words are separated
                        by white space in the text that is read

For a tokenizer that does not give back the whole text, the last three also count the bits of what makes up
for it (`memlab.text.given_back`).

Accuracy and exact match are the library's. Those for text are our own: the library's `Perplexity` takes the
logits of all tokens and sums in float32, and it has no bits per byte. Ours take nats, which callers have
anyway, and sum in float64. Their states sum over processes, like the library's.

A task of your own may use any of these, or others:

    metric = BitsPerByte()
    metric.update(nats(logits_BnV, targets_Bn), text_bytes=120)
    metric.compute()
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import MulticlassAccuracy, MulticlassExactMatch

_LARGEST = 88.0  # exp of more overflows in single precision, in which the trainer passes metrics on
_RANGES = 64


class _NatsPerUnit(Metric):
    """Nats per unit. Without any units, the result is NaN.

    Args:
        options: of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    nats: Tensor
    units: Tensor

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.add_state("nats", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("units", torch.zeros((), dtype=torch.long), dist_reduce_fx="sum")

    def _add(self, nats: Tensor, units: int, patch_bits: float = 0.0) -> None:
        self.nats += nats.detach().double().sum().to(self.nats.device) + patch_bits * math.log(2)
        self.units += units

    @property
    def _share(self) -> Tensor:
        return self.nats / self.units


class CrossEntropy(_NatsPerUnit):
    """Nats per target."""

    def update(self, nats: Tensor) -> None:
        """Add targets.

        Args:
            nats: of the targets that count, in any shape.
        """
        self._add(nats, nats.numel())

    def compute(self) -> Tensor:
        return self._share


class Perplexity(CrossEntropy):
    """exp of the nats per target."""

    def compute(self) -> Tensor:
        return self._share.clamp(max=_LARGEST).exp()


class BitsPerByte(_NatsPerUnit):
    """Bits per byte of UTF-8."""

    def update(self, nats: Tensor, text_bytes: int = 0, patch_bits: float = 0.0) -> None:
        """Add targets, and bytes of their text.

        Args:
            nats: of the targets that count, in any shape.
            text_bytes: may be added at once, before or after the targets.
            patch_bits: needed to restore the text from what the tokenizer gives back of it; likewise.
        """
        self._add(nats, text_bytes, patch_bits)

    def compute(self) -> Tensor:
        return self._share / math.log(2)


class BitsPerWord(_NatsPerUnit):
    """Bits per word."""

    def update(self, nats: Tensor, words: int = 0, patch_bits: float = 0.0) -> None:
        """Add targets, and words of their text; as `BitsPerByte.update`."""
        self._add(nats, words, patch_bits)

    def compute(self) -> Tensor:
        return self._share / math.log(2)


class WordPerplexity(BitsPerWord):
    """exp of the nats per word."""

    def compute(self) -> Tensor:
        return self._share.clamp(max=_LARGEST).exp()


class CrossEntropyByPosition(Metric):
    """Nats per target, by range of positions in the document.

    Args:
        first: positions in the first range; each further range is as long as all ranges before it together.
        options: of `torchmetrics.Metric`.
    """

    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    nats_R: Tensor
    targets_R: Tensor

    def __init__(self, first: int, **options: Any) -> None:
        super().__init__(**options)
        self.first = first
        self.add_state("nats_R", torch.zeros(_RANGES, dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("targets_R", torch.zeros(_RANGES, dtype=torch.long), dist_reduce_fx="sum")

    def update(self, nats: Tensor, positions: Tensor) -> None:
        """Add targets.

        Args:
            nats: of the targets that count, in any shape.
            positions: of the same targets in their documents, from 0; the same shape.
        """
        device = self.nats_R.device
        position = positions.flatten().to(device)
        # 0 .. first - 1 is range 0, first .. 2 first - 1 range 1, 2 first .. 4 first - 1 range 2; frexp is
        # exact where log2 is not
        index = torch.frexp((position // self.first).double()).exponent.long()
        self.nats_R.index_add_(0, index, nats.detach().flatten().double().to(device))
        self.targets_R.index_add_(0, index, torch.ones_like(index))

    def compute(self) -> list[dict[str, Any]]:
        """For each range that was read: its first position `from`, number of `tokens`, and mean `loss`."""
        starts = [0, *(self.first << r for r in range(_RANGES - 1))]
        return [
            {"from": starts[r], "tokens": number, "loss": float(self.nats_R[r] / number)}
            for r, number in enumerate(self.targets_R.tolist())
            if number
        ]


def accuracy(vocab_size: int, **options: Any) -> MulticlassAccuracy:
    """The share of right tokens."""
    # micro, since the library's default is the mean over token ids; its checks of each batch cost more than
    # counting
    return MulticlassAccuracy(vocab_size, average="micro", validate_args=False, **options)


def of_answers(vocab_size: int, **options: Any) -> MetricCollection:
    """`accuracy` and `exact_match` of free-running answers, `accuracy_teacher_forced`, and `loss`.

    Each is updated separately: the first three with predicted and true token ids [B, A], the last with nats.

    Args:
        options: of `torchmetrics.Metric`.
    """
    return MetricCollection(
        {
            "accuracy": accuracy(vocab_size, **options),
            "exact_match": MulticlassExactMatch(vocab_size, validate_args=False, **options),
            "accuracy_teacher_forced": accuracy(vocab_size, **options),
            "loss": CrossEntropy(**options),
        },
        compute_groups=False,
    )


def of_text(first: int, **options: Any) -> MetricCollection:
    """`loss`, `perplexity`, `bits_per_byte`, `bits_per_word`, `word_perplexity` and `by_position`.

    All are updated together: `update(nats=.., positions=.., text_bytes=.., words=.., patch_bits=..)`.

    Args:
        first: positions in the first range, see `CrossEntropyByPosition`.
        options: of `torchmetrics.Metric`.
    """
    return MetricCollection(
        {
            "loss": CrossEntropy(**options),
            "perplexity": Perplexity(**options),
            "bits_per_byte": BitsPerByte(**options),
            "bits_per_word": BitsPerWord(**options),
            "word_perplexity": WordPerplexity(**options),
            "by_position": CrossEntropyByPosition(first, **options),
        },
        # the library finds groups by comparing states after the first update, which may have no targets
        compute_groups=False,
    )
