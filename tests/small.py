"""Small models in float64 with the same weights every time, for tests of what is built on models; and how a
model is read in pieces.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from torch import Tensor

from memlab.config.compose_model import model_values
from memlab.models.base import Model
from memlab.models.compose import compose

SIZES: dict[str, Any] = {"layers": 2, "width": 8, "heads": 2, "ffn_multiple": 2}
OWN: dict[str, dict[str, Any]] = {  # beside the preset's values
    "rmt": {"memory_tokens": 3},
    "rmt_xl": {"memory_tokens": 3},
    "rmt_encoder": {"memory_tokens": 3},
    "memory_transformer": {"memory_tokens": 3},
    "transformer_xl": {"positions": "rope"},
}
CONTEXTS = ("segment", "full")


def build(name: str, vocab_size: int, **values: Any) -> Model:
    """A preset, or `segment` or `full`: the Transformer without a memory, of that context.

    Args:
        values: of other keys of `model`, before those of this file and of the preset.
    """
    preset, own = ("transformer", {"context": name}) if name in CONTEXTS else (name, OWN.get(name, {}))
    torch.manual_seed(0)
    return compose({**_preset(preset), **SIZES, **own, **values}, vocab_size).double()


@cache
def _preset(name: str) -> dict[str, Any]:
    return model_values(name)


def read_in_pieces(model: Model, tokens_BSN: Tensor, pieces: list[int]) -> tuple[Tensor, Any]:
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
