"""What is trained of a model: everything, its memory, or its memory and low-rank adapters.

    all      every parameter
    memory   the parameters that layer memories and memory tokens added to the backbone
    lora     these, and adapters of projections of the backbone (`layers/low_rank.py`)

The other parameters are frozen: they have no gradient, no place in the optimizer, and no weight decay.
Gradient still flows through them to what is trained.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from memlab.errors import ConfigError
from memlab.models import adapters
from memlab.models.base import Model
from memlab.models.choices import Target, Train
from memlab.models.ownership import memory_parameters
from memlab.models.pretrained.describing import identity_of


def choose(model: Model, train: Train, rank: int, alpha: float, targets: Sequence[Target]) -> None:
    """Freeze what is not trained, and add the adapters.

    Args:
        train: see above.
        rank, alpha, targets: of the adapters, see `adapters.adapt`.

    Raises:
        ConfigError: the model has nothing to train, or adapters do not fit it.
    """
    if train == "all":
        return
    memory = memory_parameters(model)
    if train == "memory" and not memory:
        raise ConfigError(
            "trainer.train=memory: the layer memories and memory tokens of this model added no parameters to "
            "its backbone, so there is nothing to train; use trainer.train=lora or all"
        )
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for parameter in memory.values():
        parameter.requires_grad_(True)
    if train == "lora":
        adapters.adapt(model, rank, alpha, targets)


def left_out(model: Model, values: Mapping[str, Any]) -> frozenset[str]:
    """The names in the model's `state_dict` that a checkpoint leaves out.

    These are the frozen weights of a pretrained backbone, which the configuration identifies. The weights of
    other backbones are nowhere else.

    Args:
        values: the keys of `model`.
    """
    if identity_of(values) is None:
        return frozenset()
    named = model.named_parameters(remove_duplicate=False)
    return frozenset(name for name, parameter in named if not parameter.requires_grad)
