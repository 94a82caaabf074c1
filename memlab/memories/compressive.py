"""Compressive Transformer (Rae et al., ICLR 2020, arXiv 1911.05507): old rows are compressed, not dropped.

    [ compressed memory (n_cm) | memory (n_m) | segment (N) ]        a segment attends to all (section 3.1)

    old    = the N oldest rows of [ m ; h ]                          algorithm 1
    new_cm = f_c(old)                                                every c rows become one
    m      = the last n_m rows of [ m ; h ]
    cm     = the last n_cm rows of [ cm ; new_cm ]

f_c is a convolution with kernel and stride c, or the mean or the largest value of c rows. As in
Transformer-XL, both memories hold hidden states without gradient, and each segment projects them again.

The task's loss does not reach the convolution, since what is stored is cut from the graph. It learns to keep
what the segment would have read of the old rows (algorithm 2, attention reconstruction, the best in table 5):

    loss = || attn(h, old) - attn(h, f_c(old)) ||^2,   attn(h, m) = softmax((h Q)(m K)^T) m V

in each layer, where h, old, Q, K, V (and here the normalisation) are constants. So it sends gradient to f_c
only, and is added to the task's loss without a factor, as published. Here it is a mean over rows and
channels, so that gradient clipping depends on no size, and scores are divided by sqrt(K), as in the layer.

Departures: if N is not a multiple of c, the oldest group is smaller and becomes a row too (published sizes
divide). Keys stand at consecutive positions, so that a compressed row counts as one.

Parallel form: f_c is applied once to rows of the same layer, so all segments are read at once, with attention
over two windows and the own rows. It is exact.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from memlab.bounds import NonNegative, Positive
from memlab.layers import windows
from memlab.layers.description import Description
from memlab.layers.positions import rotate
from memlab.layers.state import State, state
from memlab.memories.base import Where
from memlab.memories.rows import RowMemory


@state
class CompressiveState(State):
    """m and cm, detached; the last memory_B and compressed_B rows belong to each batch row's document."""

    memory_BMD: Tensor
    compressed_BCD: Tensor
    memory_B: Tensor
    compressed_B: Tensor


class Compressive(RowMemory):
    """One layer of a Compressive Transformer.

    Args:
        mem_len: n_m, rows of the memory.
        compressed_len: n_cm, rows of the compressed memory.
        compression_rate: c, how many rows become one.
        compression: f_c.
    """

    sends_gradient = False

    def __init__(
        self,
        description: Description,
        *,
        mem_len: NonNegative = 24,
        compressed_len: Positive = 24,
        compression_rate: Positive = 2,
        compression: Literal["convolution", "mean", "max"] = "convolution",
    ) -> None:
        super().__init__(description)
        self.mem_len, self.compressed_len, self.rate = mem_len, compressed_len, compression_rate
        self.compression = compression
        # of c rows, joined: the same as a convolution with kernel and stride c
        self.has_auxiliary_loss = compression == "convolution"
        joined = compression_rate * description.width
        self.convolution = nn.Linear(joined, description.width) if compression == "convolution" else None

    def init_state(self, batch_size: int) -> CompressiveState:
        none_B = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        memory, compressed = (
            self.zeros(batch_size, size, self.description.width)
            for size in (self.mem_len, self.compressed_len)
        )
        return CompressiveState(memory, compressed, none_B, none_B)

    def rows(self, state: CompressiveState) -> tuple[Tensor, Tensor]:
        filled_BC = self._filled(state.memory_B, state.compressed_B)
        return torch.cat([state.compressed_BCD, state.memory_BMD], dim=1), filled_BC

    def remember(self, state: CompressiveState, hidden_BND: Tensor) -> CompressiveState:
        return self._after(state, hidden_BND, *self._compressed(state, hidden_BND, 1))

    def segment(
        self, x_BTD: Tensor, state: CompressiveState, where: Where
    ) -> tuple[Tensor, CompressiveState]:
        where.add_loss(lambda: self._reconstruction(x_BTD, state, where)[:, 0])
        return super().segment(x_BTD, state, where)

    def parallel(
        self, x_BTD: Tensor, state: CompressiveState, where: Where
    ) -> tuple[Tensor, CompressiveState]:
        where.add_loss(lambda: self._reconstruction(x_BTD, state, where))
        n, s, t, size = where.count, where.segments, x_BTD.shape[1], self.mem_len + self.compressed_len
        new_BSED, filled_BS = self._compressed(state, x_BTD, s)
        # q, k, v: what a segment reads of itself. again: what later segments read of it, no gradient to x
        (q, k, v), again = self.attention.project_twice(x_BTD, self.norm)
        earlier_BD = new_BSED[:, :-1].flatten(1, 2)
        seen_BD = torch.cat([state.compressed_BCD, earlier_BD, state.memory_BMD], dim=1)
        compressed = self.compressed_len + earlier_BD.shape[1]
        both = []
        for first, rows, own in zip(self.keys_values(seen_BD), again, (k, v), strict=True):
            parts = [
                windows.before(first[:, :, :compressed], new_BSED.shape[2], s),
                windows.before(torch.cat([first[:, :, compressed:], rows[:, :, : t - n]], dim=2), n, s),
                own.unflatten(2, (s, n)),
            ]
            both.append(torch.cat([part.transpose(1, 2) for part in parts], dim=3).flatten(0, 1))
        k, v = both

        def mask() -> Tensor:
            counts_BS = F.pad(self._groups(filled_BS[:, :-1]).cumsum(1), (1, 0)) + state.compressed_B[:, None]
            before_BS = state.memory_B[:, None] + torch.arange(s, device=x_BTD.device) * n
            return windows.visible(self._filled(before_BS.flatten(), counts_BS.flatten()), 0, n)

        q, k = (
            rotate(windows.fold(q, s), where.turn(0, n, q.dtype)),
            rotate(k, where.turn(-size, size + n, k.dtype)),
        )
        y = self.attend(q, k, v, where, where.once((type(self), size, s), mask), remembered=size)
        return self.merge(windows.unfold(y, s)), self._after(state, x_BTD, new_BSED, filled_BS)

    def _reconstruction(self, x_BTD: Tensor, state: CompressiveState, where: Where) -> Tensor:
        """Algorithm 2, with gradient to the convolution only: [B, S]."""
        s = where.segments
        with torch.no_grad():
            own_BTD = self.stored(x_BTD, where, 1)
            old_BSND, filled_BS = self._old(state, own_BTD, s)
            old_FND, filled_F = old_BSND.flatten(0, 1), filled_BS.flatten()
            q = windows.fold(self.project(own_BTD)[0], s)
            wanted = self._content(q, *self.keys_values(old_FND), filled_F)
        new_FED = self._compress(old_FND, filled_F)
        keys_values = self.attention.frozen_keys_values(new_FED, self.norm)
        found = self._content(q, *keys_values, self._groups(filled_F))
        return (found - wanted).square().mean((1, 2, 3)).unflatten(0, (-1, s))

    def _content(self, q_FHNK: Tensor, k: Tensor, v: Tensor, filled_F: Tensor) -> Tensor:
        """Attention to the last `filled_F` of some rows by content alone; 0 if there are none."""
        there_FL = windows.filled(k.shape[2], filled_F)
        some_F111 = (filled_F > 0).view(-1, 1, 1, 1)
        mask = there_FL[:, None, None] | ~some_F111
        return self.attention.attend(q_FHNK, k, v, mask) * some_F111

    def _old(self, state: CompressiveState, own_BTD: Tensor, segments: int) -> tuple[Tensor, Tensor]:
        """The N rows that leave m in each segment, [B, S, N, D], and how many are of the document."""
        rows_BD = torch.cat([state.memory_BMD, own_BTD.detach()], dim=1)[:, : own_BTD.shape[1]]
        n = own_BTD.shape[1] // segments
        read_S = torch.arange(1, segments + 1, device=own_BTD.device) * n
        filled_BS = (state.memory_B[:, None] + read_S - self.mem_len).clamp(0, n)
        return rows_BD.unflatten(1, (segments, n)), filled_BS

    @torch.no_grad()
    def _compressed(self, state: CompressiveState, own_BTD: Tensor, segments: int) -> tuple[Tensor, Tensor]:
        """f_c(old) of each segment, [B, S, E, D], and how many rows of `old` are of the document, [B, S]."""
        old_BSND, filled_BS = self._old(state, own_BTD, segments)
        new_FED = self._compress(old_BSND.flatten(0, 1), filled_BS.flatten())
        return new_FED.unflatten(0, filled_BS.shape), filled_BS

    def _compress(self, old_FND: Tensor, filled_F: Tensor) -> Tensor:
        """f_c: groups of c rows, the oldest of which may have fewer, to one row each, [F, E, D]."""
        count = self._groups(old_FND.shape[1]) * self.rate
        there_FGc1 = windows.filled(count, filled_F).unflatten(1, (-1, self.rate)).unsqueeze(-1)
        groups_FGcD = windows.fit(old_FND, count).unflatten(1, (-1, self.rate))
        if self.compression == "max":
            largest = groups_FGcD.masked_fill(~there_FGc1, -torch.inf).amax(2)
            return largest.masked_fill(largest == -torch.inf, 0.0)
        groups_FGcD = groups_FGcD * there_FGc1
        if self.convolution is None:
            return groups_FGcD.sum(2) / there_FGc1.sum(2).clamp_min(1)
        joined: Tensor = self.convolution(groups_FGcD.flatten(2))
        return joined

    def _groups(self, rows: Any) -> Any:
        """How many groups this many rows are in."""
        return (rows + self.rate - 1) // self.rate

    def _filled(self, memory_B: Tensor, compressed_B: Tensor) -> Tensor:
        """bool [B, n_cm + n_m]: which remembered rows belong to the document."""
        compressed = windows.filled(self.compressed_len, compressed_B)
        return torch.cat([compressed, windows.filled(self.mem_len, memory_B)], dim=1)

    def _after(
        self, state: CompressiveState, own_BTD: Tensor, new_BSED: Tensor, filled_BS: Tensor
    ) -> CompressiveState:
        """The state after segments with these inputs and compressed rows."""
        new_BED = new_BSED.flatten(1, 2).to(state.compressed_BCD.dtype)
        counts_B = state.compressed_B + self._groups(filled_BS).sum(1)
        return CompressiveState(
            windows.fit(torch.cat([state.memory_BMD, own_BTD.detach()], dim=1), self.mem_len),
            windows.fit(torch.cat([state.compressed_BCD, new_BED], dim=1), self.compressed_len),
            (state.memory_B + own_BTD.shape[1]).clamp(max=self.mem_len),
            counts_B.clamp(max=self.compressed_len),
        )
