"""Infini-attention (Munkhdalai et al. 2024, arXiv 2404.07143, section 3.1): each head has a memory M, z.

    A_mem = s(Q) M_{s-1} / s(Q) z_{s-1}                          (7)   s = ELU + 1; earlier segments only
    M_s = M_{s-1} + s(K)^T V                                     (8)   update=linear
    M_s = M_{s-1} + s(K)^T (V - s(K) M_{s-1} / s(K) z_{s-1})     (9)   update=delta
    z_s = z_{s-1} + sum_t s(K_t)
    A = g A_mem + (1 - g) A_dot,   g = sigmoid(beta)             (10)  one learned beta for each head

The same queries, keys and values serve both; the memory uses them without positions (section 4.1). Left open
by the paper, decided here: where z = 0, nothing has been written, and the output is only A_dot (g = 0); A_dot
is scaled by 1/sqrt(K) (eq. 6 prints the model's width); M and z are at least fp32 under every precision. z is
stored as one more column of M, that of a value that is always 1, and is written and read with M.

Parallel form: M_{s-1} only depends on the keys and values of its own layer.
    linear: a prefix sum of B_s = s(K_s)^T V_s.
    delta:  M_s = A_s M_{s-1} + B_s with A_s = I - s(K_s)^T diag(1 / s(K_s) z_{s-1}) s(K_s). z is a prefix
            sum, so all A_s and B_s are known at once, and S products of [K, K] matrices remain of the
            recurrence.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.layers import windows
from memlab.layers.attention import KeyValues
from memlab.layers.description import Description
from memlab.layers.positions import rotate
from memlab.layers.state import State, state
from memlab.memories.base import LayerMemory, Where
from memlab.ops.feature_map import elu_plus_one
from memlab.precision import accumulator, accurate

_SMALLEST = 1e-6  # of a denominator


@state
class InfiniState(State):
    """The memory of one layer, for each of its G key-value heads: [M | z], M from key feature to value."""

    memory_BGKV: Tensor  # V = K + 1


@state
class InfiniOpen(State):
    """An open segment: the memory before it, its keys and values, and what its tokens add to the memory."""

    before: InfiniState
    seen: KeyValues
    added_BGKV: Tensor


class Infini(LayerMemory):
    """Infini-attention in one layer.

    Args:
        update: rule of the memory, eq. 8 (linear) or eq. 9 (delta).
        gate_init: initial beta (not given in the paper); 0 = half memory, half segment.
    """

    def __init__(
        self,
        description: Description,
        *,
        update: Literal["linear", "delta"] = "linear",
        gate_init: float = 0.0,
    ) -> None:
        super().__init__(description)
        self.update = update
        self.gate_H = nn.Parameter(torch.full((description.heads,), float(gate_init)))

    def init_state(self, batch_size: int) -> InfiniState:
        k = self.description.head_width
        return InfiniState(self.zeros(batch_size, self.description.kv_heads, k, k + 1, accumulate=True))

    def begin(self, state: InfiniState, where: Where) -> InfiniOpen:
        return InfiniOpen(state, self.no_rows(where.batch_size), torch.zeros_like(state.memory_BGKV))

    def extend(self, x_BTD: Tensor, open: InfiniOpen, where: Where) -> tuple[Tensor, InfiniOpen]:
        q, k, v = self.project(x_BTD)
        turn = where.turn(where.start, where.count, q.dtype)
        seen = open.seen.then(rotate(k, turn), v)
        local = self.attend(rotate(q, turn), seen.keys_BGLK, seen.values_BGLK, where)
        before = open.before.memory_BGKV.unsqueeze(2)  # [B, G, 1, K, K + 1]
        k, v = (self.stored(t, where, 2).unsqueeze(2) for t in (k, v))
        added = open.added_BGKV + self._added(k, v, before).squeeze(2)
        y = self._read(q[:, :, where.wanted].unsqueeze(2), local.unsqueeze(2), before, where).squeeze(2)
        return self.merge(y), InfiniOpen(open.before, seen, added)

    def close(self, open: InfiniOpen) -> InfiniState:
        return InfiniState(open.before.memory_BGKV + open.added_BGKV)

    def parallel(self, x_BTD: Tensor, state: InfiniState, where: Where) -> tuple[Tensor, InfiniState]:
        q, k, v = (t.unflatten(2, (where.segments, -1)) for t in self.project(x_BTD))  # [B, H, S, N, K]
        turn = where.turn(0, where.count, q.dtype)
        near_q, near_k, near_v = (
            t.transpose(1, 2).flatten(0, 1) for t in (rotate(q, turn), rotate(k, turn), v)
        )
        local = windows.unfold(self.attend(near_q, near_k, near_v, where), where.segments)
        local = local.unflatten(2, (where.segments, -1))
        memories = self._memories(k, v, state.memory_BGKV)
        y = self._read(q, local, memories[:, :, :-1], where)
        return self.merge(y.flatten(2, 3)), InfiniState(memories[:, :, -1])

    def _added(self, k_BGSNK: Tensor, v_BGSNK: Tensor, before: Tensor) -> Tensor:
        """What each of S segments adds to the memory [B, G, S, K, K + 1] before it (eq. 8 or 9)."""
        with accurate(k_BGSNK):
            features, values = _feature(k_BGSNK), v_BGSNK.to(before.dtype)
            if self.update == "delta":
                values = values - _retrieve(features, before)
            return _write(features, values)

    def _memories(self, k_BGSNK: Tensor, v_BGSNK: Tensor, start: Tensor) -> Tensor:
        """The memories before each of S segments and after the last: [B, G, S + 1, K, K + 1]."""
        with accurate(k_BGSNK):
            features, values = _feature(k_BGSNK), v_BGSNK.to(start.dtype)
            added = _write(features, values)
            if self.update == "linear":
                return _fold(start, added)
            z = _fold(start[..., -1:], added[..., -1:])
            scaled = features / (features @ z[:, :, :-1]).clamp_min(_SMALLEST)
            A = torch.eye(z.shape[3], dtype=z.dtype, device=z.device) - features.transpose(-1, -2) @ scaled
            M = _fold(start[..., :-1], added[..., :-1], A)
            return torch.cat([M, z], dim=-1)

    def _read(self, q_BHSNK: Tensor, local_BHSNK: Tensor, before: Tensor, where: Where) -> Tensor:
        """Eq. 7 and 10: what queries retrieve from the memory [B, G, S, ..], mixed with A_dot by the gate."""
        with accurate(q_BHSNK):
            features = _feature(q_BHSNK).unflatten(1, (before.shape[1], -1))  # [B, G, H / G, S, N, K]
            remembered = _retrieve(features, before.unsqueeze(2)).flatten(1, 2)
            written_BGS = before[..., -1].amax(-1) > 0  # features, and so z, are positive
            written = written_BGS.repeat_interleave(features.shape[2], dim=1)
            gate_BHS11 = self.gate_H.sigmoid().view(-1, 1, 1, 1) * written[..., None, None]
            return self.mix(local_BHSNK, remembered, gate_BHS11, where)

    @torch.no_grad()
    def diagnose(self) -> dict[str, Tensor]:
        """The gates sigmoid(beta): share of the memory in each head's output (figure 3 of the paper)."""
        return {"gate": self.gate_H.sigmoid()}


def _feature(x: Tensor) -> Tensor:
    return elu_plus_one(x.to(accumulator(x.dtype)))


def _write(features: Tensor, values: Tensor) -> Tensor:
    """What tokens add to a memory, s(K)^T [V | 1]."""
    return features.transpose(-1, -2) @ F.pad(values, (0, 1), value=1.0)


def _retrieve(features: Tensor, memory: Tensor) -> Tensor:
    """Eq. 7: s(Q) M / s(Q) z for features [.., N, K]."""
    read = features @ memory
    return read[..., :-1] / read[..., -1:].clamp_min(_SMALLEST)


def _fold(start: Tensor, added_S: Tensor, factor_S: Tensor | None = None) -> Tensor:
    """m_s = A_s m_{s-1} + b_s from m_0, with A = 1 without factors: [B, G, S, ..] to [B, G, S + 1, ..]."""
    memories = [start]
    for s, added in enumerate(added_S.unbind(2)):
        before = memories[-1] if factor_S is None else factor_S[:, :, s] @ memories[-1]
        memories.append(before + added)
    return torch.stack(memories, dim=2)
