"""Looking at what layers compute, from outside and without changing it.

Layers offer tensors that they have anyway, by the name of an event; the observer within `by(observer)`
receives them. Without one, an offer is a comparison. An observer must not change what it receives.

    attention   LayerMemory.attend: memory (the module), remembered (leading keys written before the segment),
                where, and mass: a function from values [B, G, L, 1] to what the wanted queries make of them,
                [B, H, T, 1]
    mix         LayerMemory.mix, a memory mixed with local attention by a gate: memory, gate, remembered,
                local, broadcastable to [B, H, .., K]
    nearest     attend_nearest: found, seen, weight [B, G, T * shared, k'] (rows, whether there is one,
                softmax), rows (P), shared (H / G)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Observer = Callable[[str, dict[str, Any]], None]
_observer: Observer | None = None


def offer(event: str, **values: Any) -> None:
    """Hand values to the observer, if there is one."""
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
