"""Back-propagation depth k: the loss of segment s sends gradient into segments s-k .. s, into all of them,
and no further.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.memory_tokens.rmt import RMTState
from memlab.models.base import Model, ModelState, Output, Scored
from memlab.models.decoder import Decoder
from memlab.training import truncation
from memlab.training.truncation import Call
from tests import small

VOCABULARY, BATCH = 20, 2
EQUAL, UNEQUAL = (3, 3, 3, 3, 3), (2, 4, 4, 1, 3)
DEPTHS = [0, 1, 2, 4, None]  # 4 = S - 1


def build(name: str) -> Model:
    return small.build(name, VOCABULARY)


def tokens(lengths: Sequence[int]) -> Tensor:
    return torch.randint(VOCABULARY, (BATCH, sum(lengths)), generator=torch.Generator().manual_seed(1))


def loss_weights(lengths: Sequence[int]) -> Tensor:
    """A random scalar loss over all logits: (weights * logits).sum()."""
    return torch.randn(
        BATCH, sum(lengths), VOCABULARY, generator=torch.Generator().manual_seed(2), dtype=torch.float64
    )


def gradients(model: Model, loss: Tensor) -> dict[str, Tensor]:
    """By parameter; zeros where none arrives."""
    names, parameters = zip(*model.named_parameters(), strict=True)
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        n: torch.zeros_like(p) if g is None else g for n, p, g in zip(names, parameters, found, strict=True)
    }


def assert_same(actual: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    for name in expected:
        torch.testing.assert_close(
            actual[name], expected[name], rtol=1e-10, atol=1e-10, msg=lambda m, name=name: f"{name}: {m}"
        )


def windowed_gradients(
    model: Model, tokens_BT: Tensor, lengths: Sequence[int], depth: int | None
) -> dict[str, Tensor]:
    """The definition: each segment's loss in a pass of its own, in which what enters segment s - k is cut
    from what came before.

    What enters segment 0 is the learned initial memory: it is an input of segment 0, so it is within the
    horizon when segment 0 is.
    """
    segments, weights = tokens_BT.split(list(lengths), 1), loss_weights(lengths).split(list(lengths), 1)
    total = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
    for s in range(len(segments)):
        state = model.init_state(BATCH)
        for i in range(s + 1):
            if depth is not None and i == s - depth and i > 0:
                state = state.detach()
            output = model.segment(segments[i], state)
            state = output.state
        for name, gradient in gradients(model, (weights[s] * output.logits).sum()).items():
            total[name] += gradient
    return total


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL, (4,)])
@pytest.mark.parametrize("name", ["rmt", "memory_transformer", "full"])
def test_depth_changes_no_number(name: str, lengths: tuple[int, ...]) -> None:
    """Logits and final state are those of a plain loop over segments, whatever the depth and whichever
    losses are wanted.
    """
    model, tokens_BT = build(name), tokens(lengths)
    state, logits = model.init_state(BATCH), []
    for tokens_BN in tokens_BT.split(list(lengths), 1):
        output = model.segment(tokens_BN, state)
        state = output.state
        logits.append(output.logits)
    nothing, last = [False] * len(lengths), [False] * (len(lengths) - 1) + [True]
    for depth, wanted in itertools.product([0, 1, 2, 3, 4, 7, None], [None, nothing, last]):
        output = truncation.read(model, tokens_BT, lengths, depth=depth, wanted=wanted)
        torch.testing.assert_close(output.logits, torch.cat(logits, 1), rtol=1e-10, atol=1e-10)
        for actual, expected in zip(output.state.tensors(), state.tensors(), strict=True):
            torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("depth", [0, 1, 2, 4, None])
def test_depth_changes_no_diagnostic(depth: int | None, lengths: tuple[int, ...]) -> None:
    """They are means over the segments, each counted once, however many windows it was read in and
    whatever its length.
    """
    model, tokens_BT = build("rmt"), tokens(lengths)
    state, found = model.init_state(BATCH), []
    for tokens_BN in tokens_BT.split(list(lengths), 1):
        output = model.segment(tokens_BN, state)
        state = output.state
        found.append(output.diagnostics["memory/similarity"])
    diagnostics = truncation.read(model, tokens_BT, lengths, depth=depth).diagnostics
    assert diagnostics.keys() == {"memory/similarity"}
    torch.testing.assert_close(diagnostics["memory/similarity"], torch.stack(found))


@pytest.mark.parametrize("name", ["rmt", "full"])
@pytest.mark.parametrize("depth", [0, 1, None])
def test_a_sample_may_be_read_in_two_calls(name: str, depth: int | None) -> None:
    """The state of one call carries over to the next."""
    model, tokens_BT = build(name), tokens(UNEQUAL)
    whole = truncation.read(model, tokens_BT, UNEQUAL, depth=depth)
    first = truncation.read(model, tokens_BT[:, :6], UNEQUAL[:2], depth=depth)
    second = truncation.read(model, tokens_BT[:, 6:], UNEQUAL[2:], first.state, depth=depth)
    torch.testing.assert_close(
        torch.cat([first.logits, second.logits], 1), whole.logits, rtol=1e-10, atol=1e-10
    )
    for actual, expected in zip(second.state.tensors(), whole.state.tensors(), strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ["rmt", "full"])
def test_one_backward_gives_the_sum_of_each_segments_own_window(
    name: str, depth: int | None, lengths: tuple[int, ...]
) -> None:
    """Sliding truncation, exactly: the gradients of all parameters equal those of one detached loop for
    each segment's loss.
    """
    model, tokens_BT = build(name), tokens(lengths)
    output = truncation.read(model, tokens_BT, lengths, depth=depth)
    assert_same(
        gradients(model, (loss_weights(lengths) * output.logits).sum()),
        windowed_gradients(model, tokens_BT, lengths, depth),
    )


@pytest.mark.parametrize("name", ["rmt", "full"])
def test_depths_differ_in_their_gradients(name: str) -> None:
    """Or else the comparison with the definition, above, would say nothing about depth."""
    model, tokens_BT = build(name), tokens(EQUAL)
    found = [
        windowed_gradients(model, tokens_BT, EQUAL, depth)["backbone.embed.weight"]
        for depth in range(len(EQUAL))
    ]
    for shallow, deep in itertools.pairwise(found):
        assert (shallow - deep).abs().max() > 1e-6


def test_a_model_that_carries_nothing_has_the_same_gradients_at_every_depth() -> None:
    model, tokens_BT = build("memory_transformer"), tokens(UNEQUAL)
    expected = windowed_gradients(model, tokens_BT, UNEQUAL, depth=None)
    for depth in DEPTHS:
        output = truncation.read(model, tokens_BT, UNEQUAL, depth=depth)
        assert_same(gradients(model, (loss_weights(UNEQUAL) * output.logits).sum()), expected)


@pytest.mark.parametrize("lengths", [EQUAL, UNEQUAL])
@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ["rmt", "full"])
def test_horizon_on_the_input_embeddings(name: str, depth: int | None, lengths: tuple[int, ...]) -> None:
    """The loss of segment s moves the embeddings that segments s-k .. s read, and leaves all others at a
    gradient of exactly 0.

    Each segment reads token ids of its own, so that the rows of the embedding's gradient tell the segments
    apart.
    """
    model = build(name)
    ids = torch.arange(VOCABULARY).view(len(lengths), -1)  # [S, 4]
    segments = [ids[s][torch.randint(ids.shape[1], (BATCH, n))] for s, n in enumerate(lengths)]
    weights = loss_weights(lengths).split(lengths, 1)
    for s in range(len(lengths)):
        for wanted in (None, [i == s for i in range(len(lengths))]):
            output = truncation.read(model, torch.cat(segments, 1), lengths, depth=depth, wanted=wanted)
            loss = (weights[s] * output.logits.split(lengths, 1)[s]).sum()
            gradient = gradients(model, loss)["backbone.embed.weight"]
            for source, row_ids in enumerate(ids):
                size = gradient[row_ids].abs().max().item()
                within = source <= s and (depth is None or s - source <= depth)
                assert size > 1e-9 if within else size == 0.0, (
                    f"loss of segment {s}, inputs of segment {source}: {size}"
                )


@pytest.mark.parametrize("depth", DEPTHS)
def test_the_learned_initial_memory_receives_gradient_while_segment_0_is_within_the_horizon(
    depth: int | None,
) -> None:
    model = build("rmt")
    for s in range(len(EQUAL)):
        output = truncation.read(model, tokens(EQUAL), EQUAL, depth=depth)
        loss = (loss_weights(EQUAL) * output.logits).split(EQUAL, 1)[s].sum()
        size = gradients(model, loss)["tokens.initial_memory_MD"].abs().max().item()
        assert size > 1e-9 if depth is None or s <= depth else size == 0.0, f"loss of segment {s}: {size}"


@pytest.mark.parametrize("depth", DEPTHS)
def test_a_carried_state_that_wants_gradient_receives_it_while_segment_0_is_within_the_horizon(
    depth: int | None,
) -> None:
    """And the learned initial memory, which has no part in the continuation of a document, receives none."""
    model = build("rmt")
    memory_BMD = torch.randn(
        BATCH, 3, 8, generator=torch.Generator().manual_seed(3), dtype=torch.float64
    ).requires_grad_()
    for s in range(len(EQUAL)):
        state = replace(model.init_state(BATCH), tokens=RMTState(memory_BMD))
        output = truncation.read(model, tokens(EQUAL), EQUAL, state, depth)
        loss = (loss_weights(EQUAL) * output.logits).split(EQUAL, 1)[s].sum()
        gradient, initial = torch.autograd.grad(
            loss, [memory_BMD, model.tokens.initial_memory_MD], allow_unused=True
        )
        assert initial is None
        if depth is None or s <= depth:
            assert gradient is not None and gradient.abs().max() > 1e-9, f"loss of segment {s}"
        else:
            assert gradient is None or gradient.abs().max() == 0, f"loss of segment {s}"


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", ["rmt", "full"])
def test_wanted_leaves_the_gradients_of_the_wanted_losses_unchanged(name: str, depth: int | None) -> None:
    """For every choice of wanted segments."""
    model, tokens_BT = build(name), tokens(UNEQUAL)
    logits = truncation.read(model, tokens_BT, UNEQUAL, depth=depth).logits
    losses = [part.sum() for part in (loss_weights(UNEQUAL) * logits).split(UNEQUAL, 1)]
    alone = [
        torch.autograd.grad(loss, list(model.parameters()), retain_graph=True, allow_unused=True)
        for loss in losses
    ]
    for wanted in itertools.product([False, True], repeat=len(UNEQUAL)):
        if not any(wanted):
            continue
        output = truncation.read(model, tokens_BT, UNEQUAL, depth=depth, wanted=wanted)
        parts = (loss_weights(UNEQUAL) * output.logits).split(UNEQUAL, 1)
        actual = gradients(model, sum(part.sum() for part, w in zip(parts, wanted, strict=True) if w))
        expected = {n: torch.zeros_like(p) for n, p in model.named_parameters()}
        for name_of, *parts_of in zip(expected, *itertools.compress(alone, wanted), strict=True):
            expected[name_of] += sum(g for g in parts_of if g is not None)
        assert_same(actual, expected)


def graphs_of_segments_read(
    monkeypatch: pytest.MonkeyPatch, depth: int | None, wanted: list[bool] | None
) -> list[bool]:
    """For each time that one of six segments is read: whether a graph is built."""
    built: list[bool] = []
    segment = Decoder.segment

    def noted(self: Decoder, tokens_BN: Tensor, state: ModelState, scored: Scored) -> Output:
        output = segment(self, tokens_BN, state, scored)
        built.append(output.logits.requires_grad)
        return output

    monkeypatch.setattr(Decoder, "segment", noted)
    truncation.read(build("rmt"), tokens([2] * 6), [2] * 6, depth=depth, wanted=wanted)
    return built


LAST, SECOND = [False] * 5 + [True], [False, True] + [False] * 4


@pytest.mark.parametrize(
    ("depth", "wanted", "reads", "graphs"),
    [
        (None, None, 6, 6),
        (5, None, 6, 6),
        (0, None, 6, 6),  # nothing is read twice
        # the first k + 1 in one chain, then a window of k + 1 for each segment
        (2, None, 3 + 3 * 3, 3 + 3 * 3),
        (2, LAST, 3 + 1 + 1 + 3, 3),  # segments whose loss is not wanted are read once, without a graph
        (0, LAST, 6, 1),
        (2, SECOND, 6, 2),  # the first is read with a graph for the sake of the second
        (2, [False] * 6, 6, 0),
    ],
)
def test_what_a_depth_costs(
    monkeypatch: pytest.MonkeyPatch, depth: int | None, wanted: list[bool] | None, reads: int, graphs: int
) -> None:
    """Segments read, and segments whose activations are kept, as the module's description promises."""
    built = graphs_of_segments_read(monkeypatch, depth, wanted)
    assert (len(built), sum(built)) == (reads, graphs)


@pytest.mark.parametrize("depth", DEPTHS)
def test_without_gradient_nothing_builds_a_graph(monkeypatch: pytest.MonkeyPatch, depth: int | None) -> None:
    with torch.no_grad():
        built = graphs_of_segments_read(monkeypatch, depth, None)
    assert built and not any(built)


FULL = [Call(0, 5)]  # one call
CHAIN = [Call(0, 1, saves=True), Call(1, 2, saves=True)]  # segments 0 and 1 with depth 1


@pytest.mark.parametrize(
    ("lengths", "how", "steps"),
    [
        ([3] * 5, {}, FULL),
        ([3] * 5, {"depth": 4}, FULL),
        ([3] * 5, {"depth": 9, "wanted": [False] * 5}, FULL),
        ([3], {"depth": 0}, [Call(0, 1)]),
        # another length begins another call, and goes on from the state of the one before
        ([2, 4, 4, 1], {}, [Call(0, 1), Call(1, 3), Call(3, 4)]),
        # so does a document that begins, whose state is reset
        ([3] * 4, {"resets": [True, False, True, False]}, [Call(0, 2, reset=True), Call(2, 4, reset=True)]),
        # every segment is wanted: a window for each behind the first chain
        (
            [3] * 4,
            {"depth": 1},
            [*CHAIN, Call(1, 3, cut=True, skip=1, saves=True), Call(2, 4, cut=True, skip=1, saves=True)],
        ),
        # depth 0: nothing is read twice
        (
            [3] * 3,
            {"depth": 0},
            [Call(0, 1, saves=True), *(Call(s, s + 1, cut=True, saves=True) for s in (1, 2))],
        ),
        # only the last is wanted: the others are read once, without a graph
        (
            [3] * 4,
            {"depth": 1, "wanted": [False, False, False, True]},
            [
                *(replace(step, graph=False) for step in CHAIN),
                Call(2, 3, cut=True, graph=False, saves=True),
                Call(2, 4, cut=True, skip=1, saves=True),
            ],
        ),
        # a window of two calls goes on within, and what was read before is skipped in both
        (
            [3, 3, 3, 2],
            {"depth": 2},
            [
                *(Call(s, s + 1, saves=True) for s in range(3)),
                Call(1, 3, cut=True, skip=2),
                Call(3, 4, saves=True),
            ],
        ),
        (
            [3] * 4,
            {"depth": 2, "resets": [False, False, True, False]},
            [
                Call(0, 1, saves=True),
                Call(1, 2, saves=True),
                Call(2, 3, reset=True, saves=True),
                Call(1, 2, cut=True, skip=1),
                Call(2, 4, reset=True, skip=1, saves=True),
            ],
        ),
        # recomputed by twos; without a graph there is nothing to recompute
        (
            [3] * 5,
            {"recompute": 2},
            [Call(s, min(s + 2, 5), recompute=True) for s in (0, 2, 4)],
        ),
        (
            [3] * 3,
            {"recompute": 4, "depth": 0, "wanted": [False, False, True]},
            [
                Call(0, 1, graph=False, saves=True),
                Call(1, 2, cut=True, graph=False, saves=True),
                Call(2, 3, cut=True, recompute=True, saves=True),
            ],
        ),
    ],
)
def test_plans(lengths: list[int], how: dict[str, Any], steps: list[Call]) -> None:
    assert truncation.plan(lengths, **how) == steps


@pytest.mark.parametrize("count", [1, 2, 3, 6])
@pytest.mark.parametrize("depth", [None, 0, 1, 2, 5])
def test_every_plan_can_be_executed_and_keeps_each_segment_once(count: int, depth: int | None) -> None:
    """For every choice of wanted segments, with documents that begin here and there: each step begins where
    the one before it ended or where a state was saved, and the loss of a wanted segment reaches as far back
    as it may.
    """
    for wanted in itertools.product([False, True], repeat=count):
        for resets in ([False] * count, [s % 3 == 1 for s in range(count)]):
            steps = truncation.plan([2] * count, depth, wanted, resets, recompute=2)
            saved, at, kept, chain = set(), 0, [], 0  # `chain`: the segment with which the graph begins
            for step in steps:
                assert step.first == at if not step.cut else step.first in saved
                chain = step.first if step.cut else chain
                new = range(step.first + step.skip, step.end)
                kept += new
                for s in new:
                    if wanted[s] and depth is not None and depth < count - 1:
                        assert chain == max(0, s - depth)
                    assert step.graph or not wanted[s]
                assert step.reset == resets[step.first] and not any(resets[step.first + 1 : step.end])
                at = step.end
                saved |= {step.end} if step.saves else set()
            assert kept == list(range(count)) and at == count
