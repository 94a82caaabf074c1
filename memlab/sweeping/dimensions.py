"""The dimensions of a search space: hyperparameters, each with the values that it may take."""

from __future__ import annotations

import math
from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from memlab.bounds import Positive, PositiveFloat
from memlab.config.override_file import number, text
from memlab.config.sections import Section

Scalar = bool | int | float | str | None


class Dimension(Section):
    """One hyperparameter. `when` says for which values of others it exists: {model: [rmt, rmt_xl]}."""

    when: dict[str, list[Scalar]] = Field(default_factory=dict)

    @field_validator("when", mode="before")
    @classmethod
    def _lists(cls, when: Any) -> Any:
        return (
            {k: v if isinstance(v, list) else [v] for k, v in when.items()}
            if isinstance(when, dict)
            else when
        )


class FloatDimension(Dimension):
    type: Literal["float"]
    low: float
    high: float
    log: bool = False
    step: PositiveFloat | None = None

    @field_validator("low", "high", "step", mode="before")
    @classmethod
    def _number(cls, value: Any) -> Any:
        return number(value)

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _check_bounds(self.low, self.high, self.log, self.step)
        return self

    def examples(self) -> list[Any]:
        return [self.low, self.high]


class IntDimension(Dimension):
    type: Literal["int"]
    low: int
    high: int
    log: bool = False
    step: Positive = 1

    @model_validator(mode="after")
    def _sound(self) -> Self:
        _check_bounds(self.low, self.high, self.log, None if self.step == 1 else self.step)
        return self

    def examples(self) -> list[Any]:
        return [self.low, self.low + (self.high - self.low) // self.step * self.step]


class CategoricalDimension(Dimension):
    type: Literal["categorical"]
    choices: Annotated[list[Scalar | list[Scalar]], Field(min_length=1)]

    @field_validator("choices", mode="before")
    @classmethod
    def _numbers(cls, choices: Any) -> Any:
        if isinstance(choices, list):
            return [[*map(number, c)] if isinstance(c, list) else number(c) for c in choices]
        return choices

    @model_validator(mode="after")
    def _sound(self) -> Self:
        if len({repr(choice) for choice in self.choices}) < len(self.choices):
            raise ValueError("a choice is there twice")
        return self

    def examples(self) -> list[Any]:
        return list(self.choices)

    def stored(self) -> dict[Any, Any]:
        """The choices by the values that Optuna keeps: a list, which it cannot keep, by its text."""
        return {text(choice) if isinstance(choice, list) else choice: choice for choice in self.choices}


AnyDimension = Annotated[FloatDimension | IntDimension | CategoricalDimension, Field(discriminator="type")]


def _check_bounds(low: float, high: float, log: bool, step: float | None) -> None:
    if not (math.isfinite(low) and math.isfinite(high) and low <= high):
        raise ValueError(f"low={low:g} and high={high:g} are no range")
    if log and low <= 0:
        raise ValueError(f"low={low:g} has no logarithm")
    if log and step is not None:
        raise ValueError("a range has a step or is logarithmic, not both")
