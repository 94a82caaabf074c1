"""Transformer-XL against the formulas of its paper (arXiv 1901.02860, sections 3.2 and 3.3),
written as loops.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.memories.transformer_xl import XLState
from memlab.models.base import Model, ModelState
from memlab.models.decoder import Decoder
from tests import building
from tests.building import tokens
from tests.models import naive

WIDTH, LAYERS = 8, 2
Memory = list[list[Tensor]]  # of one document: by layer, the rows [D] that are kept
OPTIONS: dict[str, Any] = {
    "heads": 2,
    "kv_heads": None,
    "positions": "transformer_xl",
    "mem_len": 3,
    "eval_mem_len": None,
    "same_length": False,
    "clamp_len": None,
    "untie": False,
}
CASES: dict[str, dict[str, Any]] = {  # segments have 3 tokens
    "default": {},
    "no memory": {"mem_len": 0},
    "memory smaller than the segment": {"mem_len": 2},
    "memory of one row": {"mem_len": 1},
    "memory larger than the segment": {"mem_len": 4},
    "memory larger than two segments": {"mem_len": 7},
    "untie": {"untie": True},
    "clamp_len": {"clamp_len": 2},
    "clamp_len, untie": {"clamp_len": 4, "untie": True, "mem_len": 5},
    "same_length": {"same_length": True},
    "same_length, memory smaller": {"same_length": True, "mem_len": 2},
    "same_length, memory larger": {"same_length": True, "mem_len": 5, "clamp_len": 3},
    "shared key-value head": {"kv_heads": 1},
    "two shared key-value heads": {"heads": 4, "kv_heads": 2, "untie": True},
    "rope": {"positions": "rope"},
    "rope, memory smaller": {"positions": "rope", "mem_len": 2, "same_length": True},
    "rope, memory larger": {"positions": "rope", "mem_len": 5, "kv_heads": 1},
    "none": {"positions": "none"},
    "none, memory larger": {"positions": "none", "mem_len": 5, "same_length": True},
}


def build(**changed: Any) -> Decoder:
    return building.decoder("transformer_xl", **(OPTIONS | changed))


def nothing() -> Memory:
    return [[] for _ in range(LAYERS)]


def last(rows: list, count: int) -> list:
    return rows[max(len(rows) - count, 0) :]


def read_document(
    model: Model, segments: list[Tensor], memory: Memory, mem_len: int, changed: dict[str, Any]
) -> tuple[list[Tensor], Memory]:
    """One document, segment by segment: logits by token, and the memory after the last segment."""
    options, memory, logits = OPTIONS | changed, list(memory), []

    def sees(query: int, key: int) -> bool:
        return query - mem_len < key <= query if options["same_length"] else key <= query

    for tokens_N in segments:
        rows = [model.backbone.embed.weight[t] for t in tokens_N]
        for layer in range(LAYERS):
            before = last(memory[layer], mem_len)
            looked_at = [*before, *rows]  # h~ = [SG(m) ; h]
            memory[layer] = last([x.detach() for x in looked_at], mem_len)
            # A turn by 0 leaves a vector as it is. The count of positions may begin anywhere.
            places = [0 if options["positions"] == "none" else 5 + i for i in range(len(looked_at))]
            rows, _, _ = naive.block(model, layer, looked_at, places, sees, len(before), options["clamp_len"])
        logits += [naive.head(model, naive.final_norm(model, x)) for x in rows]
    return logits, memory


def read_all(
    model: Model, tokens_BSN: Tensor, memories: list[Memory], mem_len: int, changed: dict[str, Any]
) -> tuple[Tensor, list[Memory]]:
    """Each document by itself: logits [B, S, N, V], and their memories."""
    pairs = zip(tokens_BSN, memories, strict=True)
    documents = [read_document(model, list(t), memory, mem_len, changed) for t, memory in pairs]
    logits_BTV = torch.stack([torch.stack(logits) for logits, _ in documents])
    return logits_BTV.unflatten(1, tokens_BSN.shape[1:]), [memory for _, memory in documents]


def kept(state: ModelState) -> list[Tensor]:
    """For each document and layer, the rows of the memory that are its own, one under the other."""
    return [
        layer.hidden_BCD[b, layer.hidden_BCD.shape[1] - layer.filled_B[b] :]
        for b in range(state.batch_size)
        for layer in state.layers
    ]


def filled(state: ModelState) -> list[int]:
    """How many rows of each document's memory are its own, which all layers count alike."""
    of_first, *others = [layer.filled_B.tolist() for layer in state.layers]
    assert all(other == of_first for other in others)
    return of_first


def rows_of(memories: list[Memory]) -> list[Tensor]:
    """The same of the loops' memories."""
    return [
        torch.stack(rows) if rows else torch.empty(0, WIDTH, dtype=torch.float64)
        for memory in memories
        for rows in memory
    ]


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize("changed", CASES.values(), ids=CASES.keys())
def test_logits_memory_and_gradients_equal_the_paper_formulas(changed: dict[str, Any], form: str) -> None:
    """Every parameter learns from the memory's rows too, but for the computation that made them:
    that is cut off.
    """
    model, tokens_BSN = build(**changed), tokens(1, 3, 3)
    output = getattr(model, form)(tokens_BSN, model.init_state(1))
    mem_len = (OPTIONS | changed)["mem_len"]
    expected, memories = read_all(model, tokens_BSN, [nothing()], mem_len, changed)
    naive.assert_same_values_and_gradients(
        model, [output.logits, *kept(output.state)], [expected, *rows_of(memories)]
    )
    assert filled(output.state) == [min(9, mem_len)]


@pytest.mark.parametrize(("batch", "segments", "length"), [(2, 4, 1), (3, 1, 4), (2, 3, 2), (1, 2, 5)])
@pytest.mark.parametrize("form", ["parallel", "recurrent"])
def test_segments_of_any_size_equal_the_paper_formulas(
    form: str, batch: int, segments: int, length: int
) -> None:
    model, tokens_BSN = build(), tokens(batch, segments, length)
    output = getattr(model, form)(tokens_BSN, model.init_state(batch))
    expected, memories = read_all(model, tokens_BSN, [nothing() for _ in range(batch)], 3, {})
    naive.assert_same_values_and_gradients(
        model, [output.logits, *kept(output.state)], [expected, *rows_of(memories)]
    )


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize(
    "changed", [{}, {"same_length": True}, {"positions": "rope"}, {"positions": "none"}], ids=str
)
def test_only_the_rows_that_a_document_has_filled_are_its_memory(changed: dict[str, Any], form: str) -> None:
    """What stands in the others is of no meaning; here it is large."""
    model, tokens_BSN, rows = build(mem_len=4, **changed), tokens(4, 2, 3), [0, 1, 3, 4]
    hidden = naive.random_like(*[torch.empty(4, 4, WIDTH)] * LAYERS)
    for hidden_BCD in hidden:
        for b, f in enumerate(rows):
            hidden_BCD[b, : 4 - f] *= 100
    layers = tuple(XLState(hidden_BCD, torch.tensor(rows)) for hidden_BCD in hidden)
    state = dataclasses.replace(model.init_state(4), layers=layers)
    output = getattr(model, form)(tokens_BSN, state)
    memories = [[list(hidden_BCD[b, 4 - f :]) for hidden_BCD in hidden] for b, f in enumerate(rows)]
    expected, memories = read_all(model, tokens_BSN, memories, 4, changed)
    naive.assert_same_values_and_gradients(
        model, [output.logits, *kept(output.state)], [expected, *rows_of(memories)]
    )
    assert filled(output.state) == [4] * 4


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize(
    "changed",
    [{"same_length": True, "mem_len": 2}, {"clamp_len": 3, "mem_len": 5}, {"positions": "rope"}],
    ids=str,
)
def test_documents_that_begin_anew_see_nothing_of_the_ones_before(changed: dict[str, Any], form: str) -> None:
    """Rows of the batch start new documents at different segments; each document is read as if alone,
    values and gradients.
    """
    model, tokens_BSN, mem_len = build(**changed), tokens(3, 5, 3), (OPTIONS | changed)["mem_len"]
    begins = {0: [True, True, True], 1: [False, True, False], 3: [True, True, False]}  # by segment: rows
    state, logits = model.init_state(3), []
    for (start, anew), end in zip(begins.items(), [*list(begins)[1:], 5], strict=True):
        output = getattr(model, form)(
            tokens_BSN[:, start:end], state.reset(torch.tensor(anew), model.init_state(3))
        )
        state = output.state
        logits.append(output.logits)
    rows, memories = [], []
    for b in range(3):
        starts = [s for s, anew in begins.items() if anew[b]]
        documents = [
            read_document(model, list(tokens_BSN[b, s:e]), nothing(), mem_len, changed)
            for s, e in zip(starts, [*starts[1:], 5], strict=True)
        ]
        rows.append(
            torch.cat([torch.stack(of_document) for of_document, _ in documents]).unflatten(0, (5, 3))
        )
        memories.append(documents[-1][1])
    actual, expected = [torch.cat(logits, dim=1), *kept(state)], [torch.stack(rows), *rows_of(memories)]
    naive.assert_same_values_and_gradients(model, actual, expected)
    assert filled(state) == [min(6, mem_len), min(6, mem_len), min(15, mem_len)]


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize("modes", [["eval"], ["train", "eval"], ["eval", "train"]], ids="-".join)
@pytest.mark.parametrize("changed", [{}, {"same_length": True}], ids=str)
def test_evaluation_may_have_a_memory_of_its_own_length(
    changed: dict[str, Any], modes: list[str], form: str
) -> None:
    """Two segments in each mode.

    A state that was written in the other mode is cut, or fills up as reading goes on.
    """
    changed = {"mem_len": 2, "eval_mem_len": 5, **changed}
    model = build(**changed)
    tokens_BSN = tokens(1, 2 * len(modes), 3)
    memories, state = [nothing()], model.train(modes[0] == "train").init_state(1)
    logits, expected, rows = [], [], 0
    for part, mode in zip(tokens_BSN.split(2, dim=1), modes, strict=True):
        output = getattr(model.train(mode == "train"), form)(part, state)
        state, mem_len = output.state, 2 if mode == "train" else 5
        logits.append(output.logits)
        part_BSNV, memories = read_all(model, part, memories, mem_len, changed)
        expected.append(part_BSNV)
        rows = min(rows + 6, mem_len)
        assert filled(state) == [rows]
        assert all(layer.hidden_BCD.shape == (1, mem_len, WIDTH) for layer in state.layers)
    actual = [torch.cat(logits, dim=1), *kept(state)]
    naive.assert_same_values_and_gradients(model, actual, [torch.cat(expected, dim=1), *rows_of(memories)])


@pytest.mark.parametrize("pieces", [[4], [1, 1, 1, 1], [3, 1]])
@pytest.mark.parametrize(
    "changed",
    [
        {},
        {"same_length": True, "clamp_len": 2},
        {"mem_len": 6, "untie": True, "kv_heads": 1},
        {"positions": "rope"},
    ],
    ids=str,
)
def test_begin_extend_close_equal_the_paper_formulas(changed: dict[str, Any], pieces: list[int]) -> None:
    """Two segments read in pieces, with memory written by `close`, values and gradients."""
    model, tokens_BSN, mem_len = build(**changed), tokens(2, 2, 4), (OPTIONS | changed)["mem_len"]
    logits_BTV, state = building.read_in_pieces(model, tokens_BSN, pieces)
    expected, memories = read_all(model, tokens_BSN, [nothing(), nothing()], mem_len, changed)
    actual = [logits_BTV.unflatten(1, (2, 4)), *kept(state)]
    naive.assert_same_values_and_gradients(model, actual, [expected, *rows_of(memories)])
