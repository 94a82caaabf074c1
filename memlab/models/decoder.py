"""Models that predict the next token.

    [ memory tokens (M) | segment (N) | memory tokens (W) ]     rows of the backbone; M and W may be 0

Legend: B batch, S segments, N tokens in a segment, n tokens in a piece, T = S * N, D width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor

from memlab.layers.attention import ALL
from memlab.models.base import NOTHING, Model, ModelState, Open, Output, Piece, Scored

NO_TOKENS = slice(0, 0)  # of the rows of a call: all are memory tokens


class Decoder(Model):
    """A causal model: backbone, layer memories and memory tokens."""

    def _read(
        self, tokens_BN: Tensor, state: ModelState
    ) -> tuple[Tensor, ModelState, dict[str, Tensor], Tensor | None]:
        m, n, w = self.tokens.reads, tokens_BN.shape[1], self.tokens.writes
        around = m + w > 0
        mask = self.tokens.mask(n, self.device) if around else None
        where = self._where(state, -m, m + n + w, slice(m, m + n) if around else ALL, mask)
        x = self.backbone.embedded(tokens_BN, where, 0)
        if around:
            placed = self.backbone.placed
            parts = [placed(self.tokens.before(state.tokens, len(tokens_BN)), where, -m), x]
            x = torch.cat([*parts, placed(self.tokens.after(state.tokens), where, n)] if w else parts, dim=1)
        wanted = slice(m, None) if m else ALL
        y, layers, found, loss = self.backbone.read("segment", x, state.layers, where, wanted)
        tokens = self.tokens.written(state.tokens, y[:, n:]) if w else state.tokens
        diagnostics = {**found, **self.tokens.diagnose(state.tokens, tokens)}
        return y[:, :n], ModelState(tokens, layers, state.nothing_B0), diagnostics, loss

    @property
    def parallel(self) -> Any:
        """All segments at once, unless the top layer's output enters the bottom of the next segment.

        Without such memory tokens, no layer depends on a higher layer of an earlier segment. So the fold runs
        over layers, and each layer reads all segments.
        """
        if self.segments_are_independent:
            return self._apart
        in_all_layers = all(m.parallel is not None for m in self.backbone.memories)
        by_layers = self.memory == "on" and not self.tokens.carries and not self.tokens.reads
        return self._parallel if by_layers and in_all_layers else None

    def _parallel(self, tokens_BSN: Tensor, state: ModelState, scored: Scored = ALL) -> Output:
        s, n = tokens_BSN.shape[1:]
        where = self._where(state, 0, n, ALL)
        where = dataclasses.replace(where, segments=s)
        x_BTD = self.backbone.embedded(tokens_BSN.flatten(1), where, 0)
        y_BTD, layers, found, loss = self.backbone.read("parallel", x_BTD, state.layers, where)
        diagnostics = {name: value.expand(s) for name, value in found.items()}
        after = ModelState(state.tokens, layers, state.nothing_B0)
        return Output(self._scores(y_BTD.unflatten(1, (s, n)), scored), after, diagnostics, loss)

    def begin(self, state: ModelState) -> Open:
        """Open a segment."""
        if self.memory == "off":
            state = self.init_state(state.batch_size)
        open = self._begin(state)
        if self.memory == "shuffled":
            open = dataclasses.replace(open, other=self._begin(self._of_others(state)))
        return open

    def extend(self, tokens_Bn: Tensor, open: Open, scored: Scored = ALL) -> tuple[Tensor, Open]:
        """Read n more tokens of the open segment: their logits [B, n, V], and the segment so far."""
        y_BnD, longer = self._extend(tokens_Bn, open)
        if open.other is not None:
            y_BnD, other = self._extend(tokens_Bn, open.other)
            longer = dataclasses.replace(longer, other=other)
        return self.backbone.head(y_BnD[:, scored]), longer

    def close(self, open: Open) -> ModelState:
        """End the segment: write memory, and return the state that the next segment needs."""
        if self.memory == "off":
            return self.init_state(open.state.batch_size)
        tokens, layers = open.state.tokens, open.layers
        if w := self.tokens.writes:
            sees_all = torch.ones(w, self.tokens.reads + open.read + w, dtype=torch.bool, device=self.device)
            where = self._where(open, open.read, w, NO_TOKENS, sees_all)
            after_BWD = self.backbone.placed(self.tokens.after(tokens), where, open.read)
            y_BWD, layers, *_ = self.backbone.read("extend", after_BWD, layers, where)
            tokens = self.tokens.written(tokens, y_BWD)
        return ModelState(tokens, self.backbone.close(layers), open.state.nothing_B0)

    def _begin(self, state: ModelState) -> Open:
        m = self.tokens.reads
        where = self._where(state, -m, m, NO_TOKENS, self.tokens.mask(0, self.device)[:m, :m] if m else None)
        layers = self.backbone.begin(state.layers, where)
        if m:
            before_BMD = self.backbone.placed(self.tokens.before(state.tokens, state.batch_size), where, -m)
            _, layers, *_ = self.backbone.read("extend", before_BMD, layers, where)
        # `layers` has what is needed of the layers' states; a full context would otherwise be held twice
        return Open(dataclasses.replace(state, layers=()), layers, read=0, offset_B=where.offset_B)

    def _extend(self, tokens_Bn: Tensor, open: Open) -> tuple[Tensor, Open]:
        n = tokens_Bn.shape[1]
        where = self._where(open, open.read, n, ALL)
        x_BnD = self.backbone.embedded(tokens_Bn, where, open.read)
        y_BnD, layers, *_ = self.backbone.read("extend", x_BnD, open.layers, where)
        return y_BnD, Open(open.state, layers, open.read + n, open.offset_B)

    def _stream_piece(self, tokens_Bn: Tensor, state: Any, ends: bool, scored: slice) -> Piece:
        if ends and not isinstance(state, Open):  # a whole segment at once
            output = self.segment(tokens_Bn, state, scored)
            return Piece(output.logits, output.state)
        open = state if isinstance(state, Open) else self.begin(state)
        logits_BnV, open = self.extend(tokens_Bn, open, scored)
        return Piece(logits_BnV, self.close(open) if ends else open)

    def peak_bytes(self, tokens_BN: Tensor, state: ModelState) -> int:
        return self.extend(tokens_BN, self.begin(state), NOTHING)[1].nbytes
