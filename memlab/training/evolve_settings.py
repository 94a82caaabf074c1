"""The typed configuration of `memlab.evolve`, checked before anything is read. Imports no torch."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from memlab.bounds import NonNegativeFloat, Positive, PositiveFloat, Seed
from memlab.config import schema
from memlab.config.checks import NOT_SHOWN, check_policy, check_task
from memlab.config.paths import config_dir
from memlab.config.sections import Config, MLflowTracking, NoTracking, Place, TrustingSection, typed
from memlab.errors import ConfigError, suggestion
from memlab.tasks.base import SyntheticTask

EVOLVES = ("namm",)
_GENERATIONS = 100


class EvolveConfig(TrustingSection):
    """The keys of `configs/evolve.yaml`.

    Attributes:
        run: None = a pretrained model that no run has trained.
        untrained: describes it, and its task.
        policy: its name and options.
        task: None = that of the run.
        stages: of each, `generations`, and changes of the task; None = one stage.
    """

    run: Place | None
    untrained: Config | None = None
    policy: dict[str, Any]
    task: dict[str, Any] | None = None
    generations: Positive | None
    population: Annotated[int, Field(ge=4)]
    prompts: Positive
    sampler: Literal["auto", "separable", "full"]
    sigma: PositiveFloat
    bias: float
    size_penalty: NonNegativeFloat
    stages: Annotated[list[dict[str, Any]], Field(min_length=1)] | None
    dev_every: Positive
    dev_prompts: Positive
    test_prompts: Positive | None
    rows: Positive
    workers: Positive
    threads: Positive | None
    accelerator: Literal["cpu", "gpu", "auto"]
    seed: Seed
    run_dir: Place
    resume: Place = "never"
    tracking: Annotated[NoTracking | MLflowTracking, Field(discriminator="mlflow")]

    @property
    def ends(self) -> list[int]:
        """The last generation of each stage."""
        if self.stages is None:
            return [self.generations or _GENERATIONS]
        return [sum(stage["generations"] for stage in self.stages[: n + 1]) for n in range(len(self.stages))]

    def stage(self, generation: int) -> int:
        """The stage of a generation; both are counted from 0."""
        return sum(generation >= end for end in self.ends[:-1])


def check_evolve(composed: DictConfig, untrained: Config | None = None) -> EvolveConfig:
    """The typed configuration.

    Args:
        untrained: of a pretrained model, in the place of `run`.

    Raises:
        ConfigError: a key is unknown or missing, a value is out of bounds, or keys contradict each other.
    """
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    if plain.get("run") is None and untrained is None:
        raise ConfigError(
            "run is missing: give the model that is read, the directory of a run with full attention, "
            "run=DIR, or a pretrained one, backbone=pretrained backbone.path=.."
        )
    config = typed({key: value for key, value in plain.items() if key not in NOT_SHOWN}, EvolveConfig)
    config = config.model_copy(update={"untrained": untrained})
    check_policy(config.policy)
    if config.policy["name"] not in EVOLVES:
        raise ConfigError(
            f"policy={config.policy['name']} has no parameters that could evolve; use policy={EVOLVES[0]}"
        )
    if config.task is not None:
        check_task(config.task)
    if config.stages is not None and config.generations is not None:
        raise ConfigError(
            f"generations={config.generations}: each of the stages says its own; leave the key out"
        )
    for number, stage in enumerate(config.stages or (), 1):
        generations = stage.get("generations")
        if type(generations) is not int or generations < 1:
            raise ConfigError(
                f"stages: stage {number} has generations={generations}; it needs a positive whole number"
            )
    return config


def stage_tasks(config: EvolveConfig, own: Mapping[str, Any]) -> list[SyntheticTask]:
    """The task of each stage.

    Args:
        own: the task's configuration in the run, for stages that do not name another one.

    Raises:
        ConfigError: a stage changes keys that its task does not have, or the task has no samples.
    """
    tasks = []
    for number, stage in enumerate(config.stages or [{}], 1):
        # an untrained model's task is that of `config.task`, with the model's tokenizer
        values = dict(own if config.task is None or config.untrained is not None else config.task)
        if (name := stage.get("task")) is not None:
            values = _task_file(str(name))
        changes = {key: value for key, value in stage.items() if key not in ("generations", "task")}
        if unknown := sorted(changes.keys() - values.keys()):
            raise ConfigError(
                f"stages: stage {number} sets {unknown[0]}, and task={values['name']} has no such key."
                f"{suggestion(unknown[0], values)}"
            )
        values |= changes
        check_task(values)
        arguments = {key: value for key, value in values.items() if key not in ("_target_", "name")}
        task = schema.load(values["_target_"])(**arguments)
        if not isinstance(task, SyntheticTask):
            raise ConfigError(
                f"task={values['name']} has no answers, and fitness is a share of right answers"
            )
        tasks.append(task)
    return tasks


def _task_file(name: str) -> dict[str, Any]:
    """The task's configuration in a file of `configs/task`."""
    files = {file.stem: file for file in Path(config_dir(), "task").glob("*.yaml")}
    if name not in files:
        raise ConfigError(
            f"stages: no task is named {name!r}.{suggestion(name, files)} There are: "
            f"{', '.join(sorted(files))}"
        )
    found: Any = OmegaConf.to_container(OmegaConf.load(files[name]))
    return dict(found.get("task", found))
