"""Small models in float64 with the same weights every time, for tests of what is built on models;
and how a model is read in pieces.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from memlab.models.compose import compose
from memlab.models.decoder import Decoder

SIZES: dict[str, Any] = {"layers": 2, "width": 8, "heads": 2, "ffn_multiple": 2, "dropout": 0.0}
MODELS: dict[str, dict[str, Any]] = {
    "rmt": {"layer_memory": "attention", "tokens": "rmt", "memory_tokens": 3},
    "memory_transformer": {"layer_memory": "attention", "tokens": "front", "memory_tokens": 3},
    "segment": {"layer_memory": "attention", "tokens": "none"},
    "full": {"layer_memory": "full", "tokens": "none"},
}


def build(name: str, vocab_size: int) -> Decoder:
    """One of `MODELS`."""
    torch.manual_seed(0)
    model = compose(SIZES | MODELS[name], vocab_size).double()
    assert isinstance(model, Decoder)
    return model


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
