"""The typed configurations of `memlab.evaluate` and `memlab.generate`, checked before anything is read."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from omegaconf import DictConfig, OmegaConf
from pydantic import Field

from memlab.bounds import NonNegativeFloat, Positive, Seed
from memlab.config.checks import check_policy
from memlab.config.sections import Config, Place, Section, StoreConfig, TrustingSection, typed
from memlab.errors import ConfigError


class EvaluateConfig(TrustingSection):
    """A trained run, or a pretrained model that no run has trained, and what to measure on it."""

    run: Place | None
    untrained: Config | None = None
    controls: list[Literal["memory_off", "shuffled"]]
    again: bool
    lengths: Annotated[list[Positive], Field(min_length=1)] | None
    samples: Positive | None
    max_tokens: Positive | None
    documents: Positive | None
    bytes: Positive | None
    stream: Positive | None
    inside: Annotated[int, Field(ge=1, le=256)] | None
    accelerator: Literal["cpu", "gpu", "auto"]
    threads: Positive | None
    tracking: StoreConfig
    policy: dict[str, Any] | None = None


class SamplingConfig(Section):
    """What a trained run should generate."""

    prompt: str
    tokens: Positive
    temperature: NonNegativeFloat
    top_k: Positive | None
    seed: Seed


class GenerateConfig(SamplingConfig, TrustingSection):
    """A trained run on text, or a pretrained model that no run has trained, and what it should generate."""

    run: Place | None
    untrained: Config | None = None
    accelerator: Literal["cpu", "gpu", "auto"]
    threads: Positive | None
    tracking: StoreConfig


class ExportConfig(TrustingSection):
    """A trained run, and where its model is written."""

    run: Place
    to: Place
    dtype: Literal["float64", "float32", "float16", "bfloat16"] | None
    tracking: StoreConfig


def check_export(composed: DictConfig) -> ExportConfig:
    """The typed configuration of `memlab.export`.

    Raises:
        ConfigError: as `check`.
    """
    _check_run(composed, untrained=False)
    if composed.get("to") is None:
        raise ConfigError("to is missing: give the directory that the model is written to")
    return typed(OmegaConf.to_container(composed, resolve=True), ExportConfig)


def check_evaluate(composed: DictConfig, untrained: Config | None = None) -> EvaluateConfig:
    """The typed configuration of `memlab.evaluate`.

    Args:
        untrained: of a pretrained model, in the place of `run`.

    Raises:
        ConfigError: as `check`.
    """
    if untrained is None:
        _check_run(composed)
    config = typed(OmegaConf.to_container(composed, resolve=True), EvaluateConfig)
    config = config.model_copy(update={"untrained": untrained})
    for name in ("lengths", "controls"):
        values = getattr(config, name) or []
        if len(set(values)) < len(values):
            raise ConfigError(f"{name}={values}: one of them is given twice")
    if config.policy is not None:
        check_policy(config.policy)
    if config.stream is not None:
        _unused(
            composed,
            f"stream={config.stream}",
            "lengths",
            "samples",
            "controls",
            "documents",
            "bytes",
            "inside",
        )
    if config.inside is not None:
        _unused(composed, f"inside={config.inside}", "samples", "controls", "documents", "bytes")
    return config


def check_generate(composed: DictConfig, untrained: Config | None = None) -> GenerateConfig:
    """The typed configuration of `memlab.generate`.

    Args:
        untrained: of a pretrained model, in the place of `run`.

    Raises:
        ConfigError: as `check`.
    """
    if untrained is None:
        _check_run(composed)
    config = typed(OmegaConf.to_container(composed, resolve=True), GenerateConfig)
    return config.model_copy(update={"untrained": untrained})


def check_sampling(
    prompt: str, tokens: int, temperature: float, top_k: int | None, seed: int
) -> SamplingConfig:
    """The same values, checked.

    Raises:
        ConfigError: one has the wrong type or is out of bounds.
    """
    values = {"prompt": prompt, "tokens": tokens, "temperature": temperature, "top_k": top_k, "seed": seed}
    return typed(values, SamplingConfig)


def _check_run(composed: DictConfig, untrained: bool = True) -> None:
    if composed.get("run") is None:
        instead = "; or a pretrained model, backbone=pretrained backbone.path=.." if untrained else ""
        raise ConfigError(
            "run is missing: give the directory of a run, run=DIR, a .ckpt file, or an MLflow run id"
            + instead
        )


def _unused(composed: DictConfig, because: str, *names: str) -> None:
    """Refuse keys that would have no effect.

    Raises:
        ConfigError: one of them is given.
    """
    if given := [f"{name}={composed[name]}" for name in names if composed[name]]:
        raise ConfigError(f"{because} has no use for {', '.join(given)}")
