"""The memory cost of a model for one document, measured on the tensors that it really carries.

    KV_full(L)           = 2 * layers * kv_heads * head_width * L * bytes
                           a full cache of the same backbone after L tokens
    compression_carry(L) = KV_full(L) / bytes of the state that survives to the next segment
    compression_peak(L)  = KV_full(L) / bytes held while a segment is read: the state and the open segment's
                           keys and values

The peak is measured when a segment has been read and before it is closed; it includes memory tokens that the
segment's tokens look at, but not the write memory that is read when it is closed. Neither ratio alone orders
the methods sensibly, so both are reported. Parameters are not state.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor

from memlab.models.base import NOTHING, Model, ModelState


@dataclass(frozen=True)
class MemoryCost:
    """Bytes for one document after `tokens` tokens; a ratio is None if nothing is held.

    `used_bytes` is the part of the state that is in use; the rest is padding, of which a bounded cache whose
    heads keep sets of different sizes has some. Ratios count what is held.
    """

    tokens: int
    kv_full_bytes: int
    state_bytes: int
    peak_bytes: int
    compression_carry: float | None
    compression_peak: float | None
    used_bytes: int

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Watch:
    """Measures a memory while documents are read: its curve over L, at segments 1, 2, 4, .. and the last.

    The reader calls `see` before and `seen` after each of the segments `points`. Only the first batch row is
    measured. The peak is not measured between these segments: with a state of constant size it equals that of
    a segment of the same length, and with a state that grows it is larger at the next point.
    """

    def __init__(self, model: Model) -> None:
        self.model = model
        self.tokens = [0]
        self.peak = 0
        self.wanted: set[int] = set()
        self.curve: list[dict[str, Any]] = []

    def points(self, segment_lengths: Sequence[int]) -> set[int]:
        """The segments to stop at: 1, 2, 4, .., the last, and the first and last of each length."""
        self.tokens = [0, *itertools.accumulate(segment_lengths)]
        count = len(segment_lengths)
        self.wanted = {(1 << p) - 1 for p in range(count.bit_length())} | {count - 1}
        first = {segment_lengths.index(n) for n in set(segment_lengths)}
        last = {count - 1 - segment_lengths[::-1].index(n) for n in set(segment_lengths)}
        return self.wanted | first | last

    def see(self, tokens_BN: Tensor, state: Any, segment: int) -> None:
        """A segment is about to be read."""
        self.peak = max(self.peak, self.model.peak_bytes(tokens_BN[:1], first_row(state)))

    def seen(self, state: Any, segment: int) -> None:
        """The segment has been read, and `state` is the state after it."""
        if segment in self.wanted:
            cost = weigh(self.model, first_row(state), self.peak, self.tokens[segment + 1])
            self.curve.append({"segments": segment + 1, **cost.to_dict()})


def first_row(state: Any) -> Any:
    """The state of the first document, in tensors of its own (in an initial state, tensors may be shared)."""
    return state.map(lambda t: t[:1])


def weigh(model: Model, state: ModelState, peak_bytes: int, tokens: int) -> MemoryCost:
    """The cost of a state of one document and of a peak, compared with a full cache."""
    full, state_bytes = kv_full_bytes(model, tokens), state.nbytes
    return MemoryCost(
        tokens,
        full,
        state_bytes,
        peak_bytes,
        full / state_bytes if state_bytes else None,
        full / peak_bytes if peak_bytes else None,
        state.used_nbytes,
    )


def kv_full_bytes(model: Model, tokens: int) -> int:
    """KV_full: keys and values of `tokens` tokens in all layers."""
    backbone = model.backbone
    numbers = 2 * len(backbone.blocks) * backbone.kv_heads * backbone.head_width * tokens
    return numbers * backbone.embed.weight.element_size()


@torch.no_grad()
def measure(model: Model, segment_lengths: Sequence[int]) -> MemoryCost:
    """Read one document with these segments, and measure what is held, as in evaluation."""
    was_training = model.training
    model.eval()
    state = model.init_state(1)
    peak = 0
    for length in segment_lengths:
        tokens_BN = torch.zeros(1, length, dtype=torch.long, device=model.device)
        peak = max(peak, model.peak_bytes(tokens_BN, first_row(state)))
        state = model.segment(tokens_BN, state, NOTHING).state
    model.train(was_training)
    return weigh(model, state, peak, sum(segment_lengths))


@torch.no_grad()
def trace(model: Model, segment_lengths: Sequence[int]) -> list[dict[str, Any]]:
    """The curve of one document with these segments, which is only read for this; see `Watch`."""
    watch, state = Watch(model), model.init_state(1)
    points = watch.points(segment_lengths)
    for segment, length in enumerate(segment_lengths):
        tokens_BN = torch.zeros(1, length, dtype=torch.long, device=model.device)
        if segment in points:
            watch.see(tokens_BN, state, segment)
        state = model.segment(tokens_BN, state, NOTHING).state
        if segment in points:
            watch.seen(state, segment)
    return watch.curve
