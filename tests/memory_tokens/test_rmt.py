"""RMT against the formulas of its paper (arXiv 2207.06881, section 3.2), written as loops."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.memory_tokens.rmt import RMTState
from memlab.models.base import Model
from memlab.models.decoder import Decoder
from tests import building
from tests.building import tokens
from tests.models import naive


def build(memory_tokens: int = 3, **options: Any) -> Decoder:
    return building.decoder("attention", "rmt", memory_tokens=memory_tokens, **options)


def read_document(model: Model, segments: list[Tensor], memory_MD: Tensor) -> tuple[list[Tensor], Tensor]:
    """One document, segment by segment: logits by token, and the memory after the last segment."""
    m, logits = len(memory_MD), []
    for tokens_N in segments:
        n = len(tokens_N)
        rows = (
            [("read", i) for i in range(m)]
            + [("segment", i) for i in range(n)]
            + [("write", i) for i in range(m)]
        )
        place = {"read": -m, "segment": 0, "write": n}  # of the first row of each kind

        def sees(query: int, key: int, rows: list = rows) -> bool:
            (kind, i), (of_kind, j) = rows[query], rows[key]
            if kind == "read":
                return of_kind == "read"
            if kind == "segment":
                return of_kind == "read" or (of_kind == "segment" and j <= i)
            return True

        # The same M vectors go in at both ends, unless write memory has vectors of its own.
        write_MD = memory_MD if model.tokens.write_memory_MD is None else model.tokens.write_memory_MD
        inputs = [*memory_MD, *(model.backbone.embed.weight[t] for t in tokens_N), *write_MD]
        # all at 0: no one turns
        positions = [place[kind] + i if model.backbone.positions != "none" else 0 for kind, i in rows]
        outputs, _ = naive.stack(model, inputs, positions, sees)
        logits += [naive.head(model, outputs[m + i]) for i in range(n)]
        # top-layer outputs, after the final normalisation, at the write positions
        memory_MD = torch.stack(outputs[m + n :])
    return logits, memory_MD


def read_all(model: Model, tokens_BSN: Tensor, memory_BMD: Tensor) -> tuple[Tensor, Tensor]:
    documents = [read_document(model, list(t), m) for t, m in zip(tokens_BSN, memory_BMD, strict=True)]
    logits_BTV, memories = (
        torch.stack([torch.stack(logits) for logits, _ in documents]),
        torch.stack([m for _, m in documents]),
    )
    return logits_BTV.unflatten(1, tokens_BSN.shape[1:]), memories


@pytest.mark.parametrize(
    ("batch", "segments", "length", "sizes"),
    [
        (2, 3, 5, {}),
        (3, 1, 4, {"layers": 1, "width": 6, "heads": 1, "memory_tokens": 1}),
        (1, 2, 1, {"width": 12, "heads": 3, "memory_tokens": 4}),
        (2, 3, 2, {"write_memory": "learned"}),
        (1, 2, 3, {"kv_heads": 1}),
        (1, 2, 3, {"positions": "transformer_xl"}),
        (1, 2, 3, {"positions": "none"}),
    ],
)
def test_logits_memory_and_gradients_equal_the_paper_formulas(
    batch: int, segments: int, length: int, sizes: dict
) -> None:
    """Over all segments, with gradient through the carried memory into the learned initial one and every
    weight.
    """
    model, tokens_BSN = build(**sizes), tokens(batch, segments, length)
    output = model(tokens_BSN)
    expected = read_all(model, tokens_BSN, model.tokens.initial_memory_MD.expand(batch, -1, -1))
    naive.assert_same_values_and_gradients(model, [output.logits, output.state.tokens.memory_BMD], expected)


def test_a_carried_memory_enters_as_the_paper_says_and_receives_gradient() -> None:
    model, tokens_BSN = build(), tokens(2, 2, 3)
    memory_BMD = naive.random_like(torch.empty(2, 3, 8))[0].requires_grad_()
    output = model(tokens_BSN, dataclasses.replace(model.init_state(2), tokens=RMTState(memory_BMD)))
    expected = read_all(model, tokens_BSN, memory_BMD)
    actual = [output.logits, output.state.tokens.memory_BMD]
    naive.assert_same_values_and_gradients(
        model, actual, expected, inputs=[memory_BMD], idle=["tokens.initial_memory_MD"]
    )


@pytest.mark.parametrize("pieces", [[5], [1, 1, 1, 1, 1], [2, 3]])
@pytest.mark.parametrize("write_memory", ["carried", "learned"])
def test_begin_extend_close_equal_the_paper_formulas(pieces: list[int], write_memory: str) -> None:
    """Two segments read in pieces, with memory written by `close`, values and gradients."""
    model, tokens_BSN = build(write_memory=write_memory), tokens(2, 2, 5)
    logits_BTV, state = building.read_in_pieces(model, tokens_BSN, pieces)
    logits_BSNV = logits_BTV.unflatten(1, (2, 5))
    expected = read_all(model, tokens_BSN, model.tokens.initial_memory_MD.expand(2, -1, -1))
    naive.assert_same_values_and_gradients(model, [logits_BSNV, state.tokens.memory_BMD], expected)
