"""Pre-LN Transformer blocks, and a decoder stack that reads a segment at once or piece by piece.

Shapes: B batch, H heads, T tokens that are read now, P tokens read before (past), D width, K head width.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.layers.positions import Rotation, rotate, rotation
from memlab.layers.state import State, state


@state
class KeyValues(State):
    """Keys (already rotated to their positions) and values of the tokens read so far, in one layer."""

    keys_BHPK: Tensor
    values_BHPK: Tensor


class Attention(nn.Module):
    """Multi-head softmax attention over [past ; own] keys ("Attention Is All You Need", arXiv 1706.03762, section 3.2)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width, bias=False)

    @torch.no_grad()
    def initialise_heads(self) -> None:
        """See `initialise`: the first half of the heads look by position, the others by content."""
        by_position = self.heads // 2
        weight, bias = (p.unflatten(0, (3, self.heads, -1)) for p in (self.qkv.weight, self.qkv.bias))  # [3, H, K, ..]: q, k, v
        bias[:2, :by_position].normal_(std=2.0)
        weight[1, by_position:] = weight[0, by_position:]

    def forward(self, x_BTD: Tensor, turn: Rotation, mask: Tensor | None, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        """Args: mask: bool, True = may look, broadcastable to [B, H, T, P + T]; None = causal over [past ; own]."""
        q, k, v = self.qkv(x_BTD).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)  # 3 x [B, H, T, K]
        q, k = rotate(q, turn), rotate(k, turn)
        if past is not None:
            k, v = torch.cat([past.keys_BHPK, k], dim=2), torch.cat([past.values_BHPK, v], dim=2)
        if mask is None and past is not None:
            mask = causal_mask(q.shape[2], k.shape[2], q.device)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        return self.out(y.transpose(1, 2).flatten(2)), KeyValues(k, v)


class Block(nn.Module):
    """x + attention(norm(x)), then x + ffn(norm(x)): pre-layer-normalisation (arXiv 2002.04745)."""

    def __init__(self, width: int, heads: int, ffn_width: int, dropout: float) -> None:
        super().__init__()
        self.attention_norm = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.ffn_norm = nn.LayerNorm(width)
        self.ffn = nn.Sequential(nn.Linear(width, ffn_width), nn.GELU(), nn.Linear(ffn_width, width))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x_BTD: Tensor, turn: Rotation, mask: Tensor | None, past: KeyValues | None) -> tuple[Tensor, KeyValues]:
        y, seen = self.attention(self.attention_norm(x_BTD), turn, mask, past)
        x_BTD = x_BTD + self.dropout(y)
        return x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD))), seen


class Stack(nn.Module):
    """The blocks of a model and the normalisation behind the last of them."""

    def __init__(self, layers: int, width: int, heads: int, ffn_width: int, dropout: float) -> None:
        super().__init__()
        self.heads, self.head_width = heads, width // heads
        self.blocks = nn.ModuleList(Block(width, heads, ffn_width, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(
        self, x_BTD: Tensor, positions: Tensor, mask: Tensor | None = None, past: tuple[KeyValues, ...] = ()
    ) -> tuple[Tensor, tuple[KeyValues, ...]]:
        """Read T tokens.

        Args:
            x_BTD: inputs.
            positions: the tokens' integer positions, [T] or [B, T].
            mask: bool, True = may look, broadcastable to [B, H, T, P + T]; None = causal over [past ; own].
            past: keys and values read before, one entry for each layer; () if none.

        Returns:
            The normalised top-layer outputs [B, T, D], and the keys and values of [past ; own] of each layer.
        """
        turn = rotation(positions, self.head_width, dtype=torch.promote_types(x_BTD.dtype, torch.float32))
        seen = []
        for i, block in enumerate(self.blocks):
            x_BTD, kv = block(x_BTD, turn, mask, past[i] if past else None)
            seen.append(kv)
        return self.norm(x_BTD), tuple(seen)


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [T, P + T]: the last `queries` of `keys` tokens each see all before them and themselves."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def initialise(module: nn.Module, layers: int) -> None:
    """GPT-2's initialisation at any width, and attention heads of two kinds to begin with.

    Weights are N(0, 1/fan_in), residual outputs are scaled by 1/sqrt(2 layers), biases are zero, but for attention: half of the heads
    look by position (random query and key biases: their product, turned by the rotation, depends on the distance alone), the
    others by content (the key projection equals the query projection, so that a token is drawn to its like). Training moves both
    freely. Without it a token's neighbour and its like have to be found together, and associative retrieval stays at 1/K for
    thousands of steps (docs/LOG.md, 2026-11-22; in the spirit of "mimetic"
    initialisation, arXiv 2305.09828 and 2410.11135).
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
