"""Titans, memory as a context (Behrouz, Zhong, Mirrokni 2024, arXiv 2501.00663, section 4.1).

    h = M_{s-1}(q),  q = x W_Q                                             (21)
    S~ = [ p_1 .. p_P | h | x ]                                            (22)   p: persistent rows, learned
    y = Attn(S~)                                                           (23)
    M_s = M_{s-1} updated with y                                           (24)
    o = y * M(y)                                                           (25)

The neural memory of `neural.py` gives each token a row of context, made of what the earlier segments wrote.
Attention decides what of it is useful, and its output is what is written and what retrieves once more.

In a decoder, two things of the paper would show a token those after it. A row of context is made from its
token, so a token only looks at those rows that belong to rows that it may look at. And o uses the weights
before the token's chunk, as everywhere in `neural.py`, not those after the segment. Rows of context stand at
the positions of their tokens, which Transformer-XL's distances cannot express.

No parallel form: what a segment writes depends on its attention, and attention on the memory before it.
"""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from memlab.errors import ConfigError
from memlab.layers.attention import ALL, KeyValues
from memlab.layers.description import Description
from memlab.layers.positions import rotate
from memlab.layers.state import State, state
from memlab.memories.base import Where
from memlab.memories.neural import NeuralMemory, NeuralState, Written


@state
class ContextOpen(State):
    """An open segment: the memory before it and before the present chunk, the chunk so far, and keys and
    values of [persistent ; rows of context] and of its own rows.
    """

    before: NeuralState
    now: NeuralState
    pending: Written
    context: KeyValues
    seen: KeyValues


class TitansMAC(NeuralMemory):
    """One layer of Titans (MAC). Options are those of the neural memory.

    Raises:
        ConfigError: positions are Transformer-XL's.
    """

    @classmethod
    def check(cls, description: Description) -> None:
        if description.positions == "transformer_xl":
            raise ConfigError(
                "model.positions=transformer_xl: rows of context stand at the positions of their tokens, "
                "which distances between rows cannot express; use rope, learned or none"
            )

    def begin(self, state: NeuralState, where: Where) -> ContextOpen:
        batch, opened = where.batch_size, self.opened(state)
        context, seen = self.persistent(batch, where), self.no_rows(batch)
        return ContextOpen(opened, opened, self.nothing(batch), context, seen)

    def extend(self, x_BTD: Tensor, open: ContextOpen, where: Where) -> tuple[Tensor, ContextOpen]:
        hidden_BTD = self.normed(x_BTD)
        h_BTD = self.retrieve(self.queries(hidden_BTD), open.before.weights_BHF)
        q, k, v = self.attention.project(hidden_BTD)
        turn = where.turn(where.start, where.count, q.dtype)
        context = open.context.then(*self.keys_values(h_BTD.to(x_BTD.dtype), turn))
        seen = open.seen.then(rotate(k, turn), v)
        y_BTD = self._attend(rotate(q, turn), context, seen, where)
        remembered_BTD, now, pending = self.walk(y_BTD, open.now, open.pending, where)
        o_BTD = self.gated(y_BTD[:, where.wanted], remembered_BTD[:, where.wanted])
        return o_BTD, ContextOpen(open.before, now, pending, context, seen)

    def close(self, open: ContextOpen) -> NeuralState:
        return self.closed(self.update(open.now, open.pending))

    def _attend(self, q: Tensor, context: KeyValues, seen: KeyValues, where: Where) -> Tensor:
        """Eq. 23 of all rows, since all tokens write, normalised: [B, T, D]."""
        everywhere = dataclasses.replace(where, wanted=ALL)
        own_TL = self.own(seen.keys_BGLK.shape[2], where)
        always = own_TL.new_ones(where.count, len(self.persistent_PD))
        look_TL = torch.cat([always, own_TL & where.readers()[:, None], own_TL], dim=1)
        both = context.then(seen.keys_BGLK, seen.values_BGLK)
        rows = context.keys_BGLK.shape[2]
        y = self.attend(q, both.keys_BGLK, both.values_BGLK, everywhere, look_TL, remembered=rows)
        return self.local(self.merge(y))
