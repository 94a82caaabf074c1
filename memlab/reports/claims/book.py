"""The files of `configs/claim`: one published claim each, how it is tested, and the rule that decides.

A file says which runs are trained and evaluated, which numbers are taken from them, and under which
conditions the claim holds. It says no result: verdicts are computed from the runs (`verdict.py`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import Field, model_validator

from memlab.bounds import NonNegativeFloat, Positive, PositiveFloat, Seed
from memlab.config.paths import config_dir
from memlab.config.sections import Section, typed
from memlab.errors import ConfigError, suggestion

Words = list[str]


class Runs(Section):
    """Trainings that differ in their seed.

    Attributes:
        train: the words after `memlab.train`, without `seed` and `run_dir`.
        seeds: one run each.
    """

    train: Words
    seeds: Annotated[list[Seed], Field(min_length=1)]


class Evaluation(Section):
    """A reading of finished runs.

    Attributes:
        runs: names of `Claim.runs`.
        words: after `memlab.evaluate run=DIR`.
    """

    runs: Annotated[list[str], Field(min_length=1)]
    words: Words


class Quantity(Section):
    """A number of each run of a kind.

    Attributes:
        run: a name of `Claim.runs`.
        metric: of `result.json`, such as test/accuracy; with `at`, of an entry of `evaluation.json`, such as
            accuracy.
        at: the number of segments that it was read at; None = as trained.
        control: memory_off or shuffled; None = with the memory.
    """

    run: str
    metric: str = "test/accuracy"
    at: Positive | None = None
    control: Literal["memory_off", "shuffled"] | None = None


class Condition(Section):
    """Something that can be found true or false.

    Attributes:
        says: the condition as a sentence.
        value: the number in question.
        at_least, at_most: a bound; one of these, or `above`, or `near`.
        above: another quantity, over which `value` has to be higher.
        near: another quantity, from which `value` may differ by at most `margin`.
        margin: by how much.
        over: which seeds have to: their mean, each of them, or most of them (more than half).
        p: with `above`, the largest p of a permutation test over seeds; None = the means decide.
    """

    says: str
    value: Quantity
    at_least: float | None = None
    at_most: float | None = None
    above: Quantity | None = None
    near: Quantity | None = None
    margin: NonNegativeFloat = 0.0
    over: Literal["mean", "each", "most"] = "mean"
    p: PositiveFloat | None = None

    @model_validator(mode="after")
    def _one_relation(self) -> Self:
        given = [n for n in ("at_least", "at_most", "above", "near") if getattr(self, n) is not None]
        if len(given) != 1:
            raise ValueError(f"one of at_least, at_most, above and near; found {given or 'none'}")
        if self.p is not None and self.above is None:
            raise ValueError("p belongs to above")
        return self


class Series(Section):
    """A line of the figure and of the table: a quantity at several places of one axis.

    Attributes:
        label: of the line.
        points: quantities by their place on the axis.
    """

    label: str
    points: dict[float, Quantity]


class Axis(Section):
    """What the figure shows.

    Attributes:
        label, values: names of both axes.
        logarithmic: whether the places are spread by powers of two.
        published: lines of the paper, by label: values by place.
    """

    label: str
    values: str
    logarithmic: bool = False
    published: dict[str, dict[float, float]]


class Claim(Section):
    """A claim, and how it is tested.

    Attributes:
        name: of the file, set when it is read.
        claim: in one sentence.
        source: paper and section.
        runs, evaluations: what is trained and read.
        figure, series: what is shown.
        holds: the conditions. All true: it holds; some: in part; none: it does not hold at this scale.
        control: conditions on which every verdict depends, such as a memory that is read at all; if one of
            them is false, nothing follows.
        scale: the sizes at which it is tested, in a sentence.
        differs: what differs from the paper.
        minutes: about how long all of it takes on 2 cores.
        untestable: why it cannot be tested here; None = it can.
        tries: what else was tried where it does not hold.
    """

    name: str = ""
    claim: str
    source: str
    runs: dict[str, Runs] = Field(default_factory=dict)
    evaluations: list[Evaluation] = Field(default_factory=list)
    figure: Axis | None = None
    series: list[Series] = Field(default_factory=list)
    holds: list[Condition] = Field(default_factory=list)
    control: list[Condition] = Field(default_factory=list)
    scale: str
    differs: list[str] = Field(default_factory=list)
    minutes: NonNegativeFloat
    untestable: str | None = None
    tries: list[str] = Field(default_factory=list)

    @model_validator(mode="after")
    def _complete(self) -> Self:
        if self.untestable is not None:
            return self
        for name in ("runs", "holds", "figure", "series"):
            if not getattr(self, name):
                raise ValueError(f"{name} is missing (or say why the claim is untestable)")
        for where, run in self._named():
            if run not in self.runs:
                raise ValueError(f"{where}: there are no runs {run!r}; there are: {', '.join(self.runs)}")
        for runs in self.runs.values():
            for word in runs.train:
                if word.partition("=")[0] in ("seed", "run_dir", "resume"):
                    raise ValueError(f"runs: {word}: seeds and directories are chosen by the claim")
        return self

    def _named(self) -> Iterator[tuple[str, str]]:
        """Every name of runs that the file uses, and where."""
        for evaluation in self.evaluations:
            yield from (("evaluations", run) for run in evaluation.runs)
        for place, quantity in self.quantities():
            yield place, quantity.run

    def quantities(self) -> Iterator[tuple[str, Quantity]]:
        """Every number that the claim needs, and where it is named."""
        for series in self.series:
            yield from ((f"series {series.label}", q) for q in series.points.values())
        for condition in [*self.control, *self.holds]:
            for quantity in (condition.value, condition.above, condition.near):
                if quantity is not None:
                    yield f"condition {condition.says!r}", quantity


def names(own: Path | None = None) -> list[str]:
    """The claims that there are."""
    return sorted(file.stem for file in (own or _folder()).glob("*.yaml"))


def read(name: str, own: Path | None = None) -> Claim:
    """A claim.

    Args:
        own: another folder than `configs/claim`.

    Raises:
        ConfigError: there is none of this name, or its file is not what a claim's has to be.
    """
    folder = own or _folder()
    if name not in names(folder):
        known = names(folder)
        raise ConfigError(
            f"claim={name}: there is no such claim.{suggestion(name, known)} There are: {', '.join(known)}"
        )
    file = folder / f"{name}.yaml"
    try:
        plain: Any = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError) as error:
        raise ConfigError(f"{file}: {str(error).splitlines()[0]}") from None
    if not isinstance(plain, dict):
        raise ConfigError(f"{file} is empty, or no mapping of keys")
    try:
        return typed({**plain, "name": name}, Claim)
    except ConfigError as error:
        raise ConfigError(f"{file}: {error}") from None


def _folder() -> Path:
    return Path(config_dir()) / "claim"
