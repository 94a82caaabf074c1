"""Small models in float64 with the same weights every time, for tests of what is built on models;
and how a model is read in pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memlab.models.base import Decoder
from memlab.models.memory_transformer import MemoryTransformer
from memlab.models.rmt import RMT
from memlab.models.transformer import Transformer


def build(name: str, vocab_size: int) -> Decoder:
    """`rmt`, `memory_transformer`, or a transformer of context `segment` or `full`."""
    torch.manual_seed(0)
    sizes = {"vocab_size": vocab_size, "layers": 2, "width": 8, "heads": 2, "ffn_multiple": 2, "dropout": 0.0}
    models = {
        "rmt": lambda: RMT(memory_tokens=3, write_memory="carried", **sizes),
        "memory_transformer": lambda: MemoryTransformer(memory_tokens=3, **sizes),
        "segment": lambda: Transformer(context="segment", **sizes),
        "full": lambda: Transformer(context="full", **sizes),
    }
    return models[name]().double()


def read_in_pieces(model: Decoder, tokens_BSN: Tensor, pieces: list[int]) -> tuple[Tensor, Any]:
    """Every segment by begin, extend in pieces of these sizes, close: logits [B, S * N,
    V] and the last state.
    """
    state, logits = model.init_state(len(tokens_BSN)), []
    for tokens_BN in tokens_BSN.unbind(1):
        open = model.begin(state)
        for piece in tokens_BN.split(pieces, dim=1):
            logits_BnV, open = model.extend(piece, open)
            logits.append(logits_BnV)
        state = model.close(open)
    return torch.cat(logits, dim=1), state
