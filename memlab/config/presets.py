"""Presets of training, `experiment=NAME`: one word for a comparison of several memories, with what each of
them needs of its own.

A preset is a file of `configs/experiment/`. It sets keys like any file of configuration, and

    hydra.sweeper.params     what `--multirun` goes through, such as `model: transformer,rmt`
    experiment.name          the MLflow experiment of its runs
    experiment.per_model     keys that only some models have, such as `transformer_xl: {model.mem_len: 12}`

The command line goes before all of them. `experiment` is gone from the configuration when it is checked: a
run does not depend on the name of the preset.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from omegaconf import DictConfig, OmegaConf, open_dict

from memlab.errors import ConfigError, suggestion

GROUP = "experiment"
_KEYS = ("name", "per_model")


def swept(hydra_config: Any, given: Collection[str]) -> list[str]:
    """The sweeps of a preset as overrides, except for the keys that the command line gives."""
    params = OmegaConf.to_container(hydra_config.sweeper.params or OmegaConf.create({}))
    assert isinstance(params, dict)
    return [f"{key!s}={value}" for key, value in params.items() if key not in given]


def settle(composed: DictConfig, given: Collection[str], models: Collection[str] | None = None) -> DictConfig:
    """The configuration with what its preset says of its model, and without the preset's own section.

    Args:
        given: keys of the command line, which stay as they are.
        models: names that there are, to find misspelt ones in the preset; None = not checked.

    Raises:
        ConfigError: the preset has a key that nothing reads, or names a model that does not exist.
    """
    section = composed.get(GROUP)
    if not isinstance(section, DictConfig):
        return composed
    for key in section:
        if key not in _KEYS:
            raise ConfigError(f"unknown key 'experiment.{key!s}': a preset has {' and '.join(_KEYS)}")
    per_model = section.get("per_model") or {}
    for name in per_model:
        if models is not None and name not in models:
            raise ConfigError(f"experiment.per_model: no model is named {name!r}.{suggestion(name, models)}")
    for key, value in (per_model.get(composed.model.name) or {}).items():
        if key not in given:
            # an unknown key is found with all others, when this is checked
            OmegaConf.update(composed, key, value, force_add=True)
    OmegaConf.resolve(composed)
    with open_dict(composed):
        composed.pop(GROUP)
    return composed
