"""The RMT encoder against the description in its paper (arXiv 2304.11062, section 3), written as loops."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.memory_tokens.rmt import RMTState
from memlab.models.base import Model
from memlab.training import truncation
from tests import building
from tests.building import VOCABULARY, tokens
from tests.models import naive

LENGTHS = (3, 1, 4, 4)  # of segments, where they are not all equal


def build(**changed: Any) -> Model:
    return building.build("attention", "rmt_encoder", **({"memory_tokens": 3} | changed))


def read_segment(model: Model, tokens_N: Tensor, memory_MD: Tensor) -> tuple[Tensor, Tensor]:
    """One segment of one document: what the answer would be if it ended here, [V],
    and the memory after it.
    """
    m, n = len(memory_MD), len(tokens_N)
    inputs = [model.tokens.class_token_D, *memory_MD, *(model.backbone.embed.weight[t] for t in tokens_N)]
    positions = [-1 - m, *(i - m for i in range(m)), *range(n)]
    # both directions, and all kinds of rows
    outputs, _ = naive.stack(model, inputs, positions, lambda query, key: True)
    return naive.head(model, outputs[0]), torch.stack(outputs[1 : 1 + m])


def read_document(
    model: Model, segments: Sequence[Tensor], memory_MD: Tensor, cut: int = 0
) -> tuple[list[Tensor], Tensor]:
    """Segment by segment: the answers, and the last memory; the memory that enters segment number `cut`,
    if that is not 0, is detached.
    """
    answers = []
    for s, tokens_N in enumerate(segments):
        answer_V, memory_MD = read_segment(model, tokens_N, memory_MD.detach() if 0 < cut == s else memory_MD)
        answers.append(answer_V)
    return answers, memory_MD


def read_all(
    model: Model, segments: Sequence[Tensor], memory_BMD: Tensor, depth: int | None = None
) -> tuple[Tensor, Tensor]:
    """Answers [B, S, V] and the last memory.

    With a depth k, answer s is that of a pass of its own, cut before segment s - k.
    """
    answers, memories = [], []
    for b, memory_MD in enumerate(memory_BMD):
        document = [tokens_BN[b] for tokens_BN in segments]
        answers_SV, last_MD = read_document(model, document, memory_MD)
        if depth is not None:
            answers_SV = [
                read_document(model, document[: s + 1], memory_MD, cut=s - depth)[0][-1]
                for s in range(len(document))
            ]
        answers.append(torch.stack(answers_SV))
        memories.append(last_MD)
    return torch.stack(answers), torch.stack(memories)


def initial(model: Model, batch: int) -> Tensor:
    return model.tokens.initial_memory_MD.expand(batch, -1, -1)


@pytest.mark.parametrize(
    ("batch", "segments", "length", "changed"),
    [
        (2, 3, 4, {}),
        (3, 1, 3, {"layers": 1, "width": 6, "heads": 1, "memory_tokens": 1}),
        (1, 2, 1, {"layers": 3, "width": 12, "heads": 3, "memory_tokens": 4}),
        (1, 2, 3, {"kv_heads": 1, "positions": "transformer_xl"}),
    ],
)
def test_answers_memory_and_gradients_equal_the_papers_description(
    batch: int, segments: int, length: int, changed: dict
) -> None:
    """One answer after each segment, with gradient through the carried memory into the learned initial one
    and every weight.
    """
    model, tokens_BSN = build(**changed), tokens(batch, segments, length)
    output = model(tokens_BSN)
    assert output.logits.shape == (batch, segments, 1, VOCABULARY)
    expected = read_all(model, tokens_BSN.unbind(1), initial(model, batch))
    naive.assert_same_values_and_gradients(
        model, [output.logits.squeeze(2), output.state.tokens.memory_BMD], expected
    )


def test_a_carried_memory_enters_as_the_paper_says_and_receives_gradient() -> None:
    model, tokens_BSN = build(), tokens(2, 2, 3)
    memory_BMD = naive.random_like(torch.empty(2, 3, 8))[0].requires_grad_()
    output = model(tokens_BSN, dataclasses.replace(model.init_state(2), tokens=RMTState(memory_BMD)))
    expected = read_all(model, tokens_BSN.unbind(1), memory_BMD)
    actual = [output.logits.squeeze(2), output.state.tokens.memory_BMD]
    naive.assert_same_values_and_gradients(
        model, actual, expected, inputs=[memory_BMD], idle=["tokens.initial_memory_MD"]
    )


def test_a_row_that_is_reset_begins_with_the_learned_memory() -> None:
    model, tokens_BSN = build(), tokens(2, 3, 3)
    first = model(tokens_BSN[:, :2])
    second = model(tokens_BSN[:, 2:], first.state.reset(torch.tensor([False, True]), model.init_state(2)))
    expected_first, memory_BMD = read_all(model, tokens_BSN.unbind(1)[:2], initial(model, 2))
    memory_BMD = torch.stack([memory_BMD[0], model.tokens.initial_memory_MD])
    expected_second, memory_BMD = read_all(model, tokens_BSN.unbind(1)[2:], memory_BMD)
    logits_BSV = torch.cat([first.logits, second.logits], dim=1).squeeze(2)
    expected = [torch.cat([expected_first, expected_second], dim=1), memory_BMD]
    naive.assert_same_values_and_gradients(model, [logits_BSV, second.state.tokens.memory_BMD], expected)


@pytest.mark.parametrize("depth", [0, 1, len(LENGTHS) - 1, None])
def test_segments_of_unequal_length_and_a_back_propagation_depth(depth: int | None) -> None:
    """One answer for each segment, whatever its length; gradients are the sum of each answer's own pass,
    cut k segments before it.
    """
    model, tokens_BT = build(), tokens(2, sum(LENGTHS))
    output = truncation.read(model, tokens_BT, LENGTHS, depth=depth)
    assert output.logits.shape == (2, len(LENGTHS), VOCABULARY)
    logits_BSV, memory_BMD = read_all(model, tokens_BT.split(LENGTHS, 1), initial(model, 2), depth)
    whole = depth is None or depth == len(LENGTHS) - 1  # or else the state that comes back is cut
    expected = [logits_BSV, memory_BMD if whole else memory_BMD.detach()]
    naive.assert_same_values_and_gradients(model, [output.logits, output.state.tokens.memory_BMD], expected)


@pytest.mark.parametrize("only_last", [False, True])
@pytest.mark.parametrize("depth", [0, 1, 2, None])
def test_horizon_of_the_answer_on_the_input_embeddings(depth: int | None, only_last: bool) -> None:
    """The last answer, of segment s, reaches each token of the segments s-k .. s,
    and those before them with a gradient of exactly 0.
    """
    model, ids_T = build(), torch.arange(sum(LENGTHS))  # each token has an id of its own
    wanted = [not only_last] * (len(LENGTHS) - 1) + [True]
    logits_BSV = truncation.read(model, ids_T[None], LENGTHS, depth=depth, wanted=wanted).logits
    loss = (naive.random_like(logits_BSV[:, -1])[0] * logits_BSV[:, -1]).sum()
    (gradient_VD,) = torch.autograd.grad(loss, [model.backbone.embed.weight])
    reached = [(gradient_VD[ids] != 0).any(-1) for ids in ids_T.split(LENGTHS)]
    first = 0 if depth is None else len(LENGTHS) - 1 - depth
    assert [r.tolist() for r in reached] == [[s >= first] * n for s, n in enumerate(LENGTHS)]


def test_every_row_looks_at_every_row() -> None:
    """In one layer, whichever token of a segment changes: the answer, in front of it,
    and every memory vector move.
    """
    model, tokens_BN = build(layers=1), tokens(1, 4)
    before = model.segment(tokens_BN, model.init_state(1))
    for t in range(4):
        moved_BN = tokens_BN.clone()
        moved_BN[:, t] = (moved_BN[:, t] + 1) % VOCABULARY
        after = model.segment(moved_BN, model.init_state(1))
        assert (after.logits - before.logits).abs().max() > 1e-6
        assert ((after.state.tokens.memory_BMD - before.state.tokens.memory_BMD).abs().amax(-1) > 1e-6).all()
