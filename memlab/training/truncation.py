"""A sample is cut into segments and the model is folded over them; here it is decided how far back a loss sends gradient.

Back-propagation depth k: the loss of segment s sends gradient into segments s-k .. s and no further. One chain of states cannot do
that with detached boundaries, since a boundary that must stop the loss of segment s must let pass the loss of the segment before. So
each segment beyond the first k + 1 whose loss is wanted is read in a window of its own, [s-k .. s], that begins with a detached
state. It costs k + 1 segments for each such segment; segments whose loss is not wanted are read once, without a graph. With k = 0
nothing is read twice, and with k >= S - 1 or None the sample is read once as a whole, in the model's parallel form if it has one.

(The published RMT code's truncation is a no-op, or a replay from a wrong state: its gradients are of full depth or of none.)
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor

from memlab.layers.state import State
from memlab.models.base import Model, Output


def fold(
    model: Model, segments: Sequence[Tensor], state: State | None = None, begins_BS: Tensor | None = None
) -> tuple[list[Output], State]:
    """Read segments in order, neighbours of equal length between which no document begins in one call.

    Args:
        segments: token ids [B, N_s], the lengths N_s may differ.
        state: what was carried so far; None = a document begins in every row.
        begins_BS: bool; the rows in which a document begins with a segment, whose state is reset before it. None = nowhere.

    Returns:
        One output for each call (logits [B, S', N, V], S' segments of one length), and the state after the last segment.
    """
    outputs: list[Output] = []
    carried = model.init_state(segments[0].shape[0]) if state is None else state
    resets = [begins_BS is not None and bool(begins_BS[:, s].any()) for s in range(len(segments))]
    runs = itertools.accumulate(resets[s] or s == 0 or segments[s].shape != segments[s - 1].shape for s in range(len(segments)))
    for _, run in itertools.groupby(zip(runs, range(len(segments)), strict=True), key=lambda pair: pair[0]):
        together = [s for _, s in run]
        if begins_BS is not None and resets[together[0]]:
            carried = carried.reset(begins_BS[:, together[0]], model.init_state(len(begins_BS)))
        outputs.append(model(torch.stack([segments[s] for s in together], dim=1), carried))
        carried = outputs[-1].state
    return outputs, carried


def read(
    model: Model,
    tokens_BT: Tensor,
    segment_lengths: Sequence[int],
    state: State | None = None,
    depth: int | None = None,
    wanted: Sequence[bool] | None = None,
    begins_BS: Tensor | None = None,
) -> Output:
    """Read whole samples, or a step's part of streams of documents, with a given back-propagation depth.

    The numbers are those of `fold`; only gradients differ. With dropout, a segment that is read in several windows is read with
    different masks.

    Args:
        tokens_BT: token ids.
        segment_lengths: how the T tokens are cut.
        state: carried from an earlier call; None = a document begins in every row.
        depth: k, see above; None = full depth.
        wanted: for each segment, whether its logits will be part of the loss; None = all. Others come without gradient
            where that saves work.
        begins_BS: bool; where documents begin, see `fold`.

    Returns:
        logits [B, T, V], the state after the last segment, diagnostics.
    """
    segments = tokens_BT.split(list(segment_lengths), dim=1)
    if depth is None or depth >= len(segments) - 1:
        return _joined(*fold(model, segments, state, begins_BS))
    wanted = [True] * len(segments) if wanted is None else list(wanted)

    def one(s: int, before: State, graph: bool) -> Output:
        with torch.set_grad_enabled(graph and torch.is_grad_enabled()):
            return fold(model, segments[s : s + 1], before, begins(s, s + 1))[0][0]

    def begins(first: int, end: int) -> Tensor | None:
        return None if begins_BS is None else begins_BS[:, first:end]

    before = [model.init_state(len(tokens_BT)) if state is None else state]  # detached states before each segment; the first is live
    outputs: list[Output] = []
    carried = before[0]
    for s in range(depth + 1):  # their windows all begin with the sample: one chain serves them
        outputs.append(one(s, carried, graph=any(wanted[s : depth + 1])))
        carried = outputs[-1].state
        before.append(carried.detach())
    for s in range(depth + 1, len(segments)):
        if wanted[s] and depth > 0:
            window, carried = fold(model, segments[s - depth : s + 1], before[s - depth], begins(s - depth, s + 1))
            outputs.append(Output(window[-1].logits[:, -1:], carried, {name: value[-1:] for name, value in window[-1].diagnostics.items()}))
        else:
            outputs.append(one(s, before[s], graph=wanted[s]))
        before.append(outputs[-1].state.detach())
    return _joined(outputs, before[-1])


def _joined(outputs: Sequence[Output], carried: State) -> Output:
    names = outputs[0].diagnostics
    diagnostics = {name: torch.cat([o.diagnostics[name] for o in outputs]) for name in names}
    return Output(torch.cat([o.logits.flatten(1, 2) for o in outputs], dim=1), carried, diagnostics)
