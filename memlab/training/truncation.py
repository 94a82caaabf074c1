"""Truncated back-propagation and recomputed segments: a plan of the model's calls, and the loop that executes
it.

Back-propagation depth k: the loss of segment s sends gradient into segments s-k .. s and no further. Detached
boundaries in a single chain of states cannot do that, since a boundary that must stop the loss of segment s
must not stop the loss of segment s - 1. So each segment beyond the first k + 1 whose loss is needed is read
in a window of its own, [s-k .. s], which begins with a detached state. Each of these costs k + 1 segments;
segments whose loss is not needed are read once, without a graph. With k = 0 nothing is read twice, and with
k >= S - 1 or None the sample is read once as a whole, in the model's parallel form if it has one.

(The truncation in the published RMT code is a no-op, or a replay from a wrong state: its gradients have full
depth or none.)

Recomputing segments (gradient checkpointing: Chen et al. 2016, arXiv 1604.06174; over time: Gruslys et al.
2016, arXiv 1606.03401): each segment is read in a call of its own, of which only the carried state and what
the loss needs are kept. Its activations are computed again in the backward pass. So a further segment costs
the memory of one state instead of its activations; the numbers are the same. What the loss needs of the [B,
N, V] logits is extracted within that call (`Keep`), since otherwise the logits of all segments would soon
take most of the memory. A model with a parallel form reads several segments in each such call, which is
faster and keeps fewer states, which may be large.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from memlab.models.base import Model, ModelState, Output

# Extracts what is kept of the logits [B, a, V] of a call's scored tokens, the first of which is number
# `start` of all scored ones: tensors [B, ..], which are joined along their second dimension afterwards.
Keep = Callable[[Tensor, int], tuple[Tensor, ...]]

TOGETHER = 4  # segments that a model with a parallel form reads in a recomputed call


@dataclass(frozen=True)
class Call:
    """One call of the model.

    Attributes:
        first, end: it reads segments first .. end - 1, which have the same length.
        cut: whether it begins with the detached state that was saved before segment `first`. Otherwise it
            begins with the state after the previous call, through which gradient flows; the first call begins
            with the given state.
        reset: whether a document begins with segment `first`; then the state is reset in the batch rows where
            one does.
        graph: whether it builds a graph for the gradient.
        skip: leading segments that earlier calls have read; nothing is kept of them.
        recompute: whether its activations are computed again in the backward pass.
        saves: whether the state after it is detached and saved, for later calls that are `cut` there and as
            the last state.
    """

    first: int
    end: int
    cut: bool = False
    reset: bool = False
    graph: bool = True
    skip: int = 0
    recompute: bool = False
    saves: bool = False


@dataclass(frozen=True)
class Kept:
    """What was kept of some segments.

    Attributes:
        values: what `Keep` made of their logits.
        state: after the last of them.
        diagnostics: [S] each.
        auxiliary: losses of the layer memories, [B, S], or None; see `Output`.
    """

    values: tuple[Tensor, ...]
    state: ModelState
    diagnostics: dict[str, Tensor]
    auxiliary: Tensor | None = None


def together(model: Model, wish: int | None = None) -> int:
    """How many segments are recomputed together; `wish`: the user's number."""
    return wish or (1 if model.parallel is None else TOGETHER)


def plan(
    segment_lengths: Sequence[int],
    depth: int | None = None,
    wanted: Sequence[bool] | None = None,
    resets: Sequence[bool] | None = None,
    recompute: int = 0,
) -> list[Call]:
    """The calls of a model that read samples, or a step's part of streams of documents, with a given depth.

    Adjacent segments of equal length are read in one call if no document begins between them. The numbers are
    those of a plain loop over segments; only gradients differ. With dropout, a segment that is read in
    several windows has different masks in each, and a model with a parallel form draws other masks for
    segments that are read one by one.

    Args:
        segment_lengths: tokens of each of the S segments.
        depth: k, see above; None = full depth.
        wanted: [S], whether the loss needs the logits of a segment, or its auxiliary loss; None = all. The
            others have no gradient where that saves work.
        resets: [S], whether a document begins with a segment, in any batch row; None = nowhere.
        recompute: this many segments at a time (see `together`) are read in a call whose activations are
            computed again in the backward pass; 0 = all activations are kept.
    """
    count = len(segment_lengths)
    wanted = [True] * count if wanted is None else wanted
    resets = [False] * count if resets is None else resets
    if depth is None or depth >= count - 1:
        return _calls(range(count), segment_lengths, resets, recompute)
    calls: list[Call] = []
    for s in range(depth + 1):  # their windows all begin with the sample: one chain serves them
        graph = any(wanted[s : depth + 1])
        calls += _saved(_calls(range(s, s + 1), segment_lengths, resets, recompute, graph))
    for s in range(depth + 1, count):
        skip = depth if wanted[s] else 0
        window = _calls(range(s - skip, s + 1), segment_lengths, resets, recompute, wanted[s], skip)
        calls += _saved([replace(window[0], cut=True), *window[1:]])
    return calls


def run(
    model: Model,
    segments: Sequence[Tensor],
    calls: Sequence[Call],
    keep: Keep,
    state: ModelState | None = None,
    begins_BS: Tensor | None = None,
    scored_T: Tensor | None = None,
) -> Kept:
    """Execute a plan.

    Args:
        segments: token ids [B, N_s], of the lengths that the plan was made for.
        keep: called for the segments of each call, and again when they are recomputed.
        state: carried from earlier segments; None = a document begins in every batch row.
        begins_BS: bool; the batch rows in which a document begins with a segment. None = nowhere.
        scored_T: bool; the tokens whose logits are computed, and kept of. None = all. An encoder answers
            after each segment, whatever is scored.
    """
    lengths = [part.shape[1] for part in segments]
    scored = [torch.ones(n, dtype=torch.bool) for n in lengths]
    if scored_T is not None:
        scored = list(scored_T.to("cpu").split(lengths))
    starts = [0, *itertools.accumulate(int(part.sum()) for part in scored)]
    carried = model.init_state(len(segments[0])) if state is None else state
    saved: dict[int, ModelState] = {}
    values: list[tuple[Tensor, ...]] = []
    diagnostics: list[dict[str, Tensor]] = []
    losses: list[Tensor] = []
    for call in calls:
        with torch.set_grad_enabled(call.graph and torch.is_grad_enabled()):
            if call.cut:
                carried = saved[call.first]
            if call.reset and begins_BS is not None:
                carried = carried.reset(begins_BS[:, call.first], model.init_state(len(begins_BS)))
            tokens_BSN = torch.stack([segments[s] for s in range(call.first, call.end)], dim=1)
            scored_SN = torch.stack(scored[call.first : call.end])
            scored_SN[: call.skip] = False
            arguments = (
                model,
                keep,
                tokens_BSN,
                carried,
                call.skip,
                scored_SN,
                starts[call.first + call.skip],
            )
            again = call.recompute and torch.is_grad_enabled()
            kept = checkpoint(_call, *arguments, use_reentrant=False) if again else _call(*arguments)
        carried = kept.state
        if kept.values:
            values.append(kept.values)
            diagnostics.append(kept.diagnostics)
            if kept.auxiliary is not None:
                losses.append(kept.auxiliary)
        if call.saves:
            saved[call.end] = carried.detach()
    joined = tuple(torch.cat(parts, dim=1) for parts in zip(*values, strict=True))
    measured = {name: torch.cat([found[name] for found in diagnostics]) for name in diagnostics[0]}
    auxiliary = torch.cat(losses, dim=1) if losses else None
    return Kept(joined, saved.get(len(segments), carried), measured, auxiliary)


def read(
    model: Model,
    tokens_BT: Tensor,
    segment_lengths: Sequence[int],
    state: ModelState | None = None,
    depth: int | None = None,
    wanted: Sequence[bool] | None = None,
    begins_BS: Tensor | None = None,
    recompute: int = 0,
    scored_T: Tensor | None = None,
) -> Output:
    """Plan and read T tokens, and keep all logits, [B, T, V], or those of the scored tokens, [B, A, V].

    Args:
        tokens_BT: token ids.
        segment_lengths: how the T tokens are cut.
        state, begins_BS, scored_T: see `run`.
        depth, wanted, recompute: see `plan`.
    """
    resets = None if begins_BS is None else resets_of(begins_BS)
    calls = plan(segment_lengths, depth, wanted, resets, recompute)
    segments = tokens_BT.split(list(segment_lengths), dim=1)
    kept = run(model, segments, calls, _everything, state, begins_BS, scored_T)
    return Output(kept.values[0], kept.state, kept.diagnostics, kept.auxiliary)


def resets_of(begins_BS: Tensor) -> list[bool]:
    """[S], whether a document begins with a segment, in any batch row."""
    resets: list[bool] = begins_BS.any(0).tolist()
    return resets


def _calls(
    segments: range,
    lengths: Sequence[int],
    resets: Sequence[bool],
    recompute: int,
    graph: bool = True,
    skip: int = 0,
) -> list[Call]:
    """Consecutive segments in as few calls as possible; nothing is kept of the first `skip` segments."""
    groups: list[range] = []
    for s in segments:
        if not groups or resets[s] or lengths[s] != lengths[s - 1] or len(groups[-1]) == recompute:
            groups.append(range(s, s))
        groups[-1] = range(groups[-1].start, s + 1)
    return [
        Call(
            first=group.start,
            end=group.stop,
            reset=resets[group.start],
            graph=graph,
            skip=min(max(0, segments.start + skip - group.start), len(group)),
            recompute=recompute > 0 and graph,
        )
        for group in groups
    ]


def _saved(calls: Sequence[Call]) -> list[Call]:
    """The same calls, and the state after the last of them is saved."""
    return [*calls[:-1], replace(calls[-1], saves=True)]


def _call(
    model: Model,
    keep: Keep,
    tokens_BSN: Tensor,
    state: ModelState,
    skip: int,
    scored_SN: Tensor,
    start: int,
) -> Kept:
    """Read segments, and keep what is needed of all but the first `skip`, from scored token `start`."""
    values: tuple[Tensor, ...] = ()
    if model.answers_once or scored_SN.all():  # without indexing, which would copy the outputs
        output = model(tokens_BSN, state)
        logits_BaV = output.logits[:, skip:].flatten(1, 2)
    else:
        output = model(tokens_BSN, state, scored_SN.to(tokens_BSN.device))
        logits_BaV = output.logits
    if skip < tokens_BSN.shape[1]:
        values = keep(logits_BaV, start)
    diagnostics = {name: value[skip:] for name, value in output.diagnostics.items()}
    auxiliary = None if output.auxiliary is None else output.auxiliary[:, skip:]
    return Kept(values, output.state, diagnostics, auxiliary)


def _everything(logits_BnV: Tensor, start: int) -> tuple[Tensor, ...]:
    """Keep the logits themselves."""
    return (logits_BnV,)
