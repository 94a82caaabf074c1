"""Decoders whose memory lives in their layers.

Nothing of a later layer reaches an earlier one of the next segment. So the fold over segments may be done layer by layer: each layer
reads all segments at once (the parallel form), and only what its own memory makes necessary is done one after the other.

Legend: B batch, S segments, N tokens in a segment, n tokens in a piece, T = S * N tokens, D width.
"""

from __future__ import annotations

import abc
from functools import partial
from typing import Any

import torch
from torch import Tensor

from memlab.layers.blocks import Block
from memlab.models.base import Decoder, Open, Output


class LayeredDecoder(Decoder):
    """A decoder whose memory lives in its layers, so that layer after layer may read all segments at once.

    A subclass says for one layer how a piece of a segment is attended to (`attend`) and all segments (`attend_all`), and how
    what the layers kept becomes the next state (`close`, `written`).
    """

    @abc.abstractmethod
    def attend(self, layer: int, open: Open, block: Block, x_BnD: Tensor) -> tuple[Tensor, Any]:
        """The attention of one layer for the next n tokens of the open segment: [B, n, D], and the layer's part of `Open.past`.

        Nothing has been read, and `open.past` is (), when this is called first.
        """

    @abc.abstractmethod
    def attend_all(self, layer: int, state: Any, block: Block, x_BTD: Tensor, segments: int) -> tuple[Tensor, Any]:
        """The attention of one layer for the T = S * N tokens of all segments: [B, T, D], and the layer's part of the next state."""

    @abc.abstractmethod
    def written(self, state: Any, layers: tuple[Any, ...], tokens: int) -> Any:
        """The state after `tokens` more tokens, from the parts that `attend_all` gave."""

    def diagnose(self) -> dict[str, Tensor]:
        """Diagnostics, scalars by name; the same for each segment."""
        return {}

    def segment(self, tokens_BN: Tensor, state: Any) -> Output:
        logits, open = self.extend(tokens_BN, Open(state, (), read=0))
        return Output(logits, self.close(open), self.diagnose())

    def begin(self, state: Any) -> Open:
        """The memory's keys and values are made by reading no token."""
        nothing = torch.empty(state.tensors()[0].shape[0], 0, dtype=torch.long, device=self.device)
        return self.extend(nothing, Open(state, (), read=0))[1]

    def extend(self, tokens_Bn: Tensor, open: Open) -> tuple[Tensor, Open]:
        attends = (partial(self.attend, layer, open) for layer in range(len(self.stack.blocks)))
        y_BnD, past = self.stack.through(self.embed(tokens_Bn), attends)
        return self.head(y_BnD), Open(open.state, past, open.read + tokens_Bn.shape[1])

    def parallel(self, tokens_BSN: Tensor, state: Any) -> Output:
        """All segments at once: the fold goes over layers, and each layer's memory over segments."""
        s, n = tokens_BSN.shape[1:]
        attends = (partial(self.attend_all, layer, state, segments=s) for layer in range(len(self.stack.blocks)))
        y_BTD, layers = self.stack.through(self.embed(tokens_BSN.flatten(1)), attends)
        diagnostics = {name: value.expand(s) for name, value in self.diagnose().items()}
        return Output(self.head(y_BTD).unflatten(1, (s, n)), self.written(state, layers, s * n), diagnostics)
