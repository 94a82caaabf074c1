"""A sweep as it was requested, checked as a whole: its file, and whether its trials' trainings would accept
its values. Imports no torch.
"""

from __future__ import annotations

import functools
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field, field_validator

from memlab.bounds import NonNegative, Positive, PositiveFloat
from memlab.config import schema, trust
from memlab.config.checks import check
from memlab.config.override_file import number, word
from memlab.config.overrides import check_folder
from memlab.config.paths import sweep_dir
from memlab.config.sections import Config, MLflowTracking, NoTracking, Place, TrustingSection, typed
from memlab.errors import ConfigError, UserError, suggestion
from memlab.processors import gpus as visible_gpus
from memlab.sweeping import space
from memlab.sweeping.spec import Spec, find, load
from memlab.tasks.base import SyntheticTask
from memlab.tracking.mlflow_client import absolute_uri

_ANSWERS = {"val/score", "val/accuracy", "val/accuracy_teacher_forced", "val/exact_match", "val/loss"}
_TEXT = {
    "val/score",
    "val/loss",
    "val/perplexity",
    "val/bits_per_byte",
    "val/bits_per_word",
    "val/word_perplexity",
}
_COSTS = {
    f"memory/{name}"
    for name in (
        "state_bytes",
        "peak_bytes",
        "compression_carry",
        "compression_peak",
        "kv_full_bytes",
        "tokens",
    )
}
_COSTS |= {
    f"timing/{name}" for name in ("train_seconds", "total_seconds", "step_seconds", "tokens_per_second")
}
# of the validation metrics, those that result.json has
_RESULT_ONLY = {"val/accuracy", "val/bits_per_byte", "val/score"}


class SweepConfig(TrustingSection):
    """The keys of `configs/sweep.yaml`."""

    sweep: str
    trials: Positive | None
    workers: Positive
    hours: PositiveFloat | None
    study: str
    storage: str | None
    run_dir: Place | None
    config_dir: Place | None = None
    base: list[str]
    gpus: Literal["auto"] | list[NonNegative]
    gpus_per_worker: Positive
    final: bool
    restarts: NonNegative
    heartbeat: PositiveFloat
    grace: PositiveFloat
    tracking: Annotated[NoTracking | MLflowTracking, Field(discriminator="mlflow")]

    @field_validator("study")
    @classmethod
    def _is_a_name(cls, study: str) -> str:
        if not re.fullmatch(r"[\w.+-]+", study):
            raise ValueError("a study's name has letters, digits and . _ + - only")
        return study


@dataclass(frozen=True)
class Plan:
    """A checked sweep. `max_steps` is the longest that a trial can be."""

    config: SweepConfig
    spec: Spec
    max_steps: int
    threads: int | None

    @property
    def trials(self) -> int:
        return self.config.trials or self.spec.budget.trials

    @property
    def run_dir(self) -> Path:
        return Path(self.config.run_dir or Path("runs", "sweeps", self.config.study)).absolute()

    @property
    def storage(self) -> str:
        return self.config.storage or f"sqlite:///{self.run_dir / 'study.db'}"

    def tracking_uri(self) -> str | None:
        """Absolute, or None if nothing is tracked."""
        if isinstance(self.config.tracking, NoTracking):
            return None
        return absolute_uri(self.config.tracking.uri)


def check_sweep(composed: DictConfig) -> Plan:
    """The plan of a composed configuration.

    Raises:
        ConfigError: the sweep, its space, or a training of it is not possible.
    """
    plain: Any = OmegaConf.to_container(composed, resolve=True)
    if plain.get("sweep") is None:
        names = sorted(file.stem for file in Path(sweep_dir()).glob("*.yaml"))
        raise ConfigError(
            f"sweep is missing: give one of {', '.join(names)}, or a file of your own, sweep=FILE.yaml"
        )
    file = find(str(plain["sweep"]))
    with trust.allowing(trust.typed(plain.get("base") or [])):
        return _checked(json.dumps(plain), file, file.stat().st_mtime_ns, trust.current())


@functools.cache  # a command checks its configuration twice, before Hydra begins and after
def _checked(plain: str, file: Path, changed: int, allowed: trust.Permission) -> Plan:
    values = json.loads(plain)
    for part, key in ((values, "study"), (values.get("tracking") or {}, "experiment")):
        if part.get(key) == values["sweep"]:
            part[key] = file.stem
    config = typed(values, SweepConfig)
    config = config.model_copy(update={"config_dir": check_folder(config.config_dir)})
    if config.grace < 3 * config.heartbeat:
        raise ConfigError(
            f"grace={config.grace:g} s: with heartbeat={config.heartbeat:g} s it is at least "
            f"{3 * config.heartbeat:g} s"
        )
    spec = load(config.sweep, _more(config.base))
    trainings = [
        _training(spec, arm, parameters, config.config_dir) for arm, parameters in space.examples(spec)
    ]
    for training in trainings:
        _check_objectives(spec, training)
    if not config.final:
        spec = spec.model_copy(update={"final": spec.final.model_copy(update={"seeds": []})})
    threads = {training.trainer.threads for training in trainings}
    return Plan(
        config.model_copy(update={"trust": sorted(allowed.modules)}),
        spec,
        max(t.trainer.max_steps for t in trainings),
        threads.pop() if len(threads) == 1 else None,
    )


def _more(words: list[str]) -> dict[str, Any]:
    """`base.KEY=VALUE` of the command line as keys and values."""
    import yaml

    more: dict[str, Any] = {}
    for text in words:
        key, sign, value = text.partition("=")
        if not sign or not key:
            raise ConfigError(f"base.{text}: write base.KEY=VALUE, such as base.trainer.max_steps=300")
        if key in more:
            raise ConfigError(f"base.{key} is given twice")
        try:
            more[key] = number(yaml.safe_load(value)) if value else ""
        except yaml.YAMLError:
            raise ConfigError(f"base.{text}: the value cannot be read") from None
    return more


def _training(spec: Spec, arm: Any, parameters: dict[str, Any], folder: str | None) -> Config:
    """A trial's training as `memlab.train` would check it.

    Raises:
        ConfigError: it would refuse it; the message says where in the sweep the reason is.
    """
    from memlab.config import cli

    fixed = spec.fixed(arm)
    words = [word(key, value) for key, value in {**fixed, **parameters, "trainer.test": False}.items()]
    try:
        config: Config = cli.compose_checked("train", words, check, folder, typed=False)
    except ConfigError as error:
        where = f" (with {', '.join(f'{k}={v}' for k, v in parameters.items())})"
        keys = [key for key in parameters if key in str(error)]
        part = f"space.{keys[0]}" if keys else "base"
        if not keys and spec.arms and any(str(value) in str(error) for value in [spec.arms.key, arm]):
            part = "arms"
        raise ConfigError(f"sweep={spec.name}, {part}: {error}{where if keys else ''}") from None
    return config


def _check_objectives(spec: Spec, training: Config) -> None:
    answers = issubclass(schema.load(training.task["_target_"]), SyntheticTask)
    measured = (_ANSWERS if answers else _TEXT) & _RESULT_ONLY | _COSTS
    for objective in spec.objectives:
        if objective.metric not in measured:
            near = suggestion(objective.metric, measured)
            raise ConfigError(
                f"sweep={spec.name}, objectives: task={training.task['name']} measures no "
                f"{objective.metric}.{near} There are: {', '.join(sorted(measured))}"
            )
        if objective.metric == "val/accuracy" and training.curriculum.grow:
            raise ConfigError(
                f"sweep={spec.name}, objectives: with curriculum=grow, val/accuracy is that of the stage a "
                "trial has come to, and the easiest would win; use val/score (finished stages plus "
                "accuracy), or curriculum: 'off' in base"
            )


def gpus(config: SweepConfig) -> list[list[str]]:
    """Which GPUs each worker sees; [] for all = there are none, or they are left as they are.

    Raises:
        UserError: one worker needs more than there are.
    """
    names = visible_gpus() if config.gpus == "auto" else [str(n) for n in config.gpus]
    if not names:
        return [[] for _ in range(config.workers)]
    each = config.gpus_per_worker
    if each > len(names):
        raise UserError(f"gpus_per_worker={each}: there are {len(names)}: {', '.join(names)}")
    return [
        [names[(worker * each + at) % len(names)] for at in range(each)] for worker in range(config.workers)
    ]
