"""Transformer-XL (Dai et al., ACL 2019, arXiv 1901.02860): each layer also looks at the hidden states that it read before.

    h~_{s} = [SG(m) ; h_s]      m: the last mem_len inputs of this layer, SG: no gradient           (section 3.2)
    q = W_q h_s;  k, v = W_k h~_s, W_v h~_s
    score_ij = (q_i + u) . k_j + (q_i + v) . W_r R_{i-j}                                            (section 3.3)

The memory is hidden states, not keys and values: they are projected anew, so that W_k, W_v and the normalisation learn from them
although the states themselves are cut from the graph.

Parallel form: layer l of segment s needs layer l - 1 of the segments up to s alone. So each layer reads all segments at once, with
attention banded over [window of mem_len rows ; own] and the window's rows detached, which is what the recurrence computes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memlab.bounds import NonNegative, Positive
from memlab.errors import ConfigError
from memlab.layers import hidden_cache, windows
from memlab.layers.blocks import Block
from memlab.layers.hidden_cache import HiddenPast
from memlab.layers.state import State, state
from memlab.models.base import Open
from memlab.models.layered import LayeredDecoder


@state
class XLState(State):
    """The last C inputs of each layer, detached, and how many of them belong to each row's document (the last ones)."""

    hidden: tuple[Tensor, ...]  # [B, C, D]
    filled_B: Tensor


class TransformerXL(LayeredDecoder):
    """Transformer-XL decoder.

    Args:
        mem_len: rows of memory in each layer, while training.
        eval_mem_len: the same in evaluation; None = mem_len.
        same_length: every token sees mem_len tokens, itself included, instead of mem_len and those of its own segment.
        clamp_len: no distance counts as longer than this (only with Transformer-XL's positions); None = all are told apart.
        untie: every layer learns its own u and v. `backbone` are `Model`'s arguments.

    Raises:
        ConfigError: an option that has no meaning together with another.
    """

    def __init__(
        self,
        *,
        mem_len: NonNegative,
        eval_mem_len: NonNegative | None,
        same_length: bool,
        clamp_len: Positive | None,
        untie: bool,
        **backbone: Any,
    ) -> None:
        super().__init__(**backbone)
        if self.stack.positions != "transformer_xl" and (untie or clamp_len is not None):
            option = "model.untie=true" if untie else f"model.clamp_len={clamp_len}"
            raise ConfigError(f"{option} is about the positions of Transformer-XL; found model.positions={self.stack.positions}")
        if same_length and 0 in (mem_len, eval_mem_len):
            raise ConfigError("model.same_length=true needs model.mem_len and model.eval_mem_len of at least 1")
        self.mem_len, self.eval_mem_len = mem_len, mem_len if eval_mem_len is None else eval_mem_len
        self.same_length = same_length
        self.stack.clamp_len = clamp_len
        if untie:
            self.stack.untie_distance_biases()

    @property
    def carries(self) -> bool:
        return self.capacity > 0

    @property
    def capacity(self) -> int:
        """C, rows of memory that are kept now."""
        return self.mem_len if self.training else self.eval_mem_len

    @property
    def reach(self) -> int | None:
        return self.capacity if self.same_length else None

    def init_state(self, batch_size: int) -> XLState:
        nothing = self.embed.weight.new_zeros(batch_size, self.capacity, self.width)
        filled_B = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return XLState(tuple(nothing for _ in self.stack.blocks), filled_B)

    def _memory(self, layer: int, state: XLState) -> Tensor:
        """A layer's memory at the present capacity, which need not be the one it was written at."""
        return windows.fit(state.hidden[layer], self.capacity)

    def attend(self, layer: int, open: Open, block: Block, x_BnD: Tensor) -> tuple[Tensor, HiddenPast]:
        cached, n = self.capacity, x_BnD.shape[1]
        if open.past:
            before: HiddenPast = open.past[layer]
        else:
            turn_memory = self.stack.turn(torch.arange(-cached, 0, device=self.device), x_BnD.dtype)
            before = hidden_cache.begin(block, self._memory(layer, open.state), turn_memory)
        turn = self.stack.turn(torch.arange(open.read, open.read + n, device=self.device), x_BnD.dtype)
        q, past = hidden_cache.read(block, before, x_BnD, turn)
        mask = windows.visible(cached, open.state.filled_B, open.read, n, self.reach)
        y = block.attention.attend(q, past.seen.keys_BHPK, past.seen.values_BHPK, mask, self.stack.relative(layer))
        return block.attention.merge(y), past

    def close(self, open: Open) -> XLState:
        return self.written(open.state, tuple(past.hidden_BnD for past in open.past), open.read)

    def attend_all(self, layer: int, state: XLState, block: Block, x_BTD: Tensor, segments: int) -> tuple[Tensor, Tensor]:
        cached, t = self.capacity, x_BTD.shape[1]
        n = t // segments
        turn = self.stack.turn(torch.arange(t, device=self.device), x_BTD.dtype)
        turn_memory = self.stack.turn(torch.arange(-cached, 0, device=self.device), x_BTD.dtype)
        (q, k, v), again = block.project_twice(x_BTD, turn)  # what a segment reads of itself, and what later ones read of it
        memory = block.keys_values(self._memory(layer, state), turn_memory)
        before = (torch.cat([first, rows[:, :, : t - n]], dim=2) for first, rows in zip(memory, again, strict=True))
        k, v = (windows.cut(rows, own, segments) for rows, own in zip(before, (k, v), strict=True))
        mask = windows.visible_all(cached, state.filled_B, segments, n, self.reach)
        y = block.attention.attend(windows.fold(q, segments), k, v, mask, self.stack.relative(layer))
        return block.attention.merge(windows.unfold(y, segments)), x_BTD

    def written(self, state: XLState, layers: tuple[Tensor, ...], tokens: int) -> XLState:
        return XLState(hidden_cache.keep(state.hidden, layers, self.capacity), (state.filled_B + tokens).clamp(max=self.capacity))
