"""Associative memory of ARMT (Rodkin, Kuratov, Bulatov, Burtsev 2024, arXiv 2407.04841, section 2).

Each layer has a matrix A and a normaliser z. After a segment, its memory tokens m_i, the block's output for
them, are written as pairs of key and value; the block's input x_j reads them in later segments.

    k_i, v_i = W_K m_i, W_V m_i;   b_i = sigmoid(W_b m_i);   A_0 = 0, z_0 = 0                       (1)
    v'_i = A_{s-1} f(k_i) / z_{s-1} f(k_i);   c_i = 1 - z_{s-1} f(k_i) / |f(k_i)|^2                 (2)
    A_s = A_{s-1} + sum_i b_i (v_i - v'_i) f(k_i);   z_s = z_{s-1} + sum_i c_i f(k_i)               (3)
    y_j = A_s f(q_j) / z_s f(q_j),   q_j = W_Q x_j;   the block reads x_j + y_j                     (4)

f is DPFP-3 (arXiv 2102.11174): with r = [relu(x) ; relu(-x)], the products of r and r shifted by 1, 2 and 3.
c is the paper's correction: a key that z has already is not added again (appendix F.1).

ARMT is this under tokens=rmt (`configs/model/armt.yaml`). The memory tokens are RMT's write memory; they are
also carried to the next segment, as the paper's equations say for M. In the authors' code they are learned
vectors, the same in each segment (model.write_memory=learned is nearest), and no memory tokens stand before
the segment. From that code, where the paper says nothing: f(x) has length 1, 1e-5 is added to denominators,
c is within [0, 1] and a constant for the gradient, W_V begins at 0. Memory tokens read A with
model.read_mem_from_cache, as published.

No parallel form: what a segment writes depends on what A returned for it, and the memory tokens come from the
top layer of the segment before.
"""

from __future__ import annotations

import dataclasses

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.bounds import Positive
from memlab.layers import observing
from memlab.layers.attention import KeyValues
from memlab.layers.description import Description
from memlab.layers.state import State, state
from memlab.memories.base import LayerMemory, Where
from memlab.precision import accumulator, accurate

_SMALLEST = 1e-5  # added to denominators


@state
class AssociativeState(State):
    """A, from the F features of a key to a value, and z."""

    memory_BFD: Tensor
    normaliser_BF: Tensor


@state
class AssociativeOpen(State):
    """An open segment: the memory that it reads, what its rows look at, and the memory after it."""

    before: AssociativeState
    seen: KeyValues
    after: AssociativeState


class Associative(LayerMemory):
    """One layer's attention, with an associative memory before it.

    Args:
        key_width: of keys and queries (published: 32 and 64).
        dpfp: number of shifts in the feature map, so that a key has 2 dpfp key_width features.
        correction: whether z only takes what is new; otherwise c = 1.
    """

    written_by_tokens = True

    def __init__(
        self,
        description: Description,
        *,
        key_width: Positive = 32,
        dpfp: Positive = 3,
        correction: bool = True,
    ) -> None:
        super().__init__(description)
        self.dpfp, self.correction = dpfp, correction
        width = description.width
        self.features = 2 * dpfp * key_width
        self.query, self.key = (nn.Linear(width, key_width, bias=False) for _ in range(2))
        self.value = nn.Linear(width, width, bias=False)
        self.beta = nn.Linear(width, 1)

    def initialise(self) -> None:
        nn.init.zeros_(self.value.weight)

    def init_state(self, batch_size: int) -> AssociativeState:
        memory = self.zeros(batch_size, self.features, self.description.width, accumulate=True)
        return AssociativeState(memory, memory[:, :, 0].clone())

    def begin(self, state: AssociativeState, where: Where) -> AssociativeOpen:
        return AssociativeOpen(state, self.no_rows(where.batch_size), state)

    def extend(self, x_BTD: Tensor, open: AssociativeOpen, where: Where) -> tuple[Tensor, AssociativeOpen]:
        remembered = self._read(x_BTD, open.before)
        if not where.only_tokens:
            remembered = remembered * where.readers()[:, None]
        q, k, v = self.project(x_BTD + remembered, where.turn(where.start, where.count, x_BTD.dtype))
        seen = open.seen.then(k, v)
        local = self.merge(self.attend(q, seen.keys_BGLK, seen.values_BGLK, where))
        remembered = remembered[:, where.wanted]
        # both are added to the block's input, so each has its share
        parts = {"remembered": remembered[:, None], "local": local[:, None]}
        observing.offer("mix", memory=self, where=where, gate=0.5, **parts)
        return local + remembered, dataclasses.replace(open, seen=seen)

    def segment(
        self, x_BTD: Tensor, state: AssociativeState, where: Where
    ) -> tuple[Tensor, AssociativeState]:
        y_BTD, _ = self.extend(x_BTD, self.begin(state, where), where)
        return y_BTD, state  # which `after_block` writes

    def after_block(self, out_BTD: Tensor, handed_on: State, where: Where) -> State:
        if not where.after:
            return handed_on
        tokens_BWD = out_BTD[:, -where.after :]
        if isinstance(handed_on, AssociativeOpen):
            return dataclasses.replace(handed_on, after=self._written(tokens_BWD, handed_on.before))
        assert isinstance(handed_on, AssociativeState)
        return self._written(tokens_BWD, handed_on)

    def close(self, open: AssociativeOpen) -> AssociativeState:
        return open.after

    def _read(self, x_BTD: Tensor, state: AssociativeState) -> Tensor:
        """Eq. 4: [B, T, D]."""
        features_BTF = self._feature(self.query(x_BTD))
        with accurate(x_BTD):
            y_BTD, _ = _retrieve(features_BTF, state)
        return y_BTD.to(x_BTD.dtype)

    def _written(self, tokens_BWD: Tensor, before: AssociativeState) -> AssociativeState:
        """Eq. 1 to 3."""
        features_BWF = self._feature(self.key(tokens_BWD))
        values_BWD, beta_BW1 = self.value(tokens_BWD), self.beta(tokens_BWD)
        with accurate(tokens_BWD):
            known_BWD, found_BW1 = _retrieve(features_BWF, before)
            new_BWD = beta_BW1.to(known_BWD.dtype).sigmoid() * (values_BWD - known_BWD)
            memory_BFD = before.memory_BFD + features_BWF.transpose(1, 2) @ new_BWD
            added_BWF = features_BWF
            if self.correction:
                added_BWF = added_BWF * (1 - found_BW1).clamp(0, 1).detach()
            return AssociativeState(memory_BFD, before.normaliser_BF + added_BWF.sum(1))

    def _feature(self, x: Tensor) -> Tensor:
        """DPFP, of length 1: [.., F]."""
        x = x.to(accumulator(x.dtype))
        both = torch.cat([x.relu(), (-x).relu()], dim=-1)
        products = [both * both.roll(shift, dims=-1) for shift in range(1, self.dpfp + 1)]
        return F.normalize(torch.cat(products, dim=-1), dim=-1)


def _retrieve(features_BTF: Tensor, state: AssociativeState) -> tuple[Tensor, Tensor]:
    """A f / z f, [B, T, D], and z f, [B, T, 1]."""
    found_BT1 = features_BTF @ state.normaliser_BF.unsqueeze(-1)
    return features_BTF @ state.memory_BFD / (found_BT1 + _SMALLEST), found_BT1
