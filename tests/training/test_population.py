"""Candidates are measured alike together and alone, on samples that are the same for all of them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from memlab.errors import ConfigError
from memlab.evaluation import samples, trained
from memlab.layers import observing
from memlab.tracking import finished_runs
from memlab.training.evolution import Floats
from memlab.training.population import Population, Read, Reader, Unit
from tests.training import evolving
from tests.training.evolving import asked

pytestmark = pytest.mark.xdist_group(__name__)
N = 5 * 9 + 9 + 3 * 10 + 10 + 5 + 1  # 3 frequencies and 2 numbers of the age; width 3


class Recorded:
    """A reader that keeps what it was asked for."""

    def __init__(self, reader: Reader) -> None:
        self.reader, self.units = reader, list[Unit]()

    def read(self, units: Any) -> list[Read]:
        self.units += units
        return [self.reader.read(unit) for unit in units]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return evolving.trained(tmp_path_factory.mktemp("run") / "full")


@pytest.fixture(scope="module")
def reader(run: Path) -> Reader:
    return Reader(asked(run, run))


def candidates(count: int) -> Floats:
    return np.random.default_rng(0).normal(size=(count, N))


def standard() -> Floats:
    return np.stack([np.full(3, 0.05), np.full(3, 0.1)])


def population(run: Path, reader: Reader, *words: str) -> tuple[Population, Recorded]:
    recorded = Recorded(reader)
    return Population(recorded, asked(run, run, *words), standard()), recorded


def test_candidates_together_are_each_alone(reader: Reader) -> None:
    unit = Unit(0, "train", 5, 3, 6, candidates(4), standard())
    together = reader.read(unit)
    for number, candidate in enumerate(candidates(4)):
        alone = reader.read(dataclasses.replace(unit, candidates_Pn=candidate[None]))
        assert np.array_equal(alone.score_Pb[0], together.score_Pb[number])
        assert np.array_equal(alone.share_Pb[0], together.share_Pb[number])
    assert len(np.unique(together.share_Pb.mean(1))) >= 3, "candidates differ"


@pytest.mark.parametrize(
    "words", [[], ["policy.budget=2"], ["policy.select=top_k", "policy.budget=2"]], ids=str
)
def test_with_everything_kept_it_is_the_trained_model(run: Path, words: list[str]) -> None:
    """Whatever the policy's own options are, and they apply again afterwards."""
    reader = Reader(asked(run, run, *words))
    opened = trained.load(finished_runs.find(str(run), "sqlite:///none.db"), torch.device("cpu"))
    batch = opened.task.batch("train", 0, 9, 1)  # type: ignore[attr-defined]
    answers = samples.read(opened.model, batch)["plain"]
    found = reader.read(Unit(0, "train", 1, 0, 9, None, standard()))
    assert (found.score_Pb[0] * answers.tokens).round().astype(int).tolist() == answers.free
    assert np.array_equal(found.share_Pb, np.ones((1, 9)))
    if words:
        share_Pb = reader.read(Unit(0, "train", 1, 0, 9, candidates(2), standard())).share_Pb
        assert share_Pb.max() < 0.7


def test_spectra_are_standardised_by_what_was_seen_while_everything_was_kept(reader: Reader) -> None:
    unit, seen = Unit(0, "train", 5, 0, 4, candidates(1), standard()), []

    def see(event: str, values: dict[str, Any]) -> None:
        if event == "spectrum":
            seen.append(values["mean"][values["filled"]])

    with observing.by(see):
        reader.read(dataclasses.replace(unit, candidates_Pn=None))
    every = torch.cat(seen)
    found = reader.spectra(unit)
    np.testing.assert_allclose(found[0], every.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found[1], every.std(0, correction=0), rtol=1e-9)


@pytest.mark.parametrize("rows", [2, 7])
def test_the_division_into_units_changes_nothing(run: Path, reader: Reader, rows: int) -> None:
    one, _ = population(run, reader, f"rows={rows}")
    whole, _ = population(run, reader, "rows=1000")
    found, expected = (each.measure(candidates(3), 1, "train", 2, 5) for each in (one, whole))
    for field in dataclasses.fields(found):
        np.testing.assert_allclose(getattr(found, field.name), getattr(expected, field.name), rtol=1e-12)


def test_fitness_is_relative_to_the_full_cache_less_a_penalty_for_size(run: Path, reader: Reader) -> None:
    one, recorded = population(run, reader, "size_penalty=0.25")
    measured = one(candidates(3), 4)
    units = recorded.units
    assert {(u.split, u.start, u.samples) for u in units} == {("train", 20, 5)}, "the same samples for all"
    full, *reads = [reader.read(unit) for unit in units]
    assert units[0].candidates_Pn is None
    score_P = np.concatenate([r.score_Pb.mean(1) for r in reads])
    share_P = np.concatenate([r.share_Pb.mean(1) for r in reads])
    expected = score_P / max(full.score_Pb.mean(), 0.01) - 0.25 * share_P
    np.testing.assert_allclose(measured.fitness_P, expected, rtol=1e-12)
    assert measured.figures["evolve/best"] == measured.fitness_P.max()
    assert measured.figures["evolve/cache_share"] == pytest.approx(share_P.mean())


def test_samples_are_new_in_each_generation_and_apart_from_those_of_trainings(
    run: Path, reader: Reader
) -> None:
    one, recorded = population(run, reader)
    one(candidates(2), 0)
    one(candidates(2), 1)
    starts = {unit.start for unit in recorded.units}
    assert starts == {0, 5}
    assert {unit.seed for unit in recorded.units} == {1 << 32}, "a training's seed is smaller"


def test_stages_add_one_task_after_another(run: Path) -> None:
    words = (
        "stages=[{generations:2},{generations:1,num_segments:2},{generations:4,task:mqar,length:4,queries:1}]"
    )
    config = asked(run, run, words)
    assert config.ends == [2, 3, 7]
    assert [config.stage(generation) for generation in range(7)] == [0, 0, 1, 2, 2, 2, 2]
    with pytest.raises(ConfigError, match="the model knows 28 tokens, and the task has 64"):
        Reader(config)
    words = "stages=[{generations:1},{generations:1,num_segments:2}]"
    reader = Reader(asked(run, run, words))
    assert [task.num_segments for task in reader.tasks] == [3, 2]
    one, recorded = population(run, reader, words)
    first = one(candidates(2), 0)
    assert {unit.task for unit in recorded.units} == {0}
    both = one(candidates(2), 1)
    assert {unit.task for unit in recorded.units[2:]} == {0, 1}
    assert first.figures["evolve/stage"] == 1 and both.figures["evolve/stage"] == 2
    scores = one.measure(candidates(2), 2, "train", 5, 5)
    by_task = scores.score_TP / np.maximum(scores.full_T, 0.01)[:, None]
    np.testing.assert_allclose(scores.fitness_P, by_task.mean(0), rtol=1e-12)
