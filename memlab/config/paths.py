"""Where the shipped YAML files are: beside the package in a checkout or an editable install,
inside it in a wheel.
"""

from __future__ import annotations

from pathlib import Path


def config_dir() -> str:
    """Absolute path of `configs/`."""
    package = Path(__file__).resolve().parents[1]
    for candidate in (package / "configs", package.parent / "configs"):
        if (candidate / "train.yaml").is_file():
            return str(candidate)
    raise FileNotFoundError(
        f"memlab's configs/ is neither in {package} nor beside it: the installation is incomplete"
    )


def sweep_dir() -> str:
    """Absolute path of `sweeps/`."""
    return str(Path(config_dir()).parent / "sweeps")
