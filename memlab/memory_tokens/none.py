"""No memory tokens: only layer memories remember."""

from __future__ import annotations

from torch import Tensor

from memlab.layers.state import Empty
from memlab.memory_tokens.base import MemoryTokens


class None_(MemoryTokens):  # noqa: N801 - `None` is Python's
    """Nothing is added to a segment."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width

    @property
    def reads(self) -> int:
        return 0

    def init_state(self, batch_size: int) -> Empty:
        return Empty()

    def before(self, state: Empty, batch_size: int) -> Tensor:
        raise TypeError("there are no memory tokens")
