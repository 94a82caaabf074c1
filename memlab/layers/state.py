"""What a memory carries from one segment to the next, and nothing else.

A memory architecture is a function of (segment, state). The state is a frozen dataclass of tensors, batch
first, so that every operation that the platform needs on it (cut the gradient, reset some batch rows, measure
it, save it) is written once, here.

    @state
    class RMTState(State):
        memory_BMD: Tensor

A field is a tensor, another state, or a tuple of states (one per layer).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, Self, TypeVar, dataclass_transform

import torch
from torch import Tensor
from torch.utils import _pytree as pytree

T = TypeVar("T")


@dataclass_transform(frozen_default=True)
def state(cls: type[T]) -> type[T]:
    """Make a subclass of `State` a frozen dataclass that torch's pytree functions can walk."""
    cls = dataclasses.dataclass(frozen=True)(cls)
    pytree.register_dataclass(cls)
    return cls


class State:
    """Base of all states. Subclasses are declared with `@state`; in all tensors, the batch comes first."""

    def tensors(self) -> list[Tensor]:
        """All tensors of this state, in the order of its fields."""
        return pytree.tree_leaves(self)

    def map(self, fn: Callable[[Tensor], Tensor]) -> Self:
        """This state with `fn` applied to every tensor."""
        return pytree.tree_map(fn, self)

    def detach(self) -> Self:
        """The same values, cut from the graph: at a segment boundary, this truncates back-propagation."""
        return self.map(Tensor.detach)

    def reset(self, rows_B: Tensor, initial: Self) -> Self:
        """Reset some batch rows, where a new document begins.

        Args:
            rows_B: bool [B]; True where a new document begins.
            initial: `model.init_state(B)`, called at the time of use, so that a learned initial memory
                receives gradient.

        Returns:
            The state with the initial state in these batch rows, and unchanged elsewhere.
        """

        def pick(current: Any, fresh: Any) -> Any:
            if isinstance(current, State):
                return current.reset(rows_B, fresh)
            if isinstance(current, tuple):
                return tuple(pick(c, f) for c, f in zip(current, fresh, strict=True))
            return torch.where(rows_B.view(-1, *[1] * (current.dim() - 1)), fresh, current)

        names = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return type(self)(**{name: pick(getattr(self, name), getattr(initial, name)) for name in names})

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors, as measured. Divide by the batch size for the bytes of one document."""
        return sum(t.numel() * t.element_size() for t in self.tensors())

    @property
    def used_nbytes(self) -> int:
        """`nbytes` without what is held empty, in states whose tensors have room for more than there is."""

        def used(value: Any) -> int:
            if isinstance(value, State):
                return value.used_nbytes
            if isinstance(value, tuple):
                return sum(map(used, value))
            return int(value.numel() * value.element_size())

        names = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        return sum(used(getattr(self, name)) for name in names)

    def to_dict(self) -> dict[str, Any]:
        """Nested plain containers of tensors, which `torch.load(weights_only=True)` can read back."""

        def plain(value: Any) -> Any:
            if isinstance(value, State):
                return value.to_dict()
            return [plain(v) for v in value] if isinstance(value, tuple) else value

        return {f.name: plain(getattr(self, f.name)) for f in dataclasses.fields(self)}  # type: ignore[arg-type]

    def from_dict(self, saved: dict[str, Any]) -> Self:
        """A state with this one's structure and the tensors of `saved`, a result of `to_dict`.

        Raises:
            ValueError: the fields of `saved` are not those of this state.
        """
        names = [f.name for f in dataclasses.fields(self)]  # type: ignore[arg-type]
        if set(saved) != set(names):
            raise ValueError(
                f"saved {type(self).__name__} has the fields {sorted(saved)}, expected {sorted(names)}"
            )

        def restore(template: Any, value: Any) -> Any:
            if isinstance(template, State):
                return template.from_dict(value)
            if isinstance(template, tuple):
                return tuple(restore(t, v) for t, v in zip(template, value, strict=True))
            return value

        return type(self)(**{name: restore(getattr(self, name), saved[name]) for name in names})


@state
class Empty(State):
    """The state of a model that carries nothing."""
