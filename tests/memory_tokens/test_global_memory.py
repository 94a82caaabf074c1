"""Global memory against the attention patterns of its papers (arXiv 2006.03274, 2004.08483), as loops."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.models.base import Model
from tests import building
from tests.building import VOCABULARY, tokens
from tests.models import naive


def build(layer_memory: str = "attention", **changed: Any) -> Model:
    return building.build(layer_memory, "global_memory", **({"memory_tokens": 2, "radius": 1} | changed))


def read_segment(model: Model, tokens_N: Tensor, radius: int | None) -> Tensor:
    """One segment of one document: the answer [V], from the class token."""
    vectors = [model.tokens.class_token_D, *model.tokens.global_MD]
    m = len(vectors)
    positions = [i - m for i in range(m + len(tokens_N))]

    def sees(query: int, key: int) -> bool:
        if query < m or key < m:  # global-to-global, global-to-long and long-to-global
            return True
        return radius is None or abs(query - key) <= radius  # long-to-long

    inputs = [*vectors, *(model.backbone.embed.weight[t] for t in tokens_N)]
    outputs, _ = naive.stack(model, inputs, positions, sees)
    return naive.head(model, outputs[0])


@pytest.mark.parametrize(
    ("batch", "segments", "length", "changed"),
    [
        (2, 2, 5, {}),
        (1, 2, 4, {"radius": 0, "memory_tokens": 1}),
        (1, 2, 4, {"radius": None, "layers": 1}),
        (2, 1, 6, {"radius": 2, "positions": "transformer_xl", "kv_heads": 1}),
    ],
)
def test_answers_and_gradients_equal_the_patterns(
    batch: int, segments: int, length: int, changed: dict[str, Any]
) -> None:
    model, tokens_BSN = build(**changed), tokens(batch, segments, length)
    radius = changed.get("radius", 1)
    right = torch.stack(
        [torch.stack([read_segment(model, t, radius) for t in document]) for document in tokens_BSN]
    )
    state = model.init_state(batch)
    output = model.recurrent(tokens_BSN, state)
    assert output.logits.shape == (batch, segments, 1, VOCABULARY) and output.state.nbytes == 0
    actual = [output.logits.squeeze(2), model.parallel(tokens_BSN, state).logits.squeeze(2)]
    naive.assert_same_values_and_gradients(model, actual, [right, right])


def test_tokens_reach_each_other_through_the_global_vectors() -> None:
    """In two layers; in one, a token only moves its neighbours and the global vectors."""
    for layers in (1, 2):
        model, tokens_BN = build(layers=layers), tokens(1, 6)
        moved_BN = tokens_BN.clone()
        moved_BN[0, 0] = (tokens_BN[0, 0] + 1) % VOCABULARY
        tops = []
        for each in (tokens_BN, moved_BN):
            x, where = model._rows(each, model.init_state(1))  # type: ignore[operator]
            tops.append(model.backbone.read("segment", x, model.backbone.init_state(1), where).top_BTD[0])
        changed = [float(d) > 1e-9 for d in (tops[0] - tops[1]).detach().abs().amax(-1)]
        assert changed == [True] * 3 + [True, True] + [layers == 2] * 4


def test_nothing_is_carried() -> None:
    model = build()
    assert not model.carries and model.parallel is not None
    assert build("infini").carries and build("infini").parallel is None  # a layer memory below it is
