"""The typed configuration of a run: what Hydra composed, checked key by key, before anything is started or written."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from omegaconf import DictConfig, OmegaConf
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from memlab import launch, schema
from memlab.errors import ConfigError, suggestion
from memlab.schema import Fraction, NonNegative, NonNegativeFloat, Positive, PositiveFloat
from memlab.tasks import growth
from memlab.tasks.base import SyntheticTask, Task


class Section(BaseModel):
    """A part of the configuration: immutable, and a key that it does not have is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class TrainerConfig(Section):
    """Where and how long. Keys with a default here are younger than some runs, whose `config.yaml` is to be read all the same."""

    accelerator: Literal["cpu", "gpu", "auto"]
    strategy: Literal["single", "ddp", "fsdp"] = "single"
    devices: Positive | None = 1
    num_nodes: Positive = 1
    precision: Literal["32-true", "64-true", "bf16-mixed"]
    threads: Positive | None
    accumulate: Positive = 1
    max_steps: Positive
    stop_at_accuracy: Fraction | None
    val_every: Positive
    checkpoint_every: Positive | None = None
    log_every: Positive
    test: bool = True
    recompute: Literal["none", "segment", "block"] = "none"
    recompute_together: Positive | None = None

    @property
    def known_size(self) -> int | None:
        """How many processes train together; None = that depends on the GPUs of this machine.

        Raises:
            ConfigError: it is another number than torchrun started.
        """
        name = f"trainer={self.accelerator if self.strategy == 'single' else self.strategy}"
        return launch.known_size(name, self.strategy, self.devices, self.num_nodes)

    @property
    def val_interval(self) -> int:
        """Steps between validations; a run shorter than `val_every` is validated at its end."""
        return min(self.val_every, self.max_steps)

    def validates_after(self, step: int) -> bool:
        """Whether a regular validation comes behind this step."""
        return step % self.val_interval == 0

    def saves_after(self, step: int) -> bool:
        """Whether a checkpoint comes behind this step, and behind its validation if there is one."""
        every = self.checkpoint_every or self.val_interval
        return step % every == 0 or step == self.max_steps


class OptimConfig(Section):
    lr: PositiveFloat
    gate_lr: PositiveFloat
    weight_decay: NonNegativeFloat
    betas: Annotated[list[Fraction], Field(min_length=2, max_length=2)]
    warmup_steps: NonNegative
    schedule: Literal["constant", "cosine"]
    gradient_clip: PositiveFloat | None


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


class Config(Section):
    """One run. `model` and `task` hold `_target_`, `name` and the constructor's arguments (see `memlab/schema.py`)."""

    seed: NonNegative
    run_dir: str
    resume: str = "never"
    experiment_file: str | None = None
    model: dict[str, Any]
    task: dict[str, Any]
    trainer: TrainerConfig
    optim: OptimConfig
    curriculum: Annotated[NoCurriculum | GrowingCurriculum, Field(discriminator="grow")]
    tracking: Annotated[NoTracking | MLflowTracking, Field(discriminator="mlflow")]

    @property
    def bptt_depth(self) -> int | None:
        """How many segments back a segment's loss sends gradient; None = all the way."""
        return self.model.get("bptt_depth")

    def arguments(self, group: Literal["model", "task"]) -> dict[str, Any]:
        """The constructor's arguments in a group."""
        return _arguments(getattr(self, group))


class ShowConfig(Section):
    """Which samples of a task to look at."""

    task: dict[str, Any]
    samples: Positive
    split: Literal["train", "validation", "test"]
    seed: NonNegative

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
    out: str | None
    track: bool
    open: bool


NOT_SHOWN = ("optim", "trainer", "curriculum")  # a task's file may say how it is best trained, which is of no use to `memlab.show`
ConfigT = TypeVar("ConfigT", bound=Section)
RunT = TypeVar("RunT", bound=Config)


def check(composed: DictConfig, kind: type[RunT] = Config) -> RunT:  # type: ignore[assignment]
    """The typed configuration.

    Raises:
        ConfigError: a key is unknown or missing, or a value has the wrong type or is out of bounds.
    """
    config = typed(OmegaConf.to_container(composed, resolve=True), kind)
    _check_group("model", config.model, provided={"vocab_size"}, extra={"bptt_depth": schema.NonNegative | None})
    _check_group("task", config.task, provided=set(), extra={})
    _check_together(config, build_task(config))
    return config


def check_show(composed: DictConfig) -> ShowConfig:
    """The typed configuration of `memlab.show`.

    Raises:
        ConfigError: as `check`.
    """
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    config = typed({key: value for key, value in plain.items() if key not in NOT_SHOWN}, ShowConfig)
    _check_group("task", config.task, provided=set(), extra={})
    build_task(config)
    return config


def check_compare(composed: DictConfig) -> CompareConfig:
    """The typed configuration of `memlab.compare`.

    Raises:
        ConfigError: as `check`, or keys contradict each other.
    """
    config = typed(OmegaConf.to_container(composed, resolve=True), CompareConfig)
    if config.runs is not None and config.experiment is not None:
        raise ConfigError("experiment and runs are both given: runs=[..] names each run, so leave experiment out")
    if config.runs is not None and config.filter is not None:
        raise ConfigError("filter chooses among the runs of an experiment; with runs=[..] there is nothing to choose")
    return config


def typed(plain: Any, kind: type[ConfigT]) -> ConfigT:
    try:
        return kind.model_validate(plain)
    except ValidationError as error:
        raise ConfigError(_readable(error, plain)) from None


def _arguments(group: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in group.items() if k not in ("_target_", "name", "bptt_depth")}


def build_task(config: Config | ShowConfig) -> Task:
    """The task of a configuration.

    Raises:
        ConfigError: the task's values do not go together.
    """
    task: Task = schema.load(config.task["_target_"])(**config.arguments("task"))
    return task


def _check_together(config: Config, task: Task) -> None:
    """Combinations across groups."""
    trainer = config.trainer
    if trainer.recompute_together is not None and trainer.recompute != "segment":
        raise ConfigError(
            f"trainer.recompute_together={trainer.recompute_together} counts segments, and trainer.recompute={trainer.recompute} has none; "
            "use null, or trainer.recompute=segment"
        )
    depth = config.bptt_depth
    if depth is not None and depth >= task.num_segments:
        allowed = f"0..{task.num_segments - 1} or null"
        raise ConfigError(f"model.bptt_depth={depth}: a training step reads {task.num_segments} segments, so it may be {allowed}")
    if (size := config.trainer.known_size) is not None:
        check_shares(config, task, size)
    if isinstance(config.curriculum, GrowingCurriculum):
        growth.stages(task, config.curriculum.by, config.curriculum.sizes)
    if isinstance(task, SyntheticTask):
        return
    if isinstance(config.curriculum, GrowingCurriculum):
        name = config.task["name"]
        if config.curriculum.threshold is not None:
            raise ConfigError(f"curriculum.threshold={config.curriculum.threshold}: task={name} is text and has no accuracy; use null")
        if config.curriculum.stage_steps is None:
            raise ConfigError(
                f"curriculum.stage_steps=null: task={name} is text and has no accuracy at which a stage could end; give the steps "
                "of a stage, or use curriculum=off"
            )
    if config.trainer.stop_at_accuracy is not None:
        raise ConfigError(f"trainer.stop_at_accuracy={config.trainer.stop_at_accuracy}: text has no answers to be right about; use null")


def check_shares(config: Config, task: Task, size: int) -> None:
    """Whether the rows of a batch, and the samples of validation and test, can be shared out among so many processes, and read in parts.

    Raises:
        ConfigError: they cannot.
    """
    if task.batch_size % size:
        raise ConfigError(f"task.batch_size={task.batch_size} counts the rows of all processes, and {size} cannot share them evenly")
    parts = config.trainer.accumulate
    if task.batch_size // size % parts:
        rows = f"the {task.batch_size // size} rows of each process" if size > 1 else "the rows of a step"
        raise ConfigError(f"trainer.accumulate={parts}: {rows} (task.batch_size={task.batch_size}) do not divide into {parts} parts")
    if config.model.get("memory") == "shuffled" and task.batch_size // size // parts < 2:
        where = f"task.batch_size={task.batch_size} has none" + f" in each of {size} processes" * (size > 1)
        where += f" with trainer.accumulate={parts}" * (parts > 1)
        raise ConfigError(f"model.memory=shuffled reads the memory of another sample of the batch; {where}")
    if isinstance(task, SyntheticTask):
        for name in ("validation_size", "test_size"):
            if getattr(task, name) < size:
                raise ConfigError(f"task.{name}={getattr(task, name)}: each of the {size} processes reads at least one sample")


def _check_group(group: str, values: dict[str, Any], provided: set[str], extra: dict[str, Any]) -> None:
    for key in ("_target_", "name"):
        if not isinstance(values.get(key), str):
            raise ConfigError(f"{group}.{key} is missing from configs/{group}/*.yaml: it names the class, and the {group} in reports")
    arguments = schema.parameters(values["_target_"])
    for key, value in values.items():
        if key in ("_target_", "name"):
            continue
        if key in provided or key not in arguments.keys() | extra:
            raise unknown_key(f"{group}.{key}", [k for k in values if k in arguments.keys() - provided | extra.keys()])
        schema.check_value(f"{group}.{key}", value, arguments[key].annotation if key in arguments else extra[key])
    for key in arguments.keys() - provided - values.keys():
        raise ConfigError(f"{group}.{key} is missing: {values['_target_']} needs it ({arguments[key].words})")


def unknown_key(key: str, known: list[str]) -> ConfigError:
    """The error for a key that nothing reads, with the keys that are there instead."""
    group, _, name = key.rpartition(".")
    near = suggestion(name, known)
    return ConfigError(f"unknown key {key!r}.{near} Keys of {group or 'the root'}: {', '.join(sorted(known))}")


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
    return f"{key}={first['input']!r}: {first['msg'][0].lower()}{first['msg'][1:]}"
