"""Each policy keeps what its paper says: against `reference.py`, token by token."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.layers.description import Description
from memlab.layers.positions import Rotary
from memlab.memories.base import Where
from memlab.memories.cached import Cached, CachedState
from memlab.policies.base import EMPTY
from memlab.policies.full import Full
from memlab.policies.h2o import H2O
from memlab.policies.l2 import L2
from memlab.policies.random import Random
from memlab.policies.snapkv import SnapKV
from memlab.policies.streaming import Streaming
from memlab.policies.tova import TOVA
from tests.building import disturb
from tests.policies import reference

HEADS, GROUPS, WIDTH, HEAD_WIDTH = 4, 2, 10, 6
SEGMENTS = [5, 5, 3, 5]
ROTARY = Rotary(HEAD_WIDTH)
CASES: list[tuple[Any, dict[str, Any], reference.Rule]] = [
    (Full, {}, reference.full()),
    (Streaming, {"budget": 6, "sinks": 2}, reference.streaming(6, 2)),
    (Streaming, {"budget": 2, "sinks": 2}, reference.streaming(2, 2)),
    (Streaming, {"budget": 0.4, "sinks": 1, "every": 2}, reference.streaming(0.4, 1)),
    (H2O, {"budget": 7}, reference.h2o(7)),
    (H2O, {"budget": 6, "every": 1}, reference.h2o(6)),
    (H2O, {"budget": 6, "sinks": 1, "recent": 2, "decay": 0.8}, reference.h2o(6, 1, 2, 0.8)),
    (H2O, {"budget": 5, "normalise": True, "every": 2}, reference.h2o(5, normalise=True)),
    (H2O, {"budget": 0.3, "normalise": True, "decay": 0.9}, reference.h2o(0.3, decay=0.9, normalise=True)),
    (L2, {"budget": 6}, reference.l2(6)),
    (L2, {"budget": 0.5, "sinks": 1, "recent": 1, "every": 3}, reference.l2(0.5, 1, 1)),
    (L2, {"budget": 3, "after": 10}, reference.l2(3, after=10)),
    (TOVA, {"budget": 6}, reference.tova(6)),
    (TOVA, {"budget": 4, "every": 1}, reference.tova(4)),
    (TOVA, {"budget": 0.4, "sinks": 2, "recent": 1}, reference.tova(0.4, 2, 1)),
    (SnapKV, {"budget": 7, "window": 2, "kernel": 3}, reference.snapkv(7, 2, 3, "avg")),
    (
        SnapKV,
        {"budget": 8, "window": 4, "kernel": 5, "pooling": "max", "sinks": 1, "every": 3},
        reference.snapkv(8, 4, 5, "max", 1),
    ),
    (SnapKV, {"budget": 0.5, "window": 3, "kernel": 1, "after": 7}, reference.snapkv(0.5, 3, 1, "avg", 0, 7)),
]


def describe(**changed: Any) -> Description:
    sizes = {"layer": 1, "layers": 2, "width": WIDTH, "heads": HEADS, "kv_heads": GROUPS}
    return Description(**{**sizes, "head_width": HEAD_WIDTH, "ffn_width": 8, "positions": "rope", **changed})


def layer(policy: Any, options: dict[str, Any], **changed: Any) -> Cached:
    description = describe(**changed)
    torch.manual_seed(0)
    return disturb(Cached(description, policy=policy(description, **options)))


def where(memory: Cached, state: CachedState, tokens: int) -> Where:
    rotary = ROTARY if memory.description.positions == "rope" else None
    b = len(state.length_B)
    return Where(0, tokens, b, torch.device("cpu"), offset_B=memory.offset(state), rotary=rotary)


def kept(state: CachedState, row: int) -> list[list[int]]:
    return [[p for p in head.tolist() if p != EMPTY] for head in state.position_BGC[row]]


def projected(memory: Cached, x_TD: Tensor) -> list[Tensor]:
    turn = ROTARY.rotation(torch.arange(len(x_TD)), torch.float64)
    turned = memory.project(x_TD[None], turn if memory.description.positions == "rope" else None)
    return [t[0] for t in turned]


def inputs(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, WIDTH, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(
    ("policy", "options", "rule"), CASES, ids=lambda v: v.__name__ if isinstance(v, type) else ""
)
def test_kept_rows_and_outputs_are_those_of_the_paper(
    policy: Any, options: dict[str, Any], rule: reference.Rule
) -> None:
    """Two documents, of which the second begins one segment later: its state is that of a document alone."""
    memory = layer(policy, options)
    x_BTD, begins = inputs(2, sum(SEGMENTS)), [0, SEGMENTS[0]]
    alone = [
        reference.read(*projected(memory, x_BTD[b, first:]), SEGMENTS[b:], rule, memory.policy.every)
        for b, first in enumerate(begins)
    ]
    state, t = memory.init_state(2), 0
    for segment, n in enumerate(SEGMENTS):
        if segment == 1:
            state = state.reset(torch.tensor([False, True]), memory.init_state(2))
        y_BND, state = memory.segment(x_BTD[:, t : t + n], state, where(memory, state, n))
        for b, (output, sets) in enumerate(alone):
            if segment < b:
                continue
            at = t - begins[b]
            expected = memory.merge(torch.from_numpy(output[at : at + n]).transpose(0, 1)[None])
            torch.testing.assert_close(y_BND[b], expected[0], rtol=1e-10, atol=1e-10)
            assert kept(state, b) == sets[segment - b], (segment, b)
        t += n


@pytest.mark.parametrize(
    ("policy", "options", "rule"),
    [case for case in CASES if case[0] in (H2O, L2, TOVA) and "every" not in case[1]],
)
def test_of_equal_rows_the_older_stays(policy: Any, options: dict[str, Any], rule: reference.Rule) -> None:
    """Without positions, equal tokens have equal keys."""
    memory = layer(policy, options, positions="none")
    x_TD = inputs(3)[torch.tensor([0, 1, 1, 0, 2, 1, 0, 0, 2, 2, 1, 0, 1])]
    _, sets = reference.read(*projected(memory, x_TD), [5, 5, 3], rule)
    state = memory.init_state(1)
    for x_ND, expected in zip(x_TD.split([5, 5, 3]), sets, strict=True):
        _, state = memory.segment(x_ND[None], state, where(memory, state, len(x_ND)))
        assert kept(state, 0) == expected


def test_random_rows_are_a_sample_that_only_depends_on_seed_layer_and_head() -> None:
    def sets(segments: list[int], budget: int = 8, **changed: Any) -> list[list[int]]:
        options = {key: changed.pop(key) for key in ("seed", "every") if key in changed}
        memory = layer(Random, {"budget": budget, **options}, **changed)
        state, x_TD = memory.init_state(1), inputs(sum(segments), seed=len(segments))
        for x_ND in x_TD.split(segments):
            _, state = memory.segment(x_ND[None], state, where(memory, state, len(x_ND)))
        return kept(state, 0)

    whole = sets([60])
    assert sets([7, 23, 30]) == sets([60], every=11) == whole  # with other contents, too
    assert [len(rows) for rows in whole] == [8, 8] and whole[0] != whole[1]
    assert sets([60], seed=1) != whole != sets([60], layer=2)
    share = [row for seed in range(30) for rows in sets([60], budget=15, seed=seed) for row in rows]
    counts = torch.bincount(torch.tensor(share), minlength=60)  # 15 of each: 60 draws with probability 1 / 4
    assert counts.min() >= 3 and counts.max() <= 29
    assert abs(sum(share) / len(share) - 29.5) < 1.5


def test_a_layer_that_l2_skips_keeps_everything() -> None:
    for number in (1, 2):
        memory = layer(L2, {"budget": 3, "skip_layers": [2]}, layer=number)
        state = memory.init_state(1)
        for x_ND in inputs(12).split(4):
            _, state = memory.segment(x_ND[None], state, where(memory, state, 4))
        assert [len(rows) for rows in kept(state, 0)] == [3 if number == 1 else 12] * GROUPS
        assert memory.state_grows == memory.keeps_everything == (number == 2)


@pytest.mark.parametrize("policy", [Streaming, H2O, L2, TOVA, SnapKV, Random])
@pytest.mark.parametrize("budget", [5, 0.4])
def test_bytes_are_those_of_the_rows(policy: Any, budget: float) -> None:
    """2 G K numbers and G positions for each row, H2O's sum, and the document's length.

    Sets of different sizes are padded; what is used is counted beside what is held.
    """
    options = {"budget": budget} | ({"window": 2} if policy is SnapKV else {})
    memory = layer(policy, options)
    state = memory.init_state(2)
    for number, x_BND in enumerate(inputs(2, 12).split(4, dim=1)):
        if number == 2:
            state = state.reset(torch.tensor([False, True]), memory.init_state(2))
        _, state = memory.segment(x_BND, state, where(memory, state, 4))
    row = GROUPS * (2 * HEAD_WIDTH * 8 + 4 + (8 if policy is H2O else 0))
    rows = [5, 4] if budget == 5 else [5, max(2, memory.policy.sinks + memory.policy.recent)]
    assert [len(heads[0]) for heads in (kept(state, 0), kept(state, 1))] == rows
    assert state.nbytes == 2 * 5 * row + 2 * 8
    assert state.used_nbytes == sum(rows) * row + 2 * 8


@pytest.mark.parametrize(
    ("policy", "options", "said"),
    [
        (H2O, {"budget": 3, "sinks": 2, "recent": 2}, "policy.budget=3 has no room for policy.sinks=2"),
        (Streaming, {"budget": 3}, "policy.budget=3 has no room for policy.sinks=4"),
        (SnapKV, {"budget": 7}, "policy.budget=7 has no room for policy.window=8"),
        (SnapKV, {"kernel": 4}, "policy.kernel=4 is even"),
        (L2, {"skip_layers": [1, 3]}, "no layer 3"),
    ],
)
def test_mistakes(policy: Any, options: dict[str, Any], said: str) -> None:
    with pytest.raises(Exception, match=said):
        policy(describe(), **options)


def test_cache_positions_need_rotations() -> None:
    with pytest.raises(Exception, match=r"model\.positions=none has no rotations"):
        Streaming(describe(positions="none"), positions="cache")
