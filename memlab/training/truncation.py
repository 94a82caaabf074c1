"""A sample is cut into segments and the model is folded over them; here it is decided how far back a loss
sends gradient, and what of the activations is kept for it.

Back-propagation depth k: the loss of segment s sends gradient into segments s-k .. s and no further. One
chain of states cannot do that with detached boundaries, since a boundary that must stop the loss of segment s
must let pass the loss of the segment before. So each segment beyond the first k + 1 whose loss is wanted is
read in a window of its own, [s-k .. s], that begins with a detached state. It costs k + 1 segments for each
such segment; segments whose loss is not wanted are read once, without a graph. With k = 0 nothing is read
twice, and with k >= S - 1 or None the sample is read once as a whole, in the model's parallel form if it has
one.

(The published RMT code's truncation is a no-op, or a replay from a wrong state: its gradients are of full
depth or of none.)

Recomputing segments (gradient checkpointing: Chen et al. 2016, arXiv 1604.06174; over time: Gruslys et al.
2016, arXiv 1606.03401): each segment is read in a call of its own, of which only the carried state and what
the loss needs are kept. Its activations are made again when the gradient comes by. So a further segment adds
one state to the memory, and not its activations; the numbers are the same. What the loss needs of [B, N, V]
logits is taken within that call (`Keep`), or the logits of all segments would soon weigh most. A model with a
parallel form reads some segments in each such call: it is quicker, and fewer states are kept, which may be
large.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from memlab.layers.state import State
from memlab.models.base import Model, Output

# What is kept of the logits [B, n, V] of the tokens from `start` on: tensors [B, ..], joined along their
# second dimension afterwards.
Keep = Callable[[Tensor, int], tuple[Tensor, ...]]


TOGETHER = 4  # segments that a model with a parallel form reads in a recomputed call


def together(model: Model, wish: int | None = None) -> int:
    """How many segments are recomputed together, if nobody wishes otherwise."""
    return wish or (1 if model.parallel is None else TOGETHER)


@dataclass(frozen=True)
class Kept:
    """What was kept of some segments.

    Attributes:
        values: what `Keep` made of their logits.
        state: behind the last of them.
        diagnostics: [S] each.
    """

    values: tuple[Tensor, ...]
    state: State
    diagnostics: dict[str, Tensor]


def everything(logits_BnV: Tensor, start: int) -> tuple[Tensor, ...]:
    """Keep the logits themselves."""
    return (logits_BnV,)


def fold(
    model: Model,
    segments: Sequence[Tensor],
    state: State | None = None,
    begins_BS: Tensor | None = None,
    resets: Sequence[bool] | None = None,
) -> tuple[list[Output], State]:
    """Read segments in order, neighbours of equal length between which no document begins in one call.

    Args:
        segments: token ids [B, N_s], the lengths N_s may differ.
        state: what was carried so far; None = a document begins in every row.
        begins_BS: bool; the rows in which a document begins with a segment, whose state is reset before it.
            None = nowhere.
        resets: the segments before which states are reset, in no row if no document begins; None = those that
            `begins_BS` tells. Other processes may need one where this one does not.

    Returns:
        One output for each call (logits [B, S', N, V], S' segments of one length), and the state after the
        last segment.
    """
    outputs: list[Output] = []

    def call(tokens_BSN: Tensor, carried: State, start: int) -> State:
        outputs.append(model(tokens_BSN, carried))
        return outputs[-1].state

    return outputs, _through(model, segments, state, begins_BS, resets, call)


def _through(
    model: Model,
    segments: Sequence[Tensor],
    state: State | None,
    begins_BS: Tensor | None,
    resets: Sequence[bool] | None,
    call: Callable[[Tensor, State, int], State],
    most: int = 0,
) -> State:
    """The calls of a fold, each of [B, S', N] tokens, the state before them, and how many tokens came before;
    the last state.

    Args:
        most: segments in a call; 0 = any number.
    """
    carried = model.init_state(segments[0].shape[0]) if state is None else state
    starts = [0, *itertools.accumulate(part.shape[1] for part in segments)]
    if resets is None:
        resets = [begins_BS is not None and bool(begins_BS[:, s].any()) for s in range(len(segments))]
    calls: list[list[int]] = []  # the segments of each
    for s, part in enumerate(segments):
        if resets[s] or s == 0 or part.shape != segments[s - 1].shape or len(calls[-1]) == most:
            calls.append([])
        calls[-1].append(s)
    for group in calls:
        first = group[0]
        if begins_BS is not None and resets[first]:
            carried = carried.reset(begins_BS[:, first], model.init_state(len(begins_BS)))
        carried = call(torch.stack([segments[s] for s in group], dim=1), carried, starts[first])
    return carried


def read(
    model: Model,
    tokens_BT: Tensor,
    segment_lengths: Sequence[int],
    state: State | None = None,
    depth: int | None = None,
    wanted: Sequence[bool] | None = None,
    begins_BS: Tensor | None = None,
    recompute: int = 0,
) -> Output:
    """`keep` of all logits: [B, T, V], the state after the last segment, diagnostics.

    For arguments see there.
    """
    kept = keep(model, tokens_BT, segment_lengths, everything, state, depth, wanted, begins_BS, recompute)
    return Output(kept.values[0], kept.state, kept.diagnostics)


def keep(
    model: Model,
    tokens_BT: Tensor,
    segment_lengths: Sequence[int],
    what: Keep,
    state: State | None = None,
    depth: int | None = None,
    wanted: Sequence[bool] | None = None,
    begins_BS: Tensor | None = None,
    recompute: int = 0,
    resets: Sequence[bool] | None = None,
) -> Kept:
    """Read whole samples, or a step's part of streams of documents, with a given back-propagation depth.

    The numbers are those of `fold`; only gradients differ. With dropout, a segment that is read in several
    windows is read with different masks, and a model with a parallel form draws other masks for segments that
    are read one by one.

    Args:
        tokens_BT: token ids.
        segment_lengths: how the T tokens are cut.
        what: is kept of the logits. It is called for one segment or several, and again when a segment is
            recomputed.
        state: carried from an earlier call; None = a document begins in every row.
        depth: k, see above; None = full depth.
        wanted: for each segment, whether its logits will be part of the loss; None = all. Others come without
            gradient where that saves work.
        begins_BS, resets: where documents begin, see `fold`.
        recompute: so many segments at a time (see `together`) are read in a call whose activations are made
            again for the gradient; 0 = all activations are kept.
    """
    segments = tokens_BT.split(list(segment_lengths), dim=1)
    count = len(segments)
    starts = [0, *itertools.accumulate(segment_lengths)]
    found: list[Kept] = []

    def one_call(tokens_BSN: Tensor, before: State, start: int, skip: int) -> Kept:
        output = model(tokens_BSN, before)
        start += skip * tokens_BSN.shape[2]
        values = what(output.logits[:, skip:].flatten(1, 2), start) if skip < tokens_BSN.shape[1] else ()
        return Kept(values, output.state, {name: value[skip:] for name, value in output.diagnostics.items()})

    def run(first: int, end: int, before: State | None, graph: bool = True, skip: int = 0) -> State:
        """Read segments first .. end - 1, and note in `found` what is kept of all but the first `skip`."""
        left = skip

        def call(tokens_BSN: Tensor, carried: State, start: int) -> State:
            nonlocal left
            skipped = min(left, tokens_BSN.shape[1])
            left -= skipped
            arguments = (tokens_BSN, carried, starts[first] + start, skipped)
            again = recompute > 0 and torch.is_grad_enabled()
            kept = checkpoint(one_call, *arguments, use_reentrant=False) if again else one_call(*arguments)
            if skipped < tokens_BSN.shape[1]:
                found.append(kept)
            return kept.state

        begins = None if begins_BS is None else begins_BS[:, first:end]
        agreed = None if resets is None else resets[first:end]
        with torch.set_grad_enabled(graph and torch.is_grad_enabled()):
            return _through(model, segments[first:end], before, begins, agreed, call, most=recompute)

    if depth is None or depth >= count - 1:
        return _joined(found, run(0, count, state))
    wanted = [True] * count if wanted is None else list(wanted)
    carried = model.init_state(len(tokens_BT)) if state is None else state
    before = [carried]  # detached states before each segment; the first is live
    for s in range(depth + 1):  # their windows all begin with the sample: one chain serves them
        carried = run(s, s + 1, carried, graph=any(wanted[s : depth + 1]))
        before.append(carried.detach())
    for s in range(depth + 1, count):
        if wanted[s] and depth > 0:
            before.append(run(s - depth, s + 1, before[s - depth], skip=depth).detach())
        else:
            before.append(run(s, s + 1, before[s], graph=wanted[s]).detach())
    return _joined(found, before[-1])


def _joined(found: Sequence[Kept], carried: State) -> Kept:
    values = tuple(torch.cat(parts, dim=1) for parts in zip(*(kept.values for kept in found), strict=True))
    names = found[0].diagnostics
    return Kept(
        values, carried, {name: torch.cat([kept.diagnostics[name] for kept in found]) for name in names}
    )
