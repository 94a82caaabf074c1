"""The contract that every model keeps: a function of (segment, state), with two more ways to read that give the same numbers.

    segment(tokens_BN, state)      one segment: the meaning of the model
    recurrent(tokens_BSN, state)   the fold of `segment` over S segments
    parallel(tokens_BSN, state)    optional: all S segments at once, same numbers and gradients
    begin / extend / close         one segment in pieces of any size, for generation
    stream(tokens_BT, state)       tokens of any number, segment by segment, split between calls wherever they come in

Legend: B batch, S segments, N tokens in a segment, n tokens in a piece, T tokens in all, D width, V vocabulary, M memory slots.
"""

from __future__ import annotations

import abc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from memlab.bounds import Dropout, Positive
from memlab.errors import ConfigError, UserError
from memlab.layers.blocks import Stack, initialise
from memlab.layers.state import State


@dataclass(frozen=True)
class Output:
    """What a model gives back.

    Attributes:
        logits: next-token scores, [B, N, V] from one segment, [B, S, N, V] from several.
        state: what the next segment needs.
        diagnostics: cheap detached numbers by name, for logging: a scalar from one segment, [S] from several.
    """

    logits: Tensor
    state: State
    diagnostics: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Open:
    """A segment that is being read: what is needed of the carried state, and the keys and values of all that its tokens may look at.

    It is not carried over a boundary; its bytes count in `compression_peak`.
    """

    state: Any  # of the model's own kind
    past: tuple[Any, ...]  # states, one for each layer
    read: int  # tokens of this segment that have been read: the next one's position within it

    @property
    def nbytes(self) -> int:
        """Bytes of the state and of the open segment's keys and values together; a tensor that is in both counts once."""
        tensors = [*self.state.tensors(), *(t for kv in self.past for t in kv.tensors())]
        return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


@dataclass(frozen=True)
class Unread:
    """An encoder's segment whose end has not come: the state before it, and its tokens so far, which are read again when more have come."""

    state: Any  # of the model's own kind
    tokens_BN: Tensor

    @property
    def read(self) -> int:
        """Tokens of this segment that are there."""
        return self.tokens_BN.shape[1]

    @property
    def nbytes(self) -> int:
        """Bytes of the state and of the waiting tokens."""
        return int(self.state.nbytes) + self.tokens_BN.numel() * self.tokens_BN.element_size()


@dataclass(frozen=True)
class Piece:
    """What `Model.stream` read: a segment, or as much of it as there was.

    Attributes:
        logits: of a decoder next-token scores, [B, n, V]; of an encoder the answer if the document ended here, [B, 1, V].
        state: for a later call of `stream`. At a segment's end the model's state, and before it the segment as far as it was read.
    """

    logits: Tensor
    state: State | Open | Unread


class Model(nn.Module, abc.ABC):
    """Base of all models: the Transformer and the fold over segments. See `Decoder`, and `Encoder` for those that do not generate.

    Args:
        vocab_size: number of token ids (V).
        layers, width, heads: of the Transformer; `width` (D) is divided among the heads.
        kv_heads: key and value heads, each shared by heads / kv_heads query heads; None = as many as heads.
        ffn_multiple: width of the feed-forward layer over `width`.
        dropout: on the outputs of attention and feed-forward layers, while training.
        positions: how tokens know where they stand, see `layers/positions.py`; with "none" only causality tells.

    Raises:
        ConfigError: `width` does not divide into heads of even width (rotary positions turn pairs), or `heads` not among `kv_heads`.
    """

    parallel: ClassVar[Any] = None  # a method (tokens_BSN, state) -> Output where there is an exact parallel form

    def __init__(
        self,
        vocab_size: Positive,
        layers: Positive,
        width: Positive,
        heads: Positive,
        ffn_multiple: Positive,
        dropout: Dropout,
        kv_heads: Positive | None = None,
        positions: Literal["rope", "transformer_xl", "none"] = "rope",
    ) -> None:
        super().__init__()
        if width % (2 * heads):
            raise ConfigError(f"model.width={width} does not divide into model.heads={heads} heads of even width")
        if kv_heads is not None and heads % kv_heads:
            raise ConfigError(f"model.heads={heads} cannot be shared out evenly among model.kv_heads={kv_heads}")
        self.width = width
        self.embed = nn.Embedding(vocab_size, width)
        self.stack = Stack(layers, width, heads, ffn_multiple * width, dropout, kv_heads, positions)
        self.head = nn.Linear(width, vocab_size)
        initialise(self, layers)

    @property
    def carries(self) -> bool:
        """Whether anything passes a segment boundary; only then does a back-propagation depth mean anything."""
        return True

    @property
    def state_grows(self) -> bool:
        """Whether the state gets larger with the document; otherwise it has one size for ever."""
        return self.keeps_everything

    @property
    def keeps_everything(self) -> bool:
        """Whether the state holds every token of the document, and so has no largest size."""
        return False

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    @abc.abstractmethod
    def init_state(self, batch_size: int) -> Any:
        """The state at the start of a document; learned parts of it carry gradient."""

    @abc.abstractmethod
    def segment(self, tokens_BN: Tensor, state: Any) -> Output:
        """Read one segment: logits [B, N, V] and the state for the next one."""

    @abc.abstractmethod
    def peak_bytes(self, tokens_BN: Tensor, state: Any) -> int:
        """Bytes held while a segment is read, just before it is closed: the state, and keys and values that its tokens look at."""

    def recurrent(self, tokens_BSN: Tensor, state: Any) -> Output:
        """Fold `segment` over S segments."""
        outputs: list[Output] = []
        for tokens_BN in tokens_BSN.unbind(1):
            outputs.append(self.segment(tokens_BN, outputs[-1].state if outputs else state))
        diagnostics = {k: torch.stack([o.diagnostics[k] for o in outputs]) for k in outputs[0].diagnostics}
        return Output(torch.stack([o.logits for o in outputs], 1), outputs[-1].state, diagnostics)

    @torch.no_grad()
    def stream(self, tokens_BT: Tensor, state: State | Open | Unread | None = None, *, segment_length: int) -> Iterator[Piece]:
        """Read any number of tokens, segment by segment, without gradient and in the memory of one segment (and of a state that grows).

        A call may end within a segment, and the next one goes on there: however a document is split, all calls read what one reads.

        Args:
            tokens_BT: token ids, on any device; each segment is moved to the model's when its turn comes.
            state: of the last piece of an earlier call; None = a document begins.
            segment_length: N, the same in all calls for a document.

        Raises:
            UserError: `tokens_BT` is not [B, T], or the open segment is longer than `segment_length`.
        """
        if tokens_BT.dim() != 2:
            raise UserError(f"tokens of shape {list(tokens_BT.shape)}: stream reads [B, T]")
        if state is None:
            state = self.init_state(tokens_BT.shape[0])
        at = 0
        while at < tokens_BT.shape[1]:
            read = state.read if isinstance(state, Open | Unread) else 0
            if read >= segment_length:
                raise UserError(f"segment_length={segment_length}: the open segment has {read} tokens already")
            piece_Bn = tokens_BT[:, at : at + segment_length - read].to(self.device, torch.long)
            piece = self._stream_piece(piece_Bn, state, ends=read + piece_Bn.shape[1] == segment_length)
            yield piece
            state, at = piece.state, at + piece_Bn.shape[1]

    @abc.abstractmethod
    def _stream_piece(self, tokens_Bn: Tensor, state: Any, ends: bool) -> Piece:
        """Read n tokens of one segment, which may have been begun before and may end with them."""

    def forward(self, tokens_BSN: Tensor, state: Any = None) -> Output:
        """Read S segments of N tokens, in the parallel form if the model has one.

        Args:
            tokens_BSN: token ids.
            state: what an earlier call returned; None = a document begins.

        Returns:
            logits [B, S, N, V], the state after the last segment, diagnostics.
        """
        if state is None:
            state = self.init_state(tokens_BSN.shape[0])
        return (self.parallel or self.recurrent)(tokens_BSN, state)


class Decoder(Model):
    """Base of all models that predict the next token. A subclass gives `init_state`, `segment`, `begin`, `close`, often `extend`."""

    @abc.abstractmethod
    def begin(self, state: Any) -> Open:
        """Open a segment."""

    def extend(self, tokens_Bn: Tensor, open: Open) -> tuple[Tensor, Open]:
        """Read n more tokens of the open segment: their logits [B, n, V], and the segment so far."""
        positions = torch.arange(open.read, open.read + tokens_Bn.shape[1], device=self.device)
        y_BnD, past = self.stack(self.embed(tokens_Bn), positions, past=open.past)
        return self.head(y_BnD), Open(open.state, past, open.read + tokens_Bn.shape[1])

    @abc.abstractmethod
    def close(self, open: Open) -> Any:
        """End the segment: write memory, and return the state that the next segment needs."""

    def _stream_piece(self, tokens_Bn: Tensor, state: Any, ends: bool) -> Piece:
        if ends and not isinstance(state, Open):  # a whole segment at once
            output = self.segment(tokens_Bn, state)
            return Piece(output.logits, output.state)
        logits_BnV, open = self.extend(tokens_Bn, state if isinstance(state, Open) else self.begin(state))
        return Piece(logits_BnV, self.close(open) if ends else open)

    def peak_bytes(self, tokens_BN: Tensor, state: Any) -> int:
        return self.extend(tokens_BN, self.begin(state))[1].nbytes


class Encoder(Model):
    """Base of all models that read in both directions and answer once for each sample.

    There is no open segment: `segment` gives logits [B, 1, V], what the answer would be if the document ended here.
    """

    def _stream_piece(self, tokens_Bn: Tensor, state: Any, ends: bool) -> Piece:
        before, tokens_BN = (
            (state.state, torch.cat([state.tokens_BN, tokens_Bn], dim=1)) if isinstance(state, Unread) else (state, tokens_Bn)
        )
        output = self.segment(tokens_BN, before)
        return Piece(output.logits, output.state if ends else Unread(before, tokens_BN))
