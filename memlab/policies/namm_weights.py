"""The evolved part of NAMM as a file: sizes, parameters, and what the spectra are standardised by.

The file is `policy.pt` in the directory of a run of memlab.evolve. It holds tensors and plain values only.
"""

from __future__ import annotations

import dataclasses
import os
import pickle
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor

from memlab.errors import ConfigError, UserError, first_line
from memlab.ops.backward_network import count

FILE = "policy.pt"
_SMALLEST = 1e-7  # of a standard deviation, as published


@dataclass(frozen=True)
class Sizes:
    """Of a NAMM; see `NAMM`.

    Raises:
        ConfigError: they do not go together.
    """

    n_fft: int = 32
    hop: int = 16
    ages: int = 8
    hidden: int = 32
    decay: float = 0.99

    def __post_init__(self) -> None:
        for name in ("n_fft", "ages"):
            if getattr(self, name) % 2:
                raise ConfigError(f"policy.{name}={getattr(self, name)} is odd; it has to be even")
        if self.hop > self.n_fft:
            raise ConfigError(
                f"policy.hop={self.hop} is more than policy.n_fft={self.n_fft}: frames would miss queries"
            )

    @property
    def frequencies(self) -> int:
        return self.n_fft // 2 + 1

    @property
    def parameters(self) -> int:
        return count(self.ages + self.frequencies, self.hidden)


@dataclass(frozen=True)
class NAMMWeights:
    """What an evolution has found.

    Attributes:
        mean_F, std_F: of the mean spectra, when everything was kept.
        parameters_n: of the network.
    """

    sizes: Sizes
    mean_F: Tensor
    std_F: Tensor
    parameters_n: Tensor

    @classmethod
    def zero(cls, sizes: Sizes) -> Self:
        """All parameters 0, and spectra as they are."""
        f = sizes.frequencies
        return cls(sizes, torch.zeros(f), torch.ones(f), torch.zeros(sizes.parameters))

    def write(self, file: Path) -> None:
        """Write the file whole or not at all."""
        partial = file.with_name(file.name + ".partial")
        with partial.open("wb") as out:
            torch.save({"policy": "namm", **vars(self), "sizes": dataclasses.asdict(self.sizes)}, out)
            out.flush()
            os.fsync(out.fileno())
        partial.replace(file)


def read(place: str, wished: Mapping[str, int | float]) -> NAMMWeights:
    """The weights in a directory or file.

    Args:
        place: value of policy.weights.
        wished: sizes that the configuration gives.

    Raises:
        UserError: there are none, or the file is damaged.
        ConfigError: they are of other sizes.
    """
    file = Path(place).expanduser()
    file = file / FILE if file.is_dir() else file
    if not file.is_file():
        raise UserError(
            f"policy.weights={place}: {file} is missing; give the directory of a finished run of "
            "memlab.evolve"
        )
    try:
        found: Any = torch.load(file, map_location="cpu", weights_only=True)
        sizes = Sizes(**found["sizes"])
        tensors = [found[name] for name in ("mean_F", "std_F", "parameters_n")]
    except (OSError, RuntimeError, ValueError, EOFError, KeyError, TypeError, zipfile.BadZipFile) as error:
        raise UserError(f"policy.weights={place}: {file} is damaged ({first_line(error)})") from None
    except pickle.UnpicklingError:
        raise UserError(f"policy.weights={place}: {file} holds no weights of NAMM") from None
    wanted = [(sizes.frequencies,), (sizes.frequencies,), (sizes.parameters,)]
    if [tuple(t.shape) for t in tensors] != wanted:
        raise UserError(f"policy.weights={place}: {file} is damaged (its tensors are not of its sizes)")
    own = dataclasses.asdict(sizes)
    if differing := [name for name, value in wished.items() if value != own[name]]:
        name = differing[0]
        raise ConfigError(
            f"policy.{name}={wished[name]}: the weights in {file} were evolved with "
            f"policy.{name}={own[name]}; leave the key out, or give other weights"
        )
    mean_F, std_F, parameters_n = tensors
    return NAMMWeights(sizes, mean_F, std_F.clamp(min=_SMALLEST), parameters_n)
