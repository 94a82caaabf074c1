"""Models that read in both directions and answer once per sample.

    [ class token and memory tokens (M) | segment (N) ]     rows of the backbone

There are no open segments: `segment` gives logits [B, 1, V], the answer in case the document ends here.

Legend: B batch, N tokens in a segment, n tokens in a piece, V vocabulary (token ids are also the classes).
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import torch
from torch import Tensor

from memlab.memories.base import Where
from memlab.models.base import Model, ModelState, Open, Piece, Unread


class Encoder(Model):
    """A bidirectional model: backbone, layer memories and memory tokens, led by the class token."""

    answers_once: ClassVar[bool] = True

    def _read(
        self, tokens_BN: Tensor, state: ModelState
    ) -> tuple[Tensor, ModelState, dict[str, Tensor], Tensor | None]:
        x, where = self._rows(tokens_BN, state)
        wanted = slice(self.tokens.reads)
        y, layers, found, loss = self.backbone.read("segment", x, state.layers, where, wanted)
        tokens = self.tokens.written(state.tokens, y)
        diagnostics = {**found, **self.tokens.diagnose(state.tokens, tokens)}
        return y[:, :1], ModelState(tokens, layers, state.nothing_B0), diagnostics, loss

    def _rows(self, tokens_BN: Tensor, state: ModelState) -> tuple[Tensor, Where]:
        m, n = self.tokens.reads, tokens_BN.shape[1]
        where = self._where(state, -m, m + n, slice(m, m + n), self.tokens.mask(n, self.device))
        x = self.backbone.embedded(tokens_BN, where, 0)
        before_BMD = self.backbone.placed(self.tokens.before(state.tokens, len(tokens_BN)), where, -m)
        return torch.cat([before_BMD, x], dim=1), where

    def _stream_piece(self, tokens_Bn: Tensor, state: Any, ends: bool, scored: slice) -> Piece:
        before, tokens_BN = state, tokens_Bn
        if isinstance(state, Unread):
            before, tokens_BN = state.state, torch.cat([state.tokens_BN, tokens_Bn], dim=1)
        output = self.segment(tokens_BN, before)
        return Piece(output.logits, output.state if ends else Unread(before, tokens_BN))

    def peak_bytes(self, tokens_BN: Tensor, state: ModelState) -> int:
        """As for decoders, what a segment's rows look at is counted, although an encoder needs no cache."""
        x, where = self._rows(tokens_BN, state)
        _, layers, *_ = self.backbone.read("extend", x, self.backbone.begin(state.layers, where), where)
        return Open(dataclasses.replace(state, layers=()), layers, tokens_BN.shape[1]).nbytes
