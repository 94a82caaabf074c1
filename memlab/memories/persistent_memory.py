"""Persistent memory (Sukhbaatar et al. 2019, arXiv 1907.01470): learned pairs of key and value in each layer.

    A = softmax( [ Q K^T + positions | Q M_k^T ] / sqrt(K) ) [ V ; M_v ]         section 4, "all-attention"

M_k = sqrt(K) k and M_v = sqrt(P) v for P learned pairs (k, v) of each key-value head, which begin as
N(0, 1/K) and N(0, 1/P), so that both begin like projected rows. They are the same in each segment, and
nothing is carried: a control for what vectors do that are learned and not carried. A layer whose attention
has such pairs can do what a feed-forward layer does.

As in the authors' code (facebookresearch/adaptive-span), pairs have no positions, and each head has its own.
The paper leaves out the feed-forward layers; the backbone's are kept here, so that only the pairs differ from
the Transformer without a memory. With positions=transformer_xl, the pairs count as rows just before the
segment.

Rotary positions are part of Q and K. So one product of wider vectors scores both kinds of keys:
[rotated q | q] with [rotated k | 0] and [0 | M_k].

Parallel form: segments are independent, as in attention without a memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.bounds import Positive
from memlab.layers.attention import KeyValues, causal_mask
from memlab.layers.description import Description
from memlab.layers.positions import rotate
from memlab.layers.state import Empty
from memlab.memories.attention import Attention
from memlab.memories.base import Where


class PersistentMemory(Attention):
    """Attention within the segment and over learned pairs.

    Args:
        persistent_pairs: P, pairs of each key-value head (published: as many as the feed-forward layer has
            hidden units).
    """

    def __init__(self, description: Description, *, persistent_pairs: Positive = 24) -> None:
        super().__init__(description)
        shape = (description.kv_heads, persistent_pairs, description.head_width)
        self.keys_GPK = nn.Parameter(torch.randn(shape) * description.head_width**-0.5)
        self.values_GPK = nn.Parameter(torch.randn(shape) * persistent_pairs**-0.5)

    def segment(self, x_BTD: Tensor, state: Empty, where: Where) -> tuple[Tensor, Empty]:
        y_BTD, _ = self.extend(x_BTD, self.no_rows(len(x_BTD)), where)
        return y_BTD, state

    def extend(self, x_BTD: Tensor, open: KeyValues, where: Where) -> tuple[Tensor, KeyValues]:
        q, k, v = self.project(x_BTD)
        turn = where.turn(where.start, where.count, q.dtype)
        seen = open.then(rotate(k, turn), v)
        width, pairs = self.description.head_width, self.keys_GPK.shape[1]
        learned_k, learned_v = (
            (t * scale**0.5).to(k.dtype).expand(len(k), -1, -1, -1)
            for t, scale in ((self.keys_GPK, width), (self.values_GPK, pairs))
        )
        keys, q_and = seen.keys_BGLK, rotate(q, turn)
        if turn is not None:
            q_and = torch.cat([q_and, q], dim=-1) * 2**0.5  # attention divides by the root of the width
            learned_k, keys = F.pad(learned_k, (width, 0)), F.pad(keys, (0, width))
        rows = keys.shape[2]
        own_TL = causal_mask(where.count, rows, k.device) if where.mask is None else where.mask
        look_TL = F.pad(own_TL.expand(where.count, rows), (pairs, 0), value=True)
        both_k, both_v = torch.cat([learned_k, keys], 2), torch.cat([learned_v, seen.values_BGLK], 2)
        y = self.attend(q_and, both_k, both_v, where, look_TL, remembered=pairs)
        return self.merge(y), seen

    @torch.no_grad()
    def diagnose(self) -> dict[str, Tensor]:
        """The length of a learned value over that at the beginning, which is 1: root mean square."""
        return {"persistent_values": self.values_GPK.square().mean().sqrt() * self.values_GPK.shape[1] ** 0.5}
