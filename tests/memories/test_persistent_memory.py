"""Persistent memory against section 4 of its paper (arXiv 1907.01470), written as loops."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.models.decoder import Decoder
from tests import building
from tests.building import VOCABULARY, tokens
from tests.models import naive, naive_memory


def build(**changed: Any) -> Decoder:
    return building.decoder("persistent_memory", **({"persistent_pairs": 3} | changed))


def read_segment(model: Model, tokens_N: Tensor) -> Tensor:
    """Logits [N, V]: one softmax over the tokens so far and the learned pairs, which have no positions."""
    weights = dict(model.named_parameters())

    def attend(layer: int, queries: list, keys: list, values: list) -> list:
        name = f"backbone.blocks.{layer}.memory"
        learned_keys, learned_values = weights[f"{name}.keys_GPK"], weights[f"{name}.values_GPK"]
        pairs, width = learned_keys.shape[1:]
        found = []
        for h, of_head in enumerate(queries):
            g, outputs = h * len(keys) // len(queries), []
            M_k, M_v = math.sqrt(width) * learned_keys[g], math.sqrt(pairs) * learned_values[g]
            for i, query in enumerate(of_head):
                asks = naive_memory.placed(model, query, i)
                scores = [asks @ naive_memory.placed(model, keys[g][j], j) for j in range(i + 1)]
                scores += [query @ M_k[p] for p in range(pairs)]
                scores = [score / math.sqrt(width) for score in scores]
                outputs.append(naive_memory.weighted(scores, [*values[g][: i + 1], *M_v]))
            found.append(outputs)
        return found

    return naive_memory.read_segment(model, tokens_N, attend)


def read_all(model: Model, tokens_BSN: Tensor) -> Tensor:
    return torch.stack([torch.stack([read_segment(model, t) for t in document]) for document in tokens_BSN])


@pytest.mark.parametrize(
    ("batch", "segments", "length", "changed"),
    [
        (2, 2, 4, {}),
        (1, 3, 1, {"layers": 1, "persistent_pairs": 1, "width": 6, "heads": 1}),
        (1, 2, 3, {"heads": 4, "kv_heads": 2, "width": 16, "layers": 1}),
        (1, 2, 3, {"positions": "none", "kv_heads": 1}),
    ],
)
def test_logits_and_gradients_equal_the_paper_formulas(
    batch: int, segments: int, length: int, changed: dict[str, Any]
) -> None:
    """Whole segments, all of them at once, and in pieces."""
    model, tokens_BSN = build(**changed), tokens(batch, segments, length)
    state = model.init_state(batch)
    pieces, after = building.read_in_pieces(model, tokens_BSN, [1, length - 1] if length > 1 else [1])
    actual = [model.recurrent(tokens_BSN, state).logits, model.parallel(tokens_BSN, state).logits]
    actual.append(pieces.unflatten(1, (segments, length)))
    naive.assert_same_values_and_gradients(model, actual, [read_all(model, tokens_BSN)] * 3)
    assert after.nbytes == 0 and not model.carries


def test_pairs_begin_like_projected_rows() -> None:
    """M_k and M_v of size 1, whatever the numbers of pairs and of channels; the diagnostic says so of M_v."""
    torch.manual_seed(0)
    values = {"layer_memory": "persistent_memory", "tokens": "none", "persistent_pairs": 500, "width": 64}
    memory = compose(building.SIZES | values, VOCABULARY).backbone.memories[0]
    with torch.no_grad():
        assert float((memory.keys_GPK * 32**0.5).std()) == pytest.approx(1, abs=0.05)
        assert float((memory.values_GPK * 500**0.5).std()) == pytest.approx(1, abs=0.05)
        memory.values_GPK *= 3
        assert float(memory.diagnose()["persistent_values"]) == pytest.approx(3, abs=0.15)
