"""How a model uses its memory while it reads test samples: an entry of `inside` in `evaluation.json`.

    memory_share   how much of a head's output comes from memory, by layer, head and segment; means over
                   samples and over the queries that are tokens (or the class token)
      memory_tokens  the part of the head's softmax on memory tokens before the segment
      remembered     the part of the head's softmax on rows that the layer remembers
      gated          |g y_memory| / (|g y_memory| + |(1 - g) y_local|), from the norms of a head's outputs of
                     memory and of local attention; 0 where nothing has been written yet. With such a gate,
                     the two kinds above only concern local attention. Without a gate, the share of what
                     earlier segments wrote (Gated DeltaNet), or of what is added to attention (ARMT)
    similarity     cosine between what was carried after different segments, mean over samples: of memory
                   tokens (each slot with itself), and of the state of each layer whose size is constant
                   (all its numbers as one vector)
    retrieval      how many tokens before the query the keys lie that a layer retrieved, in bins
                   [1, 2), [2, 4), [4, 8), ..
    missing        what cannot be shown for this model, and why

Nothing here knows a kind of memory. Layers offer what they compute (`layers/observing.py`), and states are
trees of tensors. The model reads segment by segment, and its computations are unchanged. A slot is the place
of a memory token.

Legend: B samples, H heads, G key-value heads, T queries, L keys, S segments, M memory tokens, F numbers.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils import _pytree as pytree

from memlab.errors import ConfigError
from memlab.evaluation.lengths import rows_at_once, shares
from memlab.layers import observing
from memlab.memories.base import LayerMemory, Where
from memlab.models.base import Model, ModelState
from memlab.tasks.base import Batch, SyntheticTask

SEGMENTS = 128  # maximum, since similarity is a matrix of segments
MEMORY_TOKENS = "memory_tokens"  # a kind of memory_share, and a key of similarity in addition to the layers
_BINS = 48  # powers of 2
_BYTES = 1 << 27  # of states that are held at once for their similarity


def check(model: Model, segments: int) -> None:
    """Check that there is something to look at.

    Raises:
        ConfigError: there is nothing, or there are too many segments.
    """
    if not model.carries:
        raise ConfigError(
            "inside looks at what a memory does, and this model carries nothing from segment to segment"
        )
    if model.memory == "shuffled":
        raise ConfigError(
            "inside looks at one reading of each segment, and model.memory=shuffled reads each one twice; "
            "choose a run with model.memory=on"
        )
    if segments > SEGMENTS:
        raise ConfigError(
            f"inside: {segments} segments are too many to be drawn; {SEGMENTS} at most, see lengths"
        )


def look(model: Model, task: SyntheticTask, samples: int) -> dict[str, Any]:
    """Read the first `samples` test samples."""
    watching = Watching(model, task.num_segments)
    start = 0
    for count in shares(samples, min(rows_at_once(model, task), watching.most_rows), 1):
        watching.read(task.batch("test", start, count))
        start += count
    return watching.found()


class Watching:
    """Sums over samples of what is observed; `found` returns means."""

    def __init__(self, model: Model, segments: int) -> None:
        self.model, self.segments = model, segments
        self.layers = {id(memory): layer for layer, memory in enumerate(model.backbone.memories, 1)}
        self.samples, self.segment, self.queries = 0, 0, 0
        self.share: dict[tuple[str, int], Tensor] = {}  # by kind and layer: [S, H]
        self.between: dict[str, Tensor] = {}  # by what is compared: [S + 1, S + 1]
        self.by_slot: dict[str, Tensor] = {}  # of memory tokens: [M, S]
        self.changed: set[str] = set()  # states that turned out to change their size
        # by layer: retrieved keys and their attention, [H, bins]
        self.back: dict[int, tuple[Tensor, Tensor]] = {}

    @property
    def most_rows(self) -> int:
        """Samples that are read at once, so that the states to be compared fit into `_BYTES`."""
        compared = self._comparable(self.model.init_state(1)).values()
        held = (self.segments + 1) * sum(t.numel() * t.element_size() for t in compared)
        return max(1, _BYTES // max(1, held))

    @torch.inference_mode()
    def read(self, batch: Batch) -> list[Tensor]:
        """Read a batch and return the logits of each segment."""
        state, logits = self.model.init_state(len(batch.tokens_BT)), []
        states = [self._comparable(state)]
        ends = list(itertools.accumulate(batch.segment_lengths))
        for self.segment, (first, end) in enumerate(zip([0, *ends], ends, strict=False)):
            tokens = np.ascontiguousarray(batch.tokens_BT[:, first:end])
            self.queries = end - first + int(self.model.answers_once)
            with observing.by(self._see):
                output = self.model.segment(torch.from_numpy(tokens).to(self.model.device), state)
            state = output.state
            logits.append(output.logits)
            states.append(self._comparable(state))
        self.samples += len(batch.tokens_BT)
        for name in states[0]:
            self._compare(name, [parts[name] for parts in states])
        return logits

    def found(self) -> dict[str, Any]:
        """The entry, without its key."""
        share = {}
        for kind in sorted({kind for kind, _ in self.share}):
            layers = sorted(layer for other, layer in self.share if other == kind)
            values_SLH = torch.stack([self.share[kind, layer] for layer in layers], dim=1) / self.samples
            share[kind] = {"layers": layers, "values": values_SLH.tolist()}
        similarity = {
            name: {
                "between": (between / self.samples).tolist(),
                "by_slot": (self.by_slot[name] / self.samples).tolist() if name in self.by_slot else None,
            }
            for name, between in self.between.items()
        }
        retrieval = []
        for layer, (keys, attention) in sorted(self.back.items()):
            bins = int(keys.sum(0).nonzero().max()) + 1 if keys.any() else 0
            retrieval.append(
                {
                    "layer": layer,
                    "from": [1 << b for b in range(bins)],
                    "keys": keys[:, :bins].long().tolist(),
                    "attention": attention[:, :bins].tolist(),
                }
            )
        missing = self._missing()
        return {"memory_share": share, "similarity": similarity, "retrieval": retrieval, "missing": missing}

    def _missing(self) -> list[str]:
        reasons = []
        offered = {layer for kind, layer in self.share if kind != MEMORY_TOKENS}
        for layer, memory in enumerate(self.model.backbone.memories, 1):
            if not memory.carries:
                continue
            if layer not in offered and self.segments == 1:
                reasons.append(
                    f"memory share of layer {layer}: with one segment, there is none before it to remember"
                )
            elif layer not in offered:
                reasons.append(
                    f"memory share of layer {layer}: {type(memory).__name__} attends to no remembered rows "
                    "with LayerMemory.attend and mixes nothing in with LayerMemory.mix"
                )
            if memory.state_grows or _name(layer) in self.changed:
                reasons.append(
                    f"similarity of layer {layer}: its state grows with the document, and states of "
                    "different sizes have no cosine"
                )
            elif _name(layer) not in self.between:
                reasons.append(f"similarity of layer {layer}: its state only has counters")
        return reasons

    def _see(self, event: str, values: dict[str, Any]) -> None:
        with observing.by(None):
            if event == "attention":
                self._attention(**values)
            elif event == "mix":
                self._mix(**values)
            elif event == "nearest":
                self._nearest(**values)

    def _attention(
        self, memory: LayerMemory, where: Where, remembered: int, keys: Tensor, attend: Any
    ) -> None:
        once = int(
            self.model.answers_once
        )  # then the first row is the class token, which is a query and not a memory token
        queries_T = _tokens(where)
        queries_T[:once] = True
        # A layer may read a segment in several calls, of which each counts by its queries.
        part = int(queries_T.sum()) / self.queries
        spans = {"remembered": (0, remembered), MEMORY_TOKENS: (remembered + once, remembered - where.first)}
        for kind, (begin, end) in spans.items():
            # attention to values that are 1 in memory and 0 elsewhere is the part on memory
            if end > begin and part:
                one_L1 = keys.new_zeros(keys.shape[2], 1)
                one_L1[begin:end] = 1
                mass_BHT1 = attend(one_L1.expand(*keys.shape[:2], -1, -1))
                self._add(kind, memory, mass_BHT1[:, :, queries_T, 0] * part)

    def _mix(
        self, memory: LayerMemory, where: Where, gate: Tensor, remembered: Tensor, local: Tensor
    ) -> None:
        from_memory, from_local = (gate * remembered).norm(dim=-1), ((1 - gate) * local).norm(dim=-1)
        share = from_memory / (from_memory + from_local).clamp_min(1e-30)
        self._add("gated", memory, share[..., _tokens(where)[where.wanted]].flatten(2))

    def _nearest(self, memory: LayerMemory, where: Where, found: Any, rows: int) -> None:
        heads, groups = memory.description.heads, memory.description.kv_heads
        shared = heads // groups
        position_T = torch.arange(where.start, where.start + where.count, device=where.device)[where.wanted]
        back = position_T.repeat_interleave(shared)[:, None] + rows - found.rows
        seen = found.seen & _tokens(where)[where.wanted].repeat_interleave(shared)[:, None]
        zeros = torch.zeros(heads, _BINS, dtype=torch.float64)
        totals = self.back.setdefault(self.layers[id(memory)], (zeros, zeros.clone()))
        for b in range(_BINS):
            inside = seen & (back >= 1 << b) & (back < 2 << b)
            for total, of in zip(totals, (inside.double(), found.weight.double() * inside), strict=True):
                total[:, b] += of.unflatten(2, (-1, shared)).sum((0, 2, 4)).flatten().cpu()

    def _add(self, kind: str, memory: LayerMemory, share_BHT: Tensor) -> None:
        zeros = torch.zeros(self.segments, memory.description.heads, dtype=torch.float64)
        sums = self.share.setdefault((kind, self.layers[id(memory)]), zeros)
        sums[self.segment] += share_BHT.double().mean(2).sum(0).cpu()

    def _comparable(self, state: ModelState) -> dict[str, Tensor]:
        """The parts of a state to compare, by name: [B, M, F] of memory tokens, [B, 1, F] of layers."""
        parts = {}
        if self.model.tokens.carries and (vectors := _numbers(state.tokens)):
            alone = len(vectors) == 1 and vectors[0].dim() == 3
            parts[MEMORY_TOKENS] = vectors[0] if alone else _flat(vectors)
        for layer, (memory, own) in enumerate(
            zip(self.model.backbone.memories, state.layers, strict=True), 1
        ):
            if memory.carries and not memory.state_grows and (numbers := _numbers(own)):
                parts[_name(layer)] = _flat(numbers)
        return parts

    def _compare(self, name: str, states: list[Tensor]) -> None:
        if name in self.changed or len({t.shape for t in states}) > 1:
            self.changed.add(name)
            self.between.pop(name, None)
            return
        unit_SBMF = torch.nn.functional.normalize(torch.stack(states).double(), dim=-1)
        slots = unit_SBMF.shape[2]
        between = torch.einsum("sbmf,tbmf->st", unit_SBMF, unit_SBMF).cpu() / slots
        self.between[name] = self.between.get(name, 0) + between
        if name == MEMORY_TOKENS:
            by_slot = (unit_SBMF[1:] * unit_SBMF[:-1]).sum((1, 3)).T.cpu()
            self.by_slot[name] = self.by_slot.get(name, 0) + by_slot


def _tokens(where: Where) -> Tensor:
    """bool [T]: the rows of a call that are the segment's tokens."""
    tokens_T = torch.zeros(where.count, dtype=torch.bool, device=where.device)
    tokens_T[where.tokens] = True
    return tokens_T


def _name(layer: int) -> str:
    return f"layer{layer}"


def _numbers(state: Any) -> list[Tensor]:
    """The tensors of a state that are not counters."""
    leaves = pytree.tree_leaves(state)
    return [t for t in leaves if isinstance(t, Tensor) and t.is_floating_point() and t.numel()]


def _flat(tensors: list[Tensor]) -> Tensor:
    """All numbers of each document as one vector, [B, 1, F]."""
    return torch.cat([t.flatten(1) for t in tensors], dim=1)[:, None]
