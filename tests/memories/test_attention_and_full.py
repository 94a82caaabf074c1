"""The Transformer without memory against plain causal attention, written as loops: over each segment,
or over the whole document.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.models.base import Model, ModelState
from memlab.models.decoder import Decoder
from tests import building
from tests.building import tokens
from tests.models import naive

SIZES = [
    (2, 3, 5, {}),
    (3, 1, 4, {"layers": 1, "width": 6, "heads": 1}),
    (1, 3, 1, {"width": 12, "heads": 3}),
]


def build(memory: str, **sizes: Any) -> Decoder:
    return building.decoder(memory, **sizes)


def read_causally(model: Model, tokens_T: Tensor) -> tuple[Tensor, list[Tensor]]:
    """T tokens at positions 0 .. T - 1, each seeing all before it and itself: logits [T, V],
    then keys and values [H, T, K] by layer.
    """
    outputs, kept = naive.stack(
        model,
        [model.backbone.embed.weight[t] for t in tokens_T],
        range(len(tokens_T)),
        lambda query, key: key <= query,
    )
    cache = [
        torch.stack([torch.stack(head) for head in part]) for keys_values in kept for part in keys_values
    ]
    return torch.stack([naive.head(model, y) for y in outputs]), cache


def tensors(state: ModelState) -> list[Tensor]:
    return [t for layer in state.layers for t in layer.rows.tensors()]


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize(("batch", "segments", "length", "sizes"), SIZES)
def test_attention_is_causal_attention_within_each_segment(
    form: str, batch: int, segments: int, length: int, sizes: dict
) -> None:
    model, tokens_BSN = build("attention", **sizes), tokens(batch, segments, length)
    output = getattr(model, form)(tokens_BSN, model.init_state(batch))
    assert output.state.nbytes == 0
    expected = torch.stack(
        [torch.stack([read_causally(model, t)[0] for t in document]) for document in tokens_BSN]
    )
    naive.assert_same_values_and_gradients(model, [output.logits], [expected])


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize(("batch", "segments", "length", "sizes"), SIZES)
def test_full_is_causal_attention_over_the_joined_segments(
    form: str, batch: int, segments: int, length: int, sizes: dict
) -> None:
    """Logits, every layer's keys and values, and the gradients of all of them."""
    model, tokens_BSN = build("full", **sizes), tokens(batch, segments, length)
    output = getattr(model, form)(tokens_BSN, model.init_state(batch))
    logits, caches = zip(*[read_causally(model, document.flatten()) for document in tokens_BSN], strict=True)
    cache = [torch.stack(part) for part in zip(*caches, strict=True)]
    expected = torch.stack(logits).unflatten(1, (segments, length))
    naive.assert_same_values_and_gradients(model, [output.logits, *tensors(output.state)], [expected, *cache])
    for layer in output.state.layers:
        assert layer.length_B.tolist() == [segments * length] * batch


@pytest.mark.parametrize("pieces", [[4], [1, 1, 1, 1], [3, 1]])
@pytest.mark.parametrize("memory", ["attention", "full"])
def test_begin_extend_close_equal_the_loops(memory: str, pieces: list[int]) -> None:
    """Two segments read in pieces, values and gradients."""
    model, tokens_BSN = build(memory), tokens(2, 2, 4)
    logits_BTV, _ = building.read_in_pieces(model, tokens_BSN, pieces)
    whole = tokens_BSN.flatten(1)[:, None] if memory == "full" else tokens_BSN
    expected = torch.stack(
        [torch.cat([read_causally(model, part)[0] for part in document]) for document in whole]
    )
    naive.assert_same_values_and_gradients(model, [logits_BTV], [expected])


def test_full_documents_that_begin_anew_see_nothing_of_the_ones_before() -> None:
    """Rows of the batch start new documents at different segments; each document is read as if alone,
    values and gradients.
    """
    model, tokens_BSN = build("full"), tokens(3, 4, 3)
    # segment by segment, rows
    begins = [[True, True, True], [False, True, False], [False, False, False], [True, True, False]]
    state, logits = model.init_state(3), []
    for tokens_BN, anew in zip(tokens_BSN.unbind(1), begins, strict=True):
        output = model.segment(tokens_BN, state.reset(torch.tensor(anew), model.init_state(3)))
        state = output.state
        logits.append(output.logits)
    rows = []
    for b in range(3):
        starts = [s for s in range(4) if begins[s][b]]
        documents = [tokens_BSN[b, s:e].flatten() for s, e in zip(starts, [*starts[1:], 4], strict=True)]
        rows.append(torch.cat([read_causally(model, document)[0] for document in documents]))
    naive.assert_same_values_and_gradients(model, [torch.cat(logits, dim=1)], [torch.stack(rows)])
    assert [layer.length_B.tolist() for layer in state.layers] == [[3, 3, 12]] * 2
