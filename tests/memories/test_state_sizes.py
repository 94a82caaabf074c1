"""State sizes at the Infini paper's configuration (arXiv 2404.07143, tables 1 and 2), counted on real states,
in elements per document.

12 layers, 8 heads of 128, segments of 2,048 tokens. The models are on torch's meta device: shapes without
data.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch

from memlab.layers.state import State
from memlab.models.base import ModelState
from memlab.models.compose import compose
from memlab.models.decoder import Decoder
from memlab.ops import nearest

pytestmark = pytest.mark.xdist_group(__name__)  # what its tests share is made once

SEGMENT = 2048
BACKBONE: dict[str, Any] = {"layers": 12, "width": 1024, "heads": 8}
WINDOW = 2 * 8 * 128 * 2048 * 12  # keys and values of 2,048 tokens in all layers: 50M in table 2


@pytest.fixture(autouse=True, scope="module")
def meta() -> Iterator[None]:
    with torch.device("meta"), torch.no_grad(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest, "_SCORES", 1 << 60)  # it holds no scores either, so one chunk will do
        yield


@pytest.fixture(scope="module")
def infini() -> ModelState:
    """After a document of two segments."""
    return read(build("infini"), 2)


@pytest.fixture(scope="module")
def memorizing() -> ModelState:
    """After 65,536 tokens, more than the memory has room for."""
    options = {"mem_len": SEGMENT, "memory_layer": 9, "memory_size": 65_000, "top_k": 32}
    return read(build("memorizing", **options), 32)


def build(layer_memory: str, tokens: str = "none", **options: Any) -> Decoder:
    values = {**BACKBONE, "layer_memory": layer_memory, "tokens": tokens, **options}
    model = compose(values, vocab_size=32_000)
    assert isinstance(model, Decoder)
    return model


def read(model: Decoder, segments: int) -> ModelState:
    state: ModelState = model(torch.zeros(1, segments, SEGMENT, dtype=torch.long)).state
    return state


def elements(*states: State) -> int:
    """The numbers in these states, without the counters of tokens."""
    return sum(t.numel() for state in states for t in state.tensors() if t.is_floating_point())


def test_infini(infini: ModelState) -> None:
    """Table 1: d_key (d_value + 1) H l."""
    assert elements(infini) == 128 * 129 * 8 * 12 == 1_585_152


def test_memorizing(memorizing: ModelState) -> None:
    """One memory of 65,000 keys and values, and the cache of every layer: 183M in table 2."""
    assert elements(*(layer.memory for layer in memorizing.layers)) == 2 * 8 * 128 * 65_000 == 133_120_000
    assert elements(*(layer.cache for layer in memorizing.layers)) == WINDOW == 50_331_648
    assert elements(memorizing) == 183_451_648


def test_infini_is_114_times_smaller_than_memorizing(infini: ModelState, memorizing: ModelState) -> None:
    """The paper divides rounded numbers, 183 by 1.6; unrounded it is 115.7."""
    assert elements(memorizing) / elements(infini) == pytest.approx(115.7, abs=0.05)
    assert elements(memorizing) / elements(infini) >= 114


def test_transformer_xl() -> None:
    """The paper counts keys and values, as they are attended to.

    What is carried are hidden states, half as many numbers.
    """
    model = build("transformer_xl", positions="transformer_xl", mem_len=SEGMENT)
    state = read(model, 2)
    assert elements(*(layer.seen for layer in model.begin(state).layers)) == WINDOW == 50_331_648
    assert elements(state) == 1024 * SEGMENT * 12 == 25_165_824


def test_rmt() -> None:
    """The paper counts keys and values of the memory in every layer, 2.5M. What is carried are the vectors
    that make them.
    """
    model = build("attention", "rmt", memory_tokens=100)
    state = read(model, 1)
    assert elements(*model.begin(state).layers) == 2 * 1024 * 100 * 12 == 2_457_600
    assert elements(state) == 1024 * 100 == 102_400
