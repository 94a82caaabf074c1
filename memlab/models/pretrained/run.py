"""A model that memlab trained, as a base: its backbone's keys, and all of its weights.

a run's directory    the weights of best.ckpt
a .ckpt file         of a finished or an unfinished run
a directory          that memlab.export wrote, with model_type memlab in its config.json
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from memlab.errors import ConfigError, first_line
from memlab.models.pretrained.safetensors_directory import SafetensorsDirectory
from memlab.models.pretrained.source import Source

MODEL_TYPE = "memlab"
_BEST = Path("checkpoints", "best.ckpt")
_PREFIX = "model."  # of the names in a checkpoint


class Run(Source):
    """A checkpoint of memlab's.

    Attributes:
        config: the keys of `model` that it was trained with.

    Raises:
        ConfigError: it is damaged, or another program's.
    """

    def __init__(self, file: Path, place: str) -> None:
        self.file, self.place = file, place
        self.config = self._checkpoint["hyper_parameters"]["config"]["model"]

    @classmethod
    def in_directory(cls, directory: Path, place: str) -> Run:
        """The best checkpoint of a run.

        Raises:
            ConfigError: there is none yet.
        """
        if not (directory / _BEST).is_file():
            raise ConfigError(f"backbone.path={place}: the run has no {_BEST} yet")
        return cls(directory / _BEST, place)

    @cached_property
    def _checkpoint(self) -> Mapping[str, Any]:
        import torch  # only for this kind of source

        try:
            found = torch.load(self.file, map_location="cpu", weights_only=True, mmap=True)
            if isinstance(found, dict) and "memlab" in found and "state_dict" in found:
                return found
            reason = "memlab did not write it"
        except Exception as error:  # a damaged pickle may raise anything
            reason = first_line(error)
        raise ConfigError(
            f"backbone.path={self.place}: {self.file.name} is damaged or no checkpoint ({reason})"
        )

    @property
    def files(self) -> Sequence[Path]:
        return [self.file]

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {
            name.removeprefix(_PREFIX): tuple(tensor.shape)
            for name, tensor in self._checkpoint["state_dict"].items()
        }

    def read(self, name: str) -> Any:
        return self._checkpoint["state_dict"][_PREFIX + name]


class Exported(SafetensorsDirectory):
    """What `memlab.export` wrote of a model that is none of transformers' own.

    Attributes:
        config: the keys of `model`.
        whole: the configuration of the run.
        version: of memlab.
        step: optimizer steps of the weights.
    """

    def __init__(self, directory: Path, place: str) -> None:
        super().__init__(directory, place)
        if self.config.get("model_type") != MODEL_TYPE:
            raise ConfigError(f"{place} is no directory that memlab.export wrote for memlab.load")
        own = self.config["memlab"]
        self.whole, self.version, self.step = own["config"], own["version"], int(own["step"])
        self.config = self.whole["model"]
