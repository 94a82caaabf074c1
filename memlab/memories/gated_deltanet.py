"""Gated DeltaNet (Yang, Kautz, Hatamizadeh, ICLR 2025, arXiv 2412.06464): each head has a matrix as memory.

    S_t = a_t (I - b_t k_t k_t^T) S_{t-1} + b_t k_t v_t^T,   o_t = q_t^T S_t       (10)  rule=gated_delta
    a_t = 1                                     DeltaNet (arXiv 2406.06484)              rule=delta
    S_t = a_t S_{t-1} + b_t k_t v_t^T           gated, without the delta rule            rule=gated
    S_t = S_{t-1} + f(k_t) [v_t | 1]^T,   o_t = f(q_t)^T S_t   over its last number      rule=linear
                                                linear attention (arXiv 2006.16236), f = ELU + 1

Every token writes, and reads what it and all tokens before it wrote. The block (section 3.4, figure 1):

    q, k, v = SiLU(conv(W x)), a short causal convolution of each channel; q and k have length 1
    a = exp(-exp(A) softplus(W_a x + c)),   b = sigmoid(W_b x)
    y = W_o (RMSNorm(o) * SiLU(W_g x))

The state is S and the rows that the convolution still needs; S is at least fp32 under every precision.

With local_attention, softmax attention within the segment stands beside it, from the same projections, and a
gate mixes both (equation 10 of Infini-attention, arXiv 2404.07143). The paper has attention in layers of its
own (H1): layer_memory=[gated_deltanet,attention].

Departures: values are as wide as keys (published: twice), so that projections have the sizes of the other
memories here; with fewer key-value heads, query heads share S, a and b. q, k and v of S have no bias, as
published, and no positions: order is in the convolution and in the decay. A scan is causal: memory tokens
write and read S in their place in the row order, and look at nothing that comes later. With local_attention,
memory tokens take no part in the scan, only in that attention.

Parallel form: S segments are one long segment for the scan, which is computed in chunks
(`ops/delta_rule.py`); only local attention ends with a segment. It is exact.
"""

from __future__ import annotations

import dataclasses
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.bounds import NonNegative
from memlab.layers import observing, windows
from memlab.layers.attention import KeyValues
from memlab.layers.description import Description
from memlab.layers.state import State, state
from memlab.memories.base import LayerMemory, Where
from memlab.ops.delta_rule import gated_delta_rule
from memlab.ops.feature_map import elu_plus_one
from memlab.precision import accumulator, accurate

_SMALLEST = 1e-6  # of a length or a denominator


@state
class DeltaState(State):
    """S of each key-value head, and the projections [P] of the c last rows, oldest first."""

    memory_BGKV: Tensor
    recent_BcP: Tensor


@state
class DeltaOpen(State):
    """An open segment: the state after the rows so far, and what local attention looks at."""

    now: DeltaState
    seen: KeyValues


class GatedDeltaNet(LayerMemory):
    """A layer of Gated DeltaNet.

    Args:
        rule: how a token changes S.
        short_convolution: width of the convolution, in tokens (published: 4); 0 = none.
        output_gate: whether SiLU(W_g x) multiplies the output.
        local_attention: whether softmax attention within the segment is mixed in.
        gate_init: initial value of what is mixed: the share of S in the output is its sigmoid.
    """

    def __init__(
        self,
        description: Description,
        *,
        rule: Literal["gated_delta", "delta", "gated", "linear"] = "gated_delta",
        short_convolution: NonNegative = 4,
        output_gate: bool = True,
        local_attention: bool = False,
        gate_init: float = 0.0,
    ) -> None:
        d = description
        if not local_attention:  # then nothing in the layer has positions
            d = dataclasses.replace(d, positions="none", biases=tuple(b for b in d.biases if b != "qkv"))
        super().__init__(d)
        self.rule, self.local_attention = rule, local_attention
        groups, together = d.kv_heads, (d.heads + 2 * d.kv_heads) * d.head_width
        self.convolution_Pc = (
            nn.Parameter(torch.empty(together, short_convolution).uniform_(-1, 1) * short_convolution**-0.5)
            if short_convolution
            else None
        )
        self.decay = self.beta = None
        if rule in ("gated_delta", "gated"):
            self.decay = nn.Linear(d.width, groups, bias=False)
            # As in Mamba-2: at first, one token leaves between exp(-1.6) and exp(-0.001) of S
            self.log_A_G = nn.Parameter(torch.empty(groups).uniform_(1, 16).log())
            rate_G = torch.exp(torch.empty(groups).uniform_(-6.9, -2.3))  # 0.001 to 0.1
            self.decay_bias_G = nn.Parameter(rate_G + torch.log(-torch.expm1(-rate_G)))  # softplus gives it
        if rule != "linear":
            self.beta = nn.Linear(d.width, groups, bias=False)
            self.out_norm = nn.RMSNorm(d.head_width, eps=1e-5)
        self.output_gate = nn.Linear(d.width, d.heads * d.head_width, bias=False) if output_gate else None
        if local_attention:
            self.gate_H = nn.Parameter(torch.full((d.heads,), float(gate_init)))

    @property
    def stores_memory_tokens(self) -> bool:  # type: ignore[override]
        return not self.local_attention

    @property
    def only_causal(self) -> bool:  # type: ignore[override]
        return not self.local_attention

    def init_state(self, batch_size: int) -> DeltaState:
        d = self.description
        values = d.head_width + (self.rule == "linear")
        memory = self.zeros(batch_size, d.kv_heads, d.head_width, values, accumulate=True)
        rows = 0 if self.convolution_Pc is None else self.convolution_Pc.shape[1] - 1
        return DeltaState(memory, self.zeros(batch_size, rows, (d.heads + 2 * d.kv_heads) * d.head_width))

    def begin(self, state: DeltaState, where: Where) -> DeltaOpen:
        return DeltaOpen(state, self.no_rows(where.batch_size))

    def extend(self, x_BTD: Tensor, open: DeltaOpen, where: Where) -> tuple[Tensor, DeltaOpen]:
        h_BTD = self.normed(x_BTD)
        projected_BTP = self.attention.qkv(h_BTD)
        y, now = self._scan(h_BTD, projected_BTP, open.now, where)
        y, seen = y[:, :, where.wanted], open.seen
        if self.local_attention:
            q, k, v = self.attention.split(
                projected_BTP, where.turn(where.start, where.count, projected_BTP.dtype)
            )
            seen = seen.then(k, v)
            local = self.attend(q, seen.keys_BGLK, seen.values_BGLK, where)
            y = self.mix(local, y, self._gate(), where)
        return self.merge(y), DeltaOpen(now, seen)

    def close(self, open: DeltaOpen) -> DeltaState:
        return open.now

    def parallel(self, x_BTD: Tensor, state: DeltaState, where: Where) -> tuple[Tensor, DeltaState]:
        h_BTD = self.normed(x_BTD)
        projected_BTP = self.attention.qkv(h_BTD)
        y, now = self._scan(h_BTD, projected_BTP, state, where)
        if self.local_attention:
            near_FNP = projected_BTP.unflatten(1, (where.segments, -1)).flatten(0, 1)
            q, k, v = self.attention.split(near_FNP, where.turn(0, where.count, near_FNP.dtype))
            y = self.mix(windows.unfold(self.attend(q, k, v, where), where.segments), y, self._gate(), where)
        return self.merge(y), now

    def _scan(
        self, h_BTD: Tensor, projected_BTP: Tensor, state: DeltaState, where: Where
    ) -> tuple[Tensor, DeltaState]:
        """What all rows read, [B, H, T, K], and the state after those that write."""
        rows = h_BTD.shape[1]
        if not where.only_tokens:
            h_BTD, projected_BTP = (self.stored(t, where, 1) for t in (h_BTD, projected_BTP))
        if self.attention.qkv.bias is not None:  # it is there for positions, which S does not have
            projected_BTP = projected_BTP - self.attention.qkv.bias
        mixed_BTP, recent_BcP = self._convolve(projected_BTP, state.recent_BcP)
        q, k, v = self.attention.split(mixed_BTP if self.rule == "linear" else F.silu(mixed_BTP))
        with accurate(q):
            if self.rule == "linear":
                q, k, v = elu_plus_one(q), elu_plus_one(k), F.pad(v, (0, 1), value=1.0)
            else:
                q, k = (F.normalize(t, dim=-1, eps=_SMALLEST) for t in (q, k))
            log_decay, beta = self._gates(h_BTD)
            delta = self.rule in ("gated_delta", "delta")
            o, memory = gated_delta_rule(q, k, v, log_decay, beta, state.memory_BGKV, delta)
            if observing.watched() and not self.local_attention:
                # o is linear in v and in the state before: without v, it is what earlier segments wrote
                older, _ = gated_delta_rule(q, k, 0 * v, log_decay, beta, state.memory_BGKV, delta)
                parts = {"remembered": older, "local": o - older}
                wanted = {name: part[:, :, where.wanted] for name, part in parts.items()}
                observing.offer("mix", memory=self, where=where, gate=0.5, **wanted)
            if self.rule == "linear":
                o = o[..., :-1] / o[..., -1:].clamp_min(_SMALLEST)
        if self.rule != "linear":
            o = self.out_norm(o)
        if self.output_gate is not None:
            gate_BTP = F.silu(self.output_gate(h_BTD))
            o = o * gate_BTP.unflatten(-1, (o.shape[1], -1)).transpose(1, 2)
        if o.shape[2] < rows:  # memory tokens read nothing
            first = where.tokens.indices(rows)[0]
            o = F.pad(o, (0, 0, first, rows - first - o.shape[2]))
        return o.to(projected_BTP.dtype), DeltaState(memory, recent_BcP)

    def _convolve(self, rows_BTP: Tensor, recent_BcP: Tensor) -> tuple[Tensor, Tensor]:
        """Each channel over the last rows, including those before the call; and the rows for the next one."""
        if self.convolution_Pc is None:
            return rows_BTP, recent_BcP
        count, all_BRP = rows_BTP.shape[1], torch.cat([recent_BcP, rows_BTP], dim=1)
        first, *others = self.convolution_Pc.to(rows_BTP.dtype).unbind(1)
        mixed_BTP = all_BRP[:, :count] * first
        for back, weight_P in enumerate(others, 1):
            mixed_BTP = torch.addcmul(mixed_BTP, all_BRP[:, back : back + count], weight_P)
        return mixed_BTP, all_BRP[:, count:]

    def _gates(self, h_BTD: Tensor) -> tuple[Tensor, Tensor]:
        """log a and b of each row and key-value head, [B, G, T]."""
        h_BTD = h_BTD.to(accumulator(h_BTD.dtype))
        zeros_BGT = h_BTD.new_zeros(len(h_BTD), self.description.kv_heads, h_BTD.shape[1])
        log_decay, beta = zeros_BGT, zeros_BGT + 1
        if self.decay is not None:
            rate_BTG = F.softplus(F.linear(h_BTD, self.decay.weight.to(h_BTD.dtype)) + self.decay_bias_G)
            log_decay = -(self.log_A_G.exp() * rate_BTG).transpose(1, 2)
        if self.beta is not None:
            beta = F.linear(h_BTD, self.beta.weight.to(h_BTD.dtype)).sigmoid().transpose(1, 2)
        return log_decay, beta

    def _gate(self) -> Tensor:
        """The share of S in each head's output, beside local attention: [H, 1, 1]."""
        return self.gate_H.sigmoid().view(-1, 1, 1)

    @torch.no_grad()
    def diagnose(self) -> dict[str, Tensor]:
        """The gates of each head, and a for a row whose W_a x is 0: what is left of S after one token."""
        found = {}
        if self.local_attention:
            found["gate"] = self.gate_H.sigmoid()
        if self.decay is not None:
            left_G = torch.exp(-self.log_A_G.exp() * F.softplus(self.decay_bias_G))
            found["decay"] = left_G.repeat_interleave(self.description.heads // self.description.kv_heads)
        return found
