"""Pre-LN Transformer blocks, and a stack of them that reads a segment at once or piece by piece.

Shapes: B batch, H heads, T tokens that are read now, P tokens read before (past), D width, K head width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memlab.layers.attention import ALL, Attention, KeyValues
from memlab.layers.distances import Relative
from memlab.layers.positions import Rotation, rotation
from memlab.layers.state import State

Kept = TypeVar("Kept", bound=State)
Attend = Callable[["Block", Tensor], tuple[Tensor, Kept]]  # a layer's attention: what comes out for [B, T, D], and what is kept of it


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)): pre-layer-normalisation (arXiv 2002.04745)."""

    def __init__(self, attention: Attention, ffn_width: int, dropout: float) -> None:
        super().__init__()
        width = attention.out.in_features
        self.attention_norm = nn.LayerNorm(width)
        self.attention = attention
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, ffn_width), nn.GELU(), nn.Linear(ffn_width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, attend: Attend[Kept], rows: slice = ALL) -> tuple[Tensor, Kept]:
        """`attend` is given this block and its input: memories that live in a layer differ there and nowhere else.

        Args:
            rows: the tokens that `attend` gives something for, and which come out.
        """
        y, kept = attend(self, x_BTD)
        x_BTD = (x_BTD if rows == ALL else x_BTD[:, rows]) + self.dropout(y)
        return x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD))), kept

    def project(self, x_BTD: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`Attention.project` of the block's input."""
        return self.attention.project(self.attention_norm(x_BTD), turn)

    def project_twice(self, x_BTD: Tensor, turn: Rotation | None = None) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """`Attention.project_twice` of the block's input."""
        return self.attention.project_twice(x_BTD, self.attention_norm, turn)

    def keys_values(self, x_BTD: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor]:
        """`Attention.keys_values` of the block's input."""
        return self.attention.keys_values(self.attention_norm(x_BTD), turn)


class Stack(nn.Module):
    """The blocks of a model and the normalisation behind the last of them.

    Args:
        layers, width, heads, ffn_width, dropout, kv_heads, positions: of the blocks.
    """

    def __init__(
        self,
        layers: int,
        width: int,
        heads: int,
        ffn_width: int,
        dropout: float,
        kv_heads: int | None = None,
        positions: str = "rope",
    ) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads or heads, width // heads
        self.positions = positions
        self.clamp_len: int | None = None
        # u and v of Transformer-XL, shared by all layers as in its PyTorch code; [layers, 2, H, K] if each layer has its own.
        self.distance_biases = nn.Parameter(torch.empty(1, 2, heads, self.head_width)) if positions == "transformer_xl" else None
        self.blocks = nn.ModuleList(Block(Attention(width, heads, kv_heads, positions), ffn_width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.recompute = False  # whether a block's activations are made again for the gradient, and only its input is kept

    def untie_distance_biases(self) -> None:
        """Give each layer its own u and v, equal to begin with (`untie_r` of the published code)."""
        if self.distance_biases is not None:
            self.distance_biases = nn.Parameter(self.distance_biases.detach().repeat(len(self.blocks), 1, 1, 1))

    def turn(self, positions: Tensor, dtype: torch.dtype) -> Rotation | None:
        """The rotation of tokens at these positions, [T] or [B, T]; None if positions are not told by turning."""
        if self.positions != "rope":
            return None
        return rotation(positions, self.head_width, dtype=torch.promote_types(dtype, torch.float32))

    def relative(self, layer: int) -> Relative | None:
        """What a layer scores distances with; None if positions are not told so."""
        if self.distance_biases is None:
            return None
        content, distance = self.distance_biases[layer if len(self.distance_biases) > 1 else 0]
        return Relative(content, distance, self.clamp_len)

    def through(self, x_BTD: Tensor, attends: Iterable[Attend[Kept]], rows: slice = ALL) -> tuple[Tensor, tuple[Kept, ...]]:
        """All blocks, each with its own way to attend: normalised top-layer outputs [B, T, D], and what each layer keeps.

        Args:
            rows: the tokens whose top-layer output is wanted; the last of `attends` gives something for them alone.
        """
        seen = []
        for layer, (block, attend) in enumerate(zip(self.blocks, attends, strict=True)):
            arguments = (x_BTD, attend, self.rows(layer, rows))
            if self.recompute and torch.is_grad_enabled():
                x_BTD, kept = checkpoint(block, *arguments, use_reentrant=False)
            else:
                x_BTD, kept = block(*arguments)
            seen.append(kept)
        return self.norm(x_BTD), tuple(seen)

    def rows(self, layer: int, wanted: slice) -> slice:
        """The tokens that a layer has to give something for, if those are wanted of the top layer: below it, others look at all."""
        return wanted if layer == len(self.blocks) - 1 else ALL

    def forward(
        self,
        x_BTD: Tensor,
        positions: Tensor,
        mask: Tensor | None = None,
        past: tuple[KeyValues, ...] = (),
        rows: slice = ALL,
    ) -> tuple[Tensor, tuple[KeyValues, ...]]:
        """Read T tokens with plain attention over [past ; own].

        Args:
            x_BTD: inputs.
            positions: the tokens' integer positions, [T] or [B, T], consecutive.
            mask: bool, True = may look, broadcastable to [B, H, T, P + T]; None = causal over [past ; own].
            past: keys and values read before, one entry for each layer; () if none.
            rows: the tokens whose output is wanted. The top layer then does without the queries of the others.

        Returns:
            The normalised top-layer outputs [B, T, D], or as many of the T as `rows` has; keys and values of [past ; own] of each layer.
        """
        turn = self.turn(positions, x_BTD.dtype)

        def plain(layer: int) -> Attend[KeyValues]:
            def attend(block: Block, x_BTD: Tensor) -> tuple[Tensor, KeyValues]:
                before = past[layer] if past else None
                return block.attention(block.attention_norm(x_BTD), turn, mask, before, self.relative(layer), self.rows(layer, rows))

            return attend

        return self.through(x_BTD, map(plain, range(len(self.blocks))), rows)


def initialise(module: nn.Module, layers: int) -> None:
    """GPT-2's initialisation at any width, and attention heads of two kinds to begin with.

    Weights are N(0, 1/fan_in), residual outputs are scaled by 1/sqrt(2 layers), biases are zero, but for attention: half of the
    key-value heads (rounded down) and their queries look by position (random query and key biases: their product, turned by the
    rotation, depends on the distance alone; with Transformer-XL's positions, a random v), the others by content (the key projection
    equals the query projection, so that a token is drawn to its like). Training moves both freely. Without it a token's neighbour and
    its like have to be found together, and associative retrieval stays at 1/K for thousands of steps (docs/LOG.md, 2026-11-22; in the
    spirit of "mimetic" initialisation, arXiv 2305.09828 and 2410.11135).
    """
    for name, child in module.named_modules():
        if isinstance(child, nn.Linear):
            std = child.in_features**-0.5
            if name.endswith(("attention.out", "ffn.2")):
                std /= math.sqrt(2 * layers)
            nn.init.normal_(child.weight, std=std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    for child in module.modules():
        if isinstance(child, Attention):
            child.initialise_heads()
        if isinstance(child, Stack) and child.distance_biases is not None:
            with torch.no_grad():
                child.distance_biases.zero_()
                child.distance_biases[:, 1, : child.kv_heads // 2 * (child.heads // child.kv_heads)].normal_(std=4.0)
