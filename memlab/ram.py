"""How much memory the machine has free, so that what cannot fit is refused before anything is allocated."""

from __future__ import annotations

import contextlib
import re
import resource
from pathlib import Path

from memlab.errors import ConfigError

_SMALL = 64 << 20  # bytes that every machine has
_MEMINFO = Path("/proc/meminfo")
# the limit of a container, in the second and in the first version of control groups
_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))


def available() -> int | None:
    """Bytes that this process can get at most; None = unknown, as on systems other than Linux."""
    found = []
    with contextlib.suppress(OSError):
        if known := re.search(r"^MemAvailable:\s*(\d+) kB", _MEMINFO.read_text(), re.MULTILINE):
            found.append(int(known[1]) << 10)
    for limit in _LIMITS:
        with contextlib.suppress(OSError, ValueError):  # "max" is no number
            found.append(int(limit.read_text()))
    if (address_space := resource.getrlimit(resource.RLIMIT_AS)[0]) != resource.RLIM_INFINITY:
        found.append(address_space)
    return min(found, default=None)


def check(needed: int, cause: str, advice: str, free: int | None = None) -> None:
    """Refuse what cannot fit.

    Args:
        needed: bytes, at least.
        cause: the key that asks for them, with its value.
        advice: what to do instead.
        free: bytes that there are; None = ask this machine.

    Raises:
        ConfigError: there are fewer.
    """
    if needed <= _SMALL:
        return
    free = available() if free is None else free
    if free is not None and needed > free:
        raise ConfigError(
            f"{cause} needs at least {_words(needed)} of memory, and {_words(free)} are free; {advice}"
        )


def check_batch(batch_size: int, tokens: int, each_row: int = 0) -> None:
    """Refuse a training batch whose token ids alone cannot fit.

    Args:
        batch_size: rows of it.
        tokens: T of a row.
        each_row: bytes that a row needs beside its tokens.

    Raises:
        ConfigError: see `check`.
    """
    # ids and targets in 8 bytes and a mark in 1, as arrays and once more as tensors
    check(
        batch_size * (tokens * 2 * (8 + 8 + 1) + each_row),
        f"task.batch_size={batch_size}: a batch of {batch_size:,} x {tokens:,} tokens",
        "use fewer rows, or shorter ones",
    )


def _words(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB" if count < 1 << 50 else f"{count / (1 << 40):,.0f} TiB"
