"""How a parameter of our blocks is made of the tensors of a checkpoint, and the reverse.

A family declares a list of parts. Each part is one parameter of `memlab.models.backbone.Backbone` and the
tensors that it consists of, so the same list loads weights and exports them. No torch is imported.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Part:
    """One parameter of ours.

    Attributes:
        ours: its name in `Backbone`.
        theirs: names in the checkpoint, joined along the first dimension in this order.
        rows: rows of each of them in our parameter; () = one tensor, which has all rows.
        transposed: whether the checkpoint has the transposed matrix (GPT-2's Conv1D).
        added: a tensor whose first row is added to each row (BERT's token types); None = nothing.
        may_lack: whether a checkpoint may come without it, so that the parameter stays as initialised.
    """

    ours: str
    theirs: tuple[str, ...]
    rows: tuple[int, ...] = ()
    transposed: bool = False
    added: str | None = None
    may_lack: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """All tensors that it uses."""
        return self.theirs if self.added is None else (*self.theirs, self.added)


@dataclass(frozen=True)
class Shape:
    """The sizes of a description that names and rows of parts depend on."""

    layers: int
    heads: int
    kv_heads: int
    head_width: int
    ffn_width: int

    @classmethod
    def of(cls, options: dict[str, Any]) -> Shape:
        """Those of a backbone's keys."""
        return cls(**{name: options[name] for name in cls.__dataclass_fields__})

    @property
    def qkv_rows(self) -> tuple[int, int, int]:
        """Rows of queries, keys and values in `qkv`."""
        each = self.kv_heads * self.head_width
        return self.heads * self.head_width, each, each


def pairs(
    ours: str, theirs: str | tuple[str, ...], kinds: Iterable[str] = ("weight",), **more: Any
) -> Iterator[Part]:
    """The parts of a linear layer or a normalisation: its weight, and its bias if it is among `kinds`."""
    names = (theirs,) if isinstance(theirs, str) else theirs
    for kind in kinds:
        own = more if kind == "weight" else {k: v for k, v in more.items() if k != "transposed"}
        yield Part(f"{ours}.{kind}", tuple(f"{name}.{kind}" for name in names), **own)
