"""Small composed models in float64, for tests that compare them with formulas.

Every parameter has noise on it: biases of 0 and gains of 1 would hide mistakes in their use.
"""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from memlab.models.base import Model
from memlab.models.compose import compose
from memlab.models.decoder import Decoder

VOCABULARY = 13
SIZES: dict[str, Any] = {"layers": 2, "width": 8, "heads": 2, "ffn_multiple": 3}
M = TypeVar("M", bound=nn.Module)


def build(layer_memory: str | list[str] = "attention", tokens: str = "none", **options: Any) -> Model:
    """The model of these choices, with the same weights every time; `options` are keys of `model`."""
    torch.manual_seed(0)
    return disturb(compose(SIZES | options | {"layer_memory": layer_memory, "tokens": tokens}, VOCABULARY))


def decoder(layer_memory: str | list[str] = "attention", tokens: str = "none", **options: Any) -> Decoder:
    """The same, of a model that predicts the next token."""
    model = build(layer_memory, tokens, **options)
    assert isinstance(model, Decoder)
    return model


def disturb(model: M) -> M:
    """The model in float64 with noise on every parameter."""
    generator = torch.Generator().manual_seed(1)
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    return model


def tokens(*shape: int, seed: int = 3) -> Tensor:
    """Token ids."""
    return torch.randint(VOCABULARY, shape, generator=torch.Generator().manual_seed(seed))


def read_in_pieces(model: Decoder, tokens_BSN: Tensor, pieces: list[int]) -> tuple[Tensor, Any]:
    """Every segment by begin, extend in pieces of these sizes, close: logits [B, S N, V], the last state."""
    state, logits = model.init_state(len(tokens_BSN)), []
    for tokens_BN in tokens_BSN.unbind(1):
        open = model.begin(state)
        for piece in tokens_BN.split(pieces, dim=1):
            logits_BnV, open = model.extend(piece, open)
            logits.append(logits_BnV)
        state = model.close(open)
    return torch.cat(logits, dim=1), state
