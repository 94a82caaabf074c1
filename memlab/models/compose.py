"""One model from the three choices of a configuration: backbone, layer memory and memory tokens."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from memlab.errors import ConfigError
from memlab.layers.description import Description
from memlab.memories.base import LayerMemory
from memlab.models import choices
from memlab.models.backbone import Backbone
from memlab.models.base import Model
from memlab.models.decoder import Decoder
from memlab.models.encoder import Encoder


def compose(values: Mapping[str, Any], vocab_size: int, members: int = 1) -> Model:
    """Build the model that a configuration describes.

    Args:
        values: the keys of `model`: `layer_memory`, `tokens`, the options of both and of `Backbone`, and
            `memory`.
        vocab_size: V of the task.
        members: of the task: how many neighbours in a batch share their content.

    Raises:
        ConfigError: the values do not go together, or a name is unknown.
    """
    chosen = choices.choose(values)

    def memory(description: Description) -> LayerMemory:
        kind = _load(chosen.memories[description.layer - 1])
        made: LayerMemory = kind(description, **_options(kind, values))
        return made

    backbone = Backbone(vocab_size, memory, **_options(Backbone, values))
    kind = _load(chosen.tokens)
    tokens = kind(backbone.width, **{k: v for k, v in _options(kind, values).items() if k != "width"})
    if tokens.bidirectional and any(memory.only_causal for memory in backbone.memories):
        raise ConfigError(
            f"model.layer_memory={values['layer_memory']}: a row cannot look at rows after it, and "
            f"model.tokens={values['tokens']} needs layers that read in both directions"
        )
    model = Encoder if tokens.bidirectional else Decoder
    return model(backbone, tokens, values.get("memory", "on"), members)


def _load(target: str) -> Any:
    module, _, name = target.rpartition(".")
    return getattr(importlib.import_module(module), name)


def _options(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are arguments of a class's constructor."""
    arguments = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {key: value for key, value in values.items() if key in arguments}
