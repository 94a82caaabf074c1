"""Multi-head softmax attention, in the parts that layer memories need.

Shapes: B batch, H heads, G key-value heads, T rows of a call, L keys, D width, K head width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.layers.description import Description
from memlab.layers.norms import Norm, fold_norm
from memlab.layers.positions import Rotation, rotate, sinusoids
from memlab.layers.state import State, state
from memlab.ops.distance_attention import distance_attention, distances
from memlab.ops.project_twice import project_twice

ALL = slice(None)


@state
class KeyValues(State):
    """Keys and values of rows, in one layer."""

    keys_BGLK: Tensor
    values_BGLK: Tensor

    def then(self, keys_BGTK: Tensor, values_BGTK: Tensor) -> KeyValues:
        """These rows, and further rows at the end."""
        if not self.keys_BGLK.shape[2]:
            return KeyValues(keys_BGTK, values_BGTK)
        keys, values = (
            torch.cat([self.keys_BGLK, keys_BGTK], 2),
            torch.cat([self.values_BGLK, values_BGTK], 2),
        )
        return KeyValues(keys, values)

    def rows(self, which: slice) -> KeyValues:
        """Some of the rows."""
        return KeyValues(self.keys_BGLK[:, :, which], self.values_BGLK[:, :, which])


class Relative(NamedTuple):
    """u and v of Transformer-XL's positions; the projection of distances is each layer's own."""

    content_HK: Tensor  # u
    distance_HK: Tensor  # v
    clamp_len: int | None  # longer distances count as this one; None = no limit


class MultiHead(nn.Module):
    """Multi-head softmax attention (arXiv 1706.03762, 3.2), with grouped queries (2305.13245) if G < H."""

    def __init__(self, d: Description) -> None:
        super().__init__()
        self.heads, self.kv_heads, self.head_width, self.width = d.heads, d.kv_heads, d.head_width, d.width
        self.positions = d.positions
        relative = d.positions == "transformer_xl"
        together = (d.heads + 2 * d.kv_heads) * d.head_width
        self.qkv = nn.Linear(d.width, together, bias="qkv" in d.biases and not relative)
        self.out = nn.Linear(d.heads * d.head_width, d.width, bias="out" in d.biases)
        # of the queries and keys of one head; not `d.new_norm`, which is for rows
        self.q_norm = nn.RMSNorm(d.head_width, eps=d.norm_eps) if d.qk_norm else None
        self.k_norm = nn.RMSNorm(d.head_width, eps=d.norm_eps) if d.qk_norm else None
        self.distance = nn.Linear(d.width, d.heads * d.head_width, bias=False) if relative else None  # W_r

    @torch.no_grad()
    def initialise_heads(self) -> None:
        """Let the first half of the heads look at positions and the others at content; see `initialise`."""
        groups, shared = self.kv_heads, self.heads // self.kv_heads
        by_position = groups // 2

        def parts(p: Tensor) -> tuple[Tensor, Tensor]:
            query, key, _ = p.split([self.heads * self.head_width, *2 * [groups * self.head_width]])
            return query.unflatten(0, (groups, shared, -1)), key.unflatten(0, (groups, -1))

        query, key = parts(self.qkv.weight)
        key[by_position:] = query[by_position:, 0]
        if shared > 1:
            query[by_position:] = key[by_position:, None]
        if self.positions == "rope" and self.qkv.bias is not None:
            for bias in parts(self.qkv.bias):
                bias[:by_position].normal_(std=2.0)

    def project(self, x_BTD: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, K], keys and values [B, G, T, K]; queries and keys rotated if `turn` is given."""
        return self.split(self.qkv(x_BTD), turn)

    def keys_values(self, x_BTD: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor]:
        """Only keys and values, of rows that only other rows look at."""
        first = self.heads * self.head_width
        bias = None if self.qkv.bias is None else self.qkv.bias[first:]
        return self._keys_values(F.linear(x_BTD, self.qkv.weight[first:], bias), turn)

    def frozen_keys_values(self, x_BTD: Tensor, norm: Norm | None) -> tuple[Tensor, Tensor]:
        """`keys_values` of norm(x), with gradient to x and to no parameter."""
        first = self.heads * self.head_width
        bias = None if self.qkv.bias is None else self.qkv.bias[first:]
        normalised, weight, bias = fold_norm(norm, x_BTD, self.qkv.weight[first:], bias)
        return self._keys_values(F.linear(normalised, weight.detach(), bias.detach()), None)

    def project_twice(
        self, x_BTD: Tensor, norm: Norm | None, turn: Rotation | None = None
    ) -> tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]:
        """`project` of norm(x), and `keys_values` of norm(SG(x)), where SG cuts x from the graph."""
        normalised, weight, bias = fold_norm(norm, x_BTD, self.qkv.weight, self.qkv.bias)
        y, again = project_twice(normalised, weight, bias, self.heads * self.head_width)
        return self.split(y, turn), self._keys_values(again, turn)

    def split(self, y: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries, keys and values as `project` gives them, from the output of `qkv`."""
        both = self.heads + self.kv_heads
        queries_keys, values = y.split([both * self.head_width, self.kv_heads * self.head_width], dim=-1)
        both_BHTK = self._heads(queries_keys)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = both_BHTK.split([self.heads, self.kv_heads], dim=1)
            both_BHTK = torch.cat([_normed(self.q_norm, q), _normed(self.k_norm, k)], dim=1)
        q, k = rotate(both_BHTK, turn).split([self.heads, self.kv_heads], dim=1)  # one call for both
        return q, k, self._heads(values)

    def _keys_values(self, y: Tensor, turn: Rotation | None) -> tuple[Tensor, Tensor]:
        keys, values = self._heads(y).chunk(2, dim=1)
        return rotate(keys if self.k_norm is None else _normed(self.k_norm, keys), turn), values

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
        wanted: slice = ALL,
    ) -> Tensor:
        """Softmax attention of T queries over L >= T keys; the last T keys are those of the queries' rows.

        Args:
            q, k, v: [B, H, T, K], [B, G, L, K] twice; keys and queries are already rotated.
            mask: bool, True = may look, broadcastable to [B, H, T, L]; None = causal.
            relative: Transformer-XL's positions; the keys then stand at consecutive positions.
            ahead: whether the mask lets a query look at keys that come after its own.
            wanted: the queries whose output is needed.

        Returns:
            [B, H, T, K], with only the wanted ones of the T.
        """
        if self.kv_heads < self.heads:
            k, v = (
                t.unsqueeze(2).expand(-1, -1, self.heads // self.kv_heads, -1, -1).flatten(1, 2)
                for t in (k, v)
            )
        queries, keys = q.shape[2], k.shape[2]
        if mask is None and (queries < keys or relative is not None or wanted != ALL):
            mask = causal_mask(queries, keys, q.device)
        if self.distance is None or relative is None or mask is None:
            if wanted != ALL:
                q, mask = q[:, :, wanted], None if mask is None else mask[..., wanted, :]
            return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)
        distance_W = distances(queries, keys, ahead, q.device)
        if relative.clamp_len is not None:
            distance_W = distance_W.clamp(-relative.clamp_len, relative.clamp_len)
        sinusoids_WD = sinusoids(distance_W, self.width, q.dtype)
        r_HWK = self.distance(sinusoids_WD).unflatten(-1, (self.heads, -1)).transpose(0, 1)
        y = distance_attention(q, k, v, r_HWK, relative.content_HK, relative.distance_HK, mask, ahead)
        return y[:, :, wanted]

    def merge(self, y_BHTK: Tensor) -> Tensor:
        """The heads' outputs joined and projected: [B, T, D]."""
        y: Tensor = self.out(y_BHTK.transpose(1, 2).flatten(2))
        return y


def causal_mask(queries: int, keys: int, device: torch.device) -> Tensor:
    """bool [T, L]: each of the last `queries` of `keys` rows sees itself and all rows before it."""
    return torch.ones(queries, keys, dtype=torch.bool, device=device).tril(keys - queries)


def _normed(norm: nn.RMSNorm, x_BHTK: Tensor) -> Tensor:
    """norm(x), in the parameters' type: under autocast x is narrower."""
    normed: Tensor = norm(x_BHTK.to(norm.weight.dtype))
    return normed.to(x_BHTK.dtype)
