"""Costs of a model other than its state: parameters, floating point operations per token, process memory."""

from __future__ import annotations

import contextlib
import resource
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from memlab.evaluation.without_values import measured
from memlab.models.base import Model


def of(model: Model, segment_lengths: Sequence[int]) -> dict[str, Any]:
    """Parameters, and operations per token of a document with these segments."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_token": measured(model, lambda twin: flops_per_token(twin, segment_lengths)),
    }


def flops_per_token(model: Model, segment_lengths: Sequence[int]) -> dict[str, float]:
    """Floating point operations per token, counted by torch on whole segments.

    Only matrix products count, two operations for each multiplication and addition. `inference` reads the
    document's first two segments and counts the second, which has a memory before it. `training` is the
    forward and backward pass of the loss on every token of both (in an encoder, of the loss at the end), at
    full depth. Causal attention counts in full, as a kernel computes it that does not skip what is masked.

    Args:
        segment_lengths: of the document; if there is only one, it is read twice.
    """
    was_training = model.training
    lengths = [*segment_lengths, segment_lengths[0]][:2]
    segments = [torch.zeros(1, n, dtype=torch.long, device=model.device) for n in lengths]
    model.eval()
    with torch.no_grad():
        state = model.segment(segments[0], model.init_state(1)).state
        inference = operations(lambda: model.segment(segments[1], state))
    model.train()
    with torch.enable_grad():
        training = operations(lambda: _loss(model, segments).backward())
    model.zero_grad(set_to_none=True)
    model.train(was_training)
    return {"inference": inference / lengths[1], "training": training / sum(lengths)}


def _loss(model: Model, segments: Sequence[torch.Tensor]) -> torch.Tensor:
    state, losses, auxiliary = model.init_state(1), [], []
    for tokens_BN in segments:
        output = model.segment(tokens_BN, state)
        state = output.state
        auxiliary += [] if output.auxiliary is None else [output.auxiliary.sum()]
        losses.append(
            F.cross_entropy(output.logits.flatten(0, 1), tokens_BN[:, : output.logits.shape[1]].flatten())
        )
    return (losses[-1] if model.answers_once else torch.stack(losses).sum()) + sum(auxiliary)


def operations(work: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products in some work, which is done once.

    Attention uses plain products, since torch's counter does not know all fused kernels; what is masked
    counts.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


class PeakMemory:
    """The peak of memory in use since this object was made: on a GPU as counted by torch, else resident
    memory.

    Where the operating system cannot reset its count (other than Linux), resident memory is the peak since
    the process began.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # resets VmHWM (man 5 proc)

    @property
    def kind(self) -> str:
        return "gpu" if self.device.type == "cuda" else "rss"

    def read(self) -> int:
        """The peak in bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else peak * 1024
