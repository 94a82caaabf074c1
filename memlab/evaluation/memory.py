"""What a memory costs, measured on the tensors that a model really carries, for one document.

    KV_full(L)           = 2 * layers * kv_heads * head_width * L * bytes       a full cache of the same backbone after L tokens
    compression_carry(L) = KV_full(L) / bytes of the state that survives to the next segment
    compression_peak(L)  = KV_full(L) / bytes held while a segment is read: the state and the open segment's keys and values

The peak is weighed when a segment has been read and before it is closed; memory tokens that its tokens look at are in it, the write
memory that the closing reads is not. Neither ratio alone orders the methods sensibly, so both are reported. Parameters are not state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch

from memlab.models.base import Model


@dataclass(frozen=True)
class MemoryCost:
    """Bytes for one document after `tokens` tokens; a ratio is None where nothing is held."""

    tokens: int
    kv_full_bytes: int
    state_bytes: int
    peak_bytes: int
    compression_carry: float | None
    compression_peak: float | None

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@torch.no_grad()
def measure(model: Model, segment_lengths: Sequence[int]) -> MemoryCost:
    """Read one document of these segments, and weigh what is held, as in evaluation."""
    was_training = model.training
    model.eval()
    state = model.init_state(1)
    peak = 0
    for length in segment_lengths:
        tokens_BN = torch.zeros(1, length, dtype=torch.long, device=model.device)
        peak = max(peak, model.peak_bytes(tokens_BN, state))
        state = model.segment(tokens_BN, state).state
    model.train(was_training)
    tokens = sum(segment_lengths)
    stack = model.stack
    full = 2 * len(stack.blocks) * stack.kv_heads * stack.head_width * tokens * model.embed.weight.element_size()
    carried = state.nbytes
    return MemoryCost(tokens, full, carried, peak, full / carried if carried else None, full / peak if peak else None)
