"""Evaluation on text: the loss of whole test documents, by position, with and without the right memory.

The controls are those of `samples.py`, applied at every segment: `memory_off` reads each segment with the
initial state, `shuffled` with the state of another document that is being read at the same time (if there is
none, the tokens are left out of its figures).

Legend: B batch rows, S segments of a batch, N tokens of a segment, T = S * N.
"""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MetricCollection

from memlab.evaluation import memory
from memlab.evaluation.cost import PeakMemory
from memlab.evaluation.intervals import ratio_of_sums
from memlab.evaluation.loss import nats
from memlab.evaluation.metrics import of_text
from memlab.evaluation.progress import Meter
from memlab.evaluation.samples import MEMORY_OFF, PLAIN, SHUFFLED
from memlab.evaluation.without_values import measured
from memlab.models.base import Model
from memlab.tasks.text import TextTask

NOTHING = {"nats": torch.zeros(0), "positions": torch.zeros(0, dtype=torch.long)}


@torch.inference_mode()
def measure(model: Model, task: TextTask, conditions: Sequence[str]) -> dict[str, Any]:
    """Read the test split once and return an entry of `texts` in `evaluation.json` (see `record.py`).

    Args:
        conditions: `plain`, which comes first, and controls.
    """
    amounts, rows = task.amounts("test"), task.evaluation_rows("test")
    found = {name: of_text(task.segment_lengths[0]) for name in conditions}
    reader = _Reader(model, rows, found)
    peak, began = PeakMemory(model.device), time.perf_counter()
    with Meter(f"{amounts.documents} documents, {amounts.tokens:,} tokens", amounts.tokens) as meter:
        for batch in task.evaluation("test", range(rows)):
            for s, length in enumerate(batch.segment_lengths):
                part = slice(s * length, (s + 1) * length)
                counts_BN = batch.counts_BT[:, part]
                positions_BN = batch.offset_BS[:, s, None] + np.arange(length)
                reader.segment(
                    batch.tokens_BT[:, part],
                    batch.targets_BT[:, part],
                    counts_BN,
                    positions_BN,
                    batch.begins_BS[:, s],
                )
                meter.advance(int(counts_BN.sum()))
    seconds, held = time.perf_counter() - began, peak.read()
    found[PLAIN].update(**NOTHING, **amounts.whole)
    figures = found[PLAIN].compute()
    by_position = figures.pop("by_position")
    if (read := sum(r["tokens"] for r in by_position)) != amounts.tokens:
        raise RuntimeError(f"{read} tokens were read of the {amounts.tokens} in the test split")
    loss = ratio_of_sums(reader.nats, reader.tokens)
    bits = amounts.tokens / math.log(2) / amounts.bytes  # bits per byte for one nat per token
    patch = amounts.patch_bits / amounts.bytes
    curve = measured(model, lambda twin: memory.trace(twin, task.typical_segments()))
    return {
        **{name: float(value) for name, value in figures.items()},
        "intervals": {"loss": loss, "bits_per_byte": loss and tuple(patch + bits * bound for bound in loss)},
        "by_position": by_position,
        "controls": {name: _control(found[name], bits, patch) for name in conditions if name != PLAIN},
        "documents_read": amounts.documents,
        "tokens": amounts.tokens,
        "lost_bytes": amounts.lost_bytes,
        "memory": {key: value for key, value in curve[-1].items() if key != "segments"},
        "memory_curve": curve,
        "seconds": seconds,
        "tokens_per_second": amounts.tokens / seconds,
        "peak_memory": {"kind": peak.kind, "bytes": held},
    }


def _control(metrics: MetricCollection, bits: float, patch: float) -> dict[str, Any]:
    by_position = metrics["by_position"].compute()
    tokens = sum(r["tokens"] for r in by_position)
    loss = float(metrics["loss"].compute()) if tokens else None
    return {
        "tokens": tokens,
        "loss": loss,
        "bits_per_byte": None if loss is None else patch + bits * loss,
        "by_position": by_position,
    }


class _Reader:
    """Batch rows that read document after document, under all conditions."""

    def __init__(self, model: Model, rows: int, found: Mapping[str, MetricCollection]) -> None:
        self.model, self.found = model, found
        for metrics in found.values():
            metrics.update(**NOTHING)  # a control may have nothing to read
        self.state = model.init_state(rows)
        self.initial = model.init_state(rows)
        self.document_B = [-1] * rows  # index, in the lists below, of the document that each batch row reads
        self.nats: list[float] = []
        self.tokens: list[int] = []

    def segment(
        self, tokens_BN: Any, targets_BN: Any, counts_BN: Any, positions_BN: Any, begins_B: Any
    ) -> None:
        """Read the next segment of every batch row."""
        tokens, targets, counts, positions = (
            self._tensor(t) for t in (tokens_BN, targets_BN, counts_BN, positions_BN)
        )
        if begins_B.any():
            self.state = self.state.reset(self._tensor(begins_B), self.initial)
        for row in np.flatnonzero(begins_B).tolist():
            self.document_B[row] = len(self.nats)
            self.nats.append(0.0)
            self.tokens.append(0)
        after = self.state
        for name, metrics in self.found.items():
            before = self._before(name, counts)
            if before is None:
                continue
            output = self.model.segment(tokens, before)
            nats_BN = nats(output.logits, targets)
            metrics.update(nats=nats_BN[counts].cpu(), positions=positions[counts].cpu())
            if name == PLAIN:
                after = output.state
                sums_B = torch.where(counts, nats_BN, 0.0).double().sum(1).tolist()
                for row, (added, number) in enumerate(zip(sums_B, counts_BN.sum(1).tolist(), strict=True)):
                    if number:
                        self.nats[self.document_B[row]] += added
                        self.tokens[self.document_B[row]] += number
        self.state = after

    def _before(self, name: str, counts_BN: Tensor) -> Any:
        """The state that a segment begins with under a condition; None = there is none."""
        if name == MEMORY_OFF:
            return self.initial
        if name != SHUFFLED:
            return self.state
        reading = counts_BN.any(1).nonzero().flatten()
        if len(reading) < 2:
            return None
        from_B = torch.arange(len(counts_BN), device=counts_BN.device)
        from_B[reading] = reading.roll(1)
        return self.model.exchanged(self.state, from_B)

    def _tensor(self, values: Any) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(values)).to(self.model.device)
