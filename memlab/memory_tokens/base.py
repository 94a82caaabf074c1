"""The contract of memory tokens: vectors that are read and written together with a segment's tokens.

    [ before (M) | segment (N) | after (W) ]

A kind of memory tokens defines which vectors stand before and after a segment, which rows look at which, and
what of the top layer's output is carried to the next segment. The backbone and its layer memories do not know
the kind: `Where` (`memories/base.py`) marks the rows that are memory tokens, and by default layers do not
remember them.

Shapes: B batch, M and W vectors before and after a segment, N tokens of a segment, D width.
"""

from __future__ import annotations

import abc
from typing import Any, ClassVar

import torch
from torch import Tensor, nn


class MemoryTokens(nn.Module, abc.ABC):
    """Base of all kinds. The constructor takes the width D and then options, which are keys of `model`.

    Attributes:
        bidirectional: whether rows look in both directions, and the model answers once (an encoder).
        carries: whether anything passes a segment boundary.
    """

    bidirectional: ClassVar[bool] = False
    carries: ClassVar[bool] = False

    @property
    @abc.abstractmethod
    def reads(self) -> int:
        """M, vectors before a segment."""

    @property
    def writes(self) -> int:
        """W, vectors after a segment."""
        return 0

    @abc.abstractmethod
    def init_state(self, batch_size: int) -> Any:
        """The state at the start of a document; learned parts of it carry gradient."""

    @abc.abstractmethod
    def before(self, state: Any, batch_size: int) -> Tensor:
        """The vectors before a segment, [B, M, D]."""

    def after(self, state: Any) -> Tensor:
        """The vectors after a segment, [B, W, D]; only called if W > 0."""
        raise TypeError(f"{type(self).__name__} has no vectors after a segment")

    def written(self, state: Any, top_BWD: Tensor) -> Any:
        """The state after a segment, from the state before it and the top layer's output for `after`.

        In an encoder, the output is for `before`.
        """
        return state

    @torch.no_grad()
    def begin_beside(self, embed_VD: Tensor, class_token: int | None = None) -> None:
        """Begin at the scale of a pretrained embedding, as the code of RMT's authors for such models does:
        vectors of its standard deviation. (Ours begin at 1, that of an embedding from scratch.)

        Args:
            class_token: the id of the model's own class token; None = it has none.
        """
        for vectors in self.parameters():
            vectors.mul_(embed_VD.std())

    def diagnose(self, before: Any, after: Any) -> dict[str, Tensor]:
        """Cheap detached scalars for logging, by name, from the states before and after a segment."""
        return {}

    def mask(self, tokens: int, device: torch.device) -> Tensor:
        """bool [M + N + W, M + N + W], True = may look.

        Vectors before a segment see each other; a token sees them, earlier tokens and itself; vectors after
        it see all rows.
        """
        m, total = self.reads, self.reads + tokens + self.writes
        if self.bidirectional:
            return torch.ones(1, 1, dtype=torch.bool, device=device).expand(total, total)
        may_look = torch.ones(total, total, dtype=torch.bool, device=device).tril()
        may_look[:m, :m] = True
        may_look[m + tokens :] = True
        return may_look
