"""What a file of `sweeps/` says, typed: what all trials share, the search space, what is optimized, how,
and for how long.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, ValidationError, field_validator, model_validator

from memlab.bounds import NonNegative, Positive, PositiveFloat, Seed
from memlab.config import foreign
from memlab.config.override_file import flatten_overrides
from memlab.config.paths import sweep_dir
from memlab.config.sections import Section
from memlab.errors import ConfigError, suggestion
from memlab.files import exists, is_file_name
from memlab.sweeping.dimensions import AnyDimension, CategoricalDimension, Scalar

# the sweep itself sets them
RESERVED = ("seed", "run_dir", "resume", "experiment_file", "tracking", "trainer.test", "hydra", "trust")


class Objective(Section):
    """A number of `result.json`: a validation metric, `memory/…` or `timing/…`."""

    metric: str
    direction: Literal["maximize", "minimize"]

    @model_validator(mode="after")
    def _not_the_test(self) -> Self:
        if self.metric.startswith("test/"):
            raise ValueError(
                f"{self.metric} would choose on the test; use its validation counterpart, "
                f"val/{self.metric[5:]}"
            )
        if not self.metric.startswith(("val/", "memory/", "timing/")):
            raise ValueError(f"{self.metric} is none of val/…, memory/…, timing/…")
        return self


class Sampler(Section):
    name: Literal["tpe", "random", "cmaes", "nsga2"] = "tpe"
    seed: NonNegative = 0
    startup_trials: Positive = 10  # drawn at random before the sampler has something to go by


class Pruner(Section):
    name: Literal["none", "median", "percentile", "hyperband"] = "none"
    startup_trials: NonNegative = 5  # that are never pruned
    warmup_steps: NonNegative = 0  # optimizer steps before which no trial is pruned
    percentile: Annotated[float, Field(gt=0, lt=100)] = 25.0  # of trials that stay
    min_steps: Positive = 1  # hyperband: optimizer steps of the smallest bracket
    reduction: Annotated[int, Field(ge=2)] = 3


class Budget(Section):
    trials: Positive
    hours: PositiveFloat | None = None  # after which no new trial begins


class Final(Section):
    """The best is trained again with seeds that no trial had, and only there is the test read."""

    seeds: list[Seed] = Field(default_factory=list)
    default: bool = True  # the base alone is trained with the same seeds, for comparison


class Arms(Section):
    """A group that is no hyperparameter: each of its values gets a study of its own,
    with the same number of trials.
    """

    key: str
    values: Annotated[list[Scalar], Field(min_length=2)]

    @field_validator("values")
    @classmethod
    def _are_names(cls, values: list[Scalar]) -> list[Scalar]:
        if wrong := [value for value in values if not is_file_name(str(value))]:
            raise ValueError(f"{wrong[0]!r} cannot be the name of a directory, and each arm has one")
        return values


class Spec(Section):
    """One file of `sweeps/`."""

    name: str
    description: str = ""
    base: dict[str, Any]
    arms: Arms | None = None
    space: Annotated[dict[str, AnyDimension], Field(min_length=1)]
    objectives: Annotated[list[Objective], Field(min_length=1)]
    seeds: Annotated[list[Seed], Field(default_factory=lambda: [0], min_length=1)]
    aggregate: Literal["mean", "median", "min", "max"] = "mean"
    sampler: Sampler = Sampler()
    pruner: Pruner = Pruner()
    budget: Budget
    final: Final = Final()

    @field_validator("base", mode="before")
    @classmethod
    def _flat(cls, base: Any) -> Any:
        return flatten_overrides(base, "base") if isinstance(base, Mapping) else base

    @model_validator(mode="after")
    def _sound(self) -> Self:
        arm = [self.arms.key] if self.arms else []
        for key in [*self.base, *self.space, *arm]:
            if key.startswith(RESERVED) and any(key == r or key.startswith(f"{r}.") for r in RESERVED):
                raise ValueError(f"{key} is set by the sweep itself")
        for key in self.space:
            if key in self.base or key in arm:
                raise ValueError(
                    f"{key} is in space and {'arms' if key in arm else 'base'}; it cannot be both searched "
                    "and fixed"
                )
        if self.arms and self.arms.key in self.base:
            raise ValueError(f"{self.arms.key} is in arms and base")
        _check_conditions(self)
        if len(self.objectives) > 1 and self.pruner.name != "none":
            raise ValueError("pruner: with several objectives no trial can be pruned; use name: none")
        if len(self.objectives) > 1 and self.sampler.name == "cmaes":
            raise ValueError("sampler: cmaes has one objective; use tpe or nsga2")
        if self.pruner.name != "none" and not self.objectives[0].metric.startswith("val/"):
            raise ValueError(
                f"pruner: {self.objectives[0].metric} is not measured during a training; use name: none"
            )
        if set(self.final.seeds) & set(self.seeds):
            raise ValueError(
                "final.seeds: the best was chosen with some of these; give seeds that no trial had"
            )
        for where, seeds in (("seeds", self.seeds), ("final.seeds", self.final.seeds)):
            if len(set(seeds)) < len(seeds):
                raise ValueError(f"{where}: one is there twice")
        return self

    def arm_values(self) -> list[Scalar]:
        """[None] where there are no arms."""
        return list(self.arms.values) if self.arms else [None]

    def fixed(self, arm: Scalar) -> dict[str, Any]:
        """Overrides that all trials of an arm share."""
        return {self.arms.key: arm, **self.base} if self.arms else dict(self.base)

    def identity(self) -> dict[str, Any]:
        """What makes trials comparable: two sweeps in which it differs are not one study."""
        kept = self.model_dump(include={"base", "arms", "space", "objectives", "seeds", "aggregate"})
        plain: dict[str, Any] = json.loads(json.dumps(kept))
        return plain


def _check_conditions(spec: Spec) -> None:
    """Every `when` names something that comes before it and can be so."""
    known: dict[str, list[Any] | None] = {key: [value] for key, value in spec.base.items()}
    if spec.arms:
        known[spec.arms.key] = list(spec.arms.values)
    for key, dimension in spec.space.items():
        for other, values in dimension.when.items():
            if other not in known:
                near = suggestion(other, known)
                raise ValueError(
                    f"space.{key}.when: {other!r} is neither in base nor in arms nor above it in space.{near}"
                )
            choices = known[other]
            for value in values:
                if choices is not None and value not in choices:
                    raise ValueError(f"space.{key}.when: {other} is never {value!r}; it is one of {choices}")
        known[key] = list(dimension.choices) if isinstance(dimension, CategoricalDimension) else None


def find(name: str) -> Path:
    """The file of a sweep: a name of `sweeps/`, or a path.

    Raises:
        ConfigError: there is none.
    """
    if name.endswith((".yaml", ".yml")) or "/" in name:
        path = Path(name).expanduser()
        if not exists(f"sweep={name}", path) or not path.is_file():
            raise ConfigError(f"sweep={name}: there is no such file")
        return path
    places = Path(sweep_dir())
    path = places / f"{name}.yaml"
    if not exists(f"sweep={name}", path):
        names = sorted(file.stem for file in places.glob("*.yaml"))
        near = suggestion(name, names)
        raise ConfigError(
            f"no sweep is named {name!r}.{near} There are: {', '.join(names)}; or give a path, "
            "sweep=FILE.yaml"
        )
    return path


def load(name: str, more: Mapping[str, Any] | None = None) -> Spec:
    """Read and check a sweep.

    Args:
        name: see `find`.
        more: overrides that count more than those of its base.

    Raises:
        ConfigError: the first mistake, with the key it is at.
    """
    path = find(name)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} has no keys")
    foreign.check(str(path), values, references=True)
    values.setdefault("name", path.stem)
    if more and isinstance(values.get("base"), Mapping):
        values["base"] = {**flatten_overrides(values["base"], f"{path}: base"), **more}
    try:
        return Spec.model_validate(values)
    except ValidationError as error:
        raise ConfigError(f"{path}: {_readable(error, values)}") from None


_TAGS = ("float", "int", "categorical")  # pydantic's paths name the chosen kind of a dimension too


def _readable(error: ValidationError, values: Any) -> str:
    found = error.errors()
    # of a value that may have several types, the reason that says most
    first = next((e for e in found if e["type"] == "finite_number"), found[0])
    parts = [str(part) for part in first["loc"]]
    if parts[:1] == ["space"]:
        parts = parts[:2] + [part for part in parts[2:] if part not in _TAGS]
    key = ".".join(parts)
    if first["type"] == "extra_forbidden":
        known = sorted(Spec.model_fields) if len(parts) == 1 else []
        where = f"{suggestion(parts[-1], known)} Keys: {', '.join(known)}" if known else ""
        return f"unknown key {key!r}.{where}"
    if first["type"] == "missing":
        return f"{key} is missing"
    if first["type"] in ("union_tag_invalid", "union_tag_not_found"):
        found = first["input"].get("type", "nothing") if isinstance(first["input"], dict) else first["input"]
        return f"{key}: its type is {found!r}; it is one of {', '.join(_TAGS)}"
    message = first["msg"].removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{key}: {message}" if key else message
    return f"{key}={first['input']!r}: {message[0].lower()}{message[1:]}"
