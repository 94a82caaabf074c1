"""Infini-attention against equations 5 to 11 of its paper (arXiv 2404.07143, section 3.1),
written as loops.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.memories.infini import InfiniState
from memlab.models.base import Model, ModelState, Output
from memlab.models.compose import compose
from memlab.models.decoder import Decoder
from tests import building
from tests.building import VOCABULARY, tokens
from tests.models import naive, naive_memory

Memory = tuple[Tensor, Tensor] | None  # (M, z) of one key-value head; None = nothing has been written
Memories = list[list[Memory]]  # [layer][key-value head] of one document
FORMS = pytest.mark.parametrize("form", ["recurrent", "parallel"])
UPDATES = pytest.mark.parametrize("update", ["linear", "delta"])


def build(**options: Any) -> Decoder:
    return building.decoder("infini", **options)


def one_layer(update: str, gate_init: float) -> Model:
    """In fp32, as it begins to learn."""
    torch.manual_seed(0)
    values = {
        "layer_memory": "infini",
        "tokens": "none",
        "layers": 1,
        "width": 8,
        "heads": 2,
        "ffn_multiple": 2,
    }
    return compose(values | {"update": update, "gate_init": gate_init}, VOCABULARY)


def gates(model: Model) -> list[Tensor]:
    """beta of each layer, [H]."""
    return [memory.gate_H for memory in model.backbone.memories]


def feature(x: Tensor) -> Tensor:
    """sigma of the paper, ELU + 1."""
    return torch.where(x > 0, x + 1, torch.exp(x))


def retrieve(feature_K: Tensor, memory: tuple[Tensor, Tensor]) -> Tensor:
    """Eq. 7, for one query."""
    M_KK, z_K = memory
    return torch.stack([(feature_K * M_KK[:, k]).sum() for k in range(len(z_K))]) / (feature_K * z_K).sum()


def write(rule: str, keys: list[Tensor], values: list[Tensor], memory: Memory) -> tuple[Tensor, Tensor]:
    """Eq. 8, or 9: every token of the segment is compared with the memory before the segment."""
    M_KK, z_K = memory or (
        torch.zeros(len(keys[0]), len(keys[0]), dtype=keys[0].dtype),
        torch.zeros_like(keys[0]),
    )
    for key, value in zip(keys, values, strict=True):
        known = retrieve(feature(key), memory) if rule == "delta" and memory else 0.0
        M_KK, z_K = M_KK + torch.outer(feature(key), value - known), z_K + feature(key)
    return M_KK, z_K


def read_segment(model: Model, tokens_BN: Tensor, before: list[Memories]) -> tuple[Tensor, list[Memories]]:
    """One segment of every document: logits [B, N, V], and the memories after it."""
    shared = model.backbone.heads // model.backbone.kv_heads
    logits, after = [], []
    for b, tokens_N in enumerate(tokens_BN):
        own = before[b]
        written: Memories = []

        def attend(
            layer: int,
            queries: list,
            keys: list,
            values: list,
            own: Any = own,
            to: Any = written,
        ) -> list:
            heads = []
            for h, of_head in enumerate(queries):
                g, outputs = h // shared, []
                placed = [naive_memory.placed(model, key, j) for j, key in enumerate(keys[g])]
                for i, query in enumerate(of_head):
                    asks = naive_memory.placed(model, query, i)
                    scores = [
                        naive_memory.local_score(model, layer, h, asks, placed[j], i - j)
                        for j in range(i + 1)
                    ]
                    y_K = naive_memory.weighted(scores, values[g][: i + 1])
                    if own[layer][g]:
                        share = naive_memory.gate(gates(model)[layer][h])
                        y_K = share * retrieve(feature(query), own[layer][g]) + (1 - share) * y_K  # eq. 10
                    outputs.append(y_K)
                heads.append(outputs)
            to.append(
                [
                    write(model.backbone.memories[layer].update, k, v, m)
                    for k, v, m in zip(keys, values, own[layer], strict=True)
                ]
            )
            return heads

        logits.append(naive_memory.read_segment(model, tokens_N, attend))
        after.append(written)
    return torch.stack(logits), after


def nothing(model: Model) -> Memories:
    return [[None] * model.backbone.kv_heads for _ in model.backbone.blocks]


def read_all(
    model: Model, tokens_BSN: Tensor, memories: list[Memories] | None = None
) -> tuple[Tensor, list[Memories]]:
    if memories is None:
        memories = [nothing(model) for _ in tokens_BSN]
    logits = []
    for tokens_BN in tokens_BSN.unbind(1):
        logits_BNV, memories = read_segment(model, tokens_BN, memories)
        logits.append(logits_BNV)
    return torch.stack(logits, 1), memories


def stacked(logits: Tensor, memories: list[Memories]) -> list[Tensor]:
    """Logits, and [M | z] of each layer, as the model has them."""
    layers = range(len(memories[0]))
    joined = [
        torch.stack(
            [torch.stack([torch.cat([m[0], m[1][:, None]], dim=1) for m in of[layer]]) for of in memories]
        )
        for layer in layers
    ]
    return [logits, *joined]


def everything(output: Output) -> list[Tensor]:
    return [output.logits, *(layer.memory_BGKV for layer in output.state.layers)]


def taken_apart(state: ModelState) -> list[Memories]:
    batch, groups = state.layers[0].memory_BGKV.shape[:2]
    return [
        [[(m[b, g, :, :-1], m[b, g, :, -1]) for g in range(groups)] for m in memories_of(state)]
        for b in range(batch)
    ]


def memories_of(state: ModelState) -> list[Tensor]:
    return [layer.memory_BGKV for layer in state.layers]


def carried(model: Model, batch: int) -> ModelState:
    """A state in mid-document that no reading has made, and that asks for its gradient."""
    groups, width = model.backbone.kv_heads, model.backbone.head_width
    layers = len(model.backbone.blocks)
    leaves = naive.random_like(*[torch.empty(batch, groups, width, width + 1)] * layers)
    for leaf in leaves:
        leaf[..., -1] = leaf[..., -1].abs() + 0.5  # features, and so z, are positive
        leaf.requires_grad_()
    return dataclasses.replace(model.init_state(batch), layers=tuple(map(InfiniState, leaves)))


@FORMS
@UPDATES
@pytest.mark.parametrize(
    ("batch", "segments", "length", "options"),
    [
        (2, 4, 2, {}),
        (2, 3, 5, {"heads": 4, "kv_heads": 2, "width": 16, "layers": 1}),
        (1, 3, 1, {"width": 12, "heads": 3, "kv_heads": 1}),
        (2, 3, 2, {"positions": "none", "kv_heads": 1}),
        (2, 2, 4, {"positions": "transformer_xl"}),
    ],
)
def test_logits_memories_and_gradients_equal_the_paper_formulas(
    form: str, update: str, batch: int, segments: int, length: int, options: dict[str, Any]
) -> None:
    """Over all segments, with gradient through every earlier memory into every weight."""
    model, tokens_BSN = build(update=update, **options), tokens(batch, segments, length)
    output = getattr(model, form)(tokens_BSN, model.init_state(batch))
    naive.assert_same_values_and_gradients(model, everything(output), stacked(*read_all(model, tokens_BSN)))


@FORMS
@UPDATES
@pytest.mark.parametrize(("segments", "kv_heads"), [(1, None), (3, None), (3, 1)])
def test_a_carried_memory_enters_as_the_paper_says_and_receives_gradient(
    form: str, update: str, segments: int, kv_heads: int | None
) -> None:
    model, tokens_BSN = build(update=update, kv_heads=kv_heads), tokens(2, segments, 3)
    state = carried(model, 2)
    output = getattr(model, form)(tokens_BSN, state)
    expected = stacked(*read_all(model, tokens_BSN, taken_apart(state)))
    naive.assert_same_values_and_gradients(model, everything(output), expected, inputs=memories_of(state))


@FORMS
@UPDATES
def test_the_first_segment_is_local_attention_alone(form: str, update: str) -> None:
    """It is not scaled by 1 - gate: where nothing has been written, the gate has no part."""
    model, tokens_BSN = build(update=update), tokens(2, 1, 4)
    output = getattr(model, form)(tokens_BSN, model.init_state(2))
    expected = stacked(*read_all(model, tokens_BSN))
    for actual, exact in zip(everything(output), expected, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-10)
    output.logits.square().sum().backward()
    assert all(gate_H.grad is not None and (gate_H.grad == 0).all() for gate_H in gates(model))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@FORMS
@UPDATES
def test_one_document_begins_while_others_go_on(form: str, update: str) -> None:
    """Its first segment is local attention alone, and is not scaled by 1 - gate."""
    model, tokens_BSN = build(update=update), tokens(3, 4, 2)
    read = getattr(model, form)
    first = read(tokens_BSN[:, :2], model.init_state(3))
    rows = torch.tensor([False, True, False])
    second = read(tokens_BSN[:, 2:], first.state.reset(rows, model.init_state(3)))
    logits, memories = read_all(model, tokens_BSN[:, :2])
    memories = [nothing(model) if begins else old for begins, old in zip(rows, memories, strict=True)]
    expected = [logits, *stacked(*read_all(model, tokens_BSN[:, 2:], memories))]
    naive.assert_same_values_and_gradients(model, [first.logits, *everything(second)], expected)


@FORMS
@UPDATES
def test_the_order_of_a_segment_is_not_in_the_memory(form: str, update: str) -> None:
    """With one layer, later segments know an earlier one from the memory alone, which has no positions."""
    model, tokens_BSN = build(update=update, layers=1), tokens(2, 3, 5)
    moved_BSN = tokens_BSN.clone()
    moved_BSN[:, 0] = tokens_BSN[:, 0, [3, 0, 4, 1, 2]]
    state = carried(model, 2)
    one, other = (getattr(model, form)(t, state) for t in (tokens_BSN, moved_BSN))
    assert (one.logits[:, 0] - other.logits[:, 0]).abs().max() > 1e-3
    for a, b in zip(
        [one.logits[:, 1:], *memories_of(one.state)],
        [other.logits[:, 1:], *memories_of(other.state)],
        strict=True,
    ):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-10)


@FORMS
def test_where_a_query_stands_does_not_matter_to_the_memory(form: str) -> None:
    """With gates of 1 a layer gives what its memory gives: the same for the same token at every place."""
    model = build(layers=1)
    with torch.no_grad():
        gates(model)[0].fill_(60.0)
    logits_BNV = getattr(model, form)(torch.full((2, 1, 6), 4), carried(model, 2)).logits[:, 0]
    torch.testing.assert_close(logits_BNV, logits_BNV[:, :1].expand_as(logits_BNV), rtol=1e-10, atol=1e-10)


@FORMS
@UPDATES
@pytest.mark.parametrize("precision", ["autocast", "bfloat16"])
def test_memories_are_summed_in_fp32_under_bf16(form: str, update: str, precision: str) -> None:
    """One token all along: z is s(k), and M s(k) v, times the number of tokens;
    sums in bf16 stall at 256 times.
    """
    model = one_layer(update, 0.0)
    if precision == "bfloat16":
        model = model.to(torch.bfloat16)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        state = model.init_state(1)
        once = getattr(model, form)(torch.full((1, 1, 1), 3), state).state
        output = getattr(model, form)(torch.full((1, 320, 1), 3), state)
    for t in (*memories_of(state), *memories_of(once), *memories_of(output.state)):
        assert t.dtype == torch.float32
    assert output.logits.isfinite().all()
    sums, one = (memories_of(o)[0] for o in (output.state, once))
    torch.testing.assert_close(sums[..., -1], 320 * one[..., -1], rtol=1e-3, atol=0)
    if update == "linear":
        torch.testing.assert_close(sums, 320 * one, rtol=1e-3, atol=0)


@FORMS
@UPDATES
def test_keys_and_values_of_bf16_are_added_in_fp32(form: str, update: str) -> None:
    """Under autocast only the projections are in bf16; equations 8 and 9 are not."""
    model = one_layer(update, 0.0)
    tokens_BSN = tokens(1, 3, 5)
    memories: list[Memory] = [None, None]
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        state = getattr(model, form)(tokens_BSN, model.init_state(1)).state
        for tokens_BN in tokens_BSN.unbind(1):
            _, *projected = model.backbone.memories[0].project(model.backbone.embed(tokens_BN))
            assert all(t.dtype == torch.bfloat16 for t in projected)
            keys, values = ([list(head.float().unbind()) for head in t[0]] for t in projected)
            memories = [write(update, k, v, m) for k, v, m in zip(keys, values, memories, strict=True)]
    M_GKK, z_GK = (torch.stack([m[i] for m in memories if m]) for i in (0, 1))
    (written,) = memories_of(state)[0]
    torch.testing.assert_close(written[..., :-1], M_GKK, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(written[..., -1], z_GK, rtol=1e-4, atol=1e-4)


@FORMS
@UPDATES
def test_the_memory_of_a_long_document_does_not_overflow_in_fp16(form: str, update: str) -> None:
    """What is retrieved is a ratio (eq. 7): M and z a million times as large, beyond fp16, change nothing."""
    model = one_layer(update, 2.0)
    state, tokens_BSN = carried(model, 2).map(lambda t: t.detach().float()), tokens(2, 1, 5)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.float16):
        one, other = (
            getattr(model, form)(tokens_BSN, s).logits for s in (state, state.map(lambda t: t * 1e6))
        )
    torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-2)
