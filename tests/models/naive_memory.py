"""A decoder in loops, for references of models whose memory lives in the layers: what a layer does with its
heads is the reference's own.

Like `naive.py` it takes nothing from memlab but the weights, by their names. Heads are lists of tokens'
vectors: queries [h][token], keys and values [g][token], where query head h uses key-value head h // (H / G).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn

from tests.models import naive

Heads = list[list[Tensor]]  # [head][token], each [K]
Attend = Callable[[int, Heads, Heads, Heads], Heads]  # (layer, queries, keys, values) -> heads' outputs
# (layer, normalised rows, queries) -> rows to add
Beside = Callable[[int, list[Tensor], Heads], list[Tensor]]
Sublayer = Callable[[int, list[Tensor]], list[Tensor]]  # (layer, normalised rows) -> rows


def read_segment(
    model: nn.Module,
    tokens_N: Tensor,
    attend: Attend | None = None,
    beside: Beside | None = None,
    sublayer: Sublayer | None = None,
) -> Tensor:
    """Pre-LN blocks over one segment of one document, with a reference's own attention: logits [N, V].

    Args:
        beside: what is added to the output of attention, row by row.
        sublayer: what takes the place of attention as a whole.
    """
    weights = dict(model.named_parameters())
    rows = [weights["backbone.embed.weight"][t] for t in tokens_N]
    for layer in range(len(model.backbone.blocks)):
        block = f"backbone.blocks.{layer}"
        entered = [normed(model, f"{block}.memory.norm", x) for x in rows]
        if sublayer is not None:
            changes = sublayer(layer, entered)
        else:
            assert attend is not None
            queries, keys, values = project(model, layer, entered)
            changes = joined(model, layer, attend(layer, queries, keys, values))
            if beside is not None:
                changes = [
                    one + other for one, other in zip(changes, beside(layer, entered, queries), strict=True)
                ]
        for i, change in enumerate(changes):
            x = rows[i] + change
            hidden = naive.gelu(
                weights[f"{block}.ffn.up.weight"] @ normed(model, f"{block}.ffn_norm", x)
                + weights[f"{block}.ffn.up.bias"]
            )
            rows[i] = x + weights[f"{block}.ffn.down.weight"] @ hidden + weights[f"{block}.ffn.down.bias"]
    return torch.stack([naive.head(model, normed(model, "backbone.norm", x)) for x in rows])


def normed(model: nn.Module, name: str, x_D: Tensor) -> Tensor:
    """Layer normalisation with the weights of this name."""
    weights = dict(model.named_parameters())
    return naive.layer_norm(x_D, weights[f"{name}.weight"], weights[f"{name}.bias"])


def project(model: nn.Module, layer: int, rows: list[Tensor]) -> tuple[Heads, Heads, Heads]:
    """Queries, keys and values of normalised rows."""
    weights = dict(model.named_parameters())
    heads, groups = model.backbone.heads, model.backbone.kv_heads
    name = f"backbone.blocks.{layer}.memory.attention.qkv"
    bias = weights.get(f"{name}.bias", torch.zeros(()))  # none with Transformer-XL's positions
    parts = [(weights[f"{name}.weight"] @ x + bias).view(heads + 2 * groups, -1) for x in rows]
    by_head = [[part[h] for part in parts] for h in range(heads + 2 * groups)]
    return by_head[:heads], by_head[heads : heads + groups], by_head[heads + groups :]


def joined(model: nn.Module, layer: int, attended: Heads) -> list[Tensor]:
    """The heads' outputs joined and projected, row by row."""
    out = dict(model.named_parameters())[f"backbone.blocks.{layer}.memory.attention.out.weight"]
    return [out @ torch.cat([head[i] for head in attended]) for i in range(len(attended[0]))]


def placed(model: nn.Module, x_K: Tensor, position: int) -> Tensor:
    """A query or key at its position, if positions are told by turning."""
    return naive.turn(x_K, position) if model.backbone.positions == "rope" else x_K


def local_score(
    model: nn.Module, layer: int, head: int, query_K: Tensor, key_K: Tensor, distance: int
) -> Tensor:
    """What a query gives a key so many tokens before it, both `placed`; Transformer-XL's positions are
    told here.
    """
    width = len(query_K)
    if model.backbone.positions != "transformer_xl":
        return query_K @ key_K / math.sqrt(width)
    weights = dict(model.named_parameters())
    biases = weights["backbone.distance_biases"]  # u and v of all layers, or of each
    u_K, v_K = biases[layer if len(biases) > 1 else 0, :, head]
    distance_D = naive.sinusoid(distance, model.backbone.width)
    distance_K = (weights[f"backbone.blocks.{layer}.memory.attention.distance.weight"] @ distance_D).view(
        -1, width
    )[head]
    return ((query_K + u_K) @ key_K + (query_K + v_K) @ distance_K) / math.sqrt(width)  # Transformer-XL, 3.3


def weighted(scores: Sequence[Tensor], values: Sequence[Tensor]) -> Tensor:
    """The softmax of the scores as weights of the values."""
    weight = torch.exp(torch.stack(list(scores)))
    weight = weight / weight.sum()
    return torch.stack([w * v for w, v in zip(weight.unbind(), values, strict=True)]).sum(0)


def gate(beta: Tensor) -> Tensor:
    """The logistic function."""
    return 1 / (1 + torch.exp(-beta))
