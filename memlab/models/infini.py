"""Infini-attention (Munkhdalai, Faruqui, Gopal 2024, arXiv 2404.07143, section 3.1): each head has a compressive memory M, z.

    A_mem = s(Q) M_{s-1} / s(Q) z_{s-1}                          (7)   s = ELU + 1; retrieve first, from the segments before
    M_s = M_{s-1} + s(K)^T V                                     (8)   update=linear
    M_s = M_{s-1} + s(K)^T (V - s(K) M_{s-1} / s(K) z_{s-1})     (9)   update=delta
    z_s = z_{s-1} + sum_t s(K_t)
    A = g A_mem + (1 - g) A_dot,   g = sigmoid(beta)             (10)  one learned beta for each head

The same queries, keys and values serve both; those of the memory are without positions (section 4.1). Left open by the paper, decided
here: where z = 0 nothing has been written, and the output is A_dot alone (g = 0); A_dot is scaled by 1/sqrt(K) (eq. 6 prints the
model's width); M and z are at least fp32 under every precision, since sums stall in bf16 and overflow in fp16.

Parallel form: M_{s-1} is made of one layer's own keys and values, and no later layer's.
    linear: an exclusive prefix sum of B_s = s(K_s)^T V_s.
    delta:  M_s = A_s M_{s-1} + B_s with A_s = I - s(K_s)^T diag(1 / s(K_s) z_{s-1}) s(K_s). z is a prefix sum, so all A_s and B_s are
            known at once, and what is left of the recurrence are S - 1 products of [K, K] matrices.
"""

from __future__ import annotations

import contextlib
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.layers import observing, windows
from memlab.layers.attention import KeyValues
from memlab.layers.blocks import Block
from memlab.layers.positions import rotate
from memlab.layers.state import State, state
from memlab.models.base import Open
from memlab.models.layered import LayeredDecoder

_SMALLEST = 1e-6  # of a denominator


@state
class Compressive(State):
    """The memory of one layer, for each of its G key-value heads."""

    M_BGKK: Tensor  # from key feature to value
    z_BGK: Tensor  # sum of key features

    @classmethod
    def of(cls, joint: Tensor) -> Compressive:
        """Apart again what `joint` put together."""
        return cls(joint[..., :-1], joint[..., -1])

    @property
    def joint(self) -> Tensor:
        """[.., K, K + 1]: z stands beside M like what is stored of a value that is always 1, and is written and read with it."""
        return torch.cat([self.M_BGKK, self.z_BGK.unsqueeze(-1)], dim=-1)


@state
class InfiniState(State):
    """What Infini-attention carries."""

    layers: tuple[Compressive, ...]


@state
class InfiniPast(State):
    """Of one layer, while a segment is read: its keys and values so far, and what its tokens so far add to the memory."""

    seen: KeyValues
    added: Compressive


class Infini(LayeredDecoder):
    """Infini-attention decoder.

    Args:
        update: rule of the memory, eq. 8 (linear) or eq. 9 (delta).
        gate_init: beta to begin with (not given in the paper); 0 = half memory, half segment.
        memory: on; off = gates fixed to 0, the control without memory; shuffled = each document of a batch reads the memory of the one
            before it, the control that has a memory which knows nothing of the document.
            `backbone` are `Model`'s arguments.
    """

    def __init__(
        self, *, update: Literal["linear", "delta"], gate_init: float, memory: Literal["on", "off", "shuffled"], **backbone: Any
    ) -> None:
        super().__init__(**backbone)
        self.update, self.memory = update, memory
        self.gate_LH = nn.Parameter(torch.full((len(self.stack.blocks), self.stack.heads), float(gate_init)))

    @property
    def carries(self) -> bool:
        return self.memory != "off"

    def init_state(self, batch_size: int) -> InfiniState:
        weight, g, k = self.embed.weight, self.stack.kv_heads, self.stack.head_width
        zeros = weight.new_zeros((batch_size, g, k, k + 1), dtype=_accumulator(weight.dtype))
        return InfiniState(tuple(Compressive(zeros[..., :k], zeros[..., k]) for _ in self.stack.blocks))

    def attend(self, layer: int, open: Open, block: Block, x_BnD: Tensor) -> tuple[Tensor, InfiniPast]:
        q, k, v = block.project(x_BnD)
        before = open.state.layers[layer].joint.unsqueeze(2)  # [B, G, 1, K, K + 1]
        added = Compressive.of(self._added(k.unsqueeze(2), v.unsqueeze(2), before).squeeze(2))
        turn = self.stack.turn(torch.arange(open.read, open.read + x_BnD.shape[1], device=self.device), q.dtype)
        k = rotate(k, turn)
        if open.past:
            past: InfiniPast = open.past[layer]
            k, v = torch.cat([past.seen.keys_BHPK, k], dim=2), torch.cat([past.seen.values_BHPK, v], dim=2)
            added = Compressive(past.added.M_BGKK + added.M_BGKK, past.added.z_BGK + added.z_BGK)
        local = block.attention.attend(rotate(q, turn), k, v, relative=self.stack.relative(layer))
        y = self._mix(layer, q.unsqueeze(2), local.unsqueeze(2), before).squeeze(2)
        return block.attention.merge(y), InfiniPast(KeyValues(k, v), added)

    def close(self, open: Open) -> InfiniState:
        both = zip(open.state.layers, (past.added for past in open.past), strict=True)
        return InfiniState(tuple(Compressive(old.M_BGKK + new.M_BGKK, old.z_BGK + new.z_BGK) for old, new in both))

    def attend_all(self, layer: int, state: InfiniState, block: Block, x_BTD: Tensor, segments: int) -> tuple[Tensor, Compressive]:
        q, k, v = block.project(x_BTD)
        turn = self.stack.turn(torch.arange(x_BTD.shape[1] // segments, device=self.device).repeat(segments), q.dtype)
        q_local, k_local, v_local = (windows.fold(t, segments) for t in (rotate(q, turn), rotate(k, turn), v))
        local = block.attention.attend(q_local, k_local, v_local, relative=self.stack.relative(layer))
        local = windows.unfold(local, segments)
        q, k, v, local = (t.unflatten(2, (segments, -1)) for t in (q, k, v, local))
        memories = self._memories(k, v, state.layers[layer])
        y = self._mix(layer, q, local, memories[:, :, :-1])
        return block.attention.merge(y.flatten(2, 3)), Compressive.of(memories[:, :, -1])

    def written(self, state: InfiniState, layers: tuple[Compressive, ...], tokens: int) -> InfiniState:
        return InfiniState(layers)

    def _added(self, k_BGSNK: Tensor, v_BGSNK: Tensor, before: Tensor) -> Tensor:
        """What segments add to the joint memories [B, G, S, K, K + 1] before them (eq. 8 or 9): a sum over their tokens."""
        with _exactly(k_BGSNK):
            features, values = _feature(k_BGSNK), v_BGSNK.to(_accumulator(v_BGSNK.dtype))
            if self.update == "delta":
                values = values - _retrieve(features, before)
            return _write(features, values)

    def _memories(self, k_BGSNK: Tensor, v_BGSNK: Tensor, start: Compressive) -> Tensor:
        """The joint memories before each of S segments and after the last: [B, G, S + 1, K, K + 1]."""
        with _exactly(k_BGSNK):
            features, values = _feature(k_BGSNK), v_BGSNK.to(_accumulator(v_BGSNK.dtype))
            added = _write(features, values)
            if self.update == "linear":
                return _fold(start.joint, added)
            z = _fold(start.z_BGK, added[..., -1])
            scaled = features / (features @ z[:, :, :-1, :, None]).clamp_min(_SMALLEST)
            A = torch.eye(features.shape[-1], dtype=z.dtype, device=z.device) - features.transpose(-1, -2) @ scaled
            return Compressive(_fold(start.M_BGKK, added[..., :-1], A), z).joint

    def _mix(self, layer: int, q_BHSNK: Tensor, local_BHSNK: Tensor, before: Tensor) -> Tensor:
        """Eq. 10: what the joint memory [B, G, S, ..] gives for queries without positions, and the local attention, by the gate."""
        if self.memory == "off":
            return local_BHSNK
        if self.memory == "shuffled":
            before = before.roll(1, dims=0)
        with _exactly(q_BHSNK):
            groups = before.shape[1]
            features = _feature(q_BHSNK).unflatten(1, (groups, -1))  # [B, G, H / G, S, N, K]
            remembered = _retrieve(features, before.unsqueeze(2)).flatten(1, 2)
            gate = self.gate_LH[layer].sigmoid().view(-1, 1, 1) * _written(before).repeat_interleave(features.shape[2], dim=1)
            gate = gate.unsqueeze(-1)  # [B, H, S, 1, 1]
            observing.offer("mix", layer=layer, gate=gate, remembered=remembered, local=local_BHSNK)
            return torch.lerp(local_BHSNK.to(remembered.dtype), remembered, gate).to(local_BHSNK.dtype)

    @torch.no_grad()
    def diagnose(self) -> dict[str, Tensor]:
        """The gates sigmoid(beta): share of the memory in each head's output (figure 3 of the paper)."""
        gate = self.gate_LH.sigmoid()
        return {f"gate/layer{layer}_head{head}": gate[layer, head] for layer in range(gate.shape[0]) for head in range(gate.shape[1])}


def _exactly(x: Tensor) -> contextlib.AbstractContextManager[None]:
    """No automatic casting to a narrower type."""
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else contextlib.nullcontext()


def _accumulator(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)


def _feature(x: Tensor) -> Tensor:
    """s(x) = ELU(x) + 1, positive."""
    y: Tensor = _Feature.apply(x.to(_accumulator(x.dtype)))
    return y


class _Feature(torch.autograd.Function):
    """exp(x) below 0 and x + 1 above. The slope is the value itself, at most 1, so nothing else is kept; torch's ELU takes it from x."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = torch.empty_like(x, memory_format=torch.contiguous_format)  # as the products that follow want it
        torch.clamp(x, max=0, out=y).exp_().add_(x.clamp(min=0))
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> Tensor:
        (y,) = ctx.saved_tensors
        return y.clamp(max=1).mul_(dy)


def _write(features: Tensor, values: Tensor) -> Tensor:
    """What tokens add to a joint memory, s(K)^T [V | 1]."""
    return features.transpose(-1, -2) @ F.pad(values, (0, 1), value=1.0)


def _retrieve(features: Tensor, joint: Tensor) -> Tensor:
    """Eq. 7: s(Q) M / s(Q) z for features [.., N, K]."""
    read = features @ joint
    return read[..., :-1] / read[..., -1:].clamp_min(_SMALLEST)


def _written(joint: Tensor) -> Tensor:
    """1 where a memory [.., K, K + 1] has been written to, else 0, as [.., 1]: features are positive, so z tells."""
    return (joint[..., -1].amax(-1, keepdim=True) > 0).to(joint.dtype)


def _fold(start: Tensor, added_S: Tensor, factor_S: Tensor | None = None) -> Tensor:
    """m_s = A_s m_{s-1} + b_s from m_0 on; without A a sum.

    Args:
        start: [B, G, ..]; [B, G, K, ..] if there are factors.
        added_S: b, [B, G, S, ..].
        factor_S: A, [B, G, S, K, K].

    Returns:
        [B, G, S + 1, ..], the first of which is `start`.
    """
    y: Tensor = _Fold.apply(start, added_S, factor_S)
    return y


class _Fold(torch.autograd.Function):
    """One small operation for each segment, forwards and backwards; autograd would need four and six."""

    @staticmethod
    def forward(ctx: Any, start: Tensor, added_S: Tensor, factor_S: Tensor | None) -> Tensor:
        segments = added_S.shape[2]
        m = added_S.new_empty(*start.shape[:2], segments + 1, *start.shape[2:])
        m[:, :, 0] = start
        for s in range(segments):
            _step(m, s, s + 1, added_S[:, :, s], None if factor_S is None else factor_S[:, :, s])
        ctx.save_for_backward(m if factor_S is not None else None, factor_S)
        return m

    @staticmethod
    def backward(ctx: Any, dm: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        m, factor_S = ctx.saved_tensors
        total = torch.empty_like(dm, memory_format=torch.contiguous_format)  # with what comes through later segments
        total[:, :, -1] = dm[:, :, -1]
        for s in reversed(range(dm.shape[2] - 1)):
            _step(total, s + 1, s, dm[:, :, s], None if factor_S is None else factor_S[:, :, s].transpose(-1, -2))
        dfactor_S = None if factor_S is None else total[:, :, 1:] @ m[:, :, :-1].transpose(-1, -2)
        return total[:, :, 0], total[:, :, 1:], dfactor_S


def _step(m: Tensor, source: int, target: int, added: Tensor, factor: Tensor | None) -> None:
    """m_target = factor m_source + added."""
    if factor is None:
        torch.add(m[:, :, source], added, out=m[:, :, target])
    else:
        flat = (t.flatten(0, 1) for t in (added, factor, m[:, :, source]))
        torch.baddbmm(*flat, out=m[:, :, target].flatten(0, 1))
