"""Free memory of the machine, so that what cannot fit is refused before anything is allocated."""

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
    """The most bytes that this process can get; None = unknown, as on systems other than Linux."""
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
        needed: lower bound of bytes.
        cause: the key that needs them, with its value.
        advice: what to do instead.
        free: bytes available; None = ask this machine.

    Raises:
        ConfigError: fewer are available.
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
        batch_size: number of batch rows.
        tokens: T of a batch row.
        each_row: bytes that a batch row needs in addition to its tokens.

    Raises:
        ConfigError: see `check`.
    """
    # ids and targets in 8 bytes and a flag in 1, as arrays and again as tensors
    check(
        batch_size * (tokens * 2 * (8 + 8 + 1) + each_row),
        f"task.batch_size={batch_size}: a batch of {batch_size:,} x {tokens:,} tokens",
        "use fewer rows, or shorter ones",
    )


def _words(count: int) -> str:
    return f"{count / (1 << 30):,.1f} GiB" if count < 1 << 50 else f"{count / (1 << 40):,.0f} TiB"
