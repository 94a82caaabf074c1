"""What a figure was made with."""

from __future__ import annotations

import platform
from importlib.metadata import version

from memlab.version import __version__


def versions() -> dict[str, str]:
    """Of memlab, Python, the machine's architecture, and the libraries that numbers depend on."""
    found = {name: version(name) for name in ("torch", "lightning", "numpy", "hydra-core")}
    return {
        "memlab": __version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        **found,
    }
