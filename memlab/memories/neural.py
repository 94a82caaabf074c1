"""The neural memory of Titans (Behrouz, Zhong, Mirrokni 2024, arXiv 2501.00663, section 3): weights as state.

Each head has an MLP whose weights M learn, while the model reads, to map keys to values:

    l(M; x) = | M(k) - v |^2,  k = x W_K,  v = x W_V                                    (11, 12)
    S_t = eta_t S_{t-1} - theta_t grad l(M; x_t)        surprise, with momentum         (14)
    M_t = (1 - alpha_t) M_{t-1} + S_t                   with forgetting                 (13)
    y = M(q),  q = x W_Q                                retrieval                       (15)

alpha, eta and theta depend on the token; the gradient is taken at the weights before the token's chunk (16).
Keys and queries are normalised to length 1, and all three projections pass a SiLU (section 4.4). M begins
with learned weights, and S with 0. The state is S, and what reading has changed in M.

Left open by the paper, decided here: an MLP for each head, with SiLU between its layers and no biases; what
alpha and eta are for an average token at the beginning of the training. theta is at most memory_lr / b in a
chunk of b tokens, so that many tokens with the same key do not overshoot, and values are normalised to length
1 too. Without these two, the weights of a memory of depth 2 grow until its gradient explodes (training on
copy ended in NaN within 65 steps; issues of other implementations report the same). A token retrieves from
the weights before its chunk, since within the chunk, attention sees everything (the paper's y_t is of M_t;
other weights for each token would take as much memory as a state for each token). The convolutions after the
projections are left out.

Without momentum and forgetting, the update is the mini-batch update of TTT (Sun et al. 2024, arXiv
2407.04620). TTT-Linear is not this memory at depth 1, though: its MLP has a bias, and a normalisation with a
residual inside of the loss, and its target is v - k.

Shapes: B batch, H heads, T rows, b tokens of a chunk, K head width, F weights of an MLP.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.bounds import Fraction, NonNegative, Positive, PositiveFloat
from memlab.errors import ConfigError
from memlab.layers.attention import KeyValues, causal_mask
from memlab.layers.description import Description
from memlab.layers.state import State, state
from memlab.memories.base import LayerMemory, Where
from memlab.ops.surprise import chunk_weights
from memlab.precision import accumulator, accurate

_CERTAIN = 1e4  # a logit of 1, exactly, in every floating-point type


@state
class NeuralState(State):
    """The weights of each head's MLP, and the surprise, its momentum (of size 0 without momentum).

    Carried weights are differences to the learned ones; those of an open segment are the weights themselves.
    """

    weights_BHF: Tensor
    surprise_BHF: Tensor


@state
class Written(State):
    """What tokens write: keys, values, the logits of 1 - alpha and of eta, and theta times b."""

    keys_BHTK: Tensor
    values_BHTK: Tensor
    keep_BHT: Tensor
    momentum_BHT: Tensor
    step_BHT: Tensor

    def then(self, more: Written) -> Written:
        """These tokens, and further ones."""
        pairs = zip(self.tensors(), more.tensors(), strict=True)
        return Written(*(torch.cat(pair, dim=2) for pair in pairs))

    def rows(self, which: slice) -> Written:
        """Some of the tokens."""
        return self.map(lambda t: t[:, :, which])

    @property
    def count(self) -> int:
        return self.keys_BHTK.shape[2]


class NeuralMemory(LayerMemory):
    """Base of the layers with a neural memory.

    Args:
        depth: layers of the MLP; 1 = a linear memory.
        expansion: width of its hidden layers, as a multiple of the head width.
        chunk: b, tokens whose gradients are taken at the same weights; None = those of a segment.
        memory_lr: largest theta, times the tokens of a chunk.
        momentum: eta of an average token at the beginning; 0 = no momentum.
        forgetting: alpha of an average token at the beginning; 0 = nothing is ever forgotten.
        persistent_rows: learned rows that attention sees in front of each segment (3.3).

    Raises:
        ConfigError: `momentum` or `forgetting` is 1, or the kind cannot do with this backbone (`check`).
    """

    def __init__(
        self,
        description: Description,
        *,
        depth: Positive = 2,
        expansion: Positive = 2,
        chunk: Positive | None = 16,
        memory_lr: PositiveFloat = 1.0,
        momentum: Fraction = 0.5,
        forgetting: Fraction = 0.01,
        persistent_rows: NonNegative = 4,
    ) -> None:
        self.check(description)
        super().__init__(description)
        if 1 in (momentum, forgetting):
            name = "momentum" if momentum == 1 else "forgetting"
            raise ConfigError(f"model.{name}=1: at the beginning, this has to be less than 1")
        d = description
        self.chunk, self.memory_lr = chunk, memory_lr
        self.has_momentum, self.forgets = momentum > 0, forgetting > 0
        widths = [d.head_width, *[expansion * d.head_width] * (depth - 1), d.head_width]
        self.shapes = list(itertools.pairwise(widths))
        initial = [torch.randn(d.heads, i, o) * i**-0.5 for i, o in self.shapes]
        self.initial_HF = nn.Parameter(torch.cat([w.flatten(1) for w in initial], dim=1))
        self.memory_qkv = nn.Linear(d.width, 3 * d.heads * d.head_width, bias=False)
        self.memory_out = nn.Linear(d.heads * d.head_width, d.width, bias=False)
        self.rates = nn.Linear(d.width, 3 * d.heads, bias=False)  # logits of 1 - alpha, eta, theta
        at_first = torch.tensor([_logit(1 - forgetting), _logit(momentum), 0.0])
        self.rates_bias_3H = nn.Parameter(at_first[:, None].repeat(1, d.heads))
        self.persistent_PD = nn.Parameter(torch.randn(persistent_rows, d.width))
        # "learnable vector-valued weights" of both sides of the gate (4.2)
        self.local_norm, self.memory_norm = (nn.RMSNorm(d.width, eps=1e-5) for _ in range(2))

    @classmethod
    def check(cls, description: Description) -> None:
        """Check that the memory can do with this backbone.

        Raises:
            ConfigError: it cannot.
        """

    def init_state(self, batch_size: int) -> NeuralState:
        heads, size = self.description.heads, sum(i * o for i, o in self.shapes)
        sizes = (size, size if self.has_momentum else 0)
        return NeuralState(*(self.zeros(batch_size, heads, each, accumulate=True) for each in sizes))

    def opened(self, state: NeuralState) -> NeuralState:
        """A carried state as an open segment needs it."""
        weights_BHF = self.initial_HF.to(state.weights_BHF.dtype) + state.weights_BHF
        return NeuralState(weights_BHF, state.surprise_BHF)

    def closed(self, state: NeuralState) -> NeuralState:
        """The state of an open segment as it is carried."""
        weights_BHF = state.weights_BHF - self.initial_HF.to(state.weights_BHF.dtype)
        return NeuralState(weights_BHF, state.surprise_BHF)

    def queries(self, x_BTD: Tensor) -> Tensor:
        """q, [B, H, T, K]."""
        with accurate(x_BTD):
            return F.normalize(self._projected(x_BTD, 0), dim=-1)

    def writes(self, x_BTD: Tensor) -> Written:
        """What these rows write."""
        with accurate(x_BTD):
            k, v = (F.normalize(self._projected(x_BTD, part), dim=-1) for part in (1, 2))
            rates = F.linear(x_BTD.to(k.dtype), self.rates.weight.to(k.dtype))
            rates = rates.unflatten(-1, (3, -1)) + self.rates_bias_3H.to(k.dtype)  # [B, T, 3, H]
            keep, momentum, step = rates.permute(2, 0, 3, 1).unbind(0)
            if not self.forgets:
                keep = torch.full_like(keep, _CERTAIN)
            if not self.has_momentum:
                momentum = torch.full_like(momentum, -_CERTAIN)
            return Written(k, v, keep, momentum, self.memory_lr * step.sigmoid())

    def nothing(self, batch_size: int) -> Written:
        """No rows."""
        heads, width = self.description.heads, self.description.head_width
        rows, numbers = (self.zeros(batch_size, heads, 0, *size, accumulate=True) for size in ([width], []))
        return Written(rows, rows, numbers, numbers, numbers)

    def retrieve(self, q_BHTK: Tensor, weights_BHF: Tensor) -> Tensor:
        """M(q), the heads joined and projected: [B, T, D]."""
        with accurate(q_BHTK):
            y_BHTK = self._forward(self._matrices(weights_BHF), q_BHTK)[-1]
            y_BTD: Tensor = F.linear(
                y_BHTK.transpose(1, 2).flatten(2), self.memory_out.weight.to(y_BHTK.dtype)
            )
            return y_BTD

    def update(self, before: NeuralState, chunk: Written) -> NeuralState:
        """The state after a chunk (13, 14)."""
        if not chunk.count:
            return before
        k, v, keep, momentum, step = chunk.tensors()
        with accurate(k):
            a, f, m, g, n = chunk_weights(keep, momentum, step / chunk.count)
            matrices = self._matrices(before.weights_BHF)
            *inputs, y = self._forward(matrices, k)
            slope = 2 * (y - v)  # of the loss, at the outputs of each layer, from the last one down
            slopes = [slope]
            for matrix, z in zip(reversed(matrices[1:]), reversed(inputs[1:]), strict=True):
                s = z.sigmoid()
                slope = slope @ matrix.transpose(-1, -2) * (s * (1 + z * (1 - s)))
                slopes.insert(0, slope)
            inputs = [inputs[0], *(F.silu(z) for z in inputs[1:])]

            def summed(weight_BHb: Tensor) -> Tensor:
                """The gradients of the tokens, weighted and summed: [B, H, F]."""
                pairs = zip(inputs, slopes, strict=True)
                parts = [(h * weight_BHb[..., None]).transpose(-1, -2) @ d for h, d in pairs]
                return torch.cat([part.flatten(2) for part in parts], dim=2)

            weights = a[..., None] * before.weights_BHF - summed(g)
            if not self.has_momentum:
                return NeuralState(weights, before.surprise_BHF)
            surprise = before.surprise_BHF
            return NeuralState(weights + f[..., None] * surprise, m[..., None] * surprise - summed(n))

    def walk(
        self, rows_BTD: Tensor, before: NeuralState, pending: Written, where: Where
    ) -> tuple[Tensor, NeuralState, Written]:
        """Retrieve with all rows of a call, and write its tokens, chunk by chunk.

        Args:
            before: the state before the chunk that the first token belongs to.
            pending: the tokens of this chunk so far.

        Returns:
            What the rows retrieve, [B, T, D], 0 for rows that do not look at what the layer remembers; the
            state before the next token's chunk, and the tokens of this chunk so far.
        """
        first, stop, _ = where.tokens.indices(where.count)
        q, new = self.queries(rows_BTD), self.writes(rows_BTD[:, first:stop])
        size = self.chunk or pending.count + stop - first + 1  # of a segment: it is complete when it closes
        parts, at = [self.retrieve(q[:, :, :first], before.weights_BHF)], first
        while at < stop:
            end = min(stop, at + size - pending.count)
            parts.append(self.retrieve(q[:, :, at:end], before.weights_BHF))
            pending, at = pending.then(new.rows(slice(at - first, end - first))), end
            if pending.count == size:
                before, pending = self.update(before, pending), pending.rows(slice(0, 0))
        parts.append(self.retrieve(q[:, :, stop:], before.weights_BHF))
        return torch.cat(parts, dim=1) * where.readers()[:, None], before, pending

    def persistent(self, batch_size: int, where: Where) -> KeyValues:
        """Keys and values of the persistent rows, which stand just before the first row."""
        rows_BPD = self.persistent_PD.repeat(batch_size, 1, 1)  # torch's module tracker follows no view of it
        count = rows_BPD.shape[1]
        turn = where.turn(where.first - count, count, rows_BPD.dtype)
        return KeyValues(*self.keys_values(rows_BPD, turn))

    def own(self, keys: int, where: Where) -> Tensor:
        """bool [T, keys]: which rows of the segment so far each row may look at."""
        if where.mask is None:
            return causal_mask(where.count, keys, self.device)
        return where.mask.expand(where.count, keys)

    def local(self, y_BTD: Tensor) -> Tensor:
        """The output of attention, normalised; in the parameters' type, also under autocast."""
        normalised_BTD: Tensor = self.local_norm(y_BTD.to(self.local_norm.weight.dtype))
        return normalised_BTD

    def gated(self, local_BTD: Tensor, remembered_BTD: Tensor) -> Tensor:
        """o = y * M, with y normalised, and M normalised and through a sigmoid (25, 28)."""
        o_BTD: Tensor = local_BTD * self.memory_norm(remembered_BTD.to(local_BTD.dtype)).sigmoid()
        return o_BTD

    def _projected(self, x_BTD: Tensor, part: int) -> Tensor:
        """Of queries, keys or values: [B, H, T, K] after the SiLU."""
        weight = self.memory_qkv.weight.chunk(3)[part]
        dtype = accumulator(x_BTD.dtype)
        y = F.silu(F.linear(x_BTD.to(dtype), weight.to(dtype)))
        return y.unflatten(-1, (-1, self.description.head_width)).transpose(1, 2)

    def _matrices(self, weights_BHF: Tensor) -> list[Tensor]:
        """The MLP's matrices, [B, H, in, out]."""
        parts = weights_BHF.split([i * o for i, o in self.shapes], dim=-1)
        return [part.unflatten(-1, shape) for part, shape in zip(parts, self.shapes, strict=True)]

    def _forward(self, matrices: Sequence[Tensor], x_BHTK: Tensor) -> list[Tensor]:
        """The input, and each layer's output, before the activation."""
        found = [x_BHTK]
        for layer, matrix in enumerate(matrices):
            found.append((F.silu(found[-1]) if layer else found[-1]) @ matrix)
        return found

    @torch.no_grad()
    def diagnose(self) -> dict[str, Tensor]:
        """alpha, eta and theta of an average token, by head."""
        keep, momentum, step = self.rates_bias_3H.sigmoid()
        found = {"step": self.memory_lr * step}
        if self.forgets:
            found["forgetting"] = 1 - keep
        return found | ({"momentum": momentum} if self.has_momentum else {})


def _logit(p: float) -> float:
    """0 for the two values that have none: then the option is off, and the parameter has no part."""
    return math.log(p / (1 - p)) if 0 < p < 1 else 0.0
