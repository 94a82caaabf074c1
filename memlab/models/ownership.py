"""Which parameters of a model are its memory's: those that the backbone alone would not have."""

from __future__ import annotations

import torch
from torch import nn

from memlab.errors import ConfigError
from memlab.layers import low_rank
from memlab.memories.attention import Attention
from memlab.models.base import Model


def memory_parameters(model: Model) -> dict[str, nn.Parameter]:
    """The parameters that layer memories and memory tokens added to the backbone, by name.

    In a layer, these are the ones that plain attention in its place does not have: gates, scales, learned
    initial states, convolutions and so on. Of memory tokens, all are. Positions are the backbone's, and so
    are u, v and the projection of distances of Transformer-XL's positions. Adapters are nobody's.

    Raises:
        ConfigError: a layer memory has a parameter of plain attention's in another shape, so that its
            owner is unclear.
    """
    adapters = {id(parameter) for parameter in low_rank.parameters(model)}
    found = {id(parameter) for parameter in model.tokens.parameters()}
    for layer, memory in enumerate(model.backbone.memories, 1):
        with torch.device("meta"):
            plain = dict(Attention(memory.description).named_parameters())
        for name, parameter in memory.named_parameters():
            if id(parameter) in adapters:
                continue
            if name not in plain:
                found.add(id(parameter))
            elif plain[name].shape != parameter.shape:
                raise ConfigError(
                    f"{type(memory).__name__} in layer {layer} has {name} of shape {list(parameter.shape)}, "
                    f"plain attention {list(plain[name].shape)}: whether it is the memory's is not known"
                )
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in found}
