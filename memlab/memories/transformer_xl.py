"""Transformer-XL (Dai et al., ACL 2019, arXiv 1901.02860): each layer looks back at its earlier inputs.

    h~_{s} = [SG(m) ; h_s]      m: the last mem_len inputs of this layer, SG: no gradient      (section 3.2)
    q = W_q h_s;  k, v = W_k h~_s, W_v h~_s
    score_ij = (q_i + u) . k_j + (q_i + v) . W_r R_{i-j}                                       (section 3.3)

The memory holds hidden states, not keys and values. They are projected again in each segment, so that W_k,
W_v and the normalisation learn from them, although the hidden states themselves are cut from the graph. The
scores of section 3.3 are positions=transformer_xl; with rotary positions the memory is the same.

Parallel form: layer l of segment s only needs layer l - 1 of the segments up to s. So each layer reads all
segments at once, with attention over [window of mem_len rows ; own rows]. As in the recurrent form, the rows
of the window are detached.
"""

from __future__ import annotations

import torch
from torch import Tensor

from memlab.bounds import NonNegative
from memlab.errors import ConfigError
from memlab.layers import windows
from memlab.layers.description import Description
from memlab.layers.state import State, state
from memlab.memories.base import Where
from memlab.memories.rows import RowMemory


@state
class XLState(State):
    """The last C inputs of the layer, detached; the last filled_B belong to each batch row's document."""

    hidden_BCD: Tensor
    filled_B: Tensor


class TransformerXL(RowMemory):
    """Transformer-XL's memory in one layer.

    Args:
        mem_len: C, remembered rows in training.
        eval_mem_len: C in evaluation; None = mem_len.
        same_length: whether every token sees mem_len tokens, including itself, instead of mem_len tokens and
            those of its own segment.

    Raises:
        ConfigError: `same_length` without remembered rows.
    """

    sends_gradient = False

    def __init__(
        self,
        description: Description,
        *,
        mem_len: NonNegative = 24,
        eval_mem_len: NonNegative | None = None,
        same_length: bool = False,
    ) -> None:
        super().__init__(description)
        if same_length and 0 in (mem_len, eval_mem_len):
            raise ConfigError(
                "model.same_length=true needs model.mem_len and model.eval_mem_len of at least 1"
            )
        self.mem_len, self.eval_mem_len = mem_len, mem_len if eval_mem_len is None else eval_mem_len
        self.same_length = same_length

    @property
    def carries(self) -> bool:
        return self.capacity > 0

    @property
    def capacity(self) -> int:
        """C in the present mode, training or evaluation."""
        return self.mem_len if self.training else self.eval_mem_len

    @property
    def reach(self) -> int | None:  # type: ignore[override]
        return self.capacity if self.same_length else None

    def init_state(self, batch_size: int) -> XLState:
        filled_B = torch.zeros(batch_size, dtype=torch.long, device=self.device)
        return XLState(self.zeros(batch_size, self.capacity, self.description.width), filled_B)

    def rows(self, state: XLState) -> tuple[Tensor, Tensor]:
        """The rows at the present capacity, which may differ from the one they were stored at."""
        return windows.fit(state.hidden_BCD, self.capacity), windows.filled(self.capacity, state.filled_B)

    def remember(self, state: XLState, hidden_BND: Tensor) -> XLState:
        rows_BLD = torch.cat([state.hidden_BCD, hidden_BND.detach()], dim=1)
        filled_B = (state.filled_B + hidden_BND.shape[1]).clamp(max=self.capacity)
        return XLState(windows.fit(rows_BLD, self.capacity), filled_B)

    def parallel(self, x_BTD: Tensor, state: XLState, where: Where) -> tuple[Tensor, XLState]:
        size, n, s, t = self.capacity, where.count, where.segments, x_BTD.shape[1]
        turn, turn_memory = where.turn(0, t, x_BTD.dtype), where.turn(-size, size, x_BTD.dtype)
        # q, k, v: what a segment reads of itself. again: what later segments read of it, no gradient to x
        (q, k, v), again = self.attention.project_twice(x_BTD, self.norm, turn)
        memory = self.keys_values(self.rows(state)[0], turn_memory)
        before = (
            torch.cat([first, rows[:, :, : t - n]], dim=2) for first, rows in zip(memory, again, strict=True)
        )
        k, v = (windows.cut(rows, own, s) for rows, own in zip(before, (k, v), strict=True))
        mask = where.once(
            (type(self), size, s), lambda: windows.visible_all(size, state.filled_B, s, n, self.reach)
        )
        y = self.attend(windows.fold(q, s), k, v, where, mask, remembered=size)
        return self.merge(windows.unfold(y, s)), self.remember(state, x_BTD)
