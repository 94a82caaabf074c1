"""Recurrent Memory Transformer, decoder (Bulatov et al., NeurIPS 2022, arXiv 2207.06881, section 3.2).

    [ read memory (M) | segment (N) | write memory (M) ]

The same M vectors enter at both ends (with write_memory=learned, separate learned vectors enter after the
segment). Read memory holds what came before. Write memory sees read memory and the whole segment, and the top
layer's output for it is the M vectors that the next segment begins with.

    looks at        read   segment   write
    read            all    -         -
    segment         all    causal    -
    write           all    all       all

Over layers with a Transformer-XL cache this is "Tr-XL + RMT" (section 3.2 and table 5). The cache only holds
the segment's tokens and stands before the read memory; the published code also caches the rows of the write
memory, which leaves less room for tokens. With read_mem_from_cache, memory tokens look at what the layers
remember.

The memory of segment s comes from the top layer and enters the first layer of segment s + 1, so there is no
parallel form. Positions are explicit: -M .. N + M - 1 (the published code takes those of the memory from a
shift that is invalid above the diagonal).
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.bounds import Positive
from memlab.layers.state import State, state
from memlab.memory_tokens.base import MemoryTokens


@state
class RMTState(State):
    """What RMT carries: M vectors for each document."""

    memory_BMD: Tensor


class RMT(MemoryTokens):
    """Read and write memory.

    Args:
        width: D.
        memory_tokens: M, read memory tokens, and the same number of write memory tokens.
        write_memory: the input of write memory: the carried vectors, as in the paper, or learned ones, the
            same in each segment.
        read_mem_from_cache: whether memory tokens look at what the layers remember.
    """

    carries = True

    def __init__(
        self,
        width: int,
        *,
        memory_tokens: Positive = 12,
        write_memory: Literal["carried", "learned"] = "carried",
        read_mem_from_cache: bool = False,
    ) -> None:
        super().__init__()
        # Distinct vectors of a token embedding's size; the published code repeats one vector M times.
        self.initial_memory_MD = nn.Parameter(torch.randn(memory_tokens, width))
        self.write_memory_MD = (
            nn.Parameter(torch.randn(memory_tokens, width)) if write_memory == "learned" else None
        )
        self.read_mem_from_cache = read_mem_from_cache

    @property
    def reads(self) -> int:
        return self.initial_memory_MD.shape[0]

    @property
    def writes(self) -> int:
        return self.reads

    def init_state(self, batch_size: int) -> RMTState:
        return RMTState(self.initial_memory_MD.expand(batch_size, -1, -1))

    def before(self, state: RMTState, batch_size: int) -> Tensor:
        return state.memory_BMD

    def after(self, state: RMTState) -> Tensor:
        return (
            state.memory_BMD
            if self.write_memory_MD is None
            else self.write_memory_MD.expand_as(state.memory_BMD)
        )

    def written(self, state: RMTState, top_BWD: Tensor) -> RMTState:
        return RMTState(top_BWD)

    def diagnose(self, before: RMTState, after: RMTState) -> dict[str, Tensor]:
        return similarity(before.memory_BMD, after.memory_BMD)


@torch.no_grad()
def similarity(before_BMD: Tensor, after_BMD: Tensor) -> dict[str, Tensor]:
    """How far one segment moved the memory: mean cosine similarity of each memory token with itself."""
    return {"memory/similarity": F.cosine_similarity(before_BMD, after_BMD, dim=-1).mean()}
