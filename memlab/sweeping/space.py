"""The search space: what Optuna chooses for a trial, and examples of what it may choose."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

from memlab.sweeping.dimensions import AnyDimension, CategoricalDimension, Scalar
from memlab.sweeping.spec import Spec

if TYPE_CHECKING:
    import optuna
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial


def distribution(dimension: AnyDimension) -> BaseDistribution:
    """A dimension as Optuna knows it."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if isinstance(dimension, CategoricalDimension):
        return CategoricalDistribution(list(dimension.stored()))
    if dimension.type == "int":
        high = dimension.examples()[-1]  # Optuna warns of a high that no step falls on
        return IntDistribution(dimension.low, high, dimension.log, dimension.step)
    return FloatDistribution(dimension.low, dimension.high, dimension.log, dimension.step)


def suggest(spec: Spec, arm: Scalar, trial: optuna.Trial) -> dict[str, Any]:
    """The parameters of a trial; those it has already stay what they are."""

    def ask(key: str, dimension: AnyDimension) -> Any:
        d: Any = distribution(dimension)
        if isinstance(dimension, CategoricalDimension):
            return dimension.stored()[trial.suggest_categorical(key, d.choices)]
        if dimension.type == "int":
            return trial.suggest_int(key, d.low, d.high, step=d.step, log=d.log)
        return trial.suggest_float(key, d.low, d.high, step=d.step, log=d.log)

    return _walk(spec, spec.fixed(arm), ask)


def parameters(spec: Spec, trial: FrozenTrial) -> dict[str, Any]:
    """The parameters of a trial as they were suggested."""
    found = dict(trial.params)
    for key, value in found.items():
        dimension = spec.space[key]
        if isinstance(dimension, CategoricalDimension):
            found[key] = dimension.stored()[value]
    return found


def _walk(spec: Spec, fixed: Mapping[str, Any], ask: Callable[[str, AnyDimension], Any]) -> dict[str, Any]:
    """What `ask` says of each dimension that exists, in order."""
    chosen: dict[str, Any] = {}
    for key, dimension in spec.space.items():
        known = {**fixed, **chosen}
        if all(other in known and known[other] in values for other, values in dimension.when.items()):
            chosen[key] = ask(key, dimension)
    return chosen


def examples(spec: Spec) -> Iterator[tuple[Scalar, dict[str, Any]]]:
    """Arms and parameters that together show every value of every categorical dimension and both ends of
    every range.

    All combinations of those that decide which others exist; the rest go along side by side, not in all
    combinations.
    """
    deciding = list(
        dict.fromkeys(
            other for dimension in spec.space.values() for other in dimension.when if other in spec.space
        )
    )
    for arm in spec.arm_values():
        for values in itertools.product(*(spec.space[key].examples() for key in deciding)):
            branch = dict(zip(deciding, values, strict=True))
            rounds = max((len(d.examples()) for key, d in spec.space.items() if key not in branch), default=1)
            seen: list[dict[str, Any]] = []
            for at in range(rounds):

                def ask(
                    key: str, dimension: AnyDimension, at: int = at, branch: dict[str, Any] = branch
                ) -> Any:
                    choices = dimension.examples()
                    return branch[key] if key in branch else choices[at % len(choices)]

                chosen = _walk(spec, spec.fixed(arm), ask)
                if chosen not in seen:
                    seen.append(chosen)
                    yield arm, chosen


def conditional(spec: Spec) -> bool:
    """Whether some dimensions exist only for some trials."""
    return any(dimension.when for dimension in spec.space.values())


def sampler(spec: Spec, number: int) -> optuna.samplers.BaseSampler:
    """The sampler for the trial of a number: its random numbers are the same whichever worker draws them,
    and after a restart.
    """
    from optuna.samplers import CmaEsSampler, NSGAIISampler, RandomSampler, TPESampler

    s = spec.sampler
    seed = (s.seed * 1_000_003 + number * 7919) % 2**32
    if s.name == "random":
        return RandomSampler(seed=seed)
    if s.name == "cmaes":
        return CmaEsSampler(seed=seed, n_startup_trials=s.startup_trials, warn_independent_sampling=False)
    if s.name == "nsga2":
        return NSGAIISampler(seed=seed, population_size=max(2, s.startup_trials))
    if conditional(spec):
        return TPESampler(seed=seed, n_startup_trials=s.startup_trials, multivariate=True, group=True)
    return TPESampler(seed=seed, n_startup_trials=s.startup_trials)


def pruner(spec: Spec, max_steps: int) -> optuna.pruners.BasePruner:
    """The pruner; `max_steps` is the longest a trial can be."""
    from optuna.pruners import HyperbandPruner, MedianPruner, NopPruner, PercentilePruner

    p = spec.pruner
    if p.name == "none":
        return NopPruner()
    if p.name == "hyperband":
        return HyperbandPruner(min_resource=p.min_steps, max_resource=max_steps, reduction_factor=p.reduction)
    if p.name == "median":
        return MedianPruner(n_startup_trials=p.startup_trials, n_warmup_steps=p.warmup_steps)
    return PercentilePruner(p.percentile, n_startup_trials=p.startup_trials, n_warmup_steps=p.warmup_steps)
