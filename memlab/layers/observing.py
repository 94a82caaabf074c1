"""Looking at what layers compute, from outside and without changing it.

Layers offer tensors that they have anyway, by the name of an event; whoever reads a model inside of `by(observer)` is told. Otherwise an
offer is one comparison. An observer must not change what it is given.

    attention   Attention.attend: attention (the module), q, k, mask, relative, ahead, as its arguments
    nearest     attend_nearest: found, seen, weight [B, G, T * shared, k'] (rows, whether there is one, softmax), rows (P), shared (H / G)
    mix         a memory mixed with local attention by a gate: layer, gate, remembered, local, broadcastable to [B, H, .., K]
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Observer = Callable[[str, dict[str, Any]], None]
_observer: Observer | None = None


def offer(event: str, **values: Any) -> None:
    """Tell the observer, if there is one."""
    if _observer is not None:
        _observer(event, values)


@contextmanager
def by(observer: Observer | None) -> Iterator[None]:
    """All offers within go to this observer alone; None = to nobody."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before
