"""Measure what does not depend on values on a copy of the model that has none, on torch's meta device.

Sizes of states and numbers of operations follow from shapes. Counting them on a large model with its values
would take minutes, and more memory than reading a text with it.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn
from torch.distributed.fsdp import FSDPModule

from memlab.models.base import Model

T = TypeVar("T")


def measured(model: Model, measure: Callable[[Model], T]) -> T:
    """The result of `measure` for a copy without values, or for the model itself if it looks at values, or if
    its weights are sharded.
    """
    if any(isinstance(module, FSDPModule) for module in model.modules()):
        return measure(model)
    try:
        return measure(on_meta(model))
    except (NotImplementedError, RuntimeError):  # both occur where a value of the meta device is needed
        return measure(model)


def on_meta(model: Model) -> Model:
    """A copy on the meta device; the weights are not copied in between."""
    known: dict[int, Any] = {}
    for tensor in (*model.parameters(), *model.buffers()):
        empty = tensor.detach().to("meta")
        parameter = isinstance(tensor, nn.Parameter)
        known[id(tensor)] = nn.Parameter(empty, tensor.requires_grad) if parameter else empty
    return copy.deepcopy(model, known)
