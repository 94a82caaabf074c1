"""A bounded cache in a model: full attention if nothing is dropped, read in pieces, with memory tokens."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.memories.cached import CachedState
from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.models.decoder import Decoder
from tests.building import SIZES, VOCABULARY, build, decoder, read_in_pieces, tokens

HEADS = {"heads": 4, "kv_heads": 2, "width": 16}
ROOMY: list[dict[str, Any]] = [
    {"name": "full"},
    {"name": "random", "budget": 18},
    {"name": "streaming", "budget": 1.0, "every": 2},
    {"name": "streaming", "budget": 1.0, "positions": "cache"},
    {"name": "streaming", "budget": 18, "positions": "cache", "every": 3},
    {"name": "h2o", "budget": 18, "every": 4},
    {"name": "l2", "budget": 18, "sinks": 3},
    {"name": "l2", "budget": 1, "after": 18},
    {"name": "tova", "budget": 1.0, "every": 1},
    {"name": "snapkv", "budget": 18, "window": 3},
]
SMALL: list[dict[str, Any]] = [
    {"name": "random", "budget": 0.4},
    {"name": "streaming", "budget": 5, "positions": "cache", "every": 2},
    {"name": "h2o", "budget": 5, "every": 4},
    {"name": "l2", "budget": 5, "skip_layers": [1]},
    {"name": "tova", "budget": 5, "every": 3},
    {"name": "snapkv", "budget": 6, "window": 3, "every": 4},
]


def label(value: Any) -> str:
    return "-".join(map(str, value.values())) if isinstance(value, dict) else str(value)


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-10)


def same(one: Model, other: Model) -> None:
    """Give one model the other's weights, which have the same names."""
    one.load_state_dict(other.state_dict())


@pytest.mark.parametrize("policy", ROOMY, ids=label)
@pytest.mark.parametrize("positions", ["rope", "learned"])
def test_with_room_for_all_it_is_full_attention(policy: dict[str, Any], positions: str) -> None:
    if policy.get("positions") == "cache" and positions == "learned":
        positions = "rope"
    options = {**HEADS, "positions": positions, "max_positions": 30 if positions == "learned" else None}
    whole, bounded = decoder("full", **options), decoder("cached", policy=policy, **options)
    same(bounded, whole)
    x = tokens(2, 3, 6)
    close(bounded(x).logits, whole(x).logits)


@pytest.mark.parametrize("policy", SMALL, ids=label)
def test_pieces_are_a_segment(policy: dict[str, Any]) -> None:
    """Also where the policy decides within a segment; what is dropped is the same."""
    model, x = decoder("cached", policy=policy, **HEADS), tokens(2, 3, 7)
    whole = model(x)
    for pieces in ([1] * 7, [2, 5], [3, 1, 3]):
        logits, state = read_in_pieces(model, x, pieces)
        close(logits, whole.logits.flatten(1, 2))
        for one, other in zip(state.tensors(), whole.state.tensors(), strict=True):
            close(one, other)


@pytest.mark.parametrize("policy", SMALL, ids=label)
def test_documents_of_a_batch_are_read_as_each_alone(policy: dict[str, Any]) -> None:
    """Documents that begin at other segments than their neighbours, so that sets differ in size."""
    model, x, begins = decoder("cached", policy=policy, **HEADS), tokens(3, 4, 5), [0, 1, 3]
    state, logits = model.init_state(3), []
    for segment, x_BN in enumerate(x.unbind(1)):
        rows = torch.tensor([segment == begin for begin in begins])
        output = model.segment(x_BN, state.reset(rows, model.init_state(3)))
        state = output.state
        logits.append(output.logits)
    for b, begin in enumerate(begins):
        close(torch.stack(logits, 1)[b, begin:], model(x[b : b + 1, begin:]).logits[0])


@pytest.mark.parametrize("read", [False, True])
@pytest.mark.parametrize("pieces", [[6], [1, 4, 1]], ids=label)
def test_memory_tokens_look_at_their_segment_after_a_decision_within_it(
    pieces: list[int], read: bool
) -> None:
    """With room for all, RMT over full attention."""
    options = {**HEADS, "memory_tokens": 3, "read_mem_from_cache": read}
    policy = {"name": "h2o", "budget": 20, "every": 2}
    whole, bounded = decoder("full", "rmt", **options), decoder("cached", "rmt", policy=policy, **options)
    same(bounded, whole)
    x = tokens(2, 3, 6)
    close(read_in_pieces(bounded, x, pieces)[0], whole(x).logits.flatten(1, 2))
    close(bounded(x).logits, whole(x).logits)


def test_an_encoder_over_a_bounded_cache() -> None:
    options = {**HEADS, "memory_tokens": 2}
    whole = build("full", "rmt_encoder", **options)
    bounded = build("cached", "rmt_encoder", policy={"name": "snapkv", "budget": 18, "window": 3}, **options)
    same(bounded, whole)
    x = tokens(2, 3, 6)
    close(bounded(x).logits, whole(x).logits)
    with pytest.raises(ConfigError, match=r"policy\.every=2 drops tokens within a segment"):
        build("cached", "rmt_encoder", policy={"name": "tova", "every": 2}, **options)


def test_memory_tokens_are_neither_kept_nor_counted() -> None:
    """What the policy sees of a segment are its tokens, whose attention also went to memory tokens."""
    model = decoder("cached", "front", policy={"name": "h2o", "budget": 9}, **HEADS, memory_tokens=3)
    state = model(tokens(1, 1, 6)).state.layers[0]
    assert state.position_BGC.tolist() == [[[0, 1, 2, 3, 4, 5, -1, -1, -1]] * 2]
    received = state.of_rows.sum_BGC.sum(-1)  # of 6 queries, and a part of it went to memory tokens
    assert (received > 0).all() and (received < 6 - 1e-3).all()


def test_gradient_passes_through_what_stays_and_only_that() -> None:
    """One layer: the loss of the second segment reaches the tokens of the first that are in the cache."""
    options: dict[str, Any] = {**HEADS, "layers": 1, "kv_heads": 4}
    model = decoder("cached", policy={"name": "tova", "budget": 3}, **options)
    x = torch.arange(6)[None]
    first = model.segment(x, model.init_state(1))
    model.segment(torch.full((1, 2), 9), first.state).logits.square().sum().backward()
    reached = model.backbone.embed.weight.grad[:6].abs().amax(1) > 0  # type: ignore[index]
    stays = set(first.state.layers[0].position_BGC.flatten().tolist())
    assert len(stays) == 3 and {t for t in range(6) if reached[t]} == stays


def test_what_is_dropped_is_freed() -> None:
    """While a document is read, the cache and one segment are held, whatever its length."""
    model = decoder("cached", policy={"name": "streaming", "budget": 6}, **HEADS)
    state, held, rows = model.init_state(1), [], 2 * 2 * 4 * 8 * len(model.backbone.memories)
    for x_BN in tokens(1, 8, 5).unbind(1):
        held.append(model.peak_bytes(x_BN, state))
        state = model.segment(x_BN, state).state
        layer = state.layers[1]
        assert isinstance(layer, CachedState)
        storage = layer.rows.keys_BGLK.untyped_storage().nbytes()
        assert storage == layer.rows.keys_BGLK.nbytes  # not a view of more
    assert len(set(held)) == 1 and held[0] < rows * (6 + 5) + 500


def test_weights_have_the_names_of_full_attention() -> None:
    whole, bounded = decoder("full"), decoder("cached", policy={"name": "h2o"})
    assert whole.state_dict().keys() == bounded.state_dict().keys()


@pytest.mark.parametrize(
    "policy", [{"name": "h2o", "budget": 4}, {"name": "random", "budget": 0.5}], ids=label
)
def test_it_trains_with_recomputation(policy: dict[str, Any]) -> None:
    """Gradients of a block that is computed twice are those of one that is computed once."""
    found = []
    for recompute in (False, True):
        model = decoder("cached", policy=policy, **HEADS)
        model.backbone.recompute = recompute
        model(tokens(2, 3, 4)).logits.square().sum().backward()
        found.append([p.grad for p in model.parameters()])
    for one, other in zip(*found, strict=True):
        close(one, other)  # type: ignore[arg-type]


def test_positions_of_transformer_xl_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.positions=transformer_xl needs keys at consecutive"):
        decoder("cached", policy={"name": "h2o"}, positions="transformer_xl")


def test_bf16_reads_nearly_the_same() -> None:
    values = {**SIZES, **HEADS, "layer_memory": "cached", "tokens": "none"}
    model = compose({**values, "policy": {"name": "streaming", "budget": 6}}, VOCABULARY)
    assert isinstance(model, Decoder)
    x = tokens(2, 3, 5)
    exact = model(x).logits
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rough = model(x).logits
    assert (rough.float() - exact).abs().max() < 0.05 * exact.abs().max()
