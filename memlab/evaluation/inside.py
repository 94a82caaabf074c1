"""What a model does with its memory while it reads test samples: an entry of `inside` in `evaluation.json`
(see `record.py`).

    memory_share    memory_tokens, cache: the part of a head's softmax that lies on rows written before the
                    segment: RMT's read memory, or the cache of Transformer-XL, of Memorizing's local
                    attention, of a full context. Means over the queries that are tokens (and the class
                    token). Where a gate mixes a memory in, this is of the local attention, before the gate.
                    gated: g |y_memory| / (g |y_memory| + (1 - g) |y_local|), by the norms of what the memory
                    and the local attention of Infini-attention and Memorizing give a head; 0 where nothing
                    has been written yet
    similarity      cosine of each memory token of RMT with itself, between the memories written by different
                    segments, mean over samples
    retrieval       how many tokens before the query the keys lie that Memorizing retrieves, in bins [1, 2),
                    [2, 4), [4, 8), ..

The models are read segment by segment, with the numbers that they always have: layers offer what they compute
(`layers/observing.py`).

Legend: B samples, H heads, T queries, L keys, S segments, M memory tokens, D width.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.evaluation.lengths import rows_at_once, shares
from memlab.layers import observing
from memlab.models.base import Model
from memlab.models.rmt import RMTState
from memlab.models.rmt_encoder import RMTEncoder
from memlab.models.rmt_xl import RMTXLState
from memlab.tasks.base import Batch, SyntheticTask

SEGMENTS = 128  # at most: similarity is a matrix of them
_BINS = 48  # powers of 2


def check(model: Model, segments: int) -> None:
    """Whether there is something to look at.

    Raises:
        ConfigError: there is not, or there are too many segments.
    """
    if not model.carries:
        raise ConfigError(
            "inside looks at what a memory does, and this model carries nothing from segment to segment"
        )
    if segments > SEGMENTS:
        raise ConfigError(
            f"inside: {segments} segments are too many to be drawn; {SEGMENTS} at most, see lengths"
        )


def look(model: Model, task: SyntheticTask, samples: int) -> dict[str, Any]:
    """Read the first `samples` test samples."""
    watching = Watching(model, task.num_segments)
    start = 0
    for count in shares(samples, rows_at_once(model, task), 1):
        watching.read(task.batch("test", start, count))
        start += count
    return watching.found()


class Watching:
    """Sums over samples of what is seen; `found` makes means of them."""

    def __init__(self, model: Model, segments: int) -> None:
        self.model, self.segments = model, segments
        self.layers = {id(block.attention): layer for layer, block in enumerate(model.stack.blocks)}
        self.samples, self.segment, self.tokens = 0, 0, 0
        self.memory_tokens = 0  # M of the state that is read now
        self.share: dict[tuple[str, int], Tensor] = {}  # by kind and layer: [S, H]
        self.between: Tensor | None = None  # [S + 1, S + 1]
        self.by_slot: Tensor | None = None  # [M, S]
        self.retrieving: int | None = None  # the layer that does
        self.keys, self.attention = (
            torch.zeros(model.stack.heads, _BINS, dtype=torch.float64) for _ in range(2)
        )

    @torch.inference_mode()
    def read(self, batch: Batch) -> list[Tensor]:
        """Read a batch; returns the logits of each segment."""
        state, logits = self.model.init_state(len(batch.tokens_BT)), []
        memories = [_memory(state)]
        ends = list(itertools.accumulate(batch.segment_lengths))
        for self.segment, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
            tokens_BN = torch.from_numpy(np.ascontiguousarray(batch.tokens_BT[:, first:end])).to(
                self.model.device
            )
            self.tokens = end - first
            self.memory_tokens = 0 if memories[-1] is None else memories[-1].shape[1]
            with observing.by(self._see):
                output = self.model.segment(tokens_BN, state)
            state = output.state
            logits.append(output.logits)
            memories.append(_memory(state))
        self.samples += len(batch.tokens_BT)
        if memories[0] is not None:
            self._compare(torch.stack([m for m in memories if m is not None]).double())
        return logits

    def found(self) -> dict[str, Any]:
        """The entry, without its key."""
        share = {}
        for kind in sorted({kind for kind, _ in self.share}):
            layers = sorted(layer for other, layer in self.share if other == kind)
            values_SLH = torch.stack([self.share[kind, layer] for layer in layers], dim=1) / self.samples
            share[kind] = {"layers": layers, "values": values_SLH.tolist()}
        similarity = None
        if self.between is not None and self.by_slot is not None:
            similarity = {
                "between": (self.between / self.samples).tolist(),
                "by_slot": (self.by_slot / self.samples).tolist(),
            }
        retrieval = None
        if self.retrieving is not None:
            bins = int(self.keys.sum(0).nonzero().max()) + 1 if self.keys.any() else 0
            retrieval = {
                "layer": self.retrieving,
                "from": [1 << b for b in range(bins)],
                "keys": self.keys[:, :bins].long().tolist(),
                "attention": self.attention[:, :bins].tolist(),
            }
        return {"memory_share": share, "similarity": similarity, "retrieval": retrieval}

    def _see(self, event: str, values: dict[str, Any]) -> None:
        with observing.by(None):
            told: dict[str, Callable[..., None]] = {
                "attention": self._attention,
                "mix": self._mix,
                "nearest": self._nearest,
            }
            told[event](**values)

    def _attention(
        self, attention: Any, q: Tensor, k: Tensor, mask: Tensor | None, relative: Any, ahead: bool
    ) -> None:
        layer, queries, keys = self.layers[id(attention)], q.shape[2], k.shape[2]
        m, cached = self.memory_tokens, keys - queries
        first = cached + isinstance(self.model, RMTEncoder)  # [cache | class token | read memory | ..]
        asking = torch.ones(queries, dtype=torch.bool, device=q.device)
        if m:
            asking[first - cached : first - cached + m] = False
            asking[first - cached + m + self.tokens :] = False
        for kind, begin, end in (("cache", 0, cached), ("memory_tokens", first, first + m)):
            # attention to values that are 1 in memory and 0 elsewhere is the part that lies on memory
            if end > begin:
                one_L1 = torch.zeros(keys, 1, dtype=q.dtype, device=q.device)
                one_L1[begin:end] = 1
                mass_BHTK = attention.attend(q, k, one_L1.expand_as(k), mask, relative, ahead)
                self._add(kind, layer, mass_BHTK[:, :, asking, 0])

    def _mix(self, layer: int, gate: Tensor, remembered: Tensor, local: Tensor) -> None:
        from_memory = gate.squeeze(-1) * remembered.norm(dim=-1)
        from_local = (1 - gate.squeeze(-1)) * local.norm(dim=-1)
        self._add("gated", layer, (from_memory / (from_memory + from_local).clamp_min(1e-30)).flatten(2))

    def _nearest(self, found: Tensor, seen: Tensor, weight: Tensor, rows: int, shared: int) -> None:
        position_T1 = torch.arange(found.shape[2] // shared, device=found.device).repeat_interleave(shared)[
            :, None
        ]
        back = position_T1 + rows - found  # the last row is the token before the segment
        self.retrieving = getattr(self.model, "memory_layer", 0)
        for b in range(_BINS):
            inside = seen & (back >= 1 << b) & (back < 2 << b)
            for total, of in ((self.keys, inside.double()), (self.attention, weight.double() * inside)):
                total[:, b] += of.unflatten(2, (-1, shared)).sum((0, 2, 4)).flatten().cpu()

    def _add(self, kind: str, layer: int, share_BHT: Tensor) -> None:
        sums = self.share.setdefault(
            (kind, layer), torch.zeros(self.segments, self.model.stack.heads, dtype=torch.float64)
        )
        sums[self.segment] += share_BHT.double().mean(2).sum(0).cpu()

    def _compare(self, memories_SBMD: Tensor) -> None:
        unit = torch.nn.functional.normalize(memories_SBMD, dim=-1)
        between = torch.einsum("sbmd,tbmd->st", unit, unit).cpu() / unit.shape[2]
        by_slot = (unit[1:] * unit[:-1]).sum((1, 3)).T.cpu()
        self.between = between if self.between is None else self.between + between
        self.by_slot = by_slot if self.by_slot is None else self.by_slot + by_slot


def _memory(state: Any) -> Tensor | None:
    """The memory tokens of a state, [B, M, D]."""
    return state.memory_BMD if isinstance(state, RMTState | RMTXLState) else None
