"""Evolution of a parameter vector by CMA-ES (Hansen, arXiv 1604.00772), with the library `cmaes`.

    draw P candidates from N(mean, sigma^2 C), measure how fit each is, move the mean towards the better half

The loop knows neither models nor tasks: `fitness` measures. What the sampler knows, with the state of its
random numbers, can be saved between generations: a continued evolution is the uninterrupted one, bit for bit.

Shapes: P candidates, n parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal, Protocol

import cmaes
import numpy as np
import torch
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Kind = Literal["auto", "separable", "full"]
_FULL = 500  # parameters up to which the whole covariance matrix is adapted


class Sampler:
    """CMA-ES as a sampler of candidates that a better one replaces: `ask`, then `tell`.

    Args:
        mean_n: where the search begins.
        sigma: standard deviation of the first candidates, in each parameter.
        population: P.
        seed: the same seed draws the same candidates.
        kind: full = adapts the whole covariance matrix, n x n; separable = only its diagonal (Ros and Hansen,
            2008); auto = full up to 500 parameters.
    """

    def __init__(self, mean_n: Floats, sigma: float, population: int, seed: int, kind: Kind = "auto") -> None:
        full = len(mean_n) <= _FULL if kind == "auto" else kind == "full"
        make = cmaes.CMA if full else cmaes.SepCMA
        self._cma: Any = make(mean=mean_n.copy(), sigma=sigma, seed=seed, population_size=population)

    @property
    def mean_n(self) -> Floats:
        """The centre of the candidates: what the evolution has found so far."""
        mean: Floats = self._cma.mean.copy()
        return mean

    @property
    def sigma(self) -> float:
        return float(self._cma._sigma)

    @property
    def generation(self) -> int:
        """How many generations it has been told."""
        return int(self._cma.generation)

    def ask(self) -> Floats:
        """The candidates of the next generation, [P, n]."""
        return np.stack([self._cma.ask() for _ in range(self._cma.population_size)])

    def tell(self, candidates_Pn: Floats, fitness_P: Floats) -> None:
        """Adapt to how fit each of the candidates is; larger is better.

        Raises:
            ValueError: a fitness is not a number.
        """
        if not np.isfinite(fitness_P).all():
            raise ValueError(f"fitness {fitness_P.tolist()}: only finite numbers can be compared")
        self._cma.tell([(x, -f) for x, f in zip(candidates_Pn, fitness_P.tolist(), strict=True)])

    def state_dict(self) -> dict[str, Any]:
        """All that the next generation depends on, as tensors and plain values."""
        kept = {name: _plain(value) for name, value in vars(self._cma).items() if name != "_rng"}
        name, keys, position, has_gauss, gauss = self._cma._rng.get_state(legacy=True)
        drawn = [name, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(gauss)]
        return {"kind": type(self._cma).__name__, "values": kept, "random_numbers": drawn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state.

        Raises:
            ValueError: it is of another kind of sampler, or of another number of parameters.
        """
        mine, n = type(self._cma).__name__, self._cma.dim
        if state["kind"] != mine or state["values"]["_n_dim"] != n:
            of = f"{state['kind']} with {state['values']['_n_dim']} parameters"
            raise ValueError(f"the state is of {of}, and the sampler is {mine} with {n}")
        for name, value in state["values"].items():
            setattr(self._cma, name, value.numpy().copy() if isinstance(value, torch.Tensor) else value)
        name, keys, *rest = state["random_numbers"]
        self._cma._rng.set_state((name, keys.numpy().astype(np.uint32), *rest))


def _plain(value: Any) -> Any:
    """A value of the library's as one that `torch.load(weights_only=True)` reads back."""
    if isinstance(value, np.ndarray):
        return torch.from_numpy(value.copy())
    return value.item() if isinstance(value, np.generic) else value


@dataclass(frozen=True)
class Measured:
    """What a generation's candidates have come to.

    Attributes:
        fitness_P: of each; larger is better.
        figures: further numbers of the generation, for logging.
    """

    fitness_P: Floats
    figures: Mapping[str, float]


class Fitness(Protocol):
    def __call__(self, candidates_Pn: Floats, generation: int) -> Measured:
        """Measure all candidates of a generation (counted from 0) under the same conditions."""


def evolve(
    sampler: Sampler,
    fitness: Fitness,
    generations: int,
    after: Callable[[int, Measured], None] = lambda generation, measured: None,
) -> Floats:
    """Go on until so many generations have been measured, and return the mean, [n].

    The mean is what is kept, as published, and not the best candidate, which has also been lucky with its
    prompts.

    Args:
        after: called after each generation, with its number from 1, when the sampler has adapted to it.
    """
    for generation in range(sampler.generation, generations):
        candidates_Pn = sampler.ask()
        measured = fitness(candidates_Pn, generation)
        sampler.tell(candidates_Pn, measured.fitness_P)
        after(generation + 1, measured)
    return sampler.mean_n
