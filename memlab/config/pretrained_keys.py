"""The keys of a pretrained backbone: which there are, and how the weights settle the others.

`backbone.path` names the weights. When a configuration is checked, the keys of the backbone are filled in
from their description, so that a run's `config.yaml` has all of them, and opening a run never depends on the
path.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from memlab.bounds import Positive
from memlab.config import schema
from memlab.errors import ConfigError
from memlab.models import choices
from memlab.models.pretrained.describing import describe

NAME = "pretrained"
KEYS: dict[str, Any] = {
    "path": str,
    "revision": str | None,
    "dtype": Literal["float64", "float32", "float16", "bfloat16"],
    "family": str,
    "identity": str,
    "vocabulary": Positive,
}
# Keys of a backbone that may differ from the weights'; null = as theirs.
FREE = ("dropout", "first_position", "rope_base", "rope_scaling")


def settle(values: Mapping[str, Any]) -> dict[str, Any]:
    """The keys of `model` with those that a pretrained backbone settles; of any other, the keys as they are.

    Raises:
        ConfigError: there are no such weights, or a key contradicts them.
    """
    if values.get("backbone") != NAME or values.get("identity") is not None:
        return dict(values)
    path = values.get("path")
    if not isinstance(path, str):
        raise ConfigError(
            f"backbone.path={path}: backbone=pretrained needs the weights: a directory with config.json and "
            "safetensors, a .gguf file, a hub id, or a run of memlab"
        )
    own = schema.parameters(choices.BACKBONE).keys() - set(choices.GIVEN)
    described = {k: v for k, v in describe(path, values.get("revision")).items() if k in own or k in KEYS}
    settled = dict(values)
    for key, value in described.items():
        given = values.get(key)
        if key in FREE and given is not None:
            continue
        if key not in KEYS and given is not None and given != value:
            raise ConfigError(
                f"model.{key}={given}: the weights of backbone.path={path} have {key}={value}; use that, "
                "or leave it out"
            )
        settled[key] = value
    # such as the base of rotary positions, where positions are learned
    return {k: v for k, v in settled.items() if v is not None or k not in FREE or k in described}


def refuse(key: str, word: str) -> None:
    """Say of a key that only the weights settle that this is so.

    Raises:
        ConfigError: it is one.
    """
    if key in schema.parameters(choices.BACKBONE).keys() - set(choices.GIVEN):
        raise ConfigError(
            f"{word}: with backbone=pretrained, the weights of backbone.path settle it; leave it out"
        )
