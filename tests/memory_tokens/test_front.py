"""The Memory Transformer against its definition (arXiv 2006.11527, as the RMT paper's control),
written as loops.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.models.base import Model
from memlab.models.decoder import Decoder
from tests import building
from tests.building import tokens
from tests.models import naive


def build(memory_tokens: int = 3, **sizes: Any) -> Decoder:
    return building.decoder("attention", "front", memory_tokens=memory_tokens, **sizes)


def read_segment(model: Model, tokens_N: Tensor) -> Tensor:
    """Logits [N, V] of one segment of one document: memory stands before it, and nothing else does."""
    m = len(model.tokens.memory_MD)
    rows = [("memory", i) for i in range(m)] + [("segment", i) for i in range(len(tokens_N))]

    def sees(query: int, key: int) -> bool:
        (kind, i), (of_kind, j) = rows[query], rows[key]
        return of_kind == "memory" or (kind == "segment" and j <= i)

    positions = [i - m if kind == "memory" else i for kind, i in rows]
    outputs, _ = naive.stack(
        model, [*model.tokens.memory_MD, *(model.backbone.embed.weight[t] for t in tokens_N)], positions, sees
    )
    return torch.stack([naive.head(model, y) for y in outputs[m:]])


def read_all(model: Model, tokens_BSN: Tensor) -> Tensor:
    return torch.stack([torch.stack([read_segment(model, t) for t in document]) for document in tokens_BSN])


@pytest.mark.parametrize("form", ["parallel", "recurrent"])
@pytest.mark.parametrize(
    ("batch", "segments", "length", "sizes"),
    [
        (2, 3, 5, {}),
        (3, 1, 4, {"layers": 1, "width": 6, "heads": 1, "memory_tokens": 1}),
        (1, 2, 1, {"width": 12, "heads": 3, "memory_tokens": 4}),
    ],
)
def test_logits_and_gradients_equal_the_formulas(
    form: str, batch: int, segments: int, length: int, sizes: dict
) -> None:
    model, tokens_BSN = build(**sizes), tokens(batch, segments, length)
    output = getattr(model, form)(tokens_BSN, model.init_state(batch))
    assert output.state.nbytes == 0
    naive.assert_same_values_and_gradients(model, [output.logits], [read_all(model, tokens_BSN)])


@pytest.mark.parametrize("pieces", [[5], [1, 1, 1, 1, 1], [2, 3]])
def test_begin_extend_equal_the_formulas(pieces: list[int]) -> None:
    """A segment read in pieces, for several documents, values and gradients."""
    model, tokens_BSN = build(), tokens(3, 1, 5)
    logits_BNV, _ = building.read_in_pieces(model, tokens_BSN, pieces)
    naive.assert_same_values_and_gradients(model, [logits_BNV[:, None]], [read_all(model, tokens_BSN)])
