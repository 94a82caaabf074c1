"""The families of pretrained models that memlab reads: every file of this folder is one.

A family turns a `config.json` into the keys of our backbone, and names the tensors of our parameters.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any, Protocol

from memlab.errors import ConfigError
from memlab.models.pretrained.parts import Part


class Family(Protocol):
    """A module of this package.

    Attributes:
        MODEL_TYPES: values of `model_type` that it reads.
        PREFIX: what most checkpoints have in front of the names of tensors, except for the head's.
        UNUSED: regular expression of tensors that are no part of our blocks, such as BERT's pooler.
    """

    MODEL_TYPES: tuple[str, ...]
    PREFIX: str
    UNUSED: str

    def options(self, config: Mapping[str, Any], place: str) -> dict[str, Any]:
        """The keys of `Backbone` that a `config.json` describes.

        Raises:
            ConfigError: our blocks lack something that this model has, or a key is missing.
        """

    def parts(self, options: Mapping[str, Any]) -> list[Part]:
        """What each parameter of `Backbone` consists of."""

    def config(self, options: Mapping[str, Any], vocabulary: int) -> dict[str, Any]:
        """The `config.json` of a backbone with these keys. Only of families whose models are exported.

        Raises:
            ConfigError: no model of this family has these blocks.
        """


FAMILIES: dict[str, Any] = {
    module.name: importlib.import_module(f"{__name__}.{module.name}")
    for module in pkgutil.iter_modules(__path__)
}


def of(model_type: Any, place: str) -> str:
    """The family of a `model_type`.

    Raises:
        ConfigError: memlab reads no such models.
    """
    for name, family in FAMILIES.items():
        if model_type in family.MODEL_TYPES:
            return name
    read = ", ".join(kind for family in FAMILIES.values() for kind in family.MODEL_TYPES)
    raise ConfigError(
        f"backbone.path={place} is a model of the type {model_type!r}, which memlab does not read. It reads: "
        f"{read} (SmolLM2 is a llama, MiniLM a bert)"
    )
