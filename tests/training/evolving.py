"""A small run with full attention, and evolutions on it, for tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra import compose, initialize_config_dir

from memlab.config.checks import check
from memlab.config.paths import config_dir
from memlab.training.evolve_settings import EvolveConfig, check_evolve
from memlab.training.run import train

TASK = ["task=mqar", "task.length=4", "task.queries=2", "task.keys=8", "task.values=4", "task.num_segments=3"]
MODEL = ["model=transformer", "layer_memory=full", "model.width=16", "model.heads=2", "model.layers=2"]
TRAINING = ["curriculum=off", "trainer.max_steps=6", "trainer.threads=1", "trainer.precision=64-true"]
SIZES = ["task.batch_size=8", "task.validation_size=16", "task.test_size=24"]
NETWORK = ["policy.n_fft=4", "policy.hop=2", "policy.ages=2", "policy.hidden=3"]
SHORT = ["generations=3", "population=4", "prompts=5", "dev_every=2", "dev_prompts=6", "test_prompts=7"]


def trained(place: Path, model: Sequence[str] = MODEL) -> Path:
    """The directory of a run, in float64: what candidates do does not depend on rounding."""
    with initialize_config_dir(config_dir(), version_base="1.3"):
        given = [*TASK, *model, *TRAINING, *SIZES, f"run_dir={place}", "tracking=off"]
        train(check(compose("train", given)))
    return place


def asked(run: Path, place: Path, *words: str) -> EvolveConfig:
    """The configuration of an evolution; words that are given replace those of this file."""
    names = {word.partition("=")[0] for word in words}
    usual = [*NETWORK, *SHORT, "sigma=0.5", "threads=1", "accelerator=cpu", "tracking=off"]
    usual = [word for word in usual if word.partition("=")[0] not in names]
    if "stages" in names:
        usual.remove("generations=3")
    with initialize_config_dir(config_dir(), version_base="1.3"):
        return check_evolve(compose("evolve", [f"run={run}", f"run_dir={place}", *usual, *words]))


def without_seconds(lines: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{name: value for name, value in line.items() if "seconds" not in name} for line in lines]
