"""RMT with a Transformer-XL cache against the formulas of its paper (arXiv 2207.06881, section 3.2 and table
5), written as loops.

The reference's cache is a list of vectors for each layer, as long as what its document has filled: it knows
no padding and no mask.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.memories.transformer_xl import XLState
from memlab.memory_tokens.rmt import RMTState
from memlab.models.base import Model, ModelState
from memlab.models.decoder import Decoder
from memlab.training import truncation
from tests import building
from tests.building import tokens
from tests.models import naive

LENGTH = 4  # tokens in a segment, unless a test says otherwise
# of one document: memory [M, D], and by layer the cached inputs [D]
Carried = tuple[Tensor, list[list[Tensor]]]


def build(mem_len: int, option: bool, **changed: Any) -> Decoder:
    options = {"memory_tokens": 2, "mem_len": mem_len, "read_mem_from_cache": option} | changed
    return building.decoder("transformer_xl", "rmt", **options)


def capacity(model: Model) -> int:
    """Rows of each layer's cache."""
    return model.backbone.memories[0].mem_len


def caches(state: ModelState) -> list[Tensor]:
    """Each layer's cached inputs [B, C, D], whether filled or not."""
    return [layer.hidden_BCD for layer in state.layers]


def fresh(model: Model) -> Carried:
    return model.tokens.initial_memory_MD, [[] for _ in model.backbone.blocks]


def read_segment(model: Model, tokens_N: Tensor, carried: Carried) -> tuple[list[Tensor], Carried]:
    """One segment of one document: logits by token, and what the next segment begins with."""
    memory_MD, cache = carried
    m, n, c = len(memory_MD), len(tokens_N), len(cache[0])
    rows = [
        (kind, i)
        for kind, size in (("cache", c), ("read", m), ("segment", n), ("write", m))
        for i in range(size)
    ]
    place = {"cache": -m - c, "read": -m, "segment": 0, "write": n}  # of the first row of each kind

    def sees(query: int, key: int) -> bool:
        (kind, i), (of_kind, j) = rows[query], rows[key]
        if of_kind == "cache":
            return kind == "segment" or model.tokens.read_mem_from_cache
        if kind == "read":
            return of_kind == "read"
        if kind == "segment":
            return of_kind == "read" or (of_kind == "segment" and j <= i)
        return True

    x_RD, kept, positions = (
        [*memory_MD, *(model.backbone.embed.weight[t] for t in tokens_N), *memory_MD],
        [],
        [place[kind] + i for kind, i in rows],
    )
    for layer, cached in enumerate(cache):
        own = [x.detach() for x in x_RD[m : m + n]]
        kept.append([*cached, *own][max(c + n - capacity(model), 0) :])
        # Cached inputs are normalised and projected now, as the segment's own are, by the weights that both
        # share; they ask nothing.
        x_RD, _, _ = naive.block(model, layer, [*cached, *x_RD], positions, sees, first=c)
    y_RD = [naive.final_norm(model, x) for x in x_RD]
    return [naive.head(model, y) for y in y_RD[m : m + n]], (torch.stack(y_RD[m + n :]), kept)


def read_all(
    model: Model, segments: Sequence[Tensor], before: Sequence[Carried]
) -> tuple[Tensor, list[Carried]]:
    """Documents, each segment by segment: logits [B, T, V], and what each carries in the end."""
    logits_BTV, after = [], []
    for b, carried in enumerate(before):
        logits_TV = []
        for tokens_BN in segments:
            logits, carried = read_segment(model, tokens_BN[b], carried)
            logits_TV += logits
        logits_BTV.append(torch.stack(logits_TV))
        after.append(carried)
    return torch.stack(logits_BTV), after


def assert_equal(
    model: Model, logits_BTV: Tensor, state: ModelState, expected: tuple[Tensor, list[Carried]], **more: Any
) -> None:
    """Logits, memory, cache and how far it is filled, and all gradients of a loss over them.

    What stands in unfilled rows is no matter.
    """
    expected_BTV, carried = expected
    for layer in state.layers:
        assert layer.filled_B.tolist() == [len(cache[0]) for _, cache in carried]
    actual, wanted = (
        [logits_BTV, state.tokens.memory_BMD],
        [expected_BTV, torch.stack([memory_MD for memory_MD, _ in carried])],
    )
    for b, (_, cache) in enumerate(carried):
        for hidden_BCD, rows in zip(caches(state), cache, strict=True):
            assert hidden_BCD.shape == (len(carried), capacity(model), model.backbone.width)
            if rows:
                actual.append(hidden_BCD[b, -len(rows) :])
                wanted.append(torch.stack(rows))
    naive.assert_same_values_and_gradients(model, actual, wanted, **more)


@pytest.mark.parametrize("option", [False, True])
@pytest.mark.parametrize("mem_len", [0, 2, LENGTH, 6])
def test_logits_state_and_gradients_equal_the_paper_formulas(mem_len: int, option: bool) -> None:
    """A cache that is absent, smaller than a segment, as large, and one that holds parts of two segments
    and fills during the second.
    """
    model, tokens_BSN = build(mem_len, option), tokens(2, 3, LENGTH)
    output = model(tokens_BSN)
    assert_equal(
        model,
        output.logits.flatten(1, 2),
        output.state,
        read_all(model, tokens_BSN.unbind(1), [fresh(model)] * 2),
    )


@pytest.mark.parametrize(
    ("changed", "lengths"),
    [
        ({"mem_len": 3, "option": True, "layers": 1, "width": 6, "heads": 1, "memory_tokens": 1}, (4, 1, 5)),
        (
            {"mem_len": 5, "option": False, "layers": 3, "width": 12, "heads": 3, "memory_tokens": 4},
            (1, 1, 3),
        ),
        ({"mem_len": 3, "option": True, "kv_heads": 1, "positions": "transformer_xl"}, (2, 3, 2)),
    ],
)
def test_other_backbones_and_segments_of_unequal_length(changed: dict, lengths: tuple[int, ...]) -> None:
    model, tokens_BT = build(**changed), tokens(2, sum(lengths))
    output = truncation.read(model, tokens_BT, lengths)
    assert_equal(
        model, output.logits, output.state, read_all(model, tokens_BT.split(lengths, 1), [fresh(model)] * 2)
    )


@pytest.mark.parametrize("option", [False, True])
def test_a_carried_state_enters_as_the_paper_says(option: bool) -> None:
    """Caches filled to nothing, in part and in full, with other documents' numbers in the unfilled rows,
    which nothing may look at.
    """
    model, tokens_BSN = build(5, option), tokens(3, 2, 3)
    memory_BMD, *hidden = naive.random_like(torch.empty(3, 2, 8), *[torch.empty(3, 5, 8)] * 2)
    memory_BMD.requires_grad_()
    filled = [0, 2, 5]
    layers = tuple(XLState(hidden_BCD, torch.tensor(filled)) for hidden_BCD in hidden)
    output = model(
        tokens_BSN, dataclasses.replace(model.init_state(3), tokens=RMTState(memory_BMD), layers=layers)
    )
    carried = [(memory_BMD[b], [list(h[b, 5 - f :]) for h in hidden]) for b, f in enumerate(filled)]
    expected = read_all(model, tokens_BSN.unbind(1), carried)
    inputs = {"inputs": [memory_BMD], "idle": ["tokens.initial_memory_MD"]}
    assert_equal(model, output.logits.flatten(1, 2), output.state, expected, **inputs)


@pytest.mark.parametrize("option", [False, True])
def test_a_row_that_is_reset_begins_with_learned_memory_and_no_cache(option: bool) -> None:
    model, tokens_BSN = build(6, option), tokens(2, 3, LENGTH)
    first = model(tokens_BSN[:, :2])
    second = model(tokens_BSN[:, 2:], first.state.reset(torch.tensor([False, True]), model.init_state(2)))
    expected_first, carried = read_all(model, tokens_BSN.unbind(1)[:2], [fresh(model)] * 2)
    expected_second, carried = read_all(model, tokens_BSN.unbind(1)[2:], [carried[0], fresh(model)])
    logits_BTV = torch.cat([first.logits, second.logits], dim=1).flatten(1, 2)
    assert_equal(
        model, logits_BTV, second.state, (torch.cat([expected_first, expected_second], dim=1), carried)
    )


@pytest.mark.parametrize("option", [False, True])
@pytest.mark.parametrize(("mem_len", "pieces"), [(0, [3, 1]), (2, [1, 3]), (6, [1, 1, 1, 1])])
def test_begin_extend_close_equal_the_paper_formulas(mem_len: int, pieces: list[int], option: bool) -> None:
    """Three segments read in pieces, with memory and cache written by `close`, values and gradients."""
    model, tokens_BSN = build(mem_len, option), tokens(2, 3, LENGTH)
    logits_BTV, state = building.read_in_pieces(model, tokens_BSN, pieces)
    assert_equal(model, logits_BTV, state, read_all(model, tokens_BSN.unbind(1), [fresh(model)] * 2))


@pytest.mark.parametrize("option", [False, True])
def test_without_a_cache_it_is_rmt(option: bool) -> None:
    """The same weights in the other model, by name, give the same logits, memory and gradients."""
    model, tokens_BSN = build(0, option), tokens(2, 3, LENGTH)
    rmt = torch.func.functional_call(
        building.build("attention", "rmt", memory_tokens=2), dict(model.named_parameters()), (tokens_BSN,)
    )
    output = model(tokens_BSN)
    assert [layer.filled_B.tolist() for layer in output.state.layers] == [[0, 0]] * 2
    naive.assert_same_values_and_gradients(
        model, [output.logits, output.state.tokens.memory_BMD], [rmt.logits, rmt.state.tokens.memory_BMD]
    )


@pytest.mark.parametrize("pieces", [None, [1, 3]])
@pytest.mark.parametrize("mem_len", [3, 6])
def test_the_cache_holds_tokens_alone(mem_len: int, pieces: list[int] | None) -> None:
    """Its lowest layer is the embeddings of the document's last tokens, to the bit:
    no memory vector takes a row of it.
    """
    model, tokens_BSN = build(mem_len, True), tokens(2, 3, LENGTH)
    state = (
        model(tokens_BSN).state if pieces is None else building.read_in_pieces(model, tokens_BSN, pieces)[1]
    )
    assert torch.equal(caches(state)[0], model.backbone.embed(tokens_BSN.flatten(1))[:, -mem_len:])
    assert not any(h.requires_grad for h in caches(state))


@pytest.mark.parametrize("option", [False, True])
@pytest.mark.parametrize("cut", [False, True])
def test_earlier_segments_learn_through_the_memory_vectors_alone(cut: bool, option: bool) -> None:
    """All segments' tokens are in the cache.

    With memory cut at the boundaries, the last loss does not reach the earlier ones.
    """
    model, ids_SN = build(6, option), torch.arange(9).view(3, 3)  # each segment reads token ids of its own
    state = model.init_state(1)
    for tokens_N in ids_SN:
        output = model.segment(tokens_N[None], state)
        state = (
            dataclasses.replace(output.state, tokens=output.state.tokens.detach()) if cut else output.state
        )
    loss = (naive.random_like(output.logits)[0] * output.logits).sum()
    (gradient_VD,) = torch.autograd.grad(loss, [model.backbone.embed.weight])
    assert [bool((gradient_VD[ids_N] != 0).any()) for ids_N in ids_SN] == [not cut, not cut, True]


@pytest.mark.parametrize("option", [False, True])
def test_weights_learn_from_the_cache(option: bool) -> None:
    """Autograd's derivatives of one segment in all weights are those by finite differences with the carried
    state held fixed.

    They are so only if the cached inputs are normalised and projected within the segment, with gradient.
    """
    model, tokens_BSN = build(6, option), tokens(1, 2, LENGTH)
    state = model(tokens_BSN[:, :1]).state.detach()
    # the carried memory is in its place
    moved = {name: p for name, p in model.named_parameters() if name != "tokens.initial_memory_MD"}

    def loss() -> Tensor:
        output = model.segment(tokens_BSN[:, 1], state)
        outputs = [output.logits, output.state.tokens.memory_BMD]
        return torch.stack(
            [(w * t).sum() for w, t in zip(naive.random_like(*outputs), outputs, strict=True)]
        ).sum()

    gradients, directions = (
        torch.autograd.grad(loss(), list(moved.values())),
        naive.random_like(*moved.values()),
    )
    for (name, parameter), gradient, direction in zip(moved.items(), gradients, directions, strict=True):
        losses, step = [], 1e-5
        for sign in (1, -1):
            with torch.no_grad():
                parameter.add_(direction, alpha=sign * step)
                losses.append(loss())
                parameter.sub_(direction, alpha=sign * step)
        slope = (losses[0] - losses[1]) / (2 * step)
        torch.testing.assert_close(
            (gradient * direction).sum(), slope, rtol=1e-5, atol=1e-6, msg=lambda m, name=name: f"{name}: {m}"
        )
