"""Evolution of a vector: it finds a known optimum, and continues as if it had not been stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from memlab.training.evolution import Floats, Kind, Measured, Sampler, evolve

KINDS: list[Literal["separable", "full"]] = ["separable", "full"]
N = 12


def wanted() -> Floats:
    return np.linspace(-2, 1, N)


def near(candidates_Pn: Floats, generation: int) -> Measured:
    """Largest, 0, at `wanted`; the parameters count differently."""
    distance_Pn = (candidates_Pn - wanted()) * np.linspace(1, 5, N)
    fitness_P = -(distance_Pn**2).sum(1)
    return Measured(fitness_P, {"best": float(fitness_P.max())})


def sampler(kind: Kind, seed: int = 0) -> Sampler:
    return Sampler(np.zeros(N), sigma=0.5, population=10, seed=seed, kind=kind)


@pytest.mark.parametrize("kind", KINDS)
def test_it_finds_the_optimum_of_a_known_function(kind: Kind) -> None:
    best = []
    mean_n = evolve(
        sampler(kind), near, 250, lambda generation, measured: best.append(measured.figures["best"])
    )
    np.testing.assert_allclose(mean_n, wanted(), atol=1e-4)
    assert len(best) == 250 and best[-1] > best[0]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("stopped_after", [1, 7])
def test_continued_from_a_file_it_is_the_uninterrupted_one(
    kind: Kind, stopped_after: int, tmp_path: Path
) -> None:
    def run(one: Sampler, generations: int) -> list[Floats]:
        seen = []

        def fitness(candidates_Pn: Floats, generation: int) -> Measured:
            seen.append(candidates_Pn)
            return near(candidates_Pn, generation)

        return [evolve(one, fitness, generations), *seen]

    whole_mean, *whole = run(sampler(kind), 12)
    first = sampler(kind)
    _, *before = run(first, stopped_after)
    torch.save(first.state_dict(), tmp_path / "state")
    second = sampler(kind, seed=99)
    second.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    assert (second.generation, second.sigma) == (stopped_after, first.sigma)
    mean, *after = run(second, 12)
    assert np.array_equal(np.stack([*before, *after]), np.stack(whole))
    assert np.array_equal(mean, whole_mean)


def test_the_whole_covariance_is_adapted_for_few_parameters_only() -> None:
    few, many = (Sampler(np.zeros(n), 0.1, 4, 0).state_dict()["kind"] for n in (500, 501))
    assert (few, many) == ("CMA", "SepCMA")


def test_a_state_of_another_sampler_is_refused() -> None:
    with pytest.raises(
        ValueError, match="the state is of CMA with 12 parameters, and the sampler is SepCMA with 12"
    ):
        sampler("separable").load_state_dict(sampler("full").state_dict())


def test_a_fitness_that_is_not_a_number_is_refused() -> None:
    one = sampler("separable")
    with pytest.raises(ValueError, match="only finite numbers"):
        one.tell(one.ask(), np.array([0.0, np.nan, *[1.0] * 8]))
    assert one.generation == 0
