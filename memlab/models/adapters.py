"""Where low-rank adapters go in a model; `layers/low_rank.py` has the adapter itself."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from torch import nn

from memlab.errors import ConfigError
from memlab.layers import low_rank
from memlab.models.backbone import Block
from memlab.models.base import Model
from memlab.models.choices import Target


def adapt(model: Model, rank: int, alpha: float, targets: Sequence[Target]) -> None:
    """Give projections of all blocks an adapter each.

    Args:
        rank, alpha: see `LowRank`.
        targets: q, k and v (an adapter each), out, and ffn: both of its linear layers. With
            feed_forward=swiglu, the two halves of the first one have an adapter each.

    Raises:
        ConfigError: the rank is larger than a side of a matrix.
    """
    for layer, block in enumerate(model.backbone.blocks, 1):
        for linear, parts in list(_chosen(block, targets)):
            smallest = min(linear.in_features, *(len(rows) for rows in parts.values()))
            if rank > smallest:
                name = next(n for n, rows in parts.items() if min(len(rows), linear.in_features) < rank)
                raise ConfigError(
                    f"lora.rank={rank}: the smaller side of {name} in layer {layer} is {smallest}; use at "
                    f"most that, or leave it out of lora.targets={[*targets]}"
                )
            low_rank.adapt(linear, list(parts.values()), rank, alpha)


def _chosen(block: Block, targets: Sequence[Target]) -> Iterator[tuple[nn.Linear, dict[str, range]]]:
    """The linear layers that have an adapter, and the rows of each of their adapted projections, by name."""
    attention, ffn = block.memory.attention, block.ffn
    q, kv = attention.heads * attention.head_width, attention.kv_heads * attention.head_width
    rows = {"q": range(q), "k": range(q, q + kv), "v": range(q + kv, q + 2 * kv)}
    if together := {name: part for name, part in rows.items() if name in targets}:
        yield attention.qkv, together
    if "out" in targets:
        yield attention.out, {"out": range(attention.out.out_features)}
    if "ffn" in targets:
        hidden, up = ffn.down.in_features, ffn.up.out_features
        yield ffn.up, {f"ffn up {n + 1}": range(n, n + hidden) for n in range(0, up, hidden)}
        yield ffn.down, {"ffn down": range(ffn.down.out_features)}
