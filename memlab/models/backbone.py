"""A Transformer whose blocks have a layer memory for attention: embedding, blocks, final norm, head.

Shapes: B batch, T rows of a call, D width, H heads, K head width, V vocabulary.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from memlab.bounds import Dropout, NonNegativeFloat, Positive, PositiveFloat
from memlab.errors import ConfigError
from memlab.layers.attention import ALL, MultiHead, Relative
from memlab.layers.description import Description
from memlab.layers.feed_forward import FeedForward
from memlab.layers.positions import Rotary
from memlab.memories.base import LayerMemory, Where

Form = Literal["segment", "parallel", "extend"]  # methods of a layer memory


class Block(nn.Module):
    """x + memory(norm(x)), then x + ffn(norm(x)); with norm_position=post, norm(x + f(x)) both times."""

    def __init__(self, description: Description, memory: LayerMemory) -> None:
        super().__init__()
        d = description
        self.memory = memory  # owns the normalisation before it
        self.memory_norm = d.new_norm() if d.norm_position == "post" else None
        self.ffn_norm = d.new_norm()
        self.ffn = FeedForward(d.width, d.ffn_width, d.feed_forward, "ffn" in d.biases)
        self.dropout = nn.Dropout(d.dropout)

    def forward(
        self, x_BTD: Tensor, form: Form, carried: Any, where: Where
    ) -> tuple[Tensor, Any, dict[str, Tensor], Tensor | None]:
        """Output of the wanted rows in one form of the layer memory, and the rest of `Reading`."""
        # Here, because with trainer=fsdp a block's weights are only gathered within its `forward`.
        found = {} if form == "extend" else self.memory.diagnose()
        if self.memory.has_auxiliary_loss and form != "extend" and torch.is_grad_enabled():
            where = dataclasses.replace(where, losses=[])
        y_BTD, handed_on = getattr(self.memory, form)(x_BTD, carried, where)
        loss = None if where.losses is None else torch.stack(where.losses).sum(0)
        x_BTD = (x_BTD if where.wanted == ALL else x_BTD[:, where.wanted]) + self.dropout(y_BTD)
        if self.memory_norm is not None:
            x_BTD = self.memory_norm(x_BTD)
            x_BTD = self.ffn_norm(x_BTD + self.dropout(self.ffn(x_BTD)))
        else:
            x_BTD = x_BTD + self.dropout(self.ffn(self.ffn_norm(x_BTD)))
        return x_BTD, self.memory.after_block(x_BTD, handed_on, where), found, loss


class Reading(NamedTuple):
    """What a backbone returns.

    Attributes:
        top_BTD: the normalised outputs of the wanted rows.
        handed_on: by each layer, as its memory's form returned it.
        diagnostics: of all layers, scalars by name, such as `gate/layer2_head1` (counted from 1).
        auxiliary: the sum of the layers' auxiliary losses, [B] or [B, S]; None = there are none.
    """

    top_BTD: Tensor
    handed_on: tuple[Any, ...]
    diagnostics: dict[str, Tensor]
    auxiliary: Tensor | None


class Backbone(nn.Module):
    """What the Transformer is made of. `layers` and the rest are keys of `model` in the configuration.

    Args:
        vocab_size: V, the number of token ids.
        memories: makes a block's layer memory from the block's description.
        layers, width, heads: of the Transformer; `width` (D) is divided among the heads.
        kv_heads: key and value heads, each shared by heads / kv_heads query heads; None = as many as heads.
        head_width: K; None = width / heads.
        ffn_multiple: width of the feed-forward layer, as a multiple of `width`.
        ffn_width: the same as a number; None = from `ffn_multiple`.
        dropout: on the outputs of attention and feed-forward layers, during training.
        norm, norm_eps, norm_position, feed_forward, biases, positions, rope_base, rope_scaling, qk_norm: see
            `Description`.
        max_positions: size of the table of learned positions; None = no table, for all other positions.
        first_position: with learned positions, what of a segment stands at position 0: its first `token`, and
            memory tokens have no position; or its first `row`, also if that is a memory token, as in RMT
            around BERT (arXiv 2304.11062).
        tied_head: whether the head's weights are the embedding's.
        sliding_window: how many tokens back pretrained layers look, including the token itself, so that a
            context that is longer is refused; None = no limit.
        clamp_len: longer distances count as this one (only with Transformer-XL's positions); None = no limit.
        untie: whether every layer learns its own u and v (only with Transformer-XL's positions).

    Raises:
        ConfigError: the values do not go together.
    """

    def __init__(
        self,
        vocab_size: Positive,
        memories: Callable[[Description], LayerMemory],
        *,
        layers: Positive,
        width: Positive,
        heads: Positive,
        kv_heads: Positive | None = None,
        head_width: Positive | None = None,
        ffn_multiple: Positive = 4,
        ffn_width: Positive | None = None,
        dropout: Dropout = 0.0,
        norm: Literal["layer", "rms"] = "layer",
        norm_eps: NonNegativeFloat = 1e-5,
        norm_position: Literal["pre", "post"] = "pre",
        feed_forward: Literal["gelu", "gelu_tanh", "swiglu"] = "gelu",
        biases: list[Literal["qkv", "out", "ffn", "head"]] = ["qkv", "ffn", "head"],  # noqa: B006
        positions: Literal["rope", "transformer_xl", "learned", "none"] = "rope",
        rope_base: PositiveFloat = 10_000.0,
        max_positions: Positive | None = None,
        first_position: Literal["token", "row"] = "token",
        tied_head: bool = False,
        qk_norm: bool = False,
        rope_scaling: dict[str, Any] | None = None,
        sliding_window: Positive | None = None,
        clamp_len: Positive | None = None,
        untie: bool = False,
    ) -> None:
        super().__init__()
        if head_width is not None and head_width % 2:
            raise ConfigError(f"model.head_width={head_width} is odd; heads have an even width")
        if head_width is None and width % (2 * heads):
            raise ConfigError(
                f"model.width={width} does not divide into model.heads={heads} heads of even width"
            )
        self.head_width = head_width or width // heads
        if kv_heads is not None and heads % kv_heads:
            raise ConfigError(f"model.heads={heads} cannot be divided evenly among model.kv_heads={kv_heads}")
        if positions != "transformer_xl" and (untie or clamp_len is not None):
            option = "model.untie=true" if untie else f"model.clamp_len={clamp_len}"
            raise ConfigError(
                f"{option} is about the positions of Transformer-XL; found model.positions={positions}"
            )
        if (positions == "learned") != (max_positions is not None):
            needs = (
                "needs model.max_positions, the size of its table"
                if positions == "learned"
                else "has no table"
            )
            raise ConfigError(
                f"model.positions={positions} {needs}; found model.max_positions={max_positions}"
            )
        self.width, self.heads, self.kv_heads = width, heads, kv_heads or heads
        self.positions, self.clamp_len, self.sliding_window = positions, clamp_len, sliding_window
        self.rotary = Rotary.of(self.head_width, rope_base, rope_scaling) if positions == "rope" else None
        # whether the backward pass recomputes a block's activations, so that only its input is stored
        self.recompute = False
        self.embed = nn.Embedding(vocab_size, width)
        self.first_position = first_position
        self.learned_positions = nn.Embedding(max_positions, width) if max_positions is not None else None
        # u and v of Transformer-XL, shared by all layers as in its PyTorch code unless each has its own.
        biases_shape = (layers if untie else 1, 2, heads, self.head_width)
        self.distance_biases = (
            nn.Parameter(torch.empty(biases_shape)) if positions == "transformer_xl" else None
        )
        blocks = []
        for layer in range(1, layers + 1):
            description = Description(
                layer=layer,
                layers=layers,
                width=width,
                heads=heads,
                kv_heads=self.kv_heads,
                head_width=self.head_width,
                ffn_width=ffn_width or ffn_multiple * width,
                dropout=dropout,
                norm=norm,
                norm_eps=norm_eps,
                norm_position=norm_position,
                feed_forward=feed_forward,
                biases=tuple(biases),
                positions=positions,
                rope_base=rope_base,
                qk_norm=qk_norm,
            )
            blocks.append(Block(description, memories(description)))
        self.blocks: Any = nn.ModuleList(blocks)
        if positions == "transformer_xl" and all(m.attention.distance is None for m in self.memories):
            raise ConfigError(
                "model.positions=transformer_xl: no layer of this model.layer_memory looks at positions"
            )
        # With post-normalisation, rows enter and leave the blocks normalised.
        post = norm_position == "post"
        self.embed_norm = description.new_norm() if post else None
        self.norm = None if post else description.new_norm()
        self.head = nn.Linear(width, vocab_size, bias="head" in biases)
        initialise(self, layers, tied_head)

    @property
    def memories(self) -> list[LayerMemory]:
        """The layer memories, from the bottom."""
        return [block.memory for block in self.blocks]

    @property
    def device(self) -> torch.device:
        return self.embed.weight.device

    def init_state(self, batch_size: int) -> tuple[Any, ...]:
        """What each layer remembers at the start of a document."""
        return tuple(memory.init_state(batch_size) for memory in self.memories)

    def offset(self, states: Sequence[Any]) -> Tensor | None:
        """int [B]: tokens so far in each batch row's document; None if no layer has `positions_go_on`."""
        both = zip(self.memories, states, strict=True)
        return next((memory.offset(state) for memory, state in both if memory.positions_go_on), None)

    def embedded(self, tokens_BT: Tensor, where: Where, start: int) -> Tensor:
        """The input rows of tokens at positions `start` .. of their segment: [B, T, D].

        Raises:
            ConfigError: the table of learned positions, or the sliding window, is too short.
        """
        x_BTD: Tensor = self.embed(tokens_BT)
        start -= self._shift(where)
        again = where.segments if where.offset_B is None else 1  # how many times positions start over
        count = tokens_BT.shape[1] // again
        self._check_position(start + count - 1, where.offset_B)
        if self.learned_positions is not None:
            rows = self.learned_positions(where.positions(start, count))  # [T, D] or [B, T, D]
            x_BTD = x_BTD + torch.cat([rows] * again, dim=-2)
        return x_BTD

    def placed(self, rows_BMD: Tensor, where: Where, start: int) -> Tensor:
        """Memory tokens, which begin at position `start` of their segment, with their positions."""
        if self.learned_positions is None or self.first_position == "token":
            return rows_BMD
        start, count = start - self._shift(where), rows_BMD.shape[1]
        self._check_position(start + count - 1, None)
        placed: Tensor = rows_BMD + self.learned_positions(where.positions(start, count))
        return placed

    def _shift(self, where: Where) -> int:
        """The position of what stands at position 0 of the table."""
        return where.first if self.first_position == "row" and self.learned_positions is not None else 0

    def _check_position(self, last: int, offset_B: Tensor | None) -> None:
        """Raise if the table of learned positions has no entry for the last token of a call, or a token would
        look back further than the sliding window.
        """
        table = self.learned_positions
        if table is None and self.sliding_window is None:
            return
        if offset_B is not None and not offset_B.is_meta:  # on the meta device there are no values
            last += int(offset_B.max())
        if table is not None and last >= table.num_embeddings:
            raise ConfigError(
                f"a token stands at position {last}, and model.max_positions={table.num_embeddings}"
            )
        if self.sliding_window is not None and last >= self.sliding_window:
            raise ConfigError(
                f"a token stands at position {last}, and this model looks back over a window of "
                f"{self.sliding_window} tokens (model.sliding_window); use shorter segments"
            )

    def read(
        self, form: Form, x_BTD: Tensor, carried: Sequence[Any], where: Where, wanted: slice = ALL
    ) -> Reading:
        """Pass rows through all blocks.

        Args:
            form: the method of the layer memories that reads, see `memories/base.py`.
            carried: its second argument, one for each layer.
            wanted: the rows whose output is needed.
        """
        if self.embed_norm is not None:
            x_BTD = self.embed_norm(x_BTD)
        handed_on = []
        diagnostics: dict[str, Tensor] = {}
        auxiliary: Tensor | None = None
        for layer, (block, own) in enumerate(zip(self.blocks, carried, strict=True), 1):
            # below the top layer, the rows above look at all outputs
            here = self.at(where, layer, wanted if layer == len(self.blocks) else ALL)
            if self.recompute and torch.is_grad_enabled():
                x_BTD, own, found, loss = checkpoint(block, x_BTD, form, own, here, use_reentrant=False)
            else:
                x_BTD, own, found, loss = block(x_BTD, form, own, here)
            handed_on.append(own)
            if loss is not None:
                auxiliary = loss if auxiliary is None else auxiliary + loss
            for name, value in found.items():
                if value.dim():
                    diagnostics |= {f"{name}/layer{layer}_head{head}": v for head, v in enumerate(value, 1)}
                else:
                    diagnostics[f"{name}/layer{layer}"] = value
        top_BTD = x_BTD if self.norm is None else self.norm(x_BTD)
        return Reading(top_BTD, tuple(handed_on), diagnostics, auxiliary)

    def begin(self, states: Sequence[Any], where: Where) -> tuple[Any, ...]:
        """Open a segment in each layer."""
        both = zip(self.memories, states, strict=True)
        return tuple(memory.begin(state, self.at(where, n, ALL)) for n, (memory, state) in enumerate(both, 1))

    def close(self, opens: Sequence[Any]) -> tuple[Any, ...]:
        """Close it in each layer."""
        return tuple(memory.close(open) for memory, open in zip(self.memories, opens, strict=True))

    def at(self, where: Where, layer: int, wanted: slice) -> Where:
        """`where` for one layer, counted from 1."""
        offset_B = where.offset_B
        if offset_B is not None and not self.blocks[layer - 1].memory.positions_go_on:
            offset_B = None
        if self.distance_biases is None and wanted == ALL and offset_B is where.offset_B:
            return where
        return dataclasses.replace(where, relative=self.relative(layer), wanted=wanted, offset_B=offset_B)

    def relative(self, layer: int) -> Relative | None:
        """u and v of a layer, counted from 1; None = positions are not Transformer-XL's."""
        if self.distance_biases is None:
            return None
        content, distance = self.distance_biases[layer - 1 if len(self.distance_biases) > 1 else 0]
        return Relative(content, distance, self.clamp_len)


def initialise(backbone: Backbone, layers: int, tied_head: bool) -> None:
    """Initialise as GPT-2 does, at any width, with attention heads of two kinds.

    Weights are N(0, 1/fan_in), residual outputs are scaled by 1/sqrt(2 layers), and biases are zero, except
    in attention. There, half of the key-value heads (rounded down) and their queries begin by looking at
    positions: random query and key biases, whose product, rotated, only depends on the distance (with
    Transformer-XL's positions, a random v). The other heads begin by looking at content: the key projection
    equals the query projection, so that a token attends to tokens like itself. Training is free to change
    both. Without this, a token's neighbour and its equals have to be found together, and associative
    retrieval stays at 1/K for thousands of steps (docs/LOG.md, 2026-11-22; in the spirit of "mimetic"
    initialisation, arXiv 2305.09828 and 2410.11135).
    """
    for name, child in backbone.named_modules():
        if isinstance(child, nn.Linear):
            std = child.in_features**-0.5
            if name.endswith(("attention.out", "ffn.down")):
                std /= math.sqrt(2 * layers)
            nn.init.normal_(child.weight, std=std)
            if child.bias is not None:
                nn.init.zeros_(child.bias)
    biases = backbone.distance_biases
    if biases is not None:
        with torch.no_grad():
            biases.zero_()
            biases[0, 1, : backbone.kv_heads // 2 * (backbone.heads // backbone.kv_heads)].normal_(std=4.0)
            biases.copy_(biases[:1].expand_as(biases).clone())  # all layers begin with the same
    for child in backbone.modules():
        if isinstance(child, MultiHead):
            child.initialise_heads()
    for memory in backbone.memories:
        memory.initialise()
    if backbone.learned_positions is not None:
        nn.init.normal_(backbone.learned_positions.weight, std=backbone.width**-0.5)
    if tied_head:
        backbone.embed.weight = backbone.head.weight
