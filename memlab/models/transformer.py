"""The Transformer without a memory: the floor (`context=segment`) and the ceiling (`context=full`) of every comparison.

    segment   each segment is read alone; nothing is carried. A task that needs memory stays at chance.
    full      every token sees all earlier ones; the state is the keys and values of the whole document, and grows with it.

Both have an exact parallel form.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

import torch
from torch import Tensor

from memlab.layers.attention import KeyValues, causal_mask
from memlab.layers.state import Empty, State, state
from memlab.models.base import Decoder, Open, Output


@state
class FullContext(State):
    """Keys and values of all P tokens read so far, and how many of the last ones belong to each row's document."""

    layers: tuple[KeyValues, ...]
    length_B: Tensor

    def reset(self, rows_B: Tensor, initial: State) -> FullContext:
        """A new document sees none of the P tokens before it and counts its positions from 0."""
        return dataclasses.replace(self, length_B=self.length_B.masked_fill(rows_B, 0))


class Transformer(Decoder):
    """Decoder without memory.

    Args:
        context: what a token may look at, see above. `backbone` are `Model`'s arguments.
    """

    def __init__(self, *, context: Literal["segment", "full"], **backbone: Any) -> None:
        super().__init__(**backbone)
        self.context = context

    @property
    def carries(self) -> bool:
        return self.context == "full"

    @property
    def keeps_everything(self) -> bool:
        return self.context == "full"

    def init_state(self, batch_size: int) -> State:
        if self.context == "segment":
            return Empty()
        weight = self.embed.weight
        nothing = weight.new_empty(batch_size, self.stack.kv_heads, 0, self.stack.head_width)
        empty = tuple(KeyValues(nothing, nothing) for _ in self.stack.blocks)
        return FullContext(empty, torch.zeros(batch_size, dtype=torch.long, device=weight.device))

    def segment(self, tokens_BN: Tensor, state: State) -> Output:
        logits, open = self.extend(tokens_BN, self.begin(state))
        return Output(logits, self.close(open))

    def parallel(self, tokens_BSN: Tensor, state: State) -> Output:
        """Independent segments are folded into the batch; with full context the S segments are one long one."""
        folded = (0, 1) if self.context == "segment" else (1, 2)
        output = self.segment(tokens_BSN.flatten(*folded), state)
        return Output(output.logits.unflatten(folded[0], [tokens_BSN.shape[d] for d in folded]), output.state)

    def begin(self, state: State) -> Open:
        return Open(state, state.layers if isinstance(state, FullContext) else (), read=0)

    def extend(self, tokens_Bn: Tensor, open: Open) -> tuple[Tensor, Open]:
        if not isinstance(open.state, FullContext):
            return super().extend(tokens_Bn, open)
        n, before = tokens_Bn.shape[1], open.past[0].keys_BHPK.shape[2]
        positions_Bn = open.state.length_B[:, None] + torch.arange(open.read, open.read + n, device=self.device)
        # A key at distance d behind the first new token is of the same document if the document has at least d tokens by then.
        distance_P = torch.arange(before, -n, -1, device=self.device)
        own_BP = distance_P <= (open.state.length_B + open.read)[:, None]
        mask = own_BP[:, None, None] & causal_mask(n, before + n, self.device)
        y, past = self.stack(self.embed(tokens_Bn), positions_Bn, mask, open.past)
        return self.head(y), Open(dataclasses.replace(open.state, layers=past), past, open.read + n)

    def close(self, open: Open) -> State:
        if not isinstance(open.state, FullContext):
            return Empty()
        return FullContext(open.past, open.state.length_B + open.read)
