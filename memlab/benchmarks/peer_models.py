"""Other implementations, as installed by the extra `peers`, with the same training step as ours.

Each is set up to do what our model does, as far as it has options for that: full back-propagation through the
memory, rotary positions if ours has them, no dropout, its fastest attention. Differences are in `differs`,
and bugs in `defects`; both were found by reading the versions named in pyproject.toml.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
import io
import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from memlab.benchmarks.measure import VOCABULARY, Work, optimizer
from memlab.benchmarks.settings import PeersConfig

Loss = Callable[[Tensor], Tensor]  # [B, T + 1] token ids to the mean loss of the T predictions, backward done


@dataclass(frozen=True)
class Peer:
    """One comparison.

    Attributes:
        model: the preset of ours.
        ours: settings of our model that make it do what the other one does.
        package: of the other.
        build: makes the other module, and its loss with gradients.
        differs: what the other computes differently.
        defects: of the other, reported by its users or seen in its source.
        note: about the comparison.
    """

    model: str
    ours: Mapping[str, Any]
    package: str
    build: Callable[[PeersConfig, int], tuple[nn.Module, Loss]]
    differs: str
    defects: str = "none known that touches training speed"
    note: str = field(default="")

    @property
    def version(self) -> str:
        return importlib.metadata.version(self.package)


def step(module: nn.Module, loss: Loss, tokens_BT: Tensor) -> Work:
    """Forward pass, backward pass and optimizer step, as in `measure.training_step`."""
    adam = optimizer(module)

    def one() -> Tensor:
        value = loss(tokens_BT)
        adam.step()
        adam.zero_grad()
        return value.detach()

    return one


def infini(sizes: PeersConfig, segment_length: int, delta: bool) -> tuple[nn.Module, Loss]:
    from infini_transformer_pytorch import InfiniTransformer, InfiniTransformerWrapper

    inner = InfiniTransformer(
        num_tokens=VOCABULARY,
        dim=sizes.width,
        depth=sizes.layers,
        dim_head=sizes.width // sizes.heads,
        heads=sizes.heads,
        use_mem_delta_rule=delta,
    )
    never = 1 << 60
    module = InfiniTransformerWrapper(
        inner, segment_length=segment_length, detach_mems_every_num_segments=never
    )
    return module, lambda tokens_BT: module(tokens_BT, backward=True)


def memorizing(sizes: PeersConfig, segment_length: int) -> tuple[nn.Module, Loss]:
    from memorizing_transformers_pytorch import MemorizingTransformer

    module = MemorizingTransformer(
        num_tokens=VOCABULARY,
        dim=sizes.width,
        depth=sizes.layers,
        dim_head=sizes.width // sizes.heads,
        heads=sizes.heads,
        memorizing_layers=MEMORY_LAYER,
        max_knn_memories=65_536,
        num_retrieved_memories=32,
        xl_max_memories=segment_length,
        pad_id=-100,
    )

    def loss(tokens_BT: Tensor) -> Tensor:
        segments = list(
            zip(
                tokens_BT[:, :-1].split(segment_length, 1),
                tokens_BT[:, 1:].split(segment_length, 1),
                strict=True,
            )
        )
        losses, carried = [], None
        with (
            tempfile.TemporaryDirectory() as module.knn_memories_directory,
            module.knn_memories_context(batch_size=len(tokens_BT)) as memories,
        ):
            for ids, labels in segments:
                value, carried = module(ids, memories, xl_memories=carried, labels=labels)
                losses.append(value)
            mean = torch.stack(losses).mean()
            mean.backward()
        return mean

    return module, loss


def transformer_xl(sizes: PeersConfig, segment_length: int, **positions: bool) -> tuple[nn.Module, Loss]:
    from x_transformers import Decoder, TransformerWrapper
    from x_transformers.xl_autoregressive_wrapper import XLAutoregressiveWrapper

    layers = Decoder(
        dim=sizes.width,
        depth=sizes.layers,
        heads=sizes.heads,
        attn_dim_head=sizes.width // sizes.heads,
        verbose=False,
        **positions,
    )
    inner = TransformerWrapper(
        num_tokens=VOCABULARY, max_seq_len=segment_length, max_mem_len=segment_length, attn_layers=layers
    )
    return _backward(XLAutoregressiveWrapper(inner))


def rmt(sizes: PeersConfig, segment_length: int, **settings: Any) -> tuple[nn.Module, Loss]:
    from recurrent_memory_transformer_pytorch import (
        RecurrentMemoryTransformer,
        RecurrentMemoryTransformerWrapper,
    )

    inner = RecurrentMemoryTransformer(
        sizes.width,
        num_tokens=VOCABULARY,
        depth=sizes.layers,
        num_memory_tokens=sizes.memory_tokens,
        seq_len=segment_length,
        dim_head=sizes.width // sizes.heads,
        heads=sizes.heads,
        use_flash_attn=True,
        use_xl_memories=False,
        **settings,
    )
    module = RecurrentMemoryTransformerWrapper(inner)
    return _backward(module, lambda tokens_BT: module(tokens_BT, return_loss=True)[0])


def _backward(module: nn.Module, loss: Loss | None = None) -> tuple[nn.Module, Loss]:
    def both(tokens_BT: Tensor) -> Tensor:
        value = (loss or module)(tokens_BT)
        value.backward()
        return value

    return module, both


MEMORY_LAYER = 2  # counted from 1, on both sides

_INFINI = {
    "package": "infini-transformer-pytorch",
    "differs": (
        "segments one after the other; gated feed-forward of equal size; gate is the segment's share"
    ),
    "defects": (
        "gates begin at sigmoid(10), so that memory gets 0.005% of the output and hardly any gradient; as "
        "installed, memory is detached after every second segment (not here)"
    ),
}
_XL = {
    "package": "x-transformers",
    "differs": "segments one after the other; attention without key, query and value biases",
}
_RMT = {
    "package": "recurrent-memory-transformer-pytorch",
    "defects": (
        "a caller's labels are overwritten; its wrapper does not hand XL memories on; generation reads the "
        "whole segment again for each token"
    ),
}
PEERS: dict[str, Peer] = {
    "infini": Peer("infini", {}, build=lambda sizes, n: infini(sizes, n, delta=False), **_INFINI),
    "infini_delta": Peer("infini_delta", {}, build=lambda sizes, n: infini(sizes, n, delta=True), **_INFINI),
    "memorizing": Peer(
        "memorizing",
        {"kv_heads": 1, "memory_layer": MEMORY_LAYER, "top_k": 32, "memory_size": 65_536},
        "memorizing-transformers-pytorch",
        memorizing,
        differs="segments one after the other; approximate neighbours (HNSW on the processor); "
        "one softmax over neighbours and segment, no gate; T5 position bias; one key-value head for all, "
        "as ours has here",
        defects="a full memory is emptied instead of losing its oldest rows; clearing at document borders "
        "raises NameError; needs einops-exts, which it does not declare",
    ),
    "transformer_xl": Peer(
        "transformer_xl",
        {},
        build=lambda sizes, n: transformer_xl(sizes, n, rel_pos_bias=True),
        note="each with its own kind of positions: ours Transformer-XL's, theirs T5's bias, as in its README",
        **_XL,
    ),
    "transformer_xl_rope": Peer(
        "transformer_xl",
        {"positions": "rope"},
        build=lambda sizes, n: transformer_xl(sizes, n, rotary_pos_emb=True, attn_flash=True),
        note="rotary positions and fused attention on both sides",
        **_XL,
    ),
    "rmt": Peer(
        "rmt",
        {},
        build=lambda sizes, n: rmt(
            sizes,
            n,
            abs_pos_emb=False,
            rotary_pos_emb=True,
            emb_gradient_frac=1.0,
            add_write_to_next_write_mem=True,
            next_write_mem_stop_grad=False,
            num_residual_streams=1,
        ),
        differs="a null key and value, value residuals, gated feed-forward of equal size",
        note="set up as the paper's model",
        **_RMT,
    ),
    "rmt_as_installed": Peer(
        "rmt",
        {},
        build=lambda sizes, n: rmt(sizes, n),
        differs="hyper-connections of 4 streams, absolute positions, a tenth of the embeddings' gradient, "
        "write memory that does not depend on the memory read, in addition to the line above",
        note="with its defaults",
        **_RMT,
    ),
}


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the peers' warnings (about deprecated torch functions) and output."""
    with warnings.catch_warnings(), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield
