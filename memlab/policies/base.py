"""The contract of a policy: which rows a bounded key-value cache keeps (`memories/cached.py`).

    [ remembered rows (C) | rows just read (T) ]        R = C + T rows in each key-value head
    decide(rows) -> Decision                            a mask [B, G, R], and the policy's own numbers

A policy decides after attention, at the end of each segment and, with `every`, at fixed positions within it.
So it acts in the same way while a prompt is read and while a model generates. Each batch row and each
key-value head has a set of its own; what is not kept is gone, in memory too.

What a policy remembers itself is in the state, never in the module:

    of_rows       numbers of each remembered row, tensors [B, G, C, ..]; they move with their row
    of_document   numbers of each document, tensors [B, ..]

Each layer has a policy object of its own. Learned numbers of a policy are buffers that are not saved
(`persistent=False`): a checkpoint has the model's weights alone, so that it opens under every policy. Layers
may share such a buffer.

Shapes: B batch, H heads, G key-value heads, C remembered rows, T rows just read, R = C + T, w queries, K head
width.
"""

from __future__ import annotations

import abc
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from memlab.bounds import Positive
from memlab.layers.description import Description
from memlab.layers.state import Empty
from memlab.ops import received

EMPTY = -1  # the position of a row that stands for no token
Zeros = Callable[..., Tensor]


@dataclass(frozen=True)
class Attention:
    """What the rows just read looked at, computed when it is asked for. No gradient.

    Attributes:
        q_BHwK: the queries that the policy's `queries` asks for: of the last rows just read.
        k_BGLK: the keys that they looked at: the R rows and, between them, the segment's memory tokens.
        look: bool, broadcastable to [B, G, w, L]: which of them each query may look at.
        rows: the columns of the R rows among the L.
    """

    q_BHwK: Tensor
    k_BGLK: Tensor
    look: Tensor
    rows: Callable[[Tensor], Tensor]

    def received(self, weight_w: Tensor | None = None) -> Tensor:
        """Attention that each row received, summed over queries, mean over a group's heads: [B, G, R].

        Args:
            weight_w: how much each query counts; None = 1.
        """
        return self.rows(received.received(self.q_BHwK, self.k_BGLK, self.look, weight_w))

    def last(self, queries: int) -> Tensor:
        """Softmax weights of the last queries (fewer if there are fewer): [B, H, w, R].

        Rows of a head of H / G neighbours are those of the key-value head that they share.
        """
        look = self.look.expand(-1, -1, self.q_BHwK.shape[2], -1)[:, :, -queries:]
        return self.rows(received.weights(self.q_BHwK[:, :, -queries:], self.k_BGLK, look))


@dataclass(frozen=True)
class Rows:
    """What a policy decides on.

    Attributes:
        keys_BGRK, values_BGRK: of the rows; those just read come last. Keys are rotated, except if the policy
            `rerotates`.
        position_BGR: int, of each row in its document, rising along R; EMPTY = the row stands for no token.
        length_B: int, tokens of each document so far, including those just read.
        new: T.
        of_rows: the policy's numbers of each row, with those of `init_rows` for the rows just read.
        of_document: the policy's numbers of each document.
        attention: of the rows just read.
    """

    keys_BGRK: Tensor
    values_BGRK: Tensor
    position_BGR: Tensor
    length_B: Tensor
    new: int
    of_rows: Any
    of_document: Any
    attention: Attention

    @property
    def filled(self) -> Tensor:
        """bool [B, G, R]: the rows that stand for a token."""
        return self.position_BGR != EMPTY

    @property
    def age(self) -> Tensor:
        """int [B, G, R]: how many tokens were read after each row's; of empty rows, anything."""
        return self.length_B[:, None, None] - 1 - self.position_BGR


@dataclass(frozen=True)
class Decision:
    """What stays.

    Attributes:
        keep_BGR: bool; empty rows are never kept.
        of_rows, of_document: the policy's numbers after the decision, `of_rows` for all R rows.
    """

    keep_BGR: Tensor
    of_rows: Any
    of_document: Any


class Policy(nn.Module, abc.ABC):
    """Base of all policies. A subclass gives `decide`.

    The constructor takes the block's description and then options, each with an annotation of
    `memlab/bounds.py`: they are keys of `policy` in the configuration.

    Args:
        every: tokens of a segment after which the policy acts, in addition to the segment's end; None = only
            there.

    Attributes:
        rerotates: whether positions are those within the cache, so that it stores keys without positions.
        Such
            a policy cannot ask for attention.
        by_head: whether heads may keep different rows.
    """

    rerotates: bool = False
    by_head: bool = True

    def __init__(self, description: Description, *, every: Positive | None = None) -> None:
        super().__init__()
        self.description = description
        self.every = every

    @property
    def queries(self) -> int | None:
        """How many of the last queries `decide` wants the attention of: None = all, 0 = it needs none."""
        return 0

    @property
    def capacity(self) -> int | None:
        """Rows of each head that the state has room for, always; None = the state has as many as are kept."""
        return None

    @property
    def keeps_everything(self) -> bool:
        """Whether nothing is ever dropped."""
        return False

    def init_rows(self, zeros: Zeros) -> Any:
        """A `State` with the numbers of new rows. `zeros(*shape)`: zeros [B, G, rows, *shape]."""
        return Empty()

    def init_document(self, zeros: Zeros) -> Any:
        """A `State` with the numbers of new documents. `zeros(*shape)`: zeros [B, *shape]."""
        return Empty()

    @abc.abstractmethod
    def decide(self, rows: Rows) -> Decision:
        """What stays of these rows; called without gradient."""


def rank(score_BGR: Tensor) -> Tensor:
    """int [B, G, R]: 0 for the largest score, 1 for the next; of equal ones the older row, which comes first.

    Scores are compared in single precision: otherwise rounding, and so the number of pieces in which a
    segment was read, would decide between rows whose scores are equal by their formula.
    """
    order = score_BGR.float().argsort(dim=-1, descending=True, stable=True)
    places = torch.arange(order.shape[-1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter_(-1, order, places)
