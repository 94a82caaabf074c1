"""NAMM, neural attention memory models (Cetin et al. 2024, arXiv 2410.13166; sizes of the authors' code).

    a_k      attention that key k received from the last queries, mean over the heads that share the key
    e_k      running mean of the spectrum of a_k: frames of n_fft queries, hop apart    (ops/spectrum.py)
    x_k      [ sin, cos of the token's age ; (e_k - mean) / std ]
    s_k      score of x_k, seen together with those of newer tokens               (ops/backward_network.py)
    stays    the tokens with s_k >= 0, and the newest in any case; nothing else limits the cache

Evolution finds the network's parameters, one vector for all layers and heads (memlab.evolve); mean and std
are those of a reading in which everything was kept, before the evolution, and do not change afterwards. With
all parameters 0, every score is 0 and everything stays.

Departures from the released code (docs/NAMM.md): each head keeps exactly its own tokens. Of the attention,
only the values that the next frame needs are stored. If the number of new queries is not a multiple of `hop`,
the first frame begins with zeros, instead of an error.

Shapes: B batch, G key-value heads, R rows, F = n_fft / 2 + 1 frequencies, c = n_fft - hop, P candidates, n
parameters.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from memlab.bounds import Fraction, NonNegative, Positive, Share
from memlab.errors import ConfigError
from memlab.layers import observing
from memlab.layers.description import Description
from memlab.layers.state import State, state
from memlab.ops.backward_network import backward_scores
from memlab.ops.spectrum import mean_spectrum
from memlab.policies.base import Attention, Decision, Rows, Zeros
from memlab.policies.budgets import Budgeted
from memlab.policies.namm_weights import NAMMWeights, Sizes, read
from memlab.precision import accurate

_SLOWEST = 50_000  # tokens: no sinusoid of an age turns by 1 radian in more
_WEIGHTS = 1 << 22  # maximum of attention weights held at once: 16 MB in fp32


@state
class Spectrum(State):
    """Of each row, e and the last values of a, the oldest first."""

    mean_BGCF: Tensor
    last_BGCc: Tensor


class NAMM(Budgeted):
    """Attention spectra, scored by an evolved network.

    Args:
        weights: directory of a run of memlab.evolve, or its file policy.pt; None = all parameters 0.
        select: threshold = tokens with a score of at least 0 stay, or the best of them if there are more than
            the budget has room for; top_k = the best tokens stay, as many as the budget has room for.
        budget: see `Budgeted`; 1.0 = no limit, as published.
        sinks, recent, every: see `Budgeted`.
        n_fft, hop: queries of a frame, even, and from one frame to the next; None = as in the weights, or as
            published, 32 and 16.
        ages: numbers that tell a token's age, even; None = as in the weights, or as published, 8.
        hidden: width of the network's attention; None = as in the weights, or as published, 32.
        decay: of the mean spectrum, for each query; None = as in the weights, or as published, 0.99.

    Raises:
        ConfigError: these contradict each other, or the weights.
        UserError: there are no weights there.
    """

    mean_F: Tensor
    std_F: Tensor
    parameters_Pn: Tensor

    def __init__(
        self,
        description: Description,
        *,
        weights: str | None = None,
        select: Literal["threshold", "top_k"] = "threshold",
        budget: Positive | Share = 1.0,
        sinks: NonNegative = 0,
        recent: Positive = 1,
        n_fft: Positive | None = None,
        hop: Positive | None = None,
        ages: NonNegative | None = None,
        hidden: Positive | None = None,
        decay: Fraction | None = None,
        every: Positive | None = None,
    ) -> None:
        super().__init__(description, budget=budget, sinks=sinks, recent=recent, every=every)
        if select == "top_k" and budget == 1.0 and not isinstance(budget, int):
            raise ConfigError(
                "policy.select=top_k keeps as many tokens as the budget has room for, and policy.budget=1.0 "
                "has room for all; give a number of tokens or a smaller share"
            )
        self.select = select
        wished = {"n_fft": n_fft, "hop": hop, "ages": ages, "hidden": hidden, "decay": decay}
        given: dict[str, Any] = {name: value for name, value in wished.items() if value is not None}
        found = NAMMWeights.zero(Sizes(**given)) if weights is None else read(weights, given)
        self.sizes = found.sizes
        self.register_buffer("mean_F", found.mean_F, persistent=False)
        self.register_buffer("std_F", found.std_F, persistent=False)
        self.register_buffer("parameters_Pn", found.parameters_n[None], persistent=False)

    @property
    def queries(self) -> None:
        return None

    def init_rows(self, zeros: Zeros) -> Spectrum:
        return Spectrum(zeros(self.sizes.frequencies), zeros(self.sizes.n_fft - self.sizes.hop))

    def decide(self, rows: Rows) -> Decision:
        with accurate(rows.keys_BGRK):
            spectrum = self.spectrum(rows.of_rows, rows.attention)
            observing.offer("spectrum", policy=self, mean=spectrum.mean_BGCF, filled=rows.filled)
            score_BGR = self.score(spectrum.mean_BGCF, rows.age, rows.filled)
        keep_BGR = self.choose(rows, score_BGR)
        if self.select == "threshold":
            always = (rows.position_BGR < self.sinks) | (rows.age < self.recent)
            keep_BGR = keep_BGR & ((score_BGR >= 0) | always)
        return Decision(keep_BGR, spectrum, rows.of_document)

    def spectrum(self, before: Spectrum, attention: Attention) -> Spectrum:
        """The spectra after the queries just read, and the attention that the next frame needs."""
        sizes, mean_BGRF, last_BGRc = self.sizes, before.mean_BGCF, before.last_BGCc
        groups, kept = last_BGRc.shape[1], last_BGRc.shape[3]
        q, queries = attention.q_BHwK, attention.q_BHwK.shape[2]
        look = attention.look.expand(-1, -1, queries, -1)
        frames = max(1, _WEIGHTS // max(1, q.shape[0] * q.shape[1] * attention.k_BGLK.shape[2] * sizes.hop))
        missing = -queries % sizes.hop
        seen_BGTR = F.pad(last_BGRc, (missing, 0)).transpose(-1, -2)
        at = 0
        while at < queries:
            stop = min(at + frames * sizes.hop - (missing if at == 0 else 0), queries)
            some = dataclasses.replace(attention, q_BHwK=q[:, :, at:stop], look=look[:, :, at:stop])
            weights_BGTR = some.last(stop - at).unflatten(1, (groups, -1)).mean(2)
            seen_BGTR = torch.cat([seen_BGTR, weights_BGTR.to(mean_BGRF.dtype)], dim=2)
            mean_BGRF = mean_spectrum(seen_BGTR, mean_BGRF, sizes.n_fft, sizes.hop, sizes.decay)
            seen_BGTR = seen_BGTR[:, :, seen_BGTR.shape[2] - kept :]
            at = stop
        return Spectrum(mean_BGRF, seen_BGTR.transpose(-1, -2) if queries else last_BGRc)

    def score(self, mean_BGRF: Tensor, age_BGR: Tensor, filled_BGR: Tensor) -> Tensor:
        """s of each row, [B, G, R]."""
        x_BGRF = (mean_BGRF - self.mean_F) / self.std_F
        x_BGRF = torch.cat([ages(age_BGR, self.sizes.ages, x_BGRF.dtype), x_BGRF], dim=-1)
        parameters_Pn = self.parameters_Pn.to(x_BGRF.dtype)
        return backward_scores(parameters_Pn, x_BGRF, filled_BGR, self.sizes.hidden)


def ages(age: Tensor, width: int, dtype: torch.dtype) -> Tensor:
    """Sines and cosines of ages, [.., width]; the half of them that are sines come first."""
    place = torch.arange(width // 2, device=age.device, dtype=dtype)
    angle = age[..., None].to(dtype) * _SLOWEST ** (-2 * place / max(width, 1))
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
