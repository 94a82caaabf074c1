"""Observe what layers compute, from outside and without changing it.

Layers offer tensors that they have computed anyway, under the name of an event, and the observer of
`by(observer)` receives them. Without an observer, an offer costs one comparison. An observer must not change
what it receives.

    attention   LayerMemory.attend. remembered: how many of the keys are of remembered rows, which come
                first. keys: [B, G, L, K]. attend: a function from values [B, G, L, k] to the outputs of all T
                rows of the call, [B, H, T, k]
    mix         what a layer remembers and what it reads of the segment: LayerMemory.mix, which mixes them by
                a gate, or an output that is the sum of both, with a gate of 0.5. gate, remembered, local:
                broadcastable to [B, H, .., T, K], of the wanted rows
    nearest     a search for the nearest keys. found: as returned by `ops/nearest.py`, of the wanted rows.
                rows: P, the number of rows searched; the last one is the token before the segment

Each of these events also has memory, the layer memory that offers it, and where, as in `memories/base.py`.

    spectrum    a decision of policies/namm.py. mean: [B, G, R, F], of the attention that rows have received.
                filled: [B, G, R], the rows that stand for a token. policy: that offers it
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

Observer = Callable[[str, dict[str, Any]], None]
_observer: Observer | None = None


def watched() -> bool:
    """Whether there is an observer, for values that would not be computed otherwise."""
    return _observer is not None


def offer(event: str, **values: Any) -> None:
    """Hand values to the observer, if there is one."""
    if _observer is not None:
        _observer(event, values)


@contextmanager
def by(observer: Observer | None) -> Iterator[None]:
    """Send all offers of a `with` block to this observer only; None = to nobody."""
    global _observer
    before, _observer = _observer, observer
    try:
        yield
    finally:
        _observer = before
