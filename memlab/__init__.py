"""memlab compares memory architectures of Transformers: one contract, one data path, honest figures.

In notebooks and scripts: `memlab.load(run)`, see docs/API.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from memlab.version import __version__

if TYPE_CHECKING:
    from memlab.api import Run, load

__all__ = ["Run", "__version__", "load"]


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use: commands print `--help` and report mistakes without it."""
    if name in ("Run", "load"):
        from memlab import api

        return getattr(api, name)
    raise AttributeError(f"module 'memlab' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
