"""What a model costs beside its state: parameters, floating point operations for each token,
and the memory of the process.
"""

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

from memlab.models.base import Model


def of(model: Model, segment_lengths: Sequence[int]) -> dict[str, Any]:
    """Parameters, and operations for each token of such a document."""
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "flops_per_token": flops_per_token(model, segment_lengths),
    }


def flops_per_token(model: Model, segment_lengths: Sequence[int]) -> dict[str, float]:
    """Counted by torch on real segments: multiplications and additions of matrix products, two for each pair;
    nothing else is counted.

    `inference` reads the document's first two segments, and counts the second, which has a memory before it.
    `training` is forward and backward of the loss on every token over both, full depth; of an encoder, of the
    loss at the end. Causal attention counts in full, as it is computed without a kernel that leaves out what
    is masked.

    Args:
        segment_lengths: of the document; if there is but one, it is read twice.
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
    state, losses = model.init_state(1), []
    for tokens_BN in segments:
        output = model.segment(tokens_BN, state)
        state = output.state
        losses.append(
            F.cross_entropy(output.logits.flatten(0, 1), tokens_BN[:, : output.logits.shape[1]].flatten())
        )
    return losses[-1] if model.answers_once else torch.stack(losses).sum()


def operations(work: Callable[[], Any]) -> int:
    """Floating point operations of the matrix products in some work, which is done once, with attention by
    plain products: torch's counter does not know all fused kernels. What is masked counts.
    """
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
        work()
    return int(counter.get_total_flops())


class PeakMemory:
    """The most memory that was in use since it was made: of the GPU by torch's count, else resident memory of
    this process.

    Where the operating system cannot count anew (not Linux), resident memory is the most since the process
    began.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
            return
        with contextlib.suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")  # VmHWM begins anew (man 5 proc)

    @property
    def kind(self) -> str:
        return "gpu" if self.device.type == "cuda" else "rss"

    def read(self) -> int:
        """Bytes."""
        if self.device.type == "cuda":
            return torch.cuda.max_memory_allocated(self.device)
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
        except (OSError, StopIteration):
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
            return peak if sys.platform == "darwin" else peak * 1024
