"""A checkpoint as a file: its names in a run's directory, and reading it safely, without the
trainer.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from memlab.errors import ConfigError, first_line

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"
PREFIX = "model."  # of the names of the model's weights
PRETRAINED = "pretrained"  # in the place of a file's name: weights that no run has trained


class DamagedError(Exception):
    """A file is not a checkpoint of memlab, or not all of it is there."""


def read(path: Path) -> dict[str, Any]:
    """A checkpoint of which every byte has been checked; of a directory that `memlab.export` wrote, what a
    checkpoint has of a model.

    Raises:
        DamagedError: it is cut off, or altered, or holds other things than tensors and plain containers.
    """
    if path.is_dir():
        return _exported(path)
    try:
        with zipfile.ZipFile(path) as file:  # torch does not look at the check sums
            if (bad := file.testzip()) is not None:
                raise DamagedError(f"the check sum of {bad} is wrong")
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except (
        OSError,
        RuntimeError,
        ValueError,
        EOFError,
        KeyError,
        zipfile.BadZipFile,
        pickle.UnpicklingError,
    ) as error:
        raise DamagedError(first_line(error)) from None
    if not isinstance(checkpoint, dict) or not isinstance(checkpoint.get("memlab"), dict):
        raise DamagedError("memlab did not write it")
    return checkpoint


def configuration(checkpoint: dict[str, Any]) -> Any:
    """The configuration of the run that wrote a checkpoint; None if it is not there."""
    parameters = checkpoint.get("hyper_parameters")
    return parameters.get("config") if isinstance(parameters, dict) else None


def _exported(directory: Path) -> dict[str, Any]:
    from memlab.models.pretrained.run import Exported

    try:
        found = Exported(directory, str(directory))
        state = {f"{PREFIX}{name}": found.read(name) for name in found.shapes()}
    except (ConfigError, KeyError, TypeError, OSError) as error:
        raise DamagedError(first_line(error)) from None
    if found.config.get("tied_head"):
        state[f"{PREFIX}backbone.head.weight"] = state[f"{PREFIX}backbone.embed.weight"]
    return {
        "memlab": {"version": found.version},
        "hyper_parameters": {"config": found.whole},
        "state_dict": state,
        "global_step": found.step,
    }
