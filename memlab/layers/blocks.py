"""Pre-LN Transformer blocks, and a stack of them that reads a segment at once or piece by piece.

Shapes: B batch, H heads, T tokens that are read now, P tokens read before (past), D width, K head width.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memlab.layers import observing
from memlab.layers.positions import Rotation, distances, rotate, rotation, shift, sinusoids
from memlab.layers.state import State, state

_SCORES = 1 << 20  # most scores that are held at once where they cannot be left to the fused kernel: 4 MB in fp32


@state
class KeyValues(State):
    """Keys (already rotated to their positions) and values of the tokens read so far, in one layer."""

    keys_BHPK: Tensor
    values_BHPK: Tensor


class Relative(NamedTuple):
    """What the score of a distance is made with, beside each layer's own projection of it (Transformer-XL, section 3.3)."""

    content_HK: Tensor  # u
    distance_HK: Tensor  # v
    clamp_len: int | None  # no distance counts as longer than this; None = all are told apart


class Attention(nn.Module):
    """Multi-head softmax attention ("Attention Is All You Need", arXiv 1706.03762, section 3.2), in the parts that memories need.

    Args:
        width, heads: D and H.
        kv_heads: key and value heads, each shared by H / kv_heads query heads (arXiv 2305.13245); None = as many as heads.
        positions: see `layers/positions.py`; "none" = this layer does not know them.
    """

    def __init__(self, width: int, heads: int, kv_heads: int | None = None, positions: str = "rope") -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width = heads, kv_heads or heads, width // heads
        self.positions = positions
        relative = positions == "transformer_xl"
        self.qkv = nn.Linear(width, (heads + 2 * self.kv_heads) * self.head_width, bias=not relative)
        self.out = nn.Linear(width, width, bias=False)
        self.distance = nn.Linear(width, width, bias=False) if relative else None  # W_r

    @torch.no_grad()
    def initialise_heads(self) -> None:
        """See `initialise`: the first half of the heads look by position, the others by content."""
        groups, shared = self.kv_heads, self.heads // self.kv_heads
        by_position = groups // 2

        def parts(p: Tensor) -> tuple[Tensor, Tensor]:
            query, key, _ = p.split([self.heads * self.head_width, *2 * [groups * self.head_width]])
            return query.unflatten(0, (groups, shared, -1)), key.unflatten(0, (groups, -1))

        query, key = parts(self.qkv.weight)
        key[by_position:] = query[by_position:, 0]
        if shared > 1:
            query[by_position:] = key[by_position:, None]
        if self.positions == "rope":
            for bias in parts(self.qkv.bias):
                bias[:by_position].normal_(std=2.0)

    def project(self, x_BTD: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, K], keys and values [B, kv heads, T, K]; queries and keys turned by their positions if `turn` says so."""
        h, g = self.heads, self.kv_heads

        def parts(*heads: int) -> Iterator[Tensor]:
            split = self.qkv(x_BTD).split([count * self.head_width for count in heads], dim=-1)
            return (part.unflatten(-1, (-1, self.head_width)).transpose(1, 2) for part in split)

        if turn is None:
            q, k, v = parts(h, g, g)
        else:
            both, v = parts(h + g, g)
            q, k = rotate(both, turn).split([h, g], dim=1)  # at once: small segments pay for each call
        return q, k, v

    def keys_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values alone, of tokens that ask nothing."""
        queries = self.heads * self.head_width
        bias = self.qkv.bias
        y = F.linear(x_BTD, self.qkv.weight[queries:], None if bias is None else bias[queries:])
        keys, values = y.unflatten(-1, (-1, self.head_width)).transpose(1, 2).chunk(2, dim=1)
        return keys, values

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None, relative: Relative | None = None, ahead: bool = False
    ) -> Tensor:
        """Softmax attention of T queries over L >= T keys, the last T of which are the queries' own.

        Args:
            q, k, v: [B, H, T, K], [B, kv heads, L, K] twice; keys and queries are already turned if positions are rotary.
            mask: bool, True = may look, broadcastable to [B, H, T, L]; None = causal.
            relative: Transformer-XL's positions; the keys then stand at consecutive positions.
            ahead: whether the mask lets a query look at keys that come after its own.

        Returns:
            [B, H, T, K].
        """
        observing.offer("attention", attention=self, q=q, k=k, mask=mask, relative=relative, ahead=ahead)
        if self.kv_heads < self.heads:
            k, v = (t.repeat_interleave(self.heads // self.kv_heads, dim=1) for t in (k, v))
        queries, keys = q.shape[2], k.shape[2]
        if mask is None and (queries < keys or relative is not None):
            mask = causal_mask(queries, keys, q.device)
        if self.distance is None or relative is None or mask is None:
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        # Scores of every query and key exist here, which the fused kernel does without: a few rows of the batch at a time.
        rows = max(1, _SCORES // max(1, self.heads * queries * keys))
        masks: Iterable[Tensor] = mask.expand(len(q), -1, -1, -1).split(rows) if mask.dim() == 4 else itertools.repeat(mask)
        distance_W = distances(queries, keys, ahead, q.device)
        if relative.clamp_len is not None:
            distance_W = distance_W.clamp(-relative.clamp_len, relative.clamp_len)
        r_HKW = self.distance(sinusoids(distance_W, self.out.in_features, q.dtype)).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
        pieces = zip(q.split(rows), k.split(rows), v.split(rows), masks, strict=False)
        return torch.cat([self._by_distance(q_, k_, v_, mask_, relative, r_HKW) for q_, k_, v_, mask_ in pieces])

    def _by_distance(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor, relative: Relative, r_HKW: Tensor) -> Tensor:
        """Transformer-XL's scores (section 3.3), and what they give. `r_HKW`: each distance, projected."""
        scale = self.head_width**-0.5
        by_content = (q + relative.content_HK[:, None].to(q.dtype)) * scale
        by_distance = (q + relative.distance_HK[:, None].to(q.dtype)) * scale
        score = by_content @ k.transpose(-1, -2)
        score += shift(by_distance @ r_HKW, k.shape[2])
        score += torch.zeros_like(mask, dtype=score.dtype).masked_fill_(~mask, -torch.inf)  # adding has no work for the gradient
        return score.softmax(-1) @ v

    def merge(self, y_BHTK: Tensor) -> Tensor:
        """The heads' outputs together: [B, T, D]."""
        return self.out(y_BHTK.transpose(1, 2).flatten(2))

    def forward(
        self, x_BTD: Tensor, turn: Rotation | None, mask: Tensor | None, past: KeyValues | None, relative: Relative | None = None
    ) -> tuple[Tensor, KeyValues]:
        """Attention over [past ; own]. Args: mask: bool, True = may look, broadcastable to [B, H, T, P + T]; None = causal."""
        q, k, v = self.project(x_BTD, turn)
        if past is not None:
            k, v = torch.cat([past.keys_BHPK, k], dim=2), torch.cat([past.values_BHPK, v], dim=2)
        return self.merge(self.attend(q, k, v, mask, relative, ahead=mask is not None)), KeyValues(k, v)


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

    def forward(self, x_BTD: Tensor, attend: Attend[Kept]) -> tuple[Tensor, Kept]:
        """`attend` is given this block and its input: memories that live in a layer differ there and nowhere else."""
        y, kept = attend(self, x_BTD)
        x_BTD = x_BTD + self.dropout(y)
        return x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD))), kept

    def project(self, x_BTD: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """`Attention.project` of the block's input."""
        return self.attention.project(self.attention_norm(x_BTD), turn)

    def keys_values(self, x_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """`Attention.keys_values` of the block's input."""
        return self.attention.keys_values(self.attention_norm(x_BTD))


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

    def through(self, x_BTD: Tensor, attends: Iterable[Attend[Kept]]) -> tuple[Tensor, tuple[Kept, ...]]:
        """All blocks, each with its own way to attend: normalised top-layer outputs [B, T, D], and what each layer keeps."""
        seen = []
        for block, attend in zip(self.blocks, attends, strict=True):
            if self.recompute and torch.is_grad_enabled():
                x_BTD, kept = checkpoint(block, x_BTD, attend, use_reentrant=False)
            else:
                x_BTD, kept = block(x_BTD, attend)
            seen.append(kept)
        return self.norm(x_BTD), tuple(seen)

    def forward(
        self, x_BTD: Tensor, positions: Tensor, mask: Tensor | None = None, past: tuple[KeyValues, ...] = ()
    ) -> tuple[Tensor, tuple[KeyValues, ...]]:
        """Read T tokens with plain attention over [past ; own].

        Args:
            x_BTD: inputs.
            positions: the tokens' integer positions, [T] or [B, T], consecutive.
            mask: bool, True = may look, broadcastable to [B, H, T, P + T]; None = causal over [past ; own].
            past: keys and values read before, one entry for each layer; () if none.

        Returns:
            The normalised top-layer outputs [B, T, D], and the keys and values of [past ; own] of each layer.
        """
        turn = self.turn(positions, x_BTD.dtype)

        def plain(layer: int) -> Attend[KeyValues]:
            def attend(block: Block, x_BTD: Tensor) -> tuple[Tensor, KeyValues]:
                before = past[layer] if past else None
                return block.attention(block.attention_norm(x_BTD), turn, mask, before, self.relative(layer))

            return attend

        return self.through(x_BTD, map(plain, range(len(self.blocks))))


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [T, P + T]: the last `queries` of `keys` tokens each see all before them and themselves."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


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
