"""A sample is cut into segments and the model is folded over them; here it is decided how far back a loss sends gradient.

Back-propagation depth k: the loss of segment s sends gradient into segments s-k .. s and no further. One chain of states cannot do
that with detached boundaries, since a boundary that must stop the loss of segment s must let pass the loss of the segment before. So
each segment beyond the first k + 1 whose loss is wanted is read in a window of its own, [s-k .. s], that begins with a detached
state. It costs k + 1 segments for each such segment; segments whose loss is not wanted are read once, without a graph. With k = 0
nothing is read twice, and with k >= S - 1 or None the sample is read once as a whole, in the model's parallel form if it has one.

(The published RMT code's truncation is a no-op, or a replay from a wrong state: its gradients are of full depth or of none.)
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby

import torch
from torch import Tensor

from memlab.layers.state import State
from memlab.models.base import Model, Output


def fold(model: Model, segments: Sequence[Tensor], state: State | None = None) -> tuple[list[Output], State]:
    """Read segments in order, neighbours of equal length in one call.

    Args:
        segments: token ids [B, N_s], the lengths N_s may differ.
        state: what was carried so far; None = a document begins.

    Returns:
        One output for each call (logits [B, S', N, V], S' segments of one length), and the state after the last segment.
    """
    outputs: list[Output] = []
    carried = model.init_state(segments[0].shape[0]) if state is None else state
    for _, equal in groupby(segments, key=lambda tokens_BN: tokens_BN.shape[1]):
        outputs.append(model(torch.stack(list(equal), dim=1), carried))
        carried = outputs[-1].state
    return outputs, carried


def read(
    model: Model,
    tokens_BT: Tensor,
    segment_lengths: Sequence[int],
    state: State | None = None,
    depth: int | None = None,
    wanted: Sequence[bool] | None = None,
) -> Output:
    """Read whole samples with a given back-propagation depth. The numbers are those of `fold`; only gradients differ.

    With dropout, a segment that is read in several windows is read with different masks.

    Args:
        tokens_BT: token ids.
        segment_lengths: how the T tokens are cut.
        state: carried from an earlier call; None = a document begins.
        depth: k, see above; None = full depth.
        wanted: for each segment, whether its logits will be part of the loss; None = all. Others come without gradient
            where that saves work.

    Returns:
        logits [B, T, V], the state after the last segment, diagnostics.
    """
    segments = tokens_BT.split(list(segment_lengths), dim=1)
    if depth is None or depth >= len(segments) - 1:
        return _joined(*fold(model, segments, state))
    wanted = [True] * len(segments) if wanted is None else list(wanted)

    def one(tokens_BN: Tensor, before: State, graph: bool) -> Output:
        with torch.set_grad_enabled(graph and torch.is_grad_enabled()):
            return model(tokens_BN[:, None], before)

    before = [model.init_state(len(tokens_BT)) if state is None else state]  # detached states before each segment; the first is live
    outputs: list[Output] = []
    carried = before[0]
    for s in range(depth + 1):  # their windows all begin with the sample: one chain serves them
        outputs.append(one(segments[s], carried, graph=any(wanted[s : depth + 1])))
        carried = outputs[-1].state
        before.append(carried.detach())
    for s in range(depth + 1, len(segments)):
        if wanted[s] and depth > 0:
            window, carried = fold(model, segments[s - depth : s + 1], before[s - depth])
            outputs.append(Output(window[-1].logits[:, -1:], carried, {name: value[-1:] for name, value in window[-1].diagnostics.items()}))
        else:
            outputs.append(one(segments[s], before[s], graph=wanted[s]))
        before.append(outputs[-1].state.detach())
    return _joined(outputs, before[-1])


def _joined(outputs: Sequence[Output], carried: State) -> Output:
    names = outputs[0].diagnostics
    diagnostics = {name: torch.cat([o.diagnostics[name] for o in outputs]) for name in names}
    return Output(torch.cat([o.logits.flatten(1, 2) for o in outputs], dim=1), carried, diagnostics)
