"""A directory as transformers writes it: config.json, and model.safetensors or shards with an index."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from memlab.errors import ConfigError
from memlab.files import DamagedFileError, read_object
from memlab.models.pretrained.source import Source, extra

CONFIG, WHOLE, INDEX = "config.json", "model.safetensors", "model.safetensors.index.json"
_LONGEST_HEADER = 100 << 20  # bytes, as in the format's own readers
_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2}


class SafetensorsDirectory(Source):
    """Weights in a directory.

    Raises:
        ConfigError: config.json is missing or damaged.
    """

    def __init__(self, directory: Path, place: str) -> None:
        self.directory, self.place = directory, place
        file = directory / CONFIG
        if not file.is_file():
            raise ConfigError(
                f"backbone.path={place}: {CONFIG} is missing; a directory of a pretrained model has {CONFIG} "
                f"and {WHOLE}, a run of memlab has config.yaml"
            )
        try:
            self.config = read_object(file)
        except (DamagedFileError, OSError) as error:
            raise ConfigError(f"backbone.path={place}: {error}") from None

    @cached_property
    def files(self) -> Sequence[Path]:
        """The shards in the order of their names, or the one file.

        Raises:
            ConfigError: there are none, or some are missing.
        """
        if (self.directory / WHOLE).is_file():
            return [self.directory / WHOLE]
        if not (self.directory / INDEX).is_file():
            others = sorted(p.name for p in self.directory.glob("*") if p.suffix in (".bin", ".pt", ".gguf"))
            there = (
                f"; there is {', '.join(others)}, of which only .gguf is read, named itself" if others else ""
            )
            raise ConfigError(f"backbone.path={self.place}: neither {WHOLE} nor {INDEX} is there{there}")
        try:
            places = read_object(self.directory / INDEX)["weight_map"].values()
        except (DamagedFileError, KeyError, AttributeError) as error:
            raise ConfigError(f"backbone.path={self.place}: {INDEX} is damaged ({error})") from None
        shards = [self.directory / name for name in sorted(set(places))]
        if missing := [shard.name for shard in shards if not shard.is_file()]:
            raise ConfigError(
                f"backbone.path={self.place}: {len(missing)} of {len(shards)} shards are missing "
                f"({', '.join(missing[:3])}); download the model again"
            )
        return shards

    @cached_property
    def _places(self) -> dict[str, tuple[Path, tuple[int, ...]]]:
        """File and shape of each tensor."""
        found: dict[str, tuple[Path, tuple[int, ...]]] = {}
        for file in self.files:
            for name, shape in headers(file, self.place).items():
                if name in found:
                    raise ConfigError(
                        f"backbone.path={self.place}: {name} is in {found[name][0].name} and in {file.name}"
                    )
                found[name] = (file, shape)
        return found

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: shape for name, (_, shape) in self._places.items()}

    def read(self, name: str) -> Any:
        try:
            from safetensors import safe_open
        except ImportError:
            raise extra("safetensors", self.place) from None
        # opened anew for each tensor, so that pages of the file that were read can be dropped
        with safe_open(self._places[name][0], framework="pt") as file:
            return file.get_tensor(name)


def headers(file: Path, place: str) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, whose size is checked.

    Raises:
        ConfigError: the file is not whole, or has tensors that are no floating-point numbers.
    """
    size = file.stat().st_size
    with file.open("rb") as opened:
        length = int.from_bytes(opened.read(8), "little")
        if size < 8 or length > min(_LONGEST_HEADER, size):
            raise ConfigError(f"backbone.path={place}: {file.name} is no safetensors file, or half of one")
        try:
            header = json.loads(opened.read(length))
            entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
            end = max((entry["data_offsets"][1] for entry in entries.values()), default=0)
            shapes = {name: tuple(entry["shape"]) for name, entry in entries.items()}
            kinds = {name: entry["dtype"] for name, entry in entries.items()}
        except (ValueError, KeyError, TypeError, AttributeError):
            raise ConfigError(f"backbone.path={place}: {file.name} has a damaged header") from None
    if size != 8 + length + end:
        raise ConfigError(
            f"backbone.path={place}: {file.name} has {size:,} bytes of {8 + length + end:,}; download it "
            "again"
        )
    for name, kind in kinds.items():
        # integers are buffers, which no parameter of ours is made of
        if kind.startswith("F") and kind not in _BYTES:
            raise ConfigError(
                f"backbone.path={place}: {name} is stored as {kind}; memlab reads {', '.join(_BYTES)}"
            )
    return shapes


def parameters(shapes: dict[str, tuple[int, ...]]) -> int:
    """How many numbers tensors have."""
    return sum(math.prod(shape) for shape in shapes.values())
