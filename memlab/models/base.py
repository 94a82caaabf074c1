"""The contract of every model: a function of (segment, state), and equivalent ways to read.

    segment(tokens_BN, state)      one segment: the meaning of the model
    recurrent(tokens_BSN, state)   the fold of `segment` over S segments
    parallel(tokens_BSN, state)    optional: all S segments at once, same numbers and gradients
    begin / extend / close         one segment in pieces of any size, for generation
    stream(tokens_BT, state)       any number of tokens, segment by segment, divided between calls anywhere

A model is a backbone with a layer memory in each layer and memory tokens around each segment: `decoder.py`,
`encoder.py`, `compose.py`.

Legend: B batch, S segments, N tokens in a segment, n tokens in a piece, T tokens in all, D width, V
vocabulary.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from memlab.errors import UserError
from memlab.layers.attention import ALL
from memlab.layers.state import State, state
from memlab.memories.base import Where
from memlab.memory_tokens.base import MemoryTokens
from memlab.models.backbone import Backbone

Memory = Literal["on", "off", "shuffled"]
# Tokens whose next-token scores are computed: a slice of a segment's (or piece's) tokens, or bool [N]; of
# several segments, bool [S, N]. A head over a large vocabulary costs as much as several layers.
Scored = Tensor | slice
NOTHING = slice(0, 0)


@state
class ModelState(State):
    """What a model carries from segment to segment: memory tokens, and what each layer remembers."""

    tokens: Any
    layers: tuple[Any, ...]
    nothing_B0: Tensor  # of no bytes: gives the batch size, even where nothing is carried

    @property
    def batch_size(self) -> int:
        return self.nothing_B0.shape[0]


@dataclass(frozen=True)
class Output:
    """What a model returns.

    Attributes:
        logits: next-token scores, [B, N, V] from one segment, [B, S, N, V] from several; of only some tokens
            (`Scored`), [B, A, V] in their order. From an encoder, the answer in case the document ends with
            the segment, [B, 1, V] or [B, S, 1, V].
        state: what the next segment needs.
        diagnostics: cheap detached numbers by name, for logging: a scalar from one segment, [S] from several.
        auxiliary: a loss of the layer memories, to be added to that of the logits: [B] from one segment,
            [B, S] from several. None = the memories have none, or no gradient is computed.
    """

    logits: Tensor
    state: ModelState
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    auxiliary: Tensor | None = None


@dataclass(frozen=True)
class Open:
    """An open segment: begun, and not yet closed. Not carried; its bytes count in `compression_peak`.

    Attributes:
        state: what was carried to the segment, without the states of the layers.
        layers: for each layer, what it needs of its state, and what the segment's rows look at.
        read: tokens of this segment that have been read, which is the next token's position within it.
        offset_B: see `Where`.
        other: with memory=shuffled, the same segment after another document's state.
    """

    state: ModelState
    layers: tuple[Any, ...]
    read: int
    offset_B: Tensor | None = None
    other: Open | None = None

    @property
    def nbytes(self) -> int:
        """Bytes of the carried state and the open segment; a tensor in both counts once."""
        tensors = [t for t in pytree.tree_leaves((self.state, self.layers)) if isinstance(t, Tensor)]
        return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


@dataclass(frozen=True)
class Unread:
    """An encoder's segment that is not complete yet: the state before it, and its tokens so far."""

    state: ModelState
    tokens_BN: Tensor

    @property
    def read(self) -> int:
        """Tokens of this segment so far."""
        return self.tokens_BN.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the state and the waiting tokens."""
        return self.state.nbytes + self.tokens_BN.numel() * self.tokens_BN.element_size()


@dataclass(frozen=True)
class Piece:
    """What `Model.stream` read at once: a segment, or as much of it as was there.

    Attributes:
        logits: from a decoder, next-token scores, [B, n, V], or of the scored tokens; from an encoder, the
            answer in case the document ends here, [B, 1, V].
        state: for a later call of `stream`. At a segment's end the model's state, before it the open segment.
    """

    logits: Tensor
    state: ModelState | Open | Unread


def others(rows: int, members: int) -> Tensor:
    """int [B]: for each batch row, one of another group; `members` neighbours form a group.

    A batch may begin and end within a group; it has at least 2 * members batch rows.
    """
    return torch.arange(rows).roll(members)


class Model(nn.Module, abc.ABC):
    """Base of all models: `Decoder`, and `Encoder` for those that answer once per sample.

    Args:
        backbone: with a layer memory in each layer.
        tokens: memory tokens around each segment.
        memory: on, or a control. off: each segment is read with the initial state, which is also the state
            that is returned. shuffled: each segment is read with the state of another document of the batch,
            as that document's own reading left it (with the initial state if there is no other); so what a
            document reads never depends on its own earlier segments.
        members: how many neighbours in a batch share their content, so that they do not count as other
            documents.
    """

    answers_once: ClassVar[bool] = False

    def __init__(
        self, backbone: Backbone, tokens: MemoryTokens, memory: Memory = "on", members: int = 1
    ) -> None:
        super().__init__()
        self.backbone, self.tokens, self.memory, self.members = backbone, tokens, memory, members

    @property
    def carries(self) -> bool:
        """Whether anything passes a segment boundary."""
        return self.memory != "off" and (
            self.tokens.carries or any(m.carries for m in self.backbone.memories)
        )

    @property
    def sends_gradient(self) -> bool:
        """Whether gradient passes a segment boundary. Only then does a back-propagation depth make sense."""
        in_layers = any(m.carries and m.sends_gradient for m in self.backbone.memories)
        return self.memory != "off" and (self.tokens.carries or in_layers)

    @property
    def has_auxiliary_loss(self) -> bool:
        """Whether layer memories add losses of their own, in each segment."""
        return any(m.has_auxiliary_loss for m in self.backbone.memories)

    @property
    def state_grows(self) -> bool:
        """Whether the state grows with the document; otherwise its size is constant."""
        return self.memory != "off" and any(m.state_grows for m in self.backbone.memories)

    @property
    def keeps_everything(self) -> bool:
        """Whether the state holds every token of the document, so that its size has no limit."""
        return self.memory != "off" and any(m.keeps_everything for m in self.backbone.memories)

    @property
    def device(self) -> torch.device:
        return self.backbone.device

    def init_state(self, batch_size: int) -> ModelState:
        """The state at the start of a document; learned parts of it carry gradient."""
        nothing_B0 = torch.zeros(batch_size, 0, device=self.device)
        return ModelState(
            self.tokens.init_state(batch_size), self.backbone.init_state(batch_size), nothing_B0
        )

    def exchanged(self, state: ModelState, from_B: Tensor) -> ModelState:
        """The state in which batch row b remembers what batch row from_B[b] did."""
        return state.map(lambda t: t[from_B])

    def segment(self, tokens_BN: Tensor, state: ModelState, scored: Scored = ALL) -> Output:
        """Read one segment: logits [B, N, V] (an encoder: [B, 1, V]) and the state for the next one."""
        if self.memory == "on":
            return self._segment(tokens_BN, state, scored)
        if self.memory == "off":
            initial = self.init_state(state.batch_size)
            return dataclasses.replace(self._segment(tokens_BN, initial, scored), state=initial)
        own = self._segment(tokens_BN, state, NOTHING)
        other = self._segment(tokens_BN, self._of_others(state), scored)
        return dataclasses.replace(own, logits=other.logits)

    def recurrent(self, tokens_BSN: Tensor, state: ModelState, scored: Scored = ALL) -> Output:
        """Fold `segment` over S segments."""
        outputs: list[Output] = []
        for s, tokens_BN in enumerate(tokens_BSN.unbind(1)):
            here = scored[s] if isinstance(scored, Tensor) else scored
            outputs.append(self.segment(tokens_BN, outputs[-1].state if outputs else state, here))
        diagnostics = {k: torch.stack([o.diagnostics[k] for o in outputs]) for k in outputs[0].diagnostics}
        losses = [o.auxiliary for o in outputs if o.auxiliary is not None]
        auxiliary = torch.stack(losses, 1) if losses else None
        join = torch.stack if self.answers_once or _is_all(scored) else torch.cat
        return Output(join([o.logits for o in outputs], 1), outputs[-1].state, diagnostics, auxiliary)

    @property
    def parallel(self) -> Any:
        """A method (tokens_BSN, state, scored) -> Output that reads all segments at once; None = no parallel
        form.
        """
        return self._apart if self.segments_are_independent else None

    @property
    def segments_are_independent(self) -> bool:
        """Whether no segment is read with anything of an earlier one."""
        in_layers = self.memory != "off" and any(m.carries for m in self.backbone.memories)
        return not self.tokens.carries and not in_layers

    def _apart(self, tokens_BSN: Tensor, state: ModelState, scored: Scored = ALL) -> Output:
        """Independent segments, folded into the batch."""
        b, s = tokens_BSN.shape[:2]
        y_FND, every, found, loss = self._read(tokens_BSN.flatten(0, 1), self.init_state(b * s))
        diagnostics = {name: value.expand(s) for name, value in found.items()}
        # A state that carries nothing may still count tokens, or have another size than before.
        last = every.map(lambda t: t.unflatten(0, (b, s))[:, -1])
        after = self.init_state(b) if self.memory == "off" else last
        loss = None if loss is None else loss.unflatten(0, (b, s))
        return Output(self._scores(y_FND.unflatten(0, (b, s)), scored), after, diagnostics, loss)

    def _scores(self, y_BSND: Tensor, scored: Scored) -> Tensor:
        """Logits of several segments: [B, S, N, V], or [B, A, V] of the scored tokens."""
        if not (self.answers_once or _is_all(scored)):
            y_BSND = y_BSND.flatten(1, 2)[:, scored.flatten() if isinstance(scored, Tensor) else scored]
        logits: Tensor = self.backbone.head(y_BSND)
        return logits

    def _segment(self, tokens_BN: Tensor, state: ModelState, scored: Scored) -> Output:
        """`segment` with the memory on. An encoder always answers."""
        y_BND, after, diagnostics, loss = self._read(tokens_BN, state)
        y_BND = y_BND if self.answers_once else y_BND[:, scored]
        return Output(self.backbone.head(y_BND), after, diagnostics, loss)

    @abc.abstractmethod
    def _read(
        self, tokens_BN: Tensor, state: ModelState
    ) -> tuple[Tensor, ModelState, dict[str, Tensor], Tensor | None]:
        """What `Output` has, with the head's input [B, N, D] (an encoder: [B, 1, D]) for logits."""

    def begin(self, state: ModelState) -> Open:
        """Open a segment, to be read in pieces. Models that answer once have no open segments."""
        raise TypeError(f"{type(self).__name__} reads whole segments: it has no open ones")

    def extend(self, tokens_Bn: Tensor, open: Open, scored: Scored = ALL) -> tuple[Tensor, Open]:
        """Read n more tokens of the open segment: their logits [B, n, V], and the segment so far."""
        raise TypeError(f"{type(self).__name__} reads whole segments: it has no open ones")

    def close(self, open: Open) -> ModelState:
        """Close the segment: write memory, and return the state that the next segment needs."""
        raise TypeError(f"{type(self).__name__} reads whole segments: it has no open ones")

    @abc.abstractmethod
    def peak_bytes(self, tokens_BN: Tensor, state: ModelState) -> int:
        """Bytes held just before a segment is closed: the state, and what the segment's rows look at."""

    def _of_others(self, state: ModelState) -> ModelState:
        """The state that each document of the batch is read with under memory=shuffled."""
        if state.batch_size < 2 * self.members:
            return self.init_state(state.batch_size)  # there is no other group
        return self.exchanged(state, others(state.batch_size, self.members).to(self.device))

    def _where(
        self, at: ModelState | Open, start: int, count: int, tokens: slice, mask: Tensor | None = None
    ) -> Where:
        """Where `count` rows stand, from position `start` of the next segment or of the open one."""
        state, offset_B = (
            (at.state, at.offset_B) if isinstance(at, Open) else (at, self.backbone.offset(at.layers))
        )
        return Where(
            start=start,
            count=count,
            batch_size=state.batch_size,
            device=self.device,
            first=-self.tokens.reads,
            tokens=tokens,
            mask=mask,
            memory_tokens_read=getattr(self.tokens, "read_mem_from_cache", False),
            offset_B=offset_B,
            rotary=self.backbone.rotary,
        )

    @torch.no_grad()
    def stream(
        self,
        tokens_BT: Tensor,
        state: ModelState | Open | Unread | None = None,
        *,
        segment_length: int,
        scored: slice = ALL,
    ) -> Iterator[Piece]:
        """Read any number of tokens, segment by segment, without gradient.

        Needs memory for one segment and the state. A call may end within a segment, and the next call
        continues there: however a document is divided, several calls read what one call reads.

        Args:
            tokens_BT: token ids, on any device; each segment is moved to the model's device when it is read.
            state: of the last piece of an earlier call; None = a document begins.
            segment_length: N, the same in all calls for a document.
            scored: the tokens of each piece that get logits.

        Raises:
            UserError: `tokens_BT` is not [B, T], or the open segment is longer than `segment_length`.
        """
        if tokens_BT.dim() != 2:
            raise UserError(f"tokens of shape {list(tokens_BT.shape)}: stream reads [B, T]")
        if state is None:
            state = self.init_state(tokens_BT.shape[0])
        at = 0
        while at < tokens_BT.shape[1]:
            read = 0 if isinstance(state, ModelState) else state.read
            if read >= segment_length:
                raise UserError(
                    f"segment_length={segment_length}: the open segment has {read} tokens already"
                )
            piece_Bn = tokens_BT[:, at : at + segment_length - read].to(self.device, torch.long)
            ends = read + piece_Bn.shape[1] == segment_length
            piece = self._stream_piece(piece_Bn, state, ends, scored)
            yield piece
            state, at = piece.state, at + piece_Bn.shape[1]

    @abc.abstractmethod
    def _stream_piece(self, tokens_Bn: Tensor, state: Any, ends: bool, scored: slice) -> Piece:
        """Read n tokens of one segment, which may be open already and which may end with them."""

    def forward(self, tokens_BSN: Tensor, state: ModelState | None = None, scored: Scored = ALL) -> Output:
        """Read S segments of N tokens, in the parallel form if the model has one.

        Args:
            tokens_BSN: token ids.
            state: the state that an earlier call returned; None = a document begins.
            scored: bool [S, N], or `NOTHING`: the tokens that get logits.

        Returns:
            logits [B, S, N, V], or of the scored tokens [B, A, V] (an encoder: [B, S, 1, V]), the state after
            the last segment, diagnostics.
        """
        if state is None:
            state = self.init_state(tokens_BSN.shape[0])
        output: Output = (self.parallel or self.recurrent)(tokens_BSN, state, scored)
        return output


def _is_all(scored: Scored) -> bool:
    return isinstance(scored, slice) and scored == ALL
