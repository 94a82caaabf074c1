"""Where a figure comes from: the machine, and the state of memlab's own code."""

from __future__ import annotations

import platform
import subprocess
from pathlib import Path
from typing import Any

import torch

from memlab.processors import cores


def hardware() -> dict[str, Any]:
    """Processor, cores that this process may use, and GPUs, as a person names them."""
    gpus = [torch.cuda.get_device_name(n) for n in range(torch.cuda.device_count())]
    return {"processor": _processor(), "cores": cores(), "threads": torch.get_num_threads(), "gpus": gpus}


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:  # not Linux
        return platform.processor() or platform.machine()
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.machine())


def commit() -> str | None:
    """The commit of the checkout that memlab runs from, followed by `+` if files have been changed since;
    None = no checkout.
    """
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():  # a wheel, which may lie within some other repository
        return None
    try:
        name = _git(root, "rev-parse", "--short=12", "HEAD")
        return name + ("+" if _git(root, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(root: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *words], capture_output=True, text=True, check=True, timeout=10
    )
    return done.stdout.strip()
