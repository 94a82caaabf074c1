"""The sections of a configuration, as types: what each key is called and which values it takes."""

from __future__ import annotations

import os
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from memlab.bounds import Fraction, NonNegative, NonNegativeFloat, Positive, PositiveFloat, Seed
from memlab.config import launch
from memlab.config.trust import module_names
from memlab.errors import ConfigError
from memlab.models.choices import Target, Train
from memlab.tasks import growth


def _expanded(path: str) -> str:
    """A path in which a leading `~` is the home directory.

    Raises:
        ValueError: there is no such home.
    """
    expanded = os.path.expanduser(path)
    if expanded.startswith("~") and not os.path.exists(expanded):
        raise ValueError(f"no home directory is known for {path.partition('/')[0]}")
    return expanded


Place = Annotated[str, AfterValidator(_expanded)]


class Section(BaseModel):
    """A part of the configuration: immutable, and a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class TrustingSection(Section):
    """The keys of a command that opens what others may have made.

    Attributes:
        trust: see `memlab.config.trust`. It belongs to one command and is never saved.
    """

    trust: Annotated[list[str], BeforeValidator(module_names), Field(exclude=True)] = []


class TrainerConfig(Section):
    """Where and how long. Keys with a default here are newer than some runs,
    whose `config.yaml` must still be readable.
    """

    accelerator: Literal["cpu", "gpu", "auto"]
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    devices: Positive | None = 1
    num_nodes: Positive = 1
    precision: Literal["32-true", "64-true", "bf16-mixed"]
    threads: Positive | None
    accumulate: Positive = 1
    max_steps: Positive
    stop_at_accuracy: Fraction | None
    patience: NonNegative = 0
    select: Literal["best", "last"] = "best"
    val_every: Positive
    val_segments: Annotated[list[Positive], Field(min_length=1)] | None = None
    checkpoint_every: Positive | None = None
    log_every: Positive
    test: bool = True
    recompute: Literal["none", "segment", "block"] = "none"
    recompute_together: Positive | None = None
    train: Train = "all"

    @property
    def known_size(self) -> int | None:
        """How many processes train together; None = that depends on the GPUs of this machine.

        Raises:
            ConfigError: torchrun started a different number.
        """
        name = f"trainer={self.accelerator if self.strategy == 'single' else self.strategy}"
        return launch.known_size(name, self.strategy, self.devices, self.num_nodes)

    @property
    def val_interval(self) -> int:
        """Steps between validations; a run shorter than `val_every` is validated at its end."""
        return min(self.val_every, self.max_steps)

    def validates_after(self, step: int) -> bool:
        """Whether a regular validation follows this step."""
        return step % self.val_interval == 0

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint follows this step, and its validation if there is one."""
        every = self.checkpoint_every or self.val_interval
        return step % every == 0 or step == self.max_steps


class OptimConfig(Section):
    lr: PositiveFloat
    gate_lr: PositiveFloat
    memory_lr: PositiveFloat | None = None
    weight_decay: NonNegativeFloat
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    warmup_steps: NonNegative
    schedule: Literal["constant", "cosine"]
    gradient_clip: PositiveFloat | None


def _each_once(targets: list[Target]) -> list[Target]:
    if len(set(targets)) < len(targets):
        raise ValueError("each once")
    return targets


class LoraConfig(Section):
    """Low-rank adapters, with trainer.train=lora."""

    rank: Positive = 8
    alpha: PositiveFloat = 16.0
    targets: Annotated[list[Target], Field(min_length=1), AfterValidator(_each_once)] = ["q", "v"]


class NoCurriculum(Section):
    grow: Literal[False]


class GrowingCurriculum(Section):
    grow: Literal[True]
    by: growth.By = "task"
    sizes: Annotated[list[Positive], Field(min_length=1)] | None = None
    mixed: bool = False
    threshold: Fraction | None
    stage_steps: Positive | None


class NoTracking(Section):
    mlflow: Literal[False]


class MLflowTracking(Section):
    mlflow: Literal[True]
    uri: str
    experiment: str
    parent_run: str | None = None


class Config(TrustingSection):
    """One run. `model` and `task` hold `_target_`, `name` and the constructor's arguments (see
    `memlab/config/schema.py`).
    """

    seed: Seed
    run_dir: Place
    resume: Place = "never"
    experiment_file: str | None = None
    jobs: Positive = 1
    model: dict[str, Any]
    task: dict[str, Any]
    trainer: TrainerConfig
    optim: OptimConfig
    lora: LoraConfig = LoraConfig()
    curriculum: Annotated[NoCurriculum | GrowingCurriculum, Field(discriminator="grow")]
    tracking: Annotated[NoTracking | MLflowTracking, Field(discriminator="mlflow")]

    @property
    def bptt_depth(self) -> int | None:
        """How many segments back a segment's loss sends gradient; None = all the way."""
        return self.model.get("bptt_depth")

    def arguments(self, group: Literal["model", "task"]) -> dict[str, Any]:
        """The constructor's arguments in a group."""
        return _arguments(getattr(self, group))


class ShowConfig(TrustingSection):
    """Which samples of a task to look at."""

    task: dict[str, Any]
    samples: Positive
    split: Literal["train", "validation", "test"]
    seed: Seed

    def arguments(self, group: Literal["task"]) -> dict[str, Any]:
        """The constructor's arguments of the task."""
        return _arguments(getattr(self, group))


class StoreConfig(Section):
    uri: str


class CompareConfig(Section):
    """Which runs are compared, and where the report goes."""

    experiment: str | None
    runs: Annotated[list[str], Field(min_length=1)] | None
    filter: str | None
    tracking: StoreConfig
    out: Place | None
    track: bool
    open: bool


ConfigT = TypeVar("ConfigT", bound=Section)


def typed(plain: Any, kind: type[ConfigT]) -> ConfigT:
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(_readable(error, plain)) from None


def _arguments(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in group.items() if k not in ("_target_", "name", "bptt_depth")}


def _readable(error: ValidationError, values: Any) -> str:
    """pydantic's first complaint in one line, as the user wrote the key."""
    first = error.errors()[0]
    path = [str(p) for p in first["loc"]]
    found: Any = values
    keys = []
    for part in path:  # pydantic's paths also name the chosen member of a union, which is no key
        if isinstance(found, dict) and (part in found or part == path[-1]):
            keys.append(part)
            found = found.get(part)
    key = ".".join(keys)
    if first["type"] == "extra_forbidden":
        return f"unknown key {key!r}: nothing reads it"
    if first["type"] == "missing":
        return f"{key} is missing"
    message = first["msg"].removeprefix("Value error, ")
    if isinstance(first["input"], dict) and first["type"] == "value_error":  # about a section as a whole
        return f"{key}: {message}" if key else message
    return f"{key}={first['input']!r}: {message[0].lower()}{message[1:]}"
