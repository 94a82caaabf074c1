"""Multi-head softmax attention, in the parts that memories need.

Shapes: B batch, H heads, T tokens that are read now, P tokens read before (past), L keys that are looked at, D width, K head width.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.layers import distances, observing
from memlab.layers.distances import Relative
from memlab.layers.positions import Rotation, rotate
from memlab.layers.state import State, state

ALL = slice(None)


@state
class KeyValues(State):
    """Keys (already rotated to their positions) and values of the tokens read so far, in one layer."""

    keys_BHPK: Tensor
    values_BHPK: Tensor


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
        return self._queries_keys_values(self.qkv(x_BTD), turn)

    def keys_values(self, x_BTD: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor]:
        """Keys and values alone, of tokens that ask nothing."""
        first = self.heads * self.head_width
        bias = None if self.qkv.bias is None else self.qkv.bias[first:]
        return self._keys_values(F.linear(x_BTD, self.qkv.weight[first:], bias), turn)

    def project_twice(
        self, x_BTD: Tensor, norm: nn.LayerNorm, turn: Rotation | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """`project` of norm(x), and `keys_values` of norm(x) with x cut from the graph, by one product.

        What the normalisation learns is taken into the projection: then all that learns is in the product, and only x is not.
        """
        weight, bias = self.qkv.weight * norm.weight, self.qkv.weight @ norm.bias
        if self.qkv.bias is not None:
            bias = bias + self.qkv.bias
        x_BTD = F.layer_norm(x_BTD, norm.normalized_shape, eps=norm.eps)
        y, cut = _Twice.apply(x_BTD, weight, bias, self.heads * self.head_width)
        return self._queries_keys_values(y, turn), self._keys_values(cut, turn)

    def _queries_keys_values(self, y: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor, Tensor]:
        both = self.heads + self.kv_heads
        asking, values = y.split([both * self.head_width, self.kv_heads * self.head_width], dim=-1)
        q, k = rotate(self._heads(asking), turn).split([self.heads, self.kv_heads], dim=1)  # turned at once: each call costs
        return q, k, self._heads(values)

    def _keys_values(self, y: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor]:
        keys, values = self._heads(y).chunk(2, dim=1)
        return rotate(keys, turn), values

    def _heads(self, y: Tensor) -> Tensor:
        return y.unflatten(-1, (-1, self.head_width)).transpose(1, 2)

    def attend(
        self,
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Tensor | None = None,
        relative: Relative | None = None,
        ahead: bool = False,
        rows: slice = ALL,
    ) -> Tensor:
        """Softmax attention of T queries over L >= T keys, the last T of which are the queries' own.

        Args:
            q, k, v: [B, H, T, K], [B, kv heads, L, K] twice; keys and queries are already turned if positions are rotary.
            mask: bool, True = may look, broadcastable to [B, H, T, L]; None = causal.
            relative: Transformer-XL's positions; the keys then stand at consecutive positions.
            ahead: whether the mask lets a query look at keys that come after its own.
            rows: the queries whose output is wanted.

        Returns:
            [B, H, T, K], or as many of the T as `rows` has.
        """
        observing.offer("attention", attention=self, q=q, k=k, mask=mask, relative=relative, ahead=ahead)
        if self.kv_heads < self.heads:  # one head for all is seen by all without a copy
            k, v = (t.unsqueeze(2).expand(-1, -1, self.heads // self.kv_heads, -1, -1).flatten(1, 2) for t in (k, v))
        queries, keys = q.shape[2], k.shape[2]
        if mask is None and (queries < keys or relative is not None or rows != ALL):
            mask = causal_mask(queries, keys, q.device)
        if self.distance is None or relative is None or mask is None:
            if rows != ALL:
                q, mask = q[:, :, rows], None if mask is None else mask[..., rows, :]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        distance_W = distances.distances(queries, keys, ahead, q.device)
        if relative.clamp_len is not None:
            distance_W = distance_W.clamp(-relative.clamp_len, relative.clamp_len)
        sinusoids_WD = distances.sinusoids(distance_W, self.out.in_features, q.dtype)
        r_HWK = self.distance(sinusoids_WD).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        return distances.attention(q, k, v, r_HWK, relative.content_HK, relative.distance_HK, mask, ahead)[:, :, rows]

    def merge(self, y_BHTK: Tensor) -> Tensor:
        """The heads' outputs together: [B, T, D]."""
        return self.out(y_BHTK.transpose(1, 2).flatten(2))

    def forward(
        self,
        x_BTD: Tensor,
        turn: Rotation | None,
        mask: Tensor | None,
        past: KeyValues | None,
        relative: Relative | None = None,
        rows: slice = ALL,
    ) -> tuple[Tensor, KeyValues]:
        """Attention over [past ; own].

        Args:
            mask: bool, True = may look, broadcastable to [B, H, T, P + T]; None = causal.
            rows: the tokens whose output is wanted.
        """
        q, k, v = self.project(x_BTD, turn)
        if past is not None:
            k, v = torch.cat([past.keys_BHPK, k], dim=2), torch.cat([past.values_BHPK, v], dim=2)
        return self.merge(self.attend(q, k, v, mask, relative, ahead=mask is not None, rows=rows)), KeyValues(k, v)


class _Twice(torch.autograd.Function):
    """y = x W^T + b, and the columns of y from `first` on once more, as a function of W and b alone."""

    @staticmethod
    def forward(ctx: Any, x_BTD: Tensor, weight: Tensor, bias: Tensor, first: int) -> tuple[Tensor, Tensor]:
        y = F.linear(x_BTD, weight, bias)
        ctx.save_for_backward(x_BTD.to(y.dtype), weight.to(y.dtype))  # narrower under autocast
        ctx.first = first
        return y, y[..., first:].detach()

    @staticmethod
    def backward(ctx: Any, dy: Tensor, dcut: Tensor) -> tuple[Tensor, Tensor, Tensor, None]:
        x_BTD, weight = ctx.saved_tensors
        parts = [d.flatten(0, 1) for d in (dy[..., : ctx.first], dy[..., ctx.first :] + dcut)]
        dweight = torch.cat([d.t() @ x_BTD.flatten(0, 1) for d in parts])
        return dy @ weight, dweight, torch.cat([d.sum(0) for d in parts]), None


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [T, P + T]: the last `queries` of `keys` tokens each see all before them and themselves."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)
