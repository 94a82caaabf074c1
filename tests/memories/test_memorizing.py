"""The Memorizing Transformer against its paper (arXiv 2203.08913, section 3), written as loops:
each query is compared with every key.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.layers.attention import KeyValues
from memlab.memories.memorizing import MemorizingState
from memlab.models.base import Model, ModelState, Output
from memlab.models.decoder import Decoder
from tests import building
from tests.building import VOCABULARY, tokens
from tests.models import naive, naive_memory

Rows = list[tuple[Tensor, Tensor]]  # (key, value) of the document's tokens, oldest first
Document = dict[str, list]  # "caches": [layer][key-value head] rows, "memory": [key-value head] rows
FORMS = pytest.mark.parametrize("form", ["recurrent", "parallel"])


def build(**options: Any) -> Decoder:
    memory = {"mem_len": 4, "memory_layer": 2, "memory_size": 7, "top_k": 2, "scale_init": 3.0}
    return building.decoder("memorizing", **(memory | options))


def looking_layers(model: Model) -> list[int]:
    """The layers with an external memory, counted from 0."""
    return [layer for layer, memory in enumerate(model.backbone.memories) if memory.memorizes]


def gate(model: Model) -> Tensor:
    """b of the layer with the external memory."""
    (layer,) = looking_layers(model)
    gate_H: Tensor = model.backbone.memories[layer].gate_H
    return gate_H


def unit(x_K: Tensor) -> Tensor:
    return x_K / (x_K * x_K).sum() ** 0.5


def look_up(query_K: Tensor, scale: Tensor, rows: Rows, k: int) -> Tensor:
    """Softmax attention over the k keys that are nearest to the query, all of them if there are fewer."""
    best = sorted(range(len(rows)), key=lambda r: float(query_K.detach() @ rows[r][0]), reverse=True)[:k]
    return naive_memory.weighted([scale * (query_K @ rows[r][0]) for r in best], [rows[r][1] for r in best])


def read_segment(model: Model, tokens_BN: Tensor, before: list[Document]) -> tuple[Tensor, list[Document]]:
    """One segment of every document: logits [B, N, V], and the caches and memories after it."""
    groups, (looking,) = model.backbone.kv_heads, looking_layers(model)
    memory = model.backbone.memories[looking]
    root = model.backbone.head_width**0.5
    logits, after = [], []
    for b, tokens_N in enumerate(tokens_BN):
        own = before[b]
        written: Document = {"caches": [], "memory": []}

        def attend(
            layer: int,
            queries: list,
            keys: list,
            values: list,
            own: Any = own,
            to: Any = written,
        ) -> list:
            looks_up = layer == looking
            if looks_up:
                queries, keys = ([[unit(x) for x in head] for head in heads] for heads in (queries, keys))
            outputs = []
            for h, of_head in enumerate(queries):
                g = h * groups // len(queries)
                cache = own["caches"][layer][g]
                local = [*cache, *zip(keys[g], values[g], strict=True)]
                placed = [naive_memory.placed(model, key, j - len(cache)) for j, (key, _) in enumerate(local)]
                outputs.append([])
                for i, query in enumerate(of_head):
                    seen = len(cache) + i + 1
                    # `local_score` divides by the root
                    scaled = query * memory.scale_H[h] * root if looks_up else query
                    asks = naive_memory.placed(model, scaled, i)
                    scores = [
                        naive_memory.local_score(model, layer, h, asks, placed[j], seen - 1 - j)
                        for j in range(seen)
                    ]
                    y_K = naive_memory.weighted(scores, [value for _, value in local[:seen]])
                    if looks_up and own["memory"][g]:
                        share = naive_memory.gate(memory.gate_H[h])
                        y_K = (
                            share * look_up(query, memory.scale_H[h], own["memory"][g], memory.top_k)
                            + (1 - share) * y_K
                        )
                    outputs[h].append(y_K)
            new = [
                [(k.detach(), v.detach()) for k, v in zip(*pair, strict=True)]
                for pair in zip(keys, values, strict=True)
            ]

            def last(old: list[Rows], size: int) -> list[Rows]:
                return [(o + n)[max(0, len(o + n) - size) :] for o, n in zip(old, new, strict=True)]

            to["caches"].append(last(own["caches"][layer], memory.mem_len))
            if looks_up:
                to["memory"] = last(own["memory"], memory.memory_size)
            return outputs

        logits.append(naive_memory.read_segment(model, tokens_N, attend))
        after.append(written)
    return torch.stack(logits), after


def begin(model: Model) -> Document:
    return {
        "caches": [[[]] * model.backbone.kv_heads for _ in model.backbone.blocks],
        "memory": [[]] * model.backbone.kv_heads,
    }


def read_all(
    model: Model, tokens_BSN: Tensor, documents: list[Document] | None = None
) -> tuple[Tensor, list[Document]]:
    if documents is None:
        documents = [begin(model) for _ in tokens_BSN]
    logits = []
    for tokens_BN in tokens_BSN.unbind(1):
        logits_BNV, documents = read_segment(model, tokens_BN, documents)
        logits.append(logits_BNV)
    return torch.stack(logits, 1), documents


def taken_apart(model: Model, state: ModelState) -> list[Document]:
    """The last rows of caches and memory are the document's, as many as it has tokens."""

    def rows(kv: KeyValues, b: int, count: int) -> list[Rows]:
        start = max(0, kv.keys_BGLK.shape[2] - count)
        keys, values = (t[b, :, start:] for t in kv.tensors())
        return [list(zip(k.unbind(), v.unbind(), strict=True)) for k, v in zip(keys, values, strict=True)]

    (looking,) = looking_layers(model)
    counts = enumerate(tokens_of(state))
    return [
        {
            "caches": [rows(layer.cache, b, n) for layer in state.layers],
            "memory": rows(state.layers[looking].memory, b, n),
        }
        for b, n in counts
    ]


def tokens_of(state: ModelState) -> list[int]:
    """The tokens that each document has had, which all layers count alike that hold anything."""
    holding = [layer for layer in state.layers if sum(t.shape[2] for t in layer.tensors()[:4])]
    of_first, *others = [layer.tokens_B.tolist() for layer in holding or state.layers]
    assert all(other == of_first for other in others)
    return of_first


def flat(documents: list[Document]) -> list[Tensor]:
    """Every stored vector, in a fixed order."""
    return [
        t
        for d in documents
        for heads in (*d["caches"], d["memory"])
        for rows in heads
        for row in rows
        for t in row
    ]


def carried(model: Model, tokens_B: list[int], stored: int) -> ModelState:
    """A state that no reading has made: random rows, the last of which are of documents of so many tokens."""
    b, groups, width = len(tokens_B), model.backbone.kv_heads, model.backbone.head_width
    layers, mem_len = model.backbone.memories, model.backbone.memories[0].mem_len
    cache, memory = (torch.empty(b, groups, rows, width) for rows in (mem_len, stored))
    random = naive.random_like(*[cache] * 2 * len(layers), *[memory] * 2)
    *caches, looked_up = (KeyValues(k, v) for k, v in zip(random[::2], random[1::2], strict=True))
    states = tuple(
        MemorizingState(
            cache, looked_up if layer.memorizes else layer.init_state(b).memory, torch.tensor(tokens_B)
        )
        for layer, cache in zip(layers, caches, strict=True)
    )
    return dataclasses.replace(model.init_state(b), layers=states)


def assert_equal(
    model: Model,
    output: Output,
    logits_BSNV: Tensor,
    documents: list[Document],
) -> None:
    """Equal logits and gradients, and everything stored is equal and has no gradient."""
    actual, expected = flat(taken_apart(model, output.state)), flat(documents)
    assert len(actual) == len(expected)
    assert not any(t.requires_grad for t in output.state.tensors())
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=1e-10, atol=1e-10)
    naive.assert_same_values_and_gradients(model, [output.logits], [logits_BSNV])


@FORMS
@pytest.mark.parametrize(
    ("batch", "segments", "length", "options"),
    [
        (2, 4, 3, {}),  # 9 tokens are read before the last segment: more than the memory has room for
        # all rows are found, softmax over them all
        (2, 3, 3, {"top_k": 50, "memory_size": 100, "memory_layer": 1}),
        (1, 4, 3, {"top_k": 1, "mem_len": 0, "memory_size": 5}),
        (3, 3, 4, {"heads": 4, "kv_heads": 1, "width": 16, "layers": 1, "memory_layer": 1, "mem_len": 3}),
        (2, 4, 1, {"width": 12, "heads": 3, "memory_size": 2, "mem_len": 2}),
        (2, 3, 2, {"positions": "none", "layers": 3, "mem_len": 1}),
        (2, 3, 3, {"positions": "transformer_xl", "mem_len": 5, "kv_heads": 1}),
        (1, 3, 4, {"memory_size": 3}),  # less room than one segment needs
    ],
)
def test_logits_stores_and_gradients_equal_the_paper_formulas(
    form: str, batch: int, segments: int, length: int, options: dict[str, Any]
) -> None:
    """No gradient passes the border of a segment, and all there is within it reaches every weight."""
    model, tokens_BSN = build(**options), tokens(batch, segments, length)
    output = getattr(model, form)(tokens_BSN, model.init_state(batch))
    assert_equal(model, output, *read_all(model, tokens_BSN))


@FORMS
@pytest.mark.parametrize(
    ("counts", "stored", "segments", "options"),
    [
        ([9, 2, 0], 7, 1, {}),
        ([9, 2, 0], 7, 3, {}),
        ([5, 3], 5, 2, {"kv_heads": 1}),  # the memory fills up on the way
        ([12, 1], 7, 2, {"mem_len": 0, "top_k": 3}),
    ],
)
def test_carried_rows_are_found_by_the_documents_that_own_them(
    form: str, counts: list[int], stored: int, segments: int, options: dict[str, Any]
) -> None:
    model, tokens_BSN = build(**options), tokens(len(counts), segments, 3)
    state = carried(model, counts, stored)
    output = getattr(model, form)(tokens_BSN, state)
    assert_equal(model, output, *read_all(model, tokens_BSN, taken_apart(model, state)))


@FORMS
def test_the_first_segment_is_local_attention_alone(form: str) -> None:
    """It is not scaled by 1 - gate: where nothing is stored, the gate has no part."""
    model, tokens_BSN = build(), tokens(2, 1, 4)
    output = getattr(model, form)(tokens_BSN, model.init_state(2))
    torch.testing.assert_close(output.logits, read_all(model, tokens_BSN)[0], rtol=1e-10, atol=1e-10)
    output.logits.square().sum().backward()
    assert gate(model).grad is None or (gate(model).grad == 0).all()
    assert all(
        p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p is not gate(model)
    )


@FORMS
@pytest.mark.parametrize("memory_size", [4, 100])
def test_one_document_begins_while_others_go_on(form: str, memory_size: int) -> None:
    """It finds nothing of the one before it, neither in the caches nor in the memory."""
    model, tokens_BSN = build(memory_size=memory_size), tokens(3, 5, 3)
    read = getattr(model, form)
    first = read(tokens_BSN[:, :2], model.init_state(3))
    rows = torch.tensor([False, True, False])
    second = read(tokens_BSN[:, 2:], first.state.reset(rows, model.init_state(3)))
    _, documents = read_all(model, tokens_BSN[:, :2])
    documents = [begin(model) if begins else old for begins, old in zip(rows, documents, strict=True)]
    assert_equal(model, second, *read_all(model, tokens_BSN[:, 2:], documents))


@FORMS
def test_where_a_query_stands_does_not_matter_to_the_memory(form: str) -> None:
    """With gates of 1 a layer gives what its memory gives: the same for the same token at every place."""
    model = build(layers=1, memory_layer=1, mem_len=0)
    with torch.no_grad():
        gate(model).fill_(60.0)
    logits_BNV = getattr(model, form)(torch.full((2, 1, 6), 4), carried(model, [7, 3], 7)).logits[:, 0]
    torch.testing.assert_close(logits_BNV, logits_BNV[:, :1].expand_as(logits_BNV), rtol=1e-10, atol=1e-10)
    assert (logits_BNV[0] - logits_BNV[1]).abs().max() > 1e-3


@FORMS
def test_a_distant_token_is_found_exactly(form: str) -> None:
    """What only the memory still has changes the present; what the memory has dropped does not."""
    model, tokens_BSN = build(layers=1, memory_layer=1, mem_len=2, memory_size=6, top_k=6), tokens(1, 4, 3)
    logits = getattr(model, form)(tokens_BSN, model.init_state(1)).logits[:, -1]
    # of the 9 before the last segment, 3 to 8 are stored and 7, 8 cached
    for token, changes in [(2, False), (3, True), (5, True)]:
        moved_BSN = tokens_BSN.clone()
        moved_BSN.flatten()[token] = (tokens_BSN.flatten()[token] + 1) % VOCABULARY
        difference = (getattr(model, form)(moved_BSN, model.init_state(1)).logits[:, -1] - logits).abs().max()
        assert (difference > 1e-6) == changes
