"""The states of all random number generators of a training, as tensors and plain containers."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
import torch


def begin(seed: int, rank: int, step: int) -> None:
    """Seed the generators with numbers of their own for each process and step.

    Weights are drawn before, from the seed alone: they are the same in every process.
    """
    seeds = np.random.SeedSequence((seed, rank, step)).generate_state(3)
    torch.manual_seed(int(seeds[0]))
    np.random.seed(int(seeds[1]))
    random.seed(int(seeds[2]))


def collect(device: torch.device) -> dict[str, Any]:
    """The present states of torch (and of the GPU in use), numpy and Python."""
    name, keys, position, has_gauss, gauss = np.random.get_state(legacy=True)
    return {
        "torch": torch.get_rng_state(),
        "gpu": torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
        "numpy": (
            str(name),
            torch.from_numpy(np.asarray(keys).astype(np.int64)),
            int(position),
            int(has_gauss),
            float(gauss),
        ),
        "python": random.getstate(),
    }


def restore(states: dict[str, Any], device: torch.device) -> None:
    """Continue drawing from where `collect` was called."""
    torch.set_rng_state(states["torch"])
    if states["gpu"] is not None and device.type == "cuda":
        torch.cuda.set_rng_state(states["gpu"], device)
    name, keys, position, has_gauss, gauss = states["numpy"]
    np.random.set_state((name, keys.numpy().astype(np.uint32), position, has_gauss, gauss))
    random.setstate(states["python"])
