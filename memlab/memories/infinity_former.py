"""infinity-former (Martins, Marinho, Martins, ACL 2022, arXiv 2109.00301): the past as a continuous signal.

Each layer stores its past inputs as a signal x(t) = B^T psi(t) on [0, 1], of J radial basis functions, and
looks at it with one density for each query and head (`layers/continuous.py`). The size of B does not depend
on the length of the past.

    K = B W_K, V = B W_V                                                    long-term memory (section 3.1)
    mean = sigmoid(affine(K q / sqrt(K))),  variance = softplus(affine(K q / sqrt(K)))
    Z_LTM = V^T E_p[psi(t)],   p = N(mean, variance)
    Z = Z_T + Z_LTM,           Z_T: softmax attention within the segment

    past signal at M positions, moved to (0, tau]; the N new rows on (tau, 1];
    then B by ridge regression over both                                    unbounded memory (section 3.2)
    sticky memories: the M positions lie where the segment's queries have looked, by their densities in 128
    equal bins                                                              (section 3.3)
    loss: mean of 1/2 (v / v_0 - log(v / v_0) - 1), the Kullback-Leibler divergence to a density of variance
    v_0 around the same mean, so that densities stay narrow                 (section 3.4)

As in the authors' code (deep-spin/infinite-former): queries and keys of the long-term memory have no
positions, the affine maps are shared by the heads, and no gradient passes from segment to segment (with
memory_gradient, it does). Departures: the past takes each segment as it ends, as the authors' GPT-2 does,
and there is no Transformer-XL cache before it. Sticky positions are the quantiles of the density, not random
draws from it, so that reading is deterministic. Positions are not padded beyond [0, 1], and new rows are not
masked by a convolution, neither of which is in the paper. The affine maps have a bias, as the paper's word
says. The signal is that of the normalised inputs, since these are what W_K and W_V take.

Parallel form: B_s only depends on this layer's inputs, so a layer reads all segments at once, after a loop
over segments that only updates B. With sticky memories the loop also finds where each segment looks.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.bounds import Fraction, NonNegativeFloat, Positive, PositiveFloat
from memlab.errors import ConfigError
from memlab.layers import observing, windows
from memlab.layers.attention import ALL, KeyValues
from memlab.layers.continuous import Basis, contracted, quantiles, share
from memlab.layers.description import Description
from memlab.layers.positions import rotate
from memlab.layers.state import State, state
from memlab.memories.base import LayerMemory, Where
from memlab.precision import accurate

_BINS = 128  # of the density of sticky memories
_SMALLEST = 1e-6  # variance


@state
class InfinityState(State):
    """The signal's J coefficients, and whether anything has been written."""

    signal_BJD: Tensor
    written_B: Tensor


@state
class InfinityOpen(State):
    """An open segment: the state before it, the memory's and its own keys and values, rows to be stored, and
    the share of its densities in each bin.
    """

    before: InfinityState
    memory: KeyValues  # of the J coefficients
    seen: KeyValues
    hidden_BnD: Tensor
    looked_BE: Tensor


class Densities(NamedTuple):
    """Where queries look, [B, H, T] each."""

    mean: Tensor
    variance: Tensor


class InfinityFormer(LayerMemory):
    """infinity-former's memory in one layer.

    Args:
        basis_functions: J, a multiple of the number of widths (published: 512).
        basis_widths: standard deviations of the basis functions (published: 0.01 and 0.05, or 0.005 and 0.01,
            with 512 functions).
        ridge: penalty of the regression (published: 1, or 0.5).
        contraction: tau, the part of [0, 1] that the past is moved to (published: 0.75, or 0.5).
        samples: M, positions at which the past signal is read for an update (published: 512).
        sticky: whether these lie where the segment has looked, instead of evenly.
        density: with which queries look at the signal.
        kl_weight: of the Kullback-Leibler loss.
        kl_width: square root of v_0.
        memory_gradient: whether gradient passes a segment boundary.

    Raises:
        ConfigError: `basis_functions` is no multiple of the number of widths, or tau is not between 0 and 1.
    """

    def __init__(
        self,
        description: Description,
        *,
        basis_functions: Positive = 64,
        basis_widths: list[PositiveFloat] = [0.02, 0.05],  # noqa: B006
        ridge: PositiveFloat = 0.5,
        contraction: Fraction = 0.5,
        samples: Positive = 64,
        sticky: bool = True,
        density: Literal["gaussian", "parabola"] = "gaussian",
        kl_weight: NonNegativeFloat = 1e-6,
        kl_width: PositiveFloat = 0.05,
        memory_gradient: bool = False,
    ) -> None:
        super().__init__(description)
        if not basis_widths or basis_functions % len(basis_widths):
            raise ConfigError(
                f"model.basis_functions={basis_functions} is not a multiple of the number of "
                f"model.basis_widths={list(basis_widths)}"
            )
        if not 0 < contraction < 1:
            raise ConfigError(f"model.contraction={contraction}: the past needs a part between 0 and 1")
        self.basis = Basis(basis_functions, basis_widths)
        self.ridge, self.contraction, self.samples = ridge, contraction, samples
        self.sticky, self.density = sticky, density
        self.kl_weight, self.kl_variance = kl_weight, kl_width**2
        self.sends_gradient, self.has_auxiliary_loss = memory_gradient, kl_weight > 0
        d = description
        self.memory_kv = nn.Linear(d.width, 2 * d.kv_heads * d.head_width, bias=False)  # W_K and W_V
        self.memory_out = nn.Linear(d.heads * d.head_width, d.width, bias=False)
        self.affine = nn.Linear(basis_functions, 2)  # to the mean and to the variance

    def init_state(self, batch_size: int) -> InfinityState:
        signal_BJD = self.zeros(batch_size, self.basis.size, self.description.width, accumulate=True)
        return InfinityState(signal_BJD, torch.zeros(batch_size, dtype=torch.bool, device=self.device))

    def begin(self, state: InfinityState, where: Where) -> InfinityOpen:
        signal_BJD = state.signal_BJD
        hidden_BnD = self.zeros(where.batch_size, 0, self.description.width)
        looked_BE = signal_BJD.new_zeros(where.batch_size, _BINS)
        return InfinityOpen(
            state, self._project(signal_BJD), self.no_rows(where.batch_size), hidden_BnD, looked_BE
        )

    def extend(self, x_BTD: Tensor, open: InfinityOpen, where: Where) -> tuple[Tensor, InfinityOpen]:
        hidden_BTD = self.normed(x_BTD)
        q, k, v = self.attention.project(hidden_BTD)
        turn = where.turn(where.start, where.count, q.dtype)
        seen = open.seen.then(rotate(k, turn), v)
        local = self.attend(rotate(q, turn), seen.keys_BGLK, seen.values_BGLK, where)
        looks = self._look(q, open.memory)
        where.add_loss(lambda: self._divergence(looks, open.before, where))
        y = self._join(local, self._read(looks, open.memory, where), open.before, where)
        looked_BE = open.looked_BE + self._bins(looks, where) if self.sticky else open.looked_BE
        rows = [open.hidden_BnD.to(hidden_BTD.dtype), self.stored(hidden_BTD, where, 1)]
        return y, InfinityOpen(open.before, open.memory, seen, torch.cat(rows, dim=1), looked_BE)

    def close(self, open: InfinityOpen) -> InfinityState:
        return self._update(open.before, open.hidden_BnD, open.looked_BE)

    def parallel(self, x_BTD: Tensor, state: InfinityState, where: Where) -> tuple[Tensor, InfinityState]:
        s = where.segments
        hidden_BTD = self.normed(x_BTD)
        q, k, v = (windows.fold(t, s) for t in self.attention.project(hidden_BTD))
        turn = where.turn(0, where.count, q.dtype)
        local = self.attend(rotate(q, turn), rotate(k, turn), v, where)
        states = [state]
        for q_BHNK, hidden_BND in zip(
            q.unflatten(0, (-1, s)).unbind(1), hidden_BTD.unflatten(1, (s, -1)).unbind(1), strict=True
        ):
            looked_BE = None
            if self.sticky:
                with torch.no_grad():
                    looked_BE = self._bins(self._look(q_BHNK, self._project(states[-1].signal_BJD)), where)
            states.append(self._update(states[-1], hidden_BND, looked_BE))
        before = InfinityState(
            torch.stack([each.signal_BJD for each in states[:-1]], dim=1).flatten(0, 1),
            torch.stack([each.written_B for each in states[:-1]], dim=1).flatten(),
        )
        memory = self._project(before.signal_BJD)
        looks = self._look(q, memory)
        where.add_loss(lambda: self._divergence(looks, before, where).unflatten(0, (-1, s)))
        y_FND = self._join(local, self._read(looks, memory, where), before, where)
        return y_FND.unflatten(0, (-1, s)).flatten(1, 2), states[-1]

    def _project(self, signal_BJD: Tensor) -> KeyValues:
        """Keys and values of the coefficients, [B, G, J, K] each."""
        with accurate(signal_BJD):
            both = F.linear(signal_BJD, self.memory_kv.weight.to(signal_BJD.dtype))
            both_BGJK = both.unflatten(-1, (-1, self.description.head_width)).transpose(1, 2)
            return KeyValues(*both_BGJK.chunk(2, dim=1))

    def _look(self, q_BHTK: Tensor, memory: KeyValues) -> Densities:
        """Section 3.1: each query's density, from its scores of the J coefficients."""
        with accurate(q_BHTK):
            keys = memory.keys_BGLK
            q = q_BHTK.to(keys.dtype).unflatten(1, (keys.shape[1], -1))  # [B, G, H / G, T, K]
            scores = (q @ keys.unsqueeze(2).transpose(-1, -2)).flatten(1, 2) * keys.shape[-1] ** -0.5
            to_mean, to_variance = F.linear(
                scores, self.affine.weight.to(keys.dtype), self.affine.bias.to(keys.dtype)
            ).unbind(-1)
            return Densities(to_mean.sigmoid(), F.softplus(to_variance).clamp_min(_SMALLEST))

    def _read(self, looks: Densities, memory: KeyValues, where: Where) -> Tensor:
        """Z_LTM of the wanted rows, for each head: [B, H, T, K]."""
        with accurate(looks.mean):
            values = memory.values_BGLK
            mean, variance = (t[:, :, where.wanted].unflatten(1, (values.shape[1], -1)) for t in looks)
            expected = self.basis.expected(mean, variance, self.density)  # [B, G, H / G, T, J]
            return (expected @ values.unsqueeze(2)).flatten(1, 2)

    def _join(self, local: Tensor, remembered: Tensor, before: InfinityState, where: Where) -> Tensor:
        """Z_T + Z_LTM, [B, T, D]. Nothing is read before anything is written."""
        reads_BHT1 = before.written_B[:, None, None, None] & where.readers()[where.wanted, None]
        gate = 0.5 * reads_BHT1.to(remembered.dtype)  # for observers: both count alike
        observing.offer("mix", memory=self, where=where, gate=gate, remembered=remembered, local=local)
        remembered_BTD = (remembered * reads_BHT1).to(local.dtype).transpose(1, 2).flatten(2)
        y_BTD: Tensor = self.merge(local) + self.memory_out(remembered_BTD)
        return y_BTD

    @torch.no_grad()
    def _bins(self, looks: Densities, where: Where) -> Tensor:
        """Section 3.3: how much the rows that read the memory look at each bin, [B, E]."""
        mean, variance = (t[:, :, _readers(where)] for t in looks)
        edges_E = torch.linspace(0, 1, _BINS + 1, device=mean.device, dtype=mean.dtype)
        return share(edges_E, mean, variance, self.density).sum((1, 2))

    def _update(self, before: InfinityState, hidden_BND: Tensor, looked_BE: Tensor | None) -> InfinityState:
        """Section 3.2: the signal after a segment."""
        signal_BJD, rows = before.signal_BJD, hidden_BND.shape[1]
        if not self.sends_gradient:
            signal_BJD, hidden_BND = signal_BJD.detach(), hidden_BND.detach()
        with accurate(hidden_BND):
            new_BND = hidden_BND.to(signal_BJD.dtype)
            if self.sticky and looked_BE is not None:
                at_BM = quantiles(looked_BE, self.samples)
            else:
                at_M = torch.arange(1, self.samples + 1, device=signal_BJD.device, dtype=signal_BJD.dtype)
                at_BM = (at_M / self.samples)[None]
            past_BMD = self.basis.values(at_BM) @ signal_BJD
            later = self._regression(self.contraction, self.samples, rows, signal_BJD)
            updated_BJD = later.T @ torch.cat([past_BMD, new_BND], dim=1)
            first_BJD = self._regression(0.0, 0, rows, signal_BJD).T @ new_BND
            written_BJD = torch.where(before.written_B[:, None, None], updated_BJD, first_BJD)
        return InfinityState(written_BJD, torch.ones_like(before.written_B))

    def _regression(self, contraction: float, samples: int, rows: int, like: Tensor) -> Tensor:
        shape = (self.basis.size, self.basis.widths, self.ridge, contraction, samples, rows)
        return contracted(*shape, like.device, like.dtype)

    def _divergence(self, looks: Densities, before: InfinityState, where: Where) -> Tensor:
        """Section 3.4, the mean over heads and the rows that read: [B]; 0 if nothing has been written."""
        ratio = looks.variance[:, :, _readers(where)] / self.kl_variance
        divergence_B = 0.5 * (ratio - ratio.log() - 1).mean((1, 2))
        return self.kl_weight * divergence_B * before.written_B

    @torch.no_grad()
    def diagnose(self) -> dict[str, Tensor]:
        """The standard deviation of a density whose scores are all 0."""
        return {"density_width": F.softplus(self.affine.bias[1]).sqrt()}


def _readers(where: Where) -> slice:
    return ALL if where.memory_tokens_read else where.tokens
