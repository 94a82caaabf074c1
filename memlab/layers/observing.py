"""Looking at what layers compute, from outside and without changing it.

Layers offer tensors that they have anyway, by the name of an event; the observer within `by(observer)`
receives them. Without one, an offer is a comparison. An observer must not change what it receives.

    attention   LayerMemory.attend. remembered: how many of the keys were written before the segment, the
                first ones. keys: [B, G, L, K]. attend: a function from values [B, G, L, k] to what all T rows
                of the call make of them, [B, H, T, k]
    mix         LayerMemory.mix, a memory mixed with local attention by a gate. gate, remembered, local:
                broadcastable to [B, H, .., T, K], of the wanted rows
    nearest     a search for the nearest keys. found: as `ops/nearest.py` gives it, of the wanted rows. rows:
                P, that were searched; the last one is the token before the segment

Each also has memory, the layer memory that offers it, and where, as in `memories/base.py`.
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
