"""How weights begin (`models/backbone.py`, `initialise`)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from memlab.models.backbone import Backbone
from memlab.models.compose import compose


def fresh(**values: Any) -> Backbone:
    torch.manual_seed(0)
    return compose(values | {"layer_memory": "attention", "tokens": "none"}, vocab_size=5).backbone


def test_weights_begin_at_the_scale_of_their_fan_in() -> None:
    """GPT-2's scheme: residual outputs smaller by sqrt(2 * layers), so that the sum over layers does not
    grow; biases 0.
    """
    torch.manual_seed(0)
    backbone = fresh(layers=8, width=64, heads=2, ffn_width=256)
    block = backbone.blocks[3]
    for weight, std in (
        (block.memory.attention.qkv.weight, 64**-0.5),
        (block.memory.attention.out.weight, 64**-0.5 / 4),
        (block.ffn.up.weight, 64**-0.5),
        (block.ffn.down.weight, 256**-0.5 / 4),
    ):
        assert weight.std().item() == pytest.approx(std, rel=0.05)
    assert not block.ffn.up.bias.any() and not block.ffn.down.bias.any()


def test_half_of_the_heads_begin_by_position_and_half_by_content() -> None:
    """Scores of the first kind depend on the distance alone where the input says nothing;
    the second kind prefers its like.
    """
    torch.manual_seed(0)
    attention = fresh(layers=1, width=32, heads=4, ffn_width=32).blocks[0].memory.attention
    query, key, _ = attention.qkv.weight.unflatten(0, (3, 4, 8))
    query_bias, key_bias, value_bias = attention.qkv.bias.unflatten(0, (3, 4, 8))
    assert torch.equal(query[2:], key[2:]) and not (query[:2] == key[:2]).any()
    assert query_bias[:2].all() and key_bias[:2].all()
    assert not query_bias[2:].any() and not key_bias[2:].any() and not value_bias.any()


def test_shared_key_heads_begin_like_the_query_heads_that_use_them() -> None:
    """Content heads: queries equal the key that they share; position heads have biases of their own."""
    attention = fresh(layers=1, width=32, heads=4, kv_heads=2, ffn_width=32).blocks[0].memory.attention
    query, key, _ = attention.qkv.weight.split([32, 16, 16])
    query, key = query.unflatten(0, (2, 2, 8)), key.unflatten(0, (2, 8))
    assert torch.equal(query[1, 0], key[1]) and torch.equal(query[1, 1], key[1])
    assert not (query[0] == key[0]).any()
    query_bias, key_bias, _ = attention.qkv.bias.split([32, 16, 16])
    assert query_bias[:16].all() and not query_bias[16:].any()
    assert key_bias[:8].all() and not key_bias[8:].any()


@pytest.mark.parametrize("untie", [False, True])
def test_distances_begin_with_the_same_random_v_in_every_layer(untie: bool) -> None:
    backbone = fresh(layers=3, width=32, heads=4, positions="transformer_xl", untie=untie)
    biases = backbone.distance_biases
    assert biases is not None and biases.shape == (3 if untie else 1, 2, 4, 8)
    assert all(torch.equal(of_layer, biases[0]) for of_layer in biases)
    content, distance = biases[0]
    assert not content.any() and distance[:2].all() and not distance[2:].any()


def test_a_tied_head_is_the_embedding_at_the_heads_scale() -> None:
    backbone = fresh(layers=1, width=64, heads=2, tied_head=True)
    assert backbone.embed.weight is backbone.head.weight
    assert backbone.embed.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)
    apart = fresh(layers=1, width=64, heads=2)
    assert apart.embed.weight is not apart.head.weight
    assert apart.embed.weight.std().item() == pytest.approx(1, rel=0.1)


def test_learned_positions_begin_at_the_scale_of_the_tied_embedding() -> None:
    backbone = fresh(layers=1, width=64, heads=2, positions="learned", max_positions=20)
    assert backbone.learned_positions is not None
    assert backbone.learned_positions.weight.std().item() == pytest.approx(64**-0.5, rel=0.1)
