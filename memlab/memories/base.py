"""The contract of a layer memory: one layer's attention, with what it remembers from segment to segment.

    init_state(batch_size) -> State                            what is remembered at the start of a document
    segment(x_BTD, state, where) -> (y_BTD, State)             read one segment: the meaning
    parallel(x_BTD, state, where) -> (y_BTD, State)            optional: S segments at once, equal results
    begin(state, where) -> Open                                the same segment in pieces of any size
    extend(x_BTD, open, where) -> (y_BTD, Open)
    close(open) -> State

A layer memory takes the place of the attention sub-layer and owns its parameters, including the
normalisation before it. `x` is the input of the block. `where` gives the positions of the rows and what they
may look at: nothing is inferred from a length. A segment's rows are its tokens and, around them, memory
tokens (`memlab/memory_tokens`). A batch row is one sequence of the batch.

Shapes: B batch, T rows of a call, N tokens of a segment, S segments, C remembered rows, R rows of the open
segment so far, L keys, D width, H heads, G key-value heads, K head width.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor, nn

from memlab.layers import observing, windows
from memlab.layers.attention import ALL, KeyValues, MultiHead, Relative
from memlab.layers.description import Description
from memlab.layers.positions import Rotary, Rotation
from memlab.precision import accumulator

T = TypeVar("T")


@dataclass(frozen=True)
class Where:
    """Where the rows of a call stand and what they may look at.

    Attributes:
        start: position of the call's first row within its segment; the others follow. Tokens count from 0,
            memory tokens in front of them stand at -M .. -1, those after them at N ..
        count: T, rows of the call; in the parallel form N, rows of a segment.
        first: position of the segment's first row: 0, or -M with memory tokens in front.
        tokens: the rows that are the segment's tokens; the others are memory tokens.
        mask: bool [T, R + T], which rows of the segment each row may look at; None = causal, and all rows are
            tokens.
        memory_tokens_read: whether memory tokens also look at what the layer remembers.
        wanted: the rows whose output is needed.
        segments: S in the parallel form.
        batch_size: B.
        device: of the rows.
        offset_B: position of the segment's token 0 in each batch row's document, for a layer with
            `positions_go_on`; None = positions count from the segment's token 0.
        rotary: rotary positions; None = positions are not rotary.
        relative: u and v of Transformer-XL's positions, for this layer.
        shared: results that layers of one kind share in this call.
        losses: auxiliary losses of this layer, see `add_loss`; None = nobody needs them.
    """

    start: int
    count: int
    batch_size: int
    device: torch.device
    first: int = 0
    tokens: slice = field(default_factory=lambda: ALL)
    mask: Tensor | None = None
    memory_tokens_read: bool = False
    wanted: slice = field(default_factory=lambda: ALL)
    segments: int = 1
    offset_B: Tensor | None = None
    rotary: Rotary | None = None
    relative: Relative | None = None
    shared: dict[Hashable, Any] = field(default_factory=dict)
    losses: list[Tensor] | None = None

    def add_loss(self, make: Callable[[], Tensor]) -> None:
        """Add a loss of this layer to that of the training, if there is one (`has_auxiliary_loss`).

        Args:
            make: called if the loss is needed. Returns it with its weight, for each batch row: [B] of one
                segment, [B, S] in the parallel form. The training adds its mean over batch rows and segments.
        """
        if self.losses is not None:
            self.losses.append(make())

    def once(self, key: Hashable, make: Callable[[], T]) -> T:
        """The result of `make`, computed by the first layer that asks for this key."""
        if key not in self.shared:
            self.shared[key] = make()
        found: T = self.shared[key]
        return found

    def turn(self, start: int, count: int, dtype: torch.dtype) -> Rotation | None:
        """The rotation of `count` rows from position `start`; None = positions are not rotary."""
        rotary = self.rotary
        if rotary is None:
            return None
        accurate = torch.promote_types(dtype, torch.float32)
        key = ("turn", start, count, self.offset_B is None)
        return self.once(key, lambda: rotary.rotation(self.positions(start, count), accurate))

    def positions(self, start: int, count: int) -> Tensor:
        """Integer positions of `count` rows from position `start`: [T], or [B, T] within documents."""
        positions_T = torch.arange(start, start + count, device=self.device)
        return positions_T if self.offset_B is None else self.offset_B[:, None] + positions_T

    def look(self, filled_BC: Tensor, reach: int | None = None) -> Tensor:
        """Which keys of [remembered ; segment so far] the rows may look at: bool [B, 1, T, C + R + T].

        Args:
            filled_BC: which remembered rows belong to each batch row's document.
            reach: how many tokens back a token looks, including itself; None = all. Does not apply to memory
                tokens: they look at everything that they may, and a token looks at all of those before it.
        """
        if self.mask is None and (self.first == 0 or reach is None):
            return windows.visible(filled_BC, self.start - self.first, self.count, reach)
        stop, size = self.start + self.count, filled_BC.shape[1]
        row_T1 = torch.arange(self.start, stop, device=self.device)[:, None]
        key_L = torch.arange(self.first, stop, device=self.device)
        own_TL = key_L <= row_T1 if self.mask is None else self.mask
        remembered_BTC = filled_BC[:, None] & self.readers()[:, None]
        if reach is not None:
            memory_T1 = torch.ones(self.count, 1, dtype=torch.bool, device=self.device)
            memory_T1[self.tokens] = False
            own_TL = own_TL & (memory_T1 | (key_L < 0) | (row_T1 - key_L < reach))
            before_C = torch.arange(-size, 0, device=self.device)
            remembered_BTC = remembered_BTC & (memory_T1 | (row_T1 - before_C < reach))
        return torch.cat([remembered_BTC, own_TL.expand(len(filled_BC), -1, -1)], dim=2)[:, None]

    def part(self, rows: slice) -> Where:
        """The same for some of a call's rows, all of them wanted; what comes after them is not there yet."""
        tokens = [row - rows.start for row in range(self.count)[self.tokens] if rows.start <= row < rows.stop]
        count = rows.stop - rows.start
        some = slice(tokens[0], tokens[-1] + 1) if tokens else slice(0, 0)
        keys = self.start - self.first + rows.stop
        return dataclasses.replace(
            self,
            start=self.start + rows.start,
            count=count,
            tokens=ALL if len(tokens) == count else some,
            mask=None if self.mask is None else self.mask[rows, :keys],
            wanted=ALL,
        )

    def readers(self) -> Tensor:
        """bool [T]: the rows that look at what the layer remembers."""
        readers_T = torch.zeros(self.count, dtype=torch.bool, device=self.device)
        readers_T[ALL if self.memory_tokens_read else self.tokens] = True
        return readers_T

    @property
    def after(self) -> int:
        """How many of the call's rows, the last ones, are memory tokens after the segment."""
        first, stop, _ = self.tokens.indices(self.count)
        if first == stop:  # memory tokens only, before the segment or after it
            return self.count if self.start >= 0 else 0
        return self.count - stop

    @property
    def only_tokens(self) -> bool:
        """Whether no row is a memory token."""
        return self.tokens == ALL


class LayerMemory(nn.Module, abc.ABC):
    """Base of all layer memories. A subclass gives `init_state`, `begin`, `extend` and `close`.

    Its constructor takes the block's description and then options, each with an annotation of
    `memlab/bounds.py`: they are keys of `model` in the configuration. A parameter whose name begins with
    `gate` is trained with `optim.gate_lr`.

    Attributes:
        sends_gradient: whether gradient passes a segment boundary through the state.
        stores_memory_tokens: whether memory tokens are remembered with the segment's tokens.
        positions_go_on: whether positions continue over segments, from `offset`; otherwise they start at 0 in
            each segment.
        written_by_tokens: whether only memory tokens after the segment write it.
        only_causal: whether a row can look at no row after it, whatever `where.mask` allows.
        has_auxiliary_loss: whether `segment` and `parallel` call `Where.add_loss`; may be a property.
    """

    parallel: ClassVar[Any] = None
    sends_gradient: bool = True
    stores_memory_tokens: ClassVar[bool] = False
    positions_go_on: ClassVar[bool] = False
    written_by_tokens: ClassVar[bool] = False
    only_causal: ClassVar[bool] = False
    has_auxiliary_loss: bool = False

    def __init__(self, description: Description) -> None:
        super().__init__()
        self.description = description
        self.norm = description.new_norm() if description.norm_position == "pre" else None
        self.attention = MultiHead(description)

    @property
    def carries(self) -> bool:
        """Whether anything passes a segment boundary."""
        return True

    @property
    def state_grows(self) -> bool:
        """Whether the state grows with the document; otherwise its size is constant."""
        return self.keeps_everything

    @property
    def keeps_everything(self) -> bool:
        """Whether the state holds every token of the document, so that its size has no limit."""
        return False

    @abc.abstractmethod
    def init_state(self, batch_size: int) -> Any:
        """The state at the start of a document; learned parts of it carry gradient."""

    @abc.abstractmethod
    def begin(self, state: Any, where: Where) -> Any:
        """Open a segment: what its rows need of the state. Of `where`, only `first` matters."""

    @abc.abstractmethod
    def extend(self, x_BTD: Tensor, open: Any, where: Where) -> tuple[Tensor, Any]:
        """Read T more rows of the open segment: the output of the wanted ones, and the segment so far."""

    @abc.abstractmethod
    def close(self, open: Any) -> Any:
        """Close the segment: write memory, and return the state that the next segment needs."""

    def segment(self, x_BTD: Tensor, state: Any, where: Where) -> tuple[Tensor, Any]:
        """Read a whole segment: the output of the wanted rows, and the state that the next segment needs."""
        y_BTD, open = self.extend(x_BTD, self.begin(state, where), where)
        return y_BTD, self.close(open)

    def check_among(self, memories: Sequence[LayerMemory]) -> None:
        """Check that the options fit the layer memories of the whole model.

        Args:
            memories: of all layers, from the bottom; this one is among them.

        Raises:
            ConfigError: they do not.
        """

    def offset(self, state: Any) -> Tensor:
        """int [B]: tokens so far in each batch row's document; only called if `positions_go_on`."""
        raise TypeError(f"positions of {type(self).__name__} start over in each segment")

    def after_block(self, out_BTD: Tensor, handed_on: Any, where: Where) -> Any:
        """What the layer hands on, now that the block's output of the wanted rows is there.

        For memories that are written from it; `handed_on` is what the form returned.
        """
        return handed_on

    def initialise(self) -> None:
        """Set what `initialise` of the backbone, which was there before, should not decide."""

    def diagnose(self) -> dict[str, Tensor]:
        """Cheap detached numbers for logging, by name: scalars, or one per head [H]."""
        return {}

    def normed(self, x_BTD: Tensor) -> Tensor:
        """The block's input as the projections take it."""
        return x_BTD if self.norm is None else self.norm(x_BTD)

    def project(self, x_BTD: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, K], keys and values [B, G, T, K] of the block's input, rotated by `turn`."""
        return self.attention.project(self.normed(x_BTD), turn)

    def keys_values(self, x_BTD: Tensor, turn: Rotation | None = None) -> tuple[Tensor, Tensor]:
        """Only keys and values."""
        return self.attention.keys_values(self.normed(x_BTD), turn)

    def stored(self, x: Tensor, where: Where, dim: int) -> Tensor:
        """The rows of `x` that are remembered."""
        if self.stores_memory_tokens or where.only_tokens:
            return x
        return x.movedim(dim, 0)[where.tokens].movedim(0, dim)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, where: Where, mask: Tensor | None = None, remembered: int = 0
    ) -> Tensor:
        """Softmax attention of the wanted rows over [remembered ; segment so far]: [B, H, T, K].

        Args:
            q, k, v: [B, H, T, K], [B, G, L, K] twice.
            mask: bool, True = may look, broadcastable to [B, H, T, L]; None = `where.mask`.
            remembered: how many of the keys are of remembered rows; they come first.
        """
        mask = where.mask if mask is None else mask

        def over(values: Tensor, wanted: slice) -> Tensor:
            return self.attention.attend(q, k, values, mask, where.relative, where.mask is not None, wanted)

        observing.offer(
            "attention",
            memory=self,
            where=where,
            remembered=remembered,
            keys=k,
            attend=lambda values: over(values, ALL),
        )
        return over(v, where.wanted)

    def mix(self, local: Tensor, remembered: Tensor, gate: Tensor, where: Where) -> Tensor:
        """(1 - gate) local + gate remembered, for the wanted rows: [B, H, .., T, K].

        `gate` is broadcastable to that. It counts as 0 for rows that do not look at what the layer remembers.
        """
        if not where.only_tokens:
            gate = gate * where.readers()[where.wanted, None]
        observing.offer("mix", memory=self, where=where, gate=gate, remembered=remembered, local=local)
        wide = torch.promote_types(remembered.dtype, gate.dtype)
        return torch.lerp(local.to(wide), remembered.to(wide), gate.to(wide)).to(local.dtype)

    def merge(self, y_BHTK: Tensor) -> Tensor:
        """The heads' outputs joined and projected: [B, T, D]."""
        return self.attention.merge(y_BHTK)

    def zeros(self, *shape: int, accumulate: bool = False) -> Tensor:
        """Zeros on the parameters' device, of their type, or of the type for sums (`accumulate`)."""
        own = self._parameter
        dtype = accumulator(own.dtype) if accumulate else own.dtype
        return torch.zeros(shape, dtype=dtype, device=own.device)  # not `new_zeros`: it may be sharded

    def no_rows(self, batch_size: int, rows: int = 0) -> KeyValues:
        """Keys and values of no rows, or of some rows, all zeros."""
        zeros = self.zeros(batch_size, self.description.kv_heads, rows, self.description.head_width)
        return KeyValues(zeros, zeros)

    @property
    def device(self) -> torch.device:
        return self._parameter.device

    @property
    def _parameter(self) -> nn.Parameter:
        """A parameter of the projections. (With an adapter, `out.weight` would be computed for each use.)"""
        return next(self.attention.out.parameters())
