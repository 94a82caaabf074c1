"""A checkpoint as a file: its names in a run's directory, and reading it safely, without the
trainer.
"""

from __future__ import annotations

import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch

from memlab.errors import first_line

LAST, PREVIOUS, BEST = "last.ckpt", "previous.ckpt", "best.ckpt"


class DamagedError(Exception):
    """A file is not a checkpoint of memlab, or not all of it is there."""


def read(path: Path) -> dict[str, Any]:
    """A checkpoint of which every byte has been checked.

    Raises:
        DamagedError: it is cut off, or altered, or holds other things than tensors and plain containers.
    """
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
