"""One model from the three choices of a configuration: backbone, layer memory and memory tokens."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping
from typing import Any

from memlab.errors import ConfigError
from memlab.layers.description import Description
from memlab.memories.base import LayerMemory
from memlab.memory_tokens.base import MemoryTokens
from memlab.models import choices
from memlab.models.backbone import Backbone
from memlab.models.base import Model
from memlab.models.decoder import Decoder
from memlab.models.encoder import Encoder
from memlab.policies.base import Policy


def compose(values: Mapping[str, Any], vocab_size: int, members: int = 1) -> Model:
    """Build the model that a configuration describes.

    Args:
        values: the keys of `model`: `layer_memory`, `tokens`, the options of both and of `Backbone`,
            `memory`, and for layers with a bounded cache `policy`: its `name` and options.
        vocab_size: V of the task; a pretrained backbone has at least its own `vocabulary`.
        members: of the task: how many neighbours in a batch share their content.

    Raises:
        ConfigError: the values do not go together, or a name is unknown.
    """
    chosen = choices.choose(values)
    tokens_kind = _load("tokens", chosen.tokens, MemoryTokens)

    def memory(description: Description) -> LayerMemory:
        kind = _load("layer_memory", chosen.memories[description.layer - 1], LayerMemory)
        options = _options(kind, values)
        if "policy" in options:
            options["policy"] = policy(description)
        made: LayerMemory = kind(description, **options)
        return made

    def policy(description: Description) -> Policy:
        assert chosen.policy is not None
        options = {key: value for key, value in values["policy"].items() if key != "name"}
        found: Policy = _load("policy", chosen.policy, Policy)(description, **options)
        if found.every is not None and tokens_kind.bidirectional:
            raise ConfigError(
                f"policy.every={found.every} drops tokens within a segment, and with "
                f"tokens={values['tokens']} all tokens of a segment look at each other; use policy.every=null"
            )
        return found

    vocab_size = max(vocab_size, values.get("vocabulary") or 0)
    backbone = Backbone(vocab_size, memory, **_options(Backbone, values))
    for layer in backbone.memories:
        layer.check_among(backbone.memories)
    options = {key: value for key, value in _options(tokens_kind, values).items() if key != "width"}
    tokens = tokens_kind(backbone.width, **options)
    go_on = any(memory.positions_go_on for memory in backbone.memories)
    if backbone.first_position == "row" and backbone.positions == "learned" and tokens.reads and go_on:
        raise ConfigError(
            "model.first_position=row: memory tokens stand at the first positions of each segment, and those "
            "of layers with the whole context go on over segments; use model.first_position=token"
        )
    if tokens.bidirectional and any(memory.only_causal for memory in backbone.memories):
        raise ConfigError(
            f"model.layer_memory={values['layer_memory']}: a row cannot look at rows after it, and "
            f"model.tokens={values['tokens']} needs layers that read in both directions"
        )
    if not tokens.writes and any(memory.written_by_tokens for memory in backbone.memories):
        raise ConfigError(
            f"model.layer_memory={values['layer_memory']}: memory tokens after a segment write it, and "
            f"model.tokens={values['tokens']} has none; use model.tokens=rmt"
        )
    model = Encoder if tokens.bidirectional else Decoder
    return model(backbone, tokens, values.get("memory", "on"), members)


def _load(key: str, target: str, base: type) -> Any:
    """The class of a choice. Its module is imported; `memlab.config.checks` has seen to it that it may be."""
    module, _, name = target.rpartition(".")
    kind = getattr(importlib.import_module(module), name)
    if not (isinstance(kind, type) and issubclass(kind, base)):
        raise ConfigError(f"model.{key}={target} does not derive from {base.__module__}.{base.__name__}")
    return kind


def _options(kind: type, values: Mapping[str, Any]) -> dict[str, Any]:
    """The values that are arguments of a class's constructor."""
    arguments = inspect.signature(kind.__init__).parameters  # type: ignore[misc]
    return {key: value for key, value in values.items() if key in arguments}
