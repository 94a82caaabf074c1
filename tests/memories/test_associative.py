"""ARMT's associative memory against equations 1 to 4 of its paper (arXiv 2407.04841, section 2), as loops."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.layers import observing
from memlab.memories.associative import AssociativeState
from memlab.models.base import ModelState, Output
from memlab.models.compose import compose
from memlab.models.decoder import Decoder
from tests import building
from tests.building import VOCABULARY, read_in_pieces, tokens
from tests.models import naive

Memory = tuple[Tensor, Tensor]  # A [F, D] and z [F] of one layer in one document


def build(**options: Any) -> Decoder:
    sizes = {"memory_tokens": 2, "key_width": 3, "read_mem_from_cache": True}
    return building.decoder("associative", "rmt", **(sizes | options))


def feature(x_K: Tensor, shifts: int) -> Tensor:
    """DPFP (arXiv 2102.11174, equation 37): products of each number with those some places before it."""
    r = torch.cat([torch.relu(x_K), torch.relu(-x_K)])
    found = torch.stack(
        [r[i] * r[(i - shift) % len(r)] for shift in range(1, shifts + 1) for i in range(len(r))]
    )
    return found / (found @ found).sqrt()


def recall(f_F: Tensor, memory: Memory) -> Tensor:
    A_FD, z_F = memory
    return (f_F[:, None] * A_FD).sum(0) / (z_F @ f_F + 1e-5)


def write(model: Decoder, layer: int, rows: list[Tensor], before: Memory) -> Memory:
    """Equations 1 to 3; what the correction takes away is a constant."""
    own = model.backbone.memories[layer]
    A_FD, z_F = before
    for m in rows:
        k, v = feature(own.key.weight @ m, own.dpfp), own.value.weight @ m
        beta = 1 / (1 + torch.exp(-(own.beta.weight[0] @ m + own.beta.bias)))
        A_FD = A_FD + beta * torch.outer(k, v - recall(k, before))
        new = max(0.0, 1 - (before[1] @ k).item() / (k @ k).item()) if own.correction else 1.0
        z_F = z_F + new * k
    return A_FD, z_F


def read_segment(
    model: Decoder, tokens_N: Tensor, memory_MD: Tensor, layers: list[Memory]
) -> tuple[Tensor, Tensor, list[Memory]]:
    """One segment of one document: logits [N, V], RMT's memory and the associative memories after it."""
    m, n = len(memory_MD), len(tokens_N)

    def sees(i: int, j: int) -> bool:
        return j < m if i < m else i >= m + n or j <= i

    learned = model.tokens.write_memory_MD
    rows = [
        *memory_MD,
        *(dict(model.named_parameters())["backbone.embed.weight"][t] for t in tokens_N),
        *(memory_MD if learned is None else learned),
    ]
    after = []
    for layer, memory in enumerate(layers):
        own = model.backbone.memories[layer]
        reads = range(len(rows)) if model.tokens.read_mem_from_cache else range(m, m + n)
        rows = [
            x + recall(feature(own.query.weight @ x, own.dpfp), memory) if i in reads else x
            for i, x in enumerate(rows)
        ]
        rows, _, _ = naive.block(model, layer, rows, range(-m, n + m), sees)
        after.append(write(model, layer, rows[m + n :], memory))
    rows = [naive.final_norm(model, x) for x in rows]
    return torch.stack([naive.head(model, x) for x in rows[m : m + n]]), torch.stack(rows[m + n :]), after


def read_all(model: Decoder, tokens_BSN: Tensor, state: ModelState) -> list[Tensor]:
    """Logits, RMT's memory, and A and z of each layer."""
    logits, memories, layers_after = [], [], []
    for b, tokens_SN in enumerate(tokens_BSN):
        memory_MD = state.tokens.memory_BMD[b]
        layers = [(layer.memory_BFD[b], layer.normaliser_BF[b]) for layer in state.layers]
        of_segments = []
        for tokens_N in tokens_SN:
            logits_NV, memory_MD, layers = read_segment(model, tokens_N, memory_MD, layers)
            of_segments.append(logits_NV)
        logits.append(torch.stack(of_segments))
        memories.append(memory_MD)
        layers_after.append([t for layer in layers for t in layer])
    return [
        torch.stack(logits),
        torch.stack(memories),
        *(torch.stack(each) for each in zip(*layers_after, strict=True)),
    ]


def everything(output: Output) -> list[Tensor]:
    return [output.logits, *output.state.tensors()[:-1]]


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((2, 3, 3), {}),
        ((1, 4, 2), {"heads": 4, "kv_heads": 2, "width": 16, "layers": 1, "memory_tokens": 3, "dpfp": 2}),
        ((2, 3, 1), {"correction": False, "read_mem_from_cache": False}),
        (
            (1, 3, 4),
            {"write_memory": "learned", "key_width": 5, "memory_tokens": 1, "positions": "transformer_xl"},
        ),
    ],
    ids=str,
)
def test_logits_memories_and_gradients_equal_the_papers_formulas(
    shape: tuple[int, int, int], options: dict[str, Any]
) -> None:
    """Over all segments, with gradient through every earlier memory into every weight."""
    model, tokens_BSN = build(**options), tokens(*shape)
    output = model(tokens_BSN)
    expected = read_all(model, tokens_BSN, model.init_state(shape[0]))
    naive.assert_same_values_and_gradients(model, everything(output), expected)
    logits, state = read_in_pieces(model, tokens_BSN, [1] * shape[2])
    pieces = Output(logits.view_as(output.logits), state)
    for actual, exact in zip(everything(pieces), expected, strict=True):
        torch.testing.assert_close(actual, exact, rtol=1e-10, atol=1e-10)


def test_a_carried_memory_enters_as_the_paper_says_and_receives_gradient() -> None:
    model, tokens_BSN = build(), tokens(2, 2, 3)
    leaves = naive.random_like(*[t for layer in model.init_state(2).layers for t in layer.tensors()])
    for leaf in leaves:
        leaf.abs_().add_(0.1).requires_grad_()
    layers = tuple(AssociativeState(*leaves[i : i + 2]) for i in (0, 2))
    state = dataclasses.replace(model.init_state(2), layers=layers)
    naive.assert_same_values_and_gradients(
        model, everything(model(tokens_BSN, state)), read_all(model, tokens_BSN, state), inputs=leaves
    )


@pytest.mark.parametrize("correction", [True, False])
def test_a_key_that_is_written_again_keeps_one_value(correction: bool) -> None:
    """Appendix F.1: the value of a key is replaced; without the correction, z grows all the same."""
    model = build(layers=1, correction=correction)
    (own,) = model.backbone.memories
    with torch.no_grad():
        own.beta.weight.zero_()
        own.beta.bias.fill_(40.0)  # b = 1
    row_BWD = tokens(1, 1, 8).double() - 6
    state = own.init_state(1).map(lambda t: t.double())
    for times in range(1, 5):
        state = own._written(row_BWD, state)
        read = own._feature(own.key(row_BWD))
        found = (read @ state.normaliser_BF[..., None]).item()
        assert found == pytest.approx(1.0 if correction else times)
        value = (read @ state.memory_BFD).squeeze()
        torch.testing.assert_close(
            value,
            own.value(row_BWD).squeeze() * (1 if correction else value_sum(times)),
            rtol=1e-3,
            atol=1e-3,
        )


def value_sum(times: int) -> float:
    """A f after so many writes of one value without the correction: each adds v - A f / (z f)."""
    total = 0.0
    for z in range(times):
        total += 1 - (total / z if z else 0.0)
    return total


def test_nothing_is_read_at_first_and_values_begin_at_zero() -> None:
    """So a model begins as RMT; W_V learns all the same."""
    torch.manual_seed(0)
    values = {"tokens": "rmt", "layers": 2, "width": 8, "heads": 2, "memory_tokens": 2}
    model = compose(values | {"layer_memory": "associative"}, VOCABULARY)
    rmt = compose(values | {"layer_memory": "attention"}, VOCABULARY)
    rmt.load_state_dict(model.state_dict(), strict=False)
    x = tokens(2, 3, 4)
    torch.testing.assert_close(model(x).logits, rmt(x).logits)
    model(x).logits[:, -1].square().sum().backward()
    assert all(memory.value.weight.grad.abs().max() > 0 for memory in model.backbone.memories)


def test_bytes_of_the_state() -> None:
    """Closed form, for each layer (6 key_width) (D + 1) in fp32, and RMT's M D."""
    for dtype, size in ((torch.float32, 4), (torch.bfloat16, 2)):
        model = build(width=24, layers=3, key_width=5, memory_tokens=4).to(dtype)
        for segments in (1, 4):
            state = model(tokens(2, segments, 3)).state
            assert state.nbytes == 2 * (3 * 6 * 5 * (24 + 1) * 4 + 4 * 24 * size)


@pytest.mark.parametrize("kind", ["none", "front", "rmt_encoder"])
def test_it_needs_memory_tokens_after_the_segment(kind: str) -> None:
    values = {"layer_memory": "associative", "tokens": kind, "layers": 1, "width": 8, "heads": 2}
    with pytest.raises(ConfigError, match=f"tokens={kind} has none; use"):
        compose(values, VOCABULARY)


def test_what_is_read_of_earlier_segments_is_seen_from_outside() -> None:
    """`evaluate inside=`: y of equation 4, beside what attention adds to the block's input."""
    model, x, seen = build(), tokens(2, 3, 4), []

    def see(event: str, values: dict[str, Any]) -> None:
        if event == "mix":
            seen.append((values["remembered"], values["local"]))

    plain = model.recurrent(x, model.init_state(2)).logits
    with observing.by(see):
        torch.testing.assert_close(model.recurrent(x, model.init_state(2)).logits, plain)
    assert len(seen) == 3 * 2  # in each segment and layer
    for number, (remembered, local) in enumerate(seen):
        assert remembered.shape == local.shape == (2, 1, 6 + 2 * (number % 2 == 0), 8)
        assert (remembered == 0).all() == (number < 2)
